"""This node's attestations over restarts, and the alarm when another node wrote other bytes (DESIGN 3.2)."""

from __future__ import annotations

from typing import Final

from crdt_merge_protocol.attestations import Attestations
from crdt_merge_protocol.errors import RemoteProtocolError
from crdt_merge_protocol.events import AttestationMismatch
from crdt_merge_protocol.messages.gossip import Attest

from .alarms import Alarms
from .control.model import Severity
from .gossip import GossipDriver
from .storage import Store
from .stored_ids import read_id
from .telemetry.logging import get_logger

log = get_logger()

PREFIX: Final = "attest/"


async def load_attestations(store: Store, attestations: Attestations, node: bytes) -> None:
    """Take up what this node attested before; what is unreadable is dropped."""
    for key, value in await store.scan_meta(PREFIX):
        try:
            attestations.record(node, Attest.from_body(value))
        except RemoteProtocolError:
            await store.delete_meta(key)


async def remember_attestation(store: Store, attestations: Attestations, attest: Attest) -> None:
    """Keep an attestation over restarts, and as many others as are kept in memory."""
    prefix = f"{PREFIX}{attest.group.hex()}/"
    changes: dict[str, bytes | None] = {
        key: None
        for key, _ in await store.scan_meta(prefix)
        if not attestations.is_kept(attest.group, read_id(key.removeprefix(prefix)) or b"")
    }
    await store.update_meta(changes | {prefix + attest.resolve_key.hex(): attest.to_body()})


def alarm_mismatch(alarms: Alarms, driver: GossipDriver, effect: AttestationMismatch) -> None:
    """Raise the alarm that two nodes wrote different bytes for one resolve key."""
    key = effect.resolve_key.hex()
    is_new = alarms.set(
        f"resolve.disagreed/{key}/{effect.peer.hex()}",
        severity=Severity.DAMAGE,
        code="resolve.disagreed",
        message=(
            f"for resolve key {key[:12]} this node wrote {effect.ours.hex()[:12]} and"
            f" {driver.name(effect.peer) or effect.peer.hex()[:12]} wrote {effect.theirs.hex()[:12]}."
        ),
        hint="Equal keys must have equal outputs: suspect memory, disk or release of one of the two.",
    )
    if is_new:
        log.error("resolve.disagreed", group=effect.group, peer=effect.peer, resolve_key=effect.resolve_key)
