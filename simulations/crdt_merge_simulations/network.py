"""A network in memory: connections over links that have latency and bandwidth and go wrong in every way.

A connection is a pair of :class:`SimulatedTransport`. Bytes leave in segments, travel along a
:class:`~.link.Direction` of a link in order, wait at the other end while its process is frozen or does not
read, and are delivered in that process. What is lost is late, as in TCP; behind a cut, everything waits for
the end of the cut. A killed process answers with a reset, as its kernel does; if the link is cut, nobody
hears it, and the first byte after the cut is answered with a reset.

The draws of a direction come from its own stream, so one link's traffic does not change another's.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from .link import Direction
from .loop import SimulatedLoop
from .simulated_process import OUTSIDE, PROCESS, Process

PORT: Final = 7946
HIGH_BYTES: Final = 64 * 1024
CHUNKED_RATIO: Final = 0.05
"""Share of writes that arrive in two pieces."""


def host_of(number: int) -> str:
    """Return the address of a machine."""
    return f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"


class Network:
    """All machines' addresses and the links between them."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self.loop = loop
        self.directions: dict[tuple[int, int], Direction] = {}
        self.listeners: dict[int, SimulatedListener] = {}
        self.transports: dict[int, SimulatedTransport] = {}
        """The ends of all connections that are not lost, by number."""
        self.bytes_sent: dict[int, int] = {}
        """By machine."""
        self.socket_bytes = 0
        """What may be under way on a connection beside what its protocol lets wait: TCP's window."""
        self.connects = 0
        self.is_content_traced = True
        """Ciphertext must not go into the trace: it is random."""

    def between(self, one: int, other: int) -> list[SimulatedTransport]:
        """Return the open ends at ``one`` of connections with ``other``."""
        return [end for end in self.transports.values() if (end.here, end.there) == (one, other)]


class SimulatedListener:
    """A listening socket of a machine."""

    def __init__(self, network: Network, number: int, factory: Callable[[], asyncio.BaseProtocol]) -> None:
        self.factory = factory
        self.context = contextvars.copy_context()
        self.process = PROCESS.get()
        self._network = network
        self._number = number

    @property
    def address(self) -> tuple[str, int]:
        """The host and port."""
        return host_of(self._number), PORT

    def close(self) -> None:
        """Accept nothing more."""
        if self._network.listeners.get(self._number) is self:
            del self._network.listeners[self._number]


class MachineNet:
    """The network port of one machine."""

    def __init__(self, network: Network, number: int) -> None:
        self._network = network
        self._number = number

    async def listen(
        self,
        factory: Callable[[], asyncio.BaseProtocol],
        host: str,  # noqa: ARG002
        port: int,  # noqa: ARG002
    ) -> SimulatedListener:
        """Listen on this machine's one address."""
        if self._number in self._network.listeners:
            raise OSError(errno.EADDRINUSE, "Address already in use")
        listener = SimulatedListener(self._network, self._number, factory)
        self._network.listeners[self._number] = listener
        process = PROCESS.get()
        if process is not None:
            process.at_death[id(listener)] = listener.close
        return listener

    async def connect(
        self,
        factory: Callable[[], asyncio.BaseProtocol],
        host: str,
        port: int,  # noqa: ARG002
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """Connect after a round trip; where a link is cut, never."""
        network, target = self._network, _number_of(host)
        there = network.directions.get((self._number, target))
        back = network.directions.get((target, self._number))
        if there is None or back is None:
            raise OSError(errno.ENETUNREACH, "Network is unreachable")
        await asyncio.sleep(there.delay() + back.delay())
        if there.cuts or back.cuts:
            await network.loop.create_future()  # The caller has a timeout.
        listener = network.listeners.get(target)
        if listener is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        local = (host_of(self._number), 30_000 + network.connects % 30_000)
        remote = (host_of(target), PORT)
        mine = SimulatedTransport(network, self._number, target, local, remote)
        other = SimulatedTransport(network, target, self._number, remote, local, context=listener.context)
        mine.other, other.other = other, mine
        protocol = factory()
        mine.protocol = protocol  # type: ignore[assignment]  # Both ends speak through buffers.

        def accept() -> None:
            acceptor = listener.factory()
            other.protocol = acceptor  # type: ignore[assignment]
            acceptor.connection_made(other)
            other.pump_soon()

        network.loop.call_soon(accept, context=listener.context)
        protocol.connection_made(mine)
        return mine, protocol


class SimulatedTransport(asyncio.Transport):
    """One end of a connection."""

    def __init__(
        self,
        network: Network,
        here: int,
        there: int,
        local: tuple[str, int],
        remote: tuple[str, int],
        *,
        context: contextvars.Context | None = None,
    ) -> None:
        super().__init__({"sockname": local, "peername": remote})
        self.here = here
        self.there = there
        self.protocol: asyncio.BufferedProtocol | None = None
        self.other: SimulatedTransport
        self.is_lost = False
        network.connects += 1
        self.number = network.connects
        self._network = network
        self._loop = network.loop
        self._context = context or contextvars.copy_context()
        self._process: Process | None = self._context.get(PROCESS)
        self._direction = network.directions[here, there]
        self._outgoing: deque[bytes | None] = deque()
        """Segments under way; None is the end."""
        self._last_arrival = 0.0
        self._received: deque[bytes | None] = deque()
        self._unread = 0
        """Bytes written here and not yet read there."""
        self._high = HIGH_BYTES
        self._is_reading = True
        self._is_full = self._is_ended = self._is_closing = self._is_pump_due = False
        network.transports[self.number] = self
        if self._process is not None:
            self._process.at_death[self.number] = self._process_died

    # --- what protocols call ------------------------------------------------------------------------

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:  # noqa: ARG002
        """Set how many bytes may wait."""
        self._high = HIGH_BYTES if high is None else high

    def get_write_buffer_size(self) -> int:
        """Return how many bytes wait here or are under way."""
        return self._unread

    def can_write_eof(self) -> bool:
        """Return True."""
        return True

    def is_closing(self) -> bool:
        """Tell whether it is closed or being closed."""
        return self._is_closing

    def write(self, data: Any) -> None:
        """Send bytes."""
        if self._is_closing or self._is_ended or not self._is_of_the_living() or not data:
            return
        content = bytes(data)
        self._network.bytes_sent[self.here] = self._network.bytes_sent.get(self.here, 0) + len(content)
        self._unread += len(content)
        direction = self._direction
        if len(content) > 1 and direction.rng.random() < CHUNKED_RATIO:
            cut = direction.rng.randrange(1, len(content))
            self._send(content[:cut])
            content = content[cut:]
        self._send(content)
        if self._unread > self._high + self._network.socket_bytes and not self._is_full:
            self._is_full = True
            assert self.protocol is not None, "nobody writes before connection_made"
            self.protocol.pause_writing()

    def write_eof(self) -> None:
        """End this half."""
        if not self._is_ended and self._is_of_the_living():
            self._is_ended = True
            self._send(None)

    def close(self) -> None:
        """End both halves after what was written."""
        if self._is_closing:
            return
        self.write_eof()
        self._is_closing = True
        self._loop.call_soon(self._lose, None, context=self._context)

    def abort(self) -> None:
        """Cut the connection; the peer sees a reset."""
        if not self.is_lost and self._is_of_the_living():
            self._is_closing = True
            self._outgoing.clear()
            self._loop.call_soon(self._lose, None, context=self._context)
            self.other.reset_after(self._direction)

    def pause_reading(self) -> None:
        """Deliver nothing more for now."""
        self._is_reading = False

    def resume_reading(self) -> None:
        """Deliver again."""
        self._is_reading = True
        self.pump_soon()

    # --- under way ----------------------------------------------------------------------------------

    def _send(self, segment: bytes | None) -> None:
        now = self._loop.time()
        arrival = self._direction.arrival(now, len(segment or b""))
        self._last_arrival = max(self._last_arrival, arrival)
        self._outgoing.append(segment)
        self._loop.call_at(self._last_arrival, self._arrive, context=OUTSIDE)

    def _arrive(self) -> None:
        """Hand the oldest segment to the other end, if the link lets it pass."""
        if not self._outgoing:
            return  # The connection was cut meanwhile.
        direction = self._direction
        if direction.cuts:
            direction.waiting.append(
                lambda: void(self._loop.call_later(direction.delay(), self._arrive, context=OUTSIDE))
            )
            return
        segment = self._outgoing.popleft()
        if segment and direction.is_corrupting:
            direction.is_corrupting = False
            position = direction.rng.randrange(len(segment))
            segment = segment[:position] + bytes([segment[position] ^ 0x20]) + segment[position + 1 :]
        other = self.other
        if other.is_lost:
            if segment:
                self.reset_after(self._network.directions[self.there, self.here])
            return
        other.receive(segment)

    def receive(self, segment: bytes | None) -> None:
        """Take a segment off the link; None is the end."""
        self._received.append(segment)
        self.pump_soon()

    def pump_soon(self) -> None:
        """Deliver in the process that this end belongs to."""
        if not self._is_pump_due and self._received and not self.is_lost:
            self._is_pump_due = True
            self._loop.call_soon(self._pump, context=self._context)

    def _pump(self) -> None:
        self._is_pump_due = False
        while self._received and self._is_reading and not self.is_lost and self.protocol is not None:
            segment = self._received.popleft()
            if segment is None:
                if not self.protocol.eof_received():
                    self.close()
                continue
            if self._network.is_content_traced:
                self._loop.trace.update(segment)
            self.other.was_read(len(segment))
            self._feed(memoryview(segment))

    def _feed(self, data: memoryview) -> None:
        assert self.protocol is not None, "_pump has looked"
        while data and not self.is_lost:
            buffer = memoryview(self.protocol.get_buffer(-1))
            nbytes = min(len(buffer), len(data))
            buffer[:nbytes] = data[:nbytes]
            self.protocol.buffer_updated(nbytes)
            data = data[nbytes:]

    def was_read(self, nbytes: int) -> None:
        """Note that the other end has read so much."""
        self._unread -= nbytes
        if self._is_full and self._unread <= self._high // 4 + self._network.socket_bytes:
            self._loop.call_soon(self._resume, context=self._context)

    def _resume(self) -> None:
        if self._is_full and not self.is_lost and self.protocol is not None:
            self._is_full = False
            self.protocol.resume_writing()

    # --- ending -------------------------------------------------------------------------------------

    def reset_after(self, direction: Direction) -> None:
        """End this end with a reset that travels along ``direction``; lost if that is cut."""
        if direction.cuts or self.is_lost:
            return
        error = ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
        self._loop.call_later(direction.delay(), self._reset, error, context=OUTSIDE)

    def _reset(self, error: Exception) -> None:
        self._is_closing = True
        self._loop.call_soon(self._lose, error, context=self._context)

    def _lose(self, error: Exception | None) -> None:
        if self.is_lost:
            return
        self._forget()
        if self.protocol is not None:
            self.protocol.connection_lost(error)

    def _forget(self) -> None:
        self.is_lost = self._is_closing = True
        self._network.transports.pop(self.number, None)
        if self._process is not None:
            self._process.at_death.pop(self.number, None)

    def _process_died(self) -> None:
        """Do what the kernel does: the other end is reset, if that gets through."""
        self._forget()
        self._outgoing.clear()
        self.other.reset_after(self._direction)

    def _is_of_the_living(self) -> bool:
        return self._process is None or self._process.is_alive


def void(_value: object) -> None:
    """Return nothing."""


def _number_of(host: str) -> int:
    parts = [int(part) for part in host.split(".")]
    return parts[1] << 16 | parts[2] << 8 | parts[3]
