"""Checks the signatures in arriving messages on threads of its own, and hands the messages on in order.

A signature takes a tenth of a millisecond, more than all else that is done with an operation, and while
OpenSSL works on it other threads run. So a message waits here until its signatures are checked, and all
that its peer sent after it waits behind it; nobody else does:

1. A lone signature is checked on the loop, where it is done before a thread would have begun.
2. Checks are handed out in slices of at most 32, to one peer after the other, and to one who had none before
   first. So who sends a little waits until a thread is free, whatever others send.
3. What waits of a peer is bounded: beyond that nothing is read from it, and TCP tells it so.
4. The first bad signature of a peer ends all checks for what it has sent. The engine then judges as always.
5. No judgement is made here. What was not checked, for whatever reason, the engine checks itself.

In virtual time there are no threads: the loop runs the checks, a while later.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from crdt_merge_protocol.errors import RemoteProtocolError
from crdt_merge_protocol.limits import OPERATIONS_PER_TURN_MAX
from crdt_merge_protocol.messages.base import Message
from crdt_merge_protocol.messages.gossip import Gossip
from crdt_merge_protocol.messages.sync import Operations
from crdt_merge_protocol.operations import SignedOperation
from crdt_merge_protocol.reading import Reading, check

from .pacing import Paced, Pacing
from .ports import Clock

THREADS: Final = 2
"""More would check faster than the loop can take in. The same everywhere, so that virtual time is, too."""
LONE_INTERVAL_S: Final = 0.005
"""Between signatures of one peer that are checked on the loop: a fortieth of its time."""
SLICE_MAX: Final = 32
"""Signatures given to a thread at a time: some 4 ms, and little beside it for handing them over."""
WAITING_BYTES_MAX: Final = 128 << 10
"""Of one connection: two of the largest messages, so that the threads need not wait for it."""
OTHER_BYTES: Final = 4 << 10
"""What a message without operations is taken for."""

Unchecked = list[tuple[bytes, SignedOperation]]
Read = Callable[[bytes, Message], tuple[Reading, Unchecked]]
Deliver = Callable[[Paced, Message, Reading | None], None]


@dataclass(slots=True, eq=False)
class _Arrival:
    """Something that is to happen in its turn, once so many signatures of it are checked."""

    happen: Callable[[], None]
    nbytes: int = 0
    operations: int = 0
    waits: int = 0


@dataclass(frozen=True, slots=True)
class _Check:
    """One signature to be checked, and what waits for it."""

    arrival: _Arrival
    reading: Reading
    wire: bytes
    signed: SignedOperation


@dataclass(slots=True, eq=False)
class _Line:
    """What has come on one connection and is not handed on yet."""

    connection: Paced
    arrivals: deque[_Arrival] = field(default_factory=deque)
    checks: deque[_Check] = field(default_factory=deque)
    """Not handed out yet."""
    nbytes: int = 0
    is_held: bool = False
    is_queued: bool = False
    is_new: bool = True
    """No check was handed out yet."""


class Verifier:
    """The messages of all gossip connections that wait for their signatures, or behind such."""

    def __init__(self, clock: Clock, pacing: Pacing, *, read: Read, deliver: Deliver) -> None:
        """Take what to ask and where to hand on.

        Args:
            clock: Says when a signature is a lone one.
            pacing: Stops and resumes reading from a peer.
            read: Tells what of a message has to be checked; :meth:`Engine.read`.
            deliver: Gets every message in its turn.
        """
        self._clock = clock
        self._pacing = pacing
        self._read = read
        self._deliver = deliver
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="verify")
        self._lines: dict[Paced, _Line] = {}
        self._new: deque[_Line] = deque()
        """Lines of whose checks none was handed out yet; they come first."""
        self._queue: deque[_Line] = deque()
        """Other lines with checks to hand out; whoever had its turn goes to the end."""
        self._under_way: set[asyncio.Future[list[RemoteProtocolError | None]]] = set()
        self._next_lone: dict[Paced, float] = {}
        self._is_closed = False

    @property
    def waiting(self) -> int:
        """Messages, and ends of connections, that wait."""
        return sum(len(line.arrivals) for line in self._lines.values())

    async def close(self) -> None:
        """Drop everything that waits: nothing of it is durable here, and nobody was told that it is."""
        self._is_closed = True
        for connection in list(self._lines):
            self.drop(connection)
        if self._under_way:
            await asyncio.wait(self._under_way)
        self._executor.shutdown()

    def arrived(self, connection: Paced, message: Message) -> None:
        """Hand a message on once its signatures are checked, and after all that came before it."""
        if self._is_closed:
            return
        reading: Reading | None = None
        unchecked: Unchecked = []
        nbytes, operations = OTHER_BYTES, 0
        if isinstance(message, Gossip | Operations):
            reading, unchecked = self._read(connection.peer, message)
            nbytes, operations = sum(map(len, message.operations)), len(message.operations)
            self._pacing.received(connection, message.operations)
        line = self._lines.get(connection)
        if line is None:
            if not unchecked or (len(unchecked) == 1 and self._is_lone(connection)):
                self._deliver(connection, message, reading)
                return
            line = self._lines[connection] = _Line(connection)
        arrival = _Arrival(
            partial(self._deliver, connection, message, reading), nbytes, operations, len(unchecked)
        )
        line.arrivals.append(arrival)
        line.nbytes += nbytes
        if reading is not None:
            line.checks.extend(_Check(arrival, reading, wire, signed) for wire, signed in unchecked)
        if line.nbytes > WAITING_BYTES_MAX and not line.is_held:
            line.is_held = True
            self._pacing.hold(connection)
        self._enqueue(line)
        self._hand_out()

    def ended(self, connection: Paced, then: Callable[[], None]) -> None:
        """Call ``then`` once all that came on a connection is handed on; the connection may be closed."""
        self._next_lone.pop(connection, None)
        line = self._lines.get(connection)
        if line is None:
            then()
        else:
            line.arrivals.append(_Arrival(then))

    def drop(self, connection: Paced) -> None:
        """Forget what has come on a connection and is not handed on."""
        line = self._lines.pop(connection, None)
        if line is not None:
            line.arrivals.clear()
            line.checks.clear()
            self._release(line)

    def _is_lone(self, connection: Paced) -> bool:
        now = self._clock.monotonic()
        if now < self._next_lone.get(connection, now):
            return False
        self._next_lone[connection] = now + LONE_INTERVAL_S
        return True

    def _enqueue(self, line: _Line) -> None:
        if line.checks and not line.is_queued:
            line.is_queued = True
            (self._new if line.is_new else self._queue).append(line)

    def _hand_out(self) -> None:
        """Keep every thread busy."""
        loop = asyncio.get_running_loop()
        while (queue := self._new or self._queue) and len(self._under_way) < THREADS:
            line = queue.popleft()
            line.is_queued = line.is_new = False
            count = min(SLICE_MAX, len(line.checks))
            if not count:
                continue  # Dropped, or spoilt, since it was queued.
            batch = [line.checks.popleft() for _ in range(count)]
            self._enqueue(line)
            done = loop.run_in_executor(self._executor, check, [one.signed for one in batch])
            self._under_way.add(done)
            done.add_done_callback(partial(self._checked, line, batch))

    def _checked(
        self, line: _Line, batch: list[_Check], done: asyncio.Future[list[RemoteProtocolError | None]]
    ) -> None:
        self._under_way.discard(done)
        is_answered = not done.cancelled() and done.exception() is None
        verdicts = done.result() if is_answered else []
        for one, verdict in zip(batch, verdicts, strict=False):
            one.reading.note(one.wire, verdict)
        for one in batch:
            one.arrival.waits -= 1
        if len(verdicts) < len(batch) or verdicts[-1] is not None:
            for one in line.checks:
                one.arrival.waits -= 1
            line.checks.clear()
        if not self._is_closed:
            self._hand_out()
            self._hand_on(line)

    def _hand_on(self, line: _Line) -> None:
        """Hand on what is ready, but let others have their turn in between."""
        operations = 0
        while line.arrivals and not line.arrivals[0].waits:
            if operations >= OPERATIONS_PER_TURN_MAX:
                asyncio.get_running_loop().call_soon(self._hand_on, line)
                break
            arrival = line.arrivals.popleft()
            line.nbytes -= arrival.nbytes
            operations += arrival.operations
            if not line.arrivals:
                del self._lines[line.connection]
            arrival.happen()
        if 2 * line.nbytes <= WAITING_BYTES_MAX:
            self._release(line)

    def _release(self, line: _Line) -> None:
        if line.is_held:
            line.is_held = False
            self._pacing.release(line.connection)
