"""One group on one node: the durable state, what is on its way to the disk, and this node's own log.

An operation goes through three places, always in causal order:

    received or authored -> in flight (verified, handed to storage) -> state (durable)

Only the state is shown to peers, counted in roots or built upon by ``deps``: an id is *seen* once it is
durable, never merely received (PROTOCOL 3). What misses its past waits in the orphan buffer. Operations
refused once are remembered by the hash of their signed bytes, never by id: a garbage signature in front of
an honest id would otherwise censor it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from .canonical import digest
from .errors import MalformedMessageError, RemoteProtocolError
from .genesis import Genesis
from .identity import NodeKey
from .operations import Operation, SignedOperation, sign_operation
from .orphans import OrphanBuffer
from .state import CRDTMergeState

REFUSALS_REMEMBERED_MAX = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What became of a batch of received operations."""

    accepted: tuple[SignedOperation, ...]
    """New and complete in their past: to be stored in this order."""
    durable: tuple[bytes, ...]
    """Ids that were in the state already."""
    is_waiting: bool
    """Some miss their past; a sync with the sender will bring it."""


class Replica:
    """The replicated state of one group and the way operations take into it."""

    def __init__(self, genesis: Genesis, key: NodeKey, log: bytes) -> None:
        self.state = CRDTMergeState(genesis)
        self.group = self.state.group
        self._key = key
        self._log = log
        """Fresh at every start, so that a restored backup cannot fork by accident (PROTOCOL R4)."""
        self._seq = 0
        self._previous: bytes | None = None
        self._in_flight: dict[bytes, SignedOperation] = {}
        self._orphans = OrphanBuffer()
        self._refused: OrderedDict[bytes, None] = OrderedDict()

    @property
    def in_flight_count(self) -> int:
        """Operations handed to storage and not yet durable."""
        return len(self._in_flight)

    @property
    def orphan_count(self) -> int:
        """Operations waiting for their past."""
        return len(self._orphans)

    def author(self, kind: int, body: bytes, refs: Iterable[bytes] = ()) -> SignedOperation:
        """Sign this node's next operation and put it in flight."""
        operation = Operation(
            group=self.group,
            author=self._key.node_id,
            log=self._log,
            seq=self._seq,
            prev=self._previous,
            deps=self.state.choose_deps(),
            refs=tuple(sorted(refs)),
            kind=kind,
            body=body,
        )
        signed = sign_operation(operation, self._key)
        self._seq += 1
        self._previous = signed.id
        self._in_flight[signed.id] = signed
        return signed

    def receive(self, wires: Iterable[bytes], peer: bytes) -> Receipt:
        """Verify operations sent by a peer and sort them into known, acceptable and waiting.

        Raises:
            RemoteProtocolError: One of them is not a valid operation of this group.
        """
        accepted: list[SignedOperation] = []
        durable: list[bytes] = []
        is_waiting = False
        for wire in wires:
            signed = self._verify(wire)
            if signed.id in self.state:
                durable.append(signed.id)
            elif signed.id in self._in_flight:
                continue
            elif missing := self._missing(signed):
                self._orphans.add(signed, peer, missing)
                is_waiting = True
            else:
                self._accept(signed, accepted)
        return Receipt(accepted=tuple(accepted), durable=tuple(durable), is_waiting=is_waiting)

    def stored(self, ids: Iterable[bytes]) -> list[SignedOperation]:
        """Move operations from in flight into the state; return those that were new to it."""
        applied = []
        for operation_id in ids:
            signed = self._in_flight.pop(operation_id)
            if self.state.apply(signed):
                applied.append(signed)
        return applied

    def forget_peer(self, peer: bytes) -> None:
        """Drop the orphans of a peer that has gone."""
        self._orphans.forget_peer(peer)

    def _accept(self, signed: SignedOperation, accepted: list[SignedOperation]) -> None:
        ready = [signed]
        while ready:
            current = ready.pop(0)
            self._check_predecessor(current)
            self._in_flight[current.id] = current
            accepted.append(current)
            ready += self._orphans.accept(current.id)

    def _verify(self, wire: bytes) -> SignedOperation:
        key = digest("crdt-merge/refused/1", wire)
        if key in self._refused:
            raise MalformedMessageError("an operation that was refused before was sent again")
        try:
            signed = SignedOperation.parse(wire)
            if signed.operation.group != self.group:
                raise MalformedMessageError("an operation of another group was sent")
        except RemoteProtocolError:
            self._refused[key] = None
            if len(self._refused) > REFUSALS_REMEMBERED_MAX:
                self._refused.popitem(last=False)
            raise
        return signed

    def _missing(self, signed: SignedOperation) -> list[bytes]:
        return [needed for needed in self.state.missing(signed) if needed not in self._in_flight]

    def _check_predecessor(self, signed: SignedOperation) -> None:
        """Refuse, before anything is stored, what does not continue its own log (PROTOCOL R5)."""
        operation = signed.operation
        if operation.prev is None:
            return
        found = self._in_flight.get(operation.prev) or self.state.get(operation.prev)
        assert found is not None, "an operation is accepted only after its past"
        previous = found.operation
        if (previous.author, previous.log, previous.seq) != (
            operation.author,
            operation.log,
            operation.seq - 1,
        ):
            raise MalformedMessageError(f"operation {signed.id.hex()[:12]} does not continue its own log")
