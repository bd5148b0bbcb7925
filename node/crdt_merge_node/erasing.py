"""Carries out what administrators erase: the bytes go from this node, and it signs that they are gone.

    ERASE in the view -> what nobody else needs is destroyed, caches too -> RECEIPT (SCENARIOS T35, T36)

It is level-triggered: every comparison of a group with the store begins here, so nothing that was erased is
looked at, asked for or given away after the act has arrived; and so does a start, before anybody is heard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from crdt_merge_protocol.blobs import content_id, payload_id
from crdt_merge_protocol.engine import Engine
from crdt_merge_protocol.operations import Add, Kind, Receipt, read_body
from crdt_merge_protocol.packing import packing_id
from crdt_merge_protocol.state import CRDTMergeState
from crdt_merge_protocol.view import Decided

from .consisting import bases_of, blobs_of, only_of, packings_of
from .errors import StorageError, StoreFailedError
from .gossip import GossipDriver
from .storage import Store
from .telemetry.logging import get_logger

log = get_logger()

RECEIPT_ERASURES_MAX: Final = 256
"""Erasures in one RECEIPT; they stand in the body and in the references."""
RETRY_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Doomed:
    """What is to go, and what may not go with it: ids of manifests and of payloads."""

    contents: frozenset[bytes]
    payloads: frozenset[bytes]
    kept_contents: frozenset[bytes]
    """Of contributions that nobody banned, and of bases, in any group."""
    kept_payloads: frozenset[bytes]
    """Of contributions whose metadata stays, in any group."""


class Erasures:
    """The erasures of all groups, on this node."""

    def __init__(
        self,
        *,
        engine: Engine,
        driver: GossipDriver,
        store: Store,
        again: Callable[[bytes], None],
    ) -> None:
        """Take where bytes are, who signs, and who has a group looked at again after a failure."""
        self._engine = engine
        self._driver = driver
        self._store = store
        self._again = again
        self._carried_out: dict[bytes, tuple[frozenset[bytes], frozenset[bytes]]] = {}
        """group -> (contents, tags) of which nothing is here any more."""
        self._signed: set[tuple[bytes, bytes]] = set()
        """(group, erasure) for which there is a RECEIPT of this node, or one on its way."""
        self._payloads: dict[bytes, frozenset[bytes]] = {}
        """Group -> payloads that its administrators had destroyed."""
        self._turn = asyncio.Lock()

    def is_erased_payload(self, group: bytes, payload: bytes) -> bool:
        """Tell whether these notes belong to an erased contribution of a group, whoever names them there."""
        return payload in self._payloads.get(group, ())

    async def enforce(self, group: bytes) -> None:
        """Destroy what the acts of a group erase, and sign that it is gone.

        Raises:
            StoreFailedError: The disk failed.
        """
        state = self._engine.replicas[group].state
        decided = state.view.decided
        if decided.erasures and await self.destroy(group):
            await self._sign(group, decided)

    async def destroy(self, group: bytes) -> bool:
        """Destroy what the acts of a group erase; False if that failed and is tried again."""
        async with self._turn:  # What one group erases, another may be about to need.
            state = self._engine.replicas[group].state
            decided = state.view.decided
            now = decided.erased, decided.erased_tags
            if not decided.erasures or self._carried_out.get(group) == now:
                return True
            doomed = self._doomed(state, decided)
            self._payloads[group] = doomed.payloads
            try:
                destroyed = await asyncio.to_thread(self._destroy, group, doomed)
            except StoreFailedError:
                raise
            except StorageError as error:
                log.error("erasure.failed", group=group, error=error)  # noqa: TRY400 - a person reads it.
                asyncio.get_running_loop().call_later(RETRY_S, self._again, group)
                return False
            self._carried_out[group] = now
            if destroyed:
                log.info("erasure.completed", group=group, count=destroyed)
            return True

    def _doomed(self, state: CRDTMergeState, decided: Decided) -> Doomed:
        """Return what one group erases, and what all groups still need.

        Anybody may found a group and be its administrator. So notes that another group names stay, and an id
        is destroyed only as what the act means by it (:meth:`_destroy`).
        """
        payloads = {add.payload for _, add in _adds(state, decided.erased_tags) if add.payload is not None}
        kept_contents: set[bytes] = set()
        kept_payloads: set[bytes] = set()
        for replica in self._engine.replicas.values():
            other = replica.state
            theirs = other.view.decided
            named: set[bytes] = set()
            for tag, add in _adds(other, other.adds):
                if add.content not in theirs.banned:
                    kept_contents.add(add.content)
                if add.payload is not None and tag not in theirs.erased_tags:
                    named.add(add.payload)
            kept_payloads |= named - payloads if other is state else named
            kept_contents |= bases_of(other)
        return Doomed(
            contents=decided.erased,
            payloads=frozenset(payloads - kept_payloads),
            kept_contents=frozenset(kept_contents),
            kept_payloads=frozenset(kept_payloads),
        )

    def _destroy(self, group: bytes, doomed: Doomed) -> int:
        """Destroy everything; return how many objects and blobs it was. Blocks."""
        contents = only_of(self._store, doomed.contents - doomed.kept_contents, content_id)
        payloads = only_of(self._store, doomed.payloads, payload_id)
        packings = only_of(self._store, packings_of(self._store, payloads), packing_id)
        if packings:
            packings -= packings_of(self._store, doomed.kept_payloads)
        objects = {*contents, *payloads, *packings}
        named = blobs_of(self._store, contents)
        needed = named & blobs_of(self._store, doomed.kept_contents) if named else set()
        blobs = self._store.blobs
        present = sum(blobs.has_object(id_) for id_ in objects) + sum(
            blobs.has(id_) for id_ in named - needed
        )
        if present or len(blobs.erased_among(objects)) < len(objects):
            if present:
                self._forget_outputs(group)
            blobs.erase(objects=objects, blobs=named - needed, beside=needed)
        return present

    def _forget_outputs(self, group: bytes) -> None:
        """Drop what was kept of earlier resolves, for nobody knows what went into it."""
        from .report.kept import forget as forget_report
        from .resolve.remembered import forget as forget_outputs

        data = self._store.data
        forget_outputs(data.path, fs=data.fs)
        forget_report(data.path, group.hex(), fs=data.fs)

    async def _sign(self, group: bytes, decided: Decided) -> None:
        """Tell the group which of its erasures are carried out here, unless it knows."""
        if not self._driver.standing.is_open:
            return
        own = self._engine.node
        due = sorted(
            erasure
            for erasure in decided.erasures
            if (erasure, own) not in decided.receipts and (group, erasure) not in self._signed
        )
        for start in range(0, len(due), RECEIPT_ERASURES_MAX):
            page = tuple(due[start : start + RECEIPT_ERASURES_MAX])
            try:
                await self._driver.author(group, Kind.RECEIPT, Receipt(erasures=page).encode(), page)
            except StoreFailedError:
                raise
            except StorageError as error:
                log.warning("receipt.failed", group=group, error=error)
                asyncio.get_running_loop().call_later(RETRY_S, self._again, group)
                return
            self._signed.update((group, erasure) for erasure in page)


def _adds(state: CRDTMergeState, tags: Iterable[bytes]) -> Iterable[tuple[bytes, Add]]:
    for tag in sorted(tags):
        signed = state.get(tag)
        add = read_body(signed.operation) if signed is not None else None
        if isinstance(add, Add):
            yield tag, add
