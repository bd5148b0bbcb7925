"""Two sides of a sync session joined by their wire format, with every frame counted."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from crdt_merge_protocol.limits import SYNC_PROGRESS_TIMEOUT_S
from crdt_merge_protocol.merkle import Trie
from crdt_merge_protocol.messages.base import Message
from crdt_merge_protocol.messages.sync import Operations
from crdt_merge_protocol.operations import Operation, SignedOperation, operation_id
from crdt_merge_protocol.state import CRDTMergeState
from crdt_merge_protocol.sync import SyncSession
from crdt_merge_protocol.wire import FrameDecoder, encode_frame

GROUP = b"g" * 32
AUTHOR = b"a" * 32


def make_operation(number: int, parents: Iterable[bytes] = (), *, size: int = 16) -> SignedOperation:
    """Return an operation with a signature that nobody checks here; equal arguments, equal operation."""
    body = number.to_bytes(16, "big").ljust(size, b"\x01")
    operation = Operation(
        group=GROUP,
        author=AUTHOR,
        log=number.to_bytes(16, "big"),
        seq=0,
        prev=None,
        deps=tuple(sorted(parents)),
        refs=(),
        kind=200,
        body=body,
    )
    encoded = operation.encode()
    return SignedOperation(operation, encoded, bytes(64), operation_id(encoded))


class MemoryState:
    """A replicated state without signatures or a view: a set of operations that knows depths."""

    def __init__(self, operations: Iterable[SignedOperation] = ()) -> None:
        self.group = GROUP
        self.trie = Trie()
        self._operations: dict[bytes, SignedOperation] = {}
        self._depths: dict[bytes, int] = {}
        for signed in operations:
            self.apply(signed)

    @property
    def sync_root(self) -> bytes:
        return self.trie.root

    def copy(self) -> MemoryState:
        """Return an independent copy."""
        twin = MemoryState()
        twin.trie = self.trie.copy()
        twin._operations, twin._depths = dict(self._operations), dict(self._depths)
        return twin

    def __contains__(self, operation_id: object) -> bool:
        return operation_id in self._operations

    def __len__(self) -> int:
        return len(self._operations)

    def __iter__(self) -> Iterator[SignedOperation]:
        return iter(self._operations.values())

    def apply(self, signed: SignedOperation) -> bool:
        if signed.id in self._operations:
            return False
        # A KeyError here is an operation before its past.
        self._depths[signed.id] = 1 + max(
            (self._depths[past] for past in signed.operation.parents), default=0
        )
        self._operations[signed.id] = signed
        self.trie.insert(signed.id)
        return True

    def depth(self, operation_id: bytes) -> int:
        return self._depths[operation_id]

    def causal(self, ids: Iterable[bytes] | None = None) -> list[SignedOperation]:
        chosen = self._operations if ids is None else set(ids)
        return [self._operations[one] for one in sorted(chosen, key=lambda one: (self._depths[one], one))]


def share(
    count: int, first_extra: int, second_extra: int, *, seed: int = 1, size: int = 16
) -> tuple[MemoryState, MemoryState]:
    """Return two states over ``count`` common operations, each with some of its own."""
    rng = random.Random(seed)

    def grow(start: int, number: int, base: Sequence[bytes]) -> list[SignedOperation]:
        made: list[SignedOperation] = []
        for offset in range(number):
            known = [signed.id for signed in made[-40:]] + list(base[-40:])
            parents = set(rng.choices(known, k=rng.randrange(3))) if known else set()
            made.append(make_operation(seed << 64 | start + offset, parents, size=size))
        return made

    common = grow(0, count, ())
    ids = [signed.id for signed in common]
    first = grow(count, first_extra, ids)
    second = grow(count + first_extra, second_extra, ids)
    return MemoryState([*common, *first]), MemoryState([*common, *second])


State = MemoryState | CRDTMergeState


@dataclass
class Side:
    """One side: a state, its session, and what it sent."""

    state: State
    session: SyncSession
    parse: Callable[[bytes], SignedOperation] = SignedOperation.load
    """``SignedOperation.parse`` where signatures are real."""
    is_storing: bool = True
    """Whether what arrives becomes durable at once."""
    frames: list[bytes] = field(default_factory=list)
    sent: list[Message] = field(default_factory=list)
    received_ids: list[bytes] = field(default_factory=list)
    waiting: list[SignedOperation] = field(default_factory=list)

    def take(self, now: float) -> list[Message]:
        """Store what the session has received and return what follows from it."""
        self.waiting += [self.parse(wire) for wire in self.session.take_operations()]
        return self.store(now) if self.is_storing else []

    def store(self, now: float) -> list[Message]:
        """Make durable what is waiting."""
        stored, self.waiting = self.waiting, []
        for signed in stored:
            self.received_ids.append(signed.id)
            self.state.apply(signed)
        return self.session.stored([signed.id for signed in stored], now=now) if stored else []


Tamper = Callable[[int, Message], Sequence[Message]]


class Pair:
    """Both sides and the wire between them. Time passes only where a test says so."""

    def __init__(
        self,
        first: State,
        second: State,
        *,
        seed: int = 7,
        session: bytes | None = None,
        after: bytes | None = None,
    ) -> None:
        rng = random.Random(seed)
        identifier = rng.randbytes(4) if session is None else session
        self.now = 0.0
        self.sides = [
            Side(
                state,
                SyncSession(
                    state=state,
                    session=identifier,
                    initiator=not number,
                    nonce=rng.randbytes(16),
                    now=self.now,
                    after=after,
                ),
            )
            for number, state in enumerate((first, second))
        ]
        self.turn_count = 0
        """One-way trips: messages that need nothing from the other side in between share one."""
        self.in_flight: list[list[Message]] = [[], []]

    def run(self, *, tamper: Tamper | None = None, turns_max: int = 4_000) -> Pair:
        """Deliver everything until nothing is under way; ``tamper`` may replace messages before that."""
        if not self.turn_count:
            self.post(0, self.sides[0].session.start())
        while any(self.in_flight):
            self.turn_count += 1
            assert self.turn_count < turns_max, "the session does not end"
            flights, self.in_flight = self.in_flight, [[], []]
            for sender, messages in enumerate(flights):
                for message in messages:
                    for replaced in [message] if tamper is None else tamper(sender, message):
                        self.deliver(1 - sender, replaced)
        return self

    def run_in_any_order(self, rng: random.Random, *, between: Callable[[], None] | None = None) -> Pair:
        """Deliver and store in random order, but keep the order of each direction."""
        for side in self.sides:
            side.is_storing = False
        self.post(0, self.sides[0].session.start())
        for _ in range(20_000):
            senders = [sender for sender in (0, 1) if self.in_flight[sender]]
            storing = [number for number in (0, 1) if self.sides[number].waiting]
            if not senders and not storing:
                return self
            choice = rng.randrange(len(senders) + len(storing))
            if choice < len(senders):
                self.deliver(1 - senders[choice], self.in_flight[senders[choice]].pop(0))
            else:
                number = storing[choice - len(senders)]
                self.post(number, self.sides[number].store(self.now))
            if between is not None:
                between()
        raise AssertionError("the session does not end")

    def deliver(self, to: int, message: Message) -> None:
        """Hand one message to a side, over the wire format, and post its answers."""
        side = self.sides[to]
        if side.session.is_finished:
            return  # As on a node, where the session is forgotten by then.
        (decoded,) = FrameDecoder().feed(encode_frame(message))
        self.post(to, side.session.receive(decoded, now=self.now))
        self.post(to, side.take(self.now))

    def post(self, sender: int, messages: Iterable[Message]) -> None:
        """Send messages of a side."""
        for message in messages:
            self.sides[sender].sent.append(message)
            self.sides[sender].frames.append(encode_frame(message))
            self.in_flight[sender].append(message)

    @property
    def outcomes(self) -> tuple[str, str]:
        """How each side thinks it ended."""
        return self.sides[0].session.outcome, self.sides[1].session.outcome

    def bytes_of(self, sender: int) -> int:
        """Everything that a side sent."""
        return sum(map(len, self.sides[sender].frames))

    @property
    def overhead_bytes(self) -> int:
        """Everything on the wire, both ways, but the operations themselves."""
        payload = sum(
            len(wire)
            for side in self.sides
            for message in side.sent
            if isinstance(message, Operations)
            for wire in message.operations
        )
        return self.bytes_of(0) + self.bytes_of(1) - payload


def expire(pair: Pair) -> None:
    """Let the deadline of both sides pass."""
    pair.now += SYNC_PROGRESS_TIMEOUT_S + 1
    for side in pair.sides:
        side.session.expire(pair.now)
