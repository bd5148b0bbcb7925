"""One group on one node: the durable state, what is on its way to the disk, and this node's own log.

An operation goes through three places, always in causal order:

    received or authored -> in flight (verified, handed to storage) -> state (durable)

Only the state is shown to peers, counted in roots or built upon by ``deps``: an id is *seen* once it is
durable, never merely received (PROTOCOL 3). What misses its past waits in the orphan buffer. Operations
refused once are remembered by the hash of their signed bytes, never by id: a garbage signature in front of
an honest id would otherwise censor it.

What a revoked key signed beyond its heads is refused, but not at once and for ever: somebody who does not
know the REVOKE yet may build upon it, and then it is kept. So it is *aside* for a while, in memory and
nowhere else, and goes to the disk before the first operation that builds upon it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass

from .canonical import digest
from .errors import LocalProtocolError, MalformedMessageError, RemoteProtocolError
from .genesis import Genesis
from .identity import NodeKey
from .limits import ASIDE_BYTES_MAX
from .operations import LOG_BYTES, Operation, SignedOperation, sign_operation
from .orphans import OrphanBuffer
from .reading import Reading
from .state import CRDTMergeState

REFUSALS_REMEMBERED_MAX = 4096
_REFUSED = "crdt-merge/refused/1"
_NEXT_LOG = "crdt-merge/next-log/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What became of a batch of received operations."""

    accepted: tuple[SignedOperation, ...]
    """New and complete in their past: to be stored in this order."""
    durable: tuple[bytes, ...]
    """Ids that were in the state already."""
    in_flight: tuple[bytes, ...]
    """Ids that were on their way to the disk already."""
    aside: tuple[bytes, ...]
    """Ids of operations that a REVOKE excludes and nothing kept was made after: not to be stored."""
    is_waiting: bool
    """Some miss their past; a sync with the sender will bring it."""
    refused: RemoteProtocolError | None
    """Why the batch was not read to its end. What stands before that in it is as good as ever."""


class Replica:
    """The replicated state of one group and the way operations take into it."""

    def __init__(self, genesis: Genesis, key: NodeKey, log: bytes) -> None:
        self.state = CRDTMergeState(genesis)
        self.group = self.state.group
        self.genesis_bytes = genesis.encode()
        self.in_flight_bytes = 0
        """Of operations handed to storage and not yet durable."""
        self._key = key
        self._in_flight: dict[bytes, SignedOperation] = {}
        self._orphans = OrphanBuffer()
        self._refused: OrderedDict[bytes, None] = OrderedDict()
        self._begin_log(log)

    def _begin_log(self, log: bytes) -> None:
        """Begin a log of this node's own, so that it cannot fork by accident (PROTOCOL R4)."""
        self._log = log
        self._seq = 0
        self._previous: bytes | None = None

    @property
    def in_flight_count(self) -> int:
        """Operations handed to storage and not yet durable."""
        return len(self._in_flight)

    @property
    def orphan_count(self) -> int:
        """Operations waiting for their past."""
        return len(self._orphans)

    def is_in_flight(self, operation_id: bytes) -> bool:
        """Tell whether an operation is verified and on its way to the disk."""
        return operation_id in self._in_flight

    def is_here(self, operation_id: bytes) -> bool:
        """Tell whether an operation is durable, or verified and on its way to the disk, or aside."""
        return operation_id in self._in_flight or self.state.find(operation_id) is not None

    def author(self, kind: int, body: bytes, refs: Iterable[bytes] = ()) -> SignedOperation:
        """Sign this node's next operation and put it in flight.

        Raises:
            LocalProtocolError: It names what is not here, or no node would accept it, or this node's key was
                revoked.
        """
        if self._previous is not None and not (
            self._previous in self.state or self._previous in self._in_flight
        ):
            self._begin_log(digest(_NEXT_LOG, self._log)[:LOG_BYTES])  # What was said before was dropped.
        named = tuple(sorted(refs))
        if unknown := [id_ for id_ in named if id_ not in self.state and id_ not in self._in_flight]:
            raise LocalProtocolError(f"operation {unknown[0].hex()[:12]} is not here to be named.")
        operation = Operation(
            group=self.group,
            author=self._key.node_id,
            log=self._log,
            seq=self._seq,
            prev=self._previous,
            deps=self.state.choose_deps(),
            refs=named,
            kind=kind,
            body=body,
        )
        signed = sign_operation(operation, self._key)
        if self.state.is_excluded(signed):
            raise LocalProtocolError(
                "the key of this node was revoked in this group: nothing that it signs from now on counts."
            )
        self._seq += 1
        self._previous = signed.id
        self._launch(signed)
        return signed

    def receive(self, wires: Iterable[bytes], peer: bytes, reading: Reading | None = None) -> Receipt:
        """Verify operations sent by a peer and sort them into known, acceptable and waiting. Never raises.

        Args:
            wires: The signed operations, in the order in which they came.
            peer: Who sent them.
            reading: What was found out about these bytes before.
        """
        reading = reading or Reading()
        accepted: list[SignedOperation] = []
        durable: list[bytes] = []
        in_flight: list[bytes] = []
        aside: list[bytes] = []
        is_waiting = False
        refused: RemoteProtocolError | None = None
        for wire in wires:
            try:
                signed = self._load(wire, reading)
                if self.is_here(signed.id):  # Nothing will be done with this copy, nor spent on it.
                    self._place_of(signed.id, durable, in_flight, aside).append(signed.id)
                    continue
                self._verify(wire, signed, reading)
                if missing := self._missing(signed):
                    self._orphans.add(signed, peer, missing)
                    is_waiting = True
                else:
                    self._accept(signed, accepted, aside)
            except RemoteProtocolError as error:
                refused = error
                break
        return Receipt(
            accepted=tuple(accepted),
            durable=tuple(durable),
            in_flight=tuple(in_flight),
            aside=tuple(aside),
            is_waiting=is_waiting,
            refused=refused,
        )

    def unchecked(self, wires: Iterable[bytes], reading: Reading) -> list[tuple[bytes, SignedOperation]]:
        """Return, with its bytes, every operation whose signature :meth:`receive` would check. Never raises.

        That ends where :meth:`receive` would refuse something for another reason.
        """
        found: dict[bytes, SignedOperation] = {}
        for wire in wires:
            if self.is_refused(wire):
                break
            try:
                signed = reading.load(wire)
            except RemoteProtocolError:
                break
            if self.is_here(signed.id):
                continue
            if signed.operation.group != self.group:
                break
            found[wire] = signed
        return list(found.items())

    def stored(self, ids: Iterable[bytes]) -> list[SignedOperation]:
        """Move operations from in flight into the state; return those that are new to it, in causal order."""
        applied = []
        for operation_id in ids:
            signed = self._in_flight.pop(operation_id)
            self.in_flight_bytes -= len(signed.encoded)
            past = self.state.aside_past([signed]) if self.state.aside_bytes else ()
            if self.state.apply(signed):
                applied += [*past, signed]
        return applied

    def take_dropped(self) -> tuple[bytes, ...]:
        """Return what need not be stored any more: all to be deleted at once, before what is stored next."""
        return self.state.take_dropped(but=self._needed()) if self.state.has_dropped else ()

    def forget_aside(self) -> None:
        """Forget what is aside. Not while a sync session of the group is under way: it may bring more."""
        if self.state.aside_bytes:
            self.state.forget_aside(but=self._needed())

    def _needed(self) -> frozenset[bytes]:
        """Return what is aside and will be part of the state once everything in flight is durable."""
        return frozenset(past.id for past in self.state.aside_past(self._in_flight.values()))

    def withdraw(self, new_log: bytes) -> None:
        """Forget everything in flight, because storage took none of it.

        Nobody has seen what this node signed in there; its next operations go to a new log all the same.
        """
        self._in_flight.clear()
        self.in_flight_bytes = 0
        self._begin_log(new_log)

    def forget_peer(self, peer: bytes) -> None:
        """Drop the orphans of a peer that has gone."""
        self._orphans.forget_peer(peer)

    def _accept(self, signed: SignedOperation, accepted: list[SignedOperation], aside: list[bytes]) -> None:
        """Put an operation in flight, or aside, and after it every orphan that it completes."""
        self._check_predecessor(signed)
        if not self.state.is_anybody_revoked and not self._orphans:
            self._launch(signed)
            accepted.append(signed)
            return
        complete = deque([signed])
        while complete:
            one = complete.popleft()
            if self.state.is_excluded(one):
                self._set_aside(one)
                aside.append(one.id)
            else:
                for kept in (*self.state.aside_past([one]), one):
                    if kept.id not in self._in_flight:
                        self._launch(kept)
                        accepted.append(kept)
            for orphan in self._orphans.accept(one.id):
                if missing := self._missing(orphan.signed):
                    self._orphans.add(orphan.signed, orphan.peer, missing)
                elif self._is_good_orphan(orphan.signed):
                    complete.append(orphan.signed)

    def _set_aside(self, signed: SignedOperation) -> None:
        if self.state.aside_bytes > ASIDE_BYTES_MAX:
            self.state.forget_aside(but=self._needed(), is_all=False)
        self.state.set_aside(signed)

    def _is_good_orphan(self, signed: SignedOperation) -> bool:
        """Judge an orphan late; that it is refused is not the fault of whoever completed its past."""
        if self.is_here(signed.id):
            return False
        try:
            self._check_predecessor(signed)
        except RemoteProtocolError:
            return False
        return True

    def _launch(self, signed: SignedOperation) -> None:
        self._in_flight[signed.id] = signed
        self.in_flight_bytes += len(signed.encoded)

    def _place_of(
        self, operation_id: bytes, durable: list[bytes], in_flight: list[bytes], aside: list[bytes]
    ) -> list[bytes]:
        """Return, of three lists, that for an operation that is here."""
        if operation_id in self.state:
            return durable
        return in_flight if operation_id in self._in_flight else aside

    def _load(self, wire: bytes, reading: Reading) -> SignedOperation:
        if self._refused and self.is_refused(wire):
            raise MalformedMessageError("an operation that was refused before was sent again")
        try:
            return reading.load(wire)
        except RemoteProtocolError:
            self._remember_refused(wire)
            raise

    def _verify(self, wire: bytes, signed: SignedOperation, reading: Reading) -> None:
        try:
            if signed.operation.group != self.group:
                raise MalformedMessageError("an operation of another group was sent")
            reading.check_signature(wire, signed)
        except RemoteProtocolError:
            self._remember_refused(wire)
            raise

    def is_refused(self, wire: bytes) -> bool:
        """Tell whether these bytes were refused before, as far as that is remembered."""
        return bool(self._refused) and digest(_REFUSED, wire) in self._refused

    def _remember_refused(self, wire: bytes) -> None:
        self._refused[digest(_REFUSED, wire)] = None
        if len(self._refused) > REFUSALS_REMEMBERED_MAX:
            self._refused.popitem(last=False)

    def _missing(self, signed: SignedOperation) -> bytes | None:
        """Return one id that must be accepted before an operation and is not, or None."""
        missing = self.state.missing(signed)
        return next((id_ for id_ in missing if id_ not in self._in_flight), None) if missing else None

    def _check_predecessor(self, signed: SignedOperation) -> None:
        """Refuse, before anything is stored, what does not continue its own log (PROTOCOL R5)."""
        operation = signed.operation
        if operation.prev is None:
            return
        found = self._in_flight.get(operation.prev) or self.state.find(operation.prev)
        assert found is not None, "an operation is accepted only after its past"
        previous = found.operation
        if (previous.author, previous.log, previous.seq) != (
            operation.author,
            operation.log,
            operation.seq - 1,
        ):
            self._remember_refused(signed.wire())
            raise MalformedMessageError(f"operation {signed.id.hex()[:12]} does not continue its own log")
