"""Rebuilding a node's state from its store at the start, and what an orderly stop leaves for that.

Nothing in the store can keep a node from starting (SCENARIOS T52): what is unreadable is left out, reported
and, where peers have it, fetched again.
"""

from __future__ import annotations

from crdt_merge_protocol.engine import Engine
from crdt_merge_protocol.genesis import Genesis

from .alarms import Alarms
from .attesting import load_attestations
from .control.model import Severity
from .errors import StorageError
from .storage import Store, compare_root, replay, save_root
from .stored_ids import read_id
from .telemetry.logging import get_logger

log = get_logger()


async def load(engine: Engine, store: Store, alarms: Alarms) -> None:
    """Rebuild groups, peers, blocks and attestations (SCENARIOS 7, boot)."""
    for group, genesis in store.groups():
        await _load_group(engine, store, alarms, group, Genesis.decode(genesis))
    for key, value in await store.scan_meta("peer/"):
        if peer := _peer_of(key):
            engine.overlay.learn(peer, value.decode(errors="replace").split("\n"))
    for key, _ in await store.scan_meta("blocked/"):
        if peer := _peer_of(key):
            engine.overlay.block(peer)
    for key, _ in await store.scan_meta("left/"):
        if peer := _peer_of(key):
            engine.overlay.forget(peer)
    await load_attestations(store, engine.attestations, engine.node)


async def _load_group(engine: Engine, store: Store, alarms: Alarms, group: bytes, genesis: Genesis) -> None:
    state = engine.open_group(genesis).state
    replayed = replay(store, group, state.apply)
    problem = await compare_root(store, group, root=state.sync_root, count=len(state))
    if replayed.quarantined:
        problem = f"{len(replayed.quarantined)} stored operations are unreadable"
    if problem is None:
        return
    log.error("root.mismatched", group=group, reason=problem)
    alarms.set(
        f"root.mismatched/{group.hex()}",
        severity=Severity.DAMAGE,
        code="E1501",
        message=f"group {group.hex()[:12]}: {problem}.",
        hint="Peers send again what is missing. Check the disk.",
    )


async def save_roots(engine: Engine, store: Store) -> None:
    """Remember the roots, for the next start to compare with what it rebuilds."""
    try:
        for group, replica in engine.replicas.items():
            await save_root(store, group, root=replica.state.sync_root, count=len(replica.state))
    except StorageError as error:
        log.debug("root.forgotten", error=error)  # The next start has less to compare with, and no more.


def _peer_of(key: str) -> bytes | None:
    return read_id(key.rpartition("/")[2])
