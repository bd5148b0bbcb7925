"""The two ends of a stream of operations within a sync session: order, window and what may not be sent.

Flow control. A sender keeps at most ``SYNC_WINDOW_BYTES`` of operations on their way that the receiver has
not called durable; an ACK goes out when half of a window is. So a session of any length fits the sender's
lane and the receiver's memory, and a slow disk slows the sender down instead of filling a queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Protocol

from .errors import LimitExceededError, MalformedMessageError
from .limits import CONTROL_BODY_BYTES_MAX, SYNC_WINDOW_BYTES
from .merkle import Trie
from .messages.sync import OPERATIONS_PER_MESSAGE_MAX, Ack, Operations
from .operations import SignedOperation
from .reading import Reading

_FRAMING_BYTES = 64
"""Room in a message for everything but the operations."""
_ITEM_BYTES = 3
"""Framing of one operation."""


class SyncView(Protocol):
    """What a session needs of the replicated state; ``CRDTMergeState`` is one.

    Everything in it is durable, and nothing enters before its past.
    """

    @property
    def group(self) -> bytes:
        """Id of the group, 32 bytes."""

    @property
    def sync_root(self) -> bytes:
        """Trie root over the operation ids, 32 bytes."""

    @property
    def trie(self) -> Trie:
        """The trie itself."""

    def __contains__(self, operation_id: object) -> bool: ...

    def __len__(self) -> int: ...

    def causal(self, ids: Iterable[bytes] | None = None) -> list[SignedOperation]:
        """Return operations in (depth, id) order, all of them by default."""

    def depth(self, operation_id: bytes) -> int:
        """Return 1 + the greatest depth of what must be delivered before it."""


class Outbox:
    """Operations to send, in the order given, within the window."""

    def __init__(self, session: bytes) -> None:
        self._session = session
        self._queue: deque[SignedOperation] = deque()
        self._in_window: deque[int] = deque()
        """Sizes of the operations sent and not acknowledged."""
        self._window_bytes = 0
        self._acked_count = 0
        self.sent_count = 0
        self.sent_bytes = 0

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, operations: Iterable[SignedOperation]) -> None:
        """Queue operations behind those there."""
        self._queue.extend(operations)

    def fill(self) -> list[Operations]:
        """Return as many messages as the window takes."""
        messages = []
        while wires := self._next_wires():
            messages.append(
                Operations(session=self._session, left_count=len(self._queue), operations=tuple(wires))
            )
        return messages

    def acknowledge(self, count: int) -> None:
        """Open the window.

        Raises:
            MalformedMessageError: Fewer than before, or more than were sent.
        """
        if not self._acked_count < count <= self.sent_count:
            raise MalformedMessageError(f"{count} operations are acknowledged, {self.sent_count} were sent.")
        for _ in range(count - self._acked_count):
            self._window_bytes -= self._in_window.popleft()
        self._acked_count = count

    def _next_wires(self) -> list[bytes]:
        wires: list[bytes] = []
        room = CONTROL_BODY_BYTES_MAX - _FRAMING_BYTES
        while self._queue and len(wires) < OPERATIONS_PER_MESSAGE_MAX:
            wire = self._queue[0].wire()
            if len(wire) + _ITEM_BYTES > room or len(wire) + self._window_bytes > SYNC_WINDOW_BYTES:
                break
            self._queue.popleft()
            room -= len(wire) + _ITEM_BYTES
            self._window_bytes += len(wire)
            self._in_window.append(len(wire))
            self.sent_count += 1
            self.sent_bytes += len(wire)
            wires.append(wire)
        return wires


class Inbox:
    """Operations received: wanted, in causal order, each once; pending until they are durable."""

    def __init__(self, state: SyncView, session: bytes) -> None:
        self._state = state
        self._session = session
        self._snapshot = state.trie.copy()
        self._received: set[bytes] = set()
        self._pending: dict[bytes, int] = {}
        self._pending_bytes = 0
        self._unacked_bytes = 0
        self._wires: list[bytes] = []
        self.left_count: int | None = None
        """How many more the other side has announced; None before it said so."""
        self.page: deque[bytes] | None = None
        """In a list: exactly these come next, in this order."""
        self.received_count = 0
        self.received_bytes = 0

    @property
    def is_idle(self) -> bool:
        """Whether everything received is durable."""
        return not self._pending

    def announce(self, left_count: int) -> None:
        """Note how many operations the other side is going to send."""
        self.left_count = left_count

    def accept(self, message: Operations, reading: Reading) -> list[bytes]:
        """Take in a message, of which this is known already, and return the ids in it.

        Raises:
            RemoteProtocolError: An operation is malformed, not wanted, sent twice, or precedes its past; or
                more comes than was announced or the window allows.
        """
        count = len(message.operations)
        if self.left_count is not None and self.left_count != message.left_count + count:
            raise MalformedMessageError(
                f"{message.left_count + count} operations left, {self.left_count} were announced."
            )
        self.left_count = message.left_count
        return [self._accept(wire, reading.load(wire)) for wire in message.operations]

    def settle(self, ids: Iterable[bytes]) -> bool:
        """Note what is durable; return whether any of it was pending."""
        before = len(self._pending)
        for identifier in ids:
            size = self._pending.pop(identifier, 0)
            self._pending_bytes -= size
            self._unacked_bytes += size
        return len(self._pending) < before

    def acknowledgement(self) -> list[Ack]:
        """Return an ACK if it is time for one."""
        if 2 * self._unacked_bytes < SYNC_WINDOW_BYTES:
            return []
        self._unacked_bytes = 0
        return [Ack(session=self._session, count=self.received_count - len(self._pending))]

    def take(self) -> list[bytes]:
        """Return the operations received since the last call, to be verified and stored in this order."""
        wires, self._wires = self._wires, []
        return wires

    def _accept(self, wire: bytes, signed: SignedOperation) -> bytes:
        identifier = signed.id
        if signed.operation.group != self._state.group:
            raise MalformedMessageError(f"operation {identifier.hex()[:12]} is of another group.")
        if identifier in self._received or identifier in self._snapshot:
            raise MalformedMessageError(f"operation {identifier.hex()[:12]} was sent though it is here.")
        if self.page is not None and (not self.page or self.page.popleft() != identifier):
            raise MalformedMessageError(f"operation {identifier.hex()[:12]} is not the next one of the list.")
        if not all(past in self._received or past in self._state for past in signed.operation.parents):
            raise PastMissingError(f"operation {identifier.hex()[:12]} was sent before its past.")
        self._pending_bytes += len(wire)
        if self._pending_bytes > SYNC_WINDOW_BYTES:
            raise LimitExceededError(f"{self._pending_bytes} bytes of operations overrun the window.")
        self._received.add(identifier)
        self._pending[identifier] = len(wire)
        self._wires.append(wire)
        self.received_count += 1
        self.received_bytes += len(wire)
        return identifier


class PastMissingError(MalformedMessageError):
    """An operation came before something that it was made after."""
