"""A connection to an authenticated peer: messages in lanes, liveness, an end with a reason.

Rules:

* **Lanes.** A message waits in the lane of its importance; the transport takes from the most important lane
  that has any, one frame after the other. A lane holds at most ``LANE_BYTES_MAX``: beyond that a message is
  shed and ``send`` says so (anti-entropy repairs). Bulk and sync senders ``await drain()`` instead.
* **Liveness.** Each side lets no second pass without sending or receiving something: else it sends PING. A
  peer that stays silent through ``PING_MISSES_MAX`` of them is dead. *Pause guard*: a tick that came late,
  because this process was stopped or busy, convicts nobody; nor does time in which reading was paused. An
  unused bulk connection is looked at every ten seconds only: next to each is a gossip connection that tells
  sooner, and a fetch has deadlines of its own.
* **Progress.** A frame that has begun must arrive at ``FRAME_BYTES_PER_S_MIN`` after a grace (SCENARIOS T15,
  B3, B4).
* **End.** Both sides learn the reason: GOODBYE in band, else what TLS or the transport said.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from crdt_merge_protocol.canonical import digest
from crdt_merge_protocol.errors import MalformedMessageError, RemoteProtocolError
from crdt_merge_protocol.limits import (
    FRAME_BYTES_PER_S_MIN,
    FRAME_GRACE_S,
    LANE_BYTES_MAX,
    PING_IDLE_S,
    PING_MISSES_MAX,
)
from crdt_merge_protocol.messages.base import Message
from crdt_merge_protocol.messages.membership import Goodbye, Hello, Ping, Pong, Refuse
from crdt_merge_protocol.wire import FrameDecoder, encode_frame

from crdt_merge_node.errors import PeerUnreachableError
from crdt_merge_node.telemetry.counters import Traffic

from .contexts import ALPN_BULK
from .lanes import Lane, Lanes
from .refusals import explain
from .tls import TlsPump

__all__ = ["BULK_PING_IDLE_S", "DRAIN_BYTES", "Connection", "Lane", "MessageHandler"]

MessageHandler = Callable[["Connection", Message], None]

DRAIN_BYTES: Final = LANE_BYTES_MAX // 4
_TURN_SLICES: Final = 2
"""Sent before other connections have their turn, though this one takes more."""
BULK_PING_IDLE_S: Final = 10.0
"""Silence after which an unused bulk connection is probed."""
SUSPECT_MISSES: Final = 2
"""Ticks without a sign of life after which a peer is suspected, as ``status`` says it."""
_LAG_S_MAX: Final = PING_IDLE_S / 4
"""A tick later than this says more about this process than about the peer."""
_REASON_CHARS_MAX: Final = 1000


class Connection:
    """One authenticated connection. Made by the endpoint; it is a :class:`TlsApp` of its pump."""

    def __init__(
        self,
        pump: TlsPump,
        *,
        peer: bytes,
        outbound: bool,
        hello: Hello,
        own_nonce: bytes,
        decoder: FrameDecoder,
        early: Sequence[Message],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._pump = pump
        self.peer = peer
        """Node id of the peer, proven by its certificate."""
        self.alpn = pump.alpn or ""
        self.outbound = outbound
        """This node dialled."""
        self.remote = pump.remote
        self.hello = hello
        """What the peer said first."""
        self.session = digest("crdt-merge/connection/1", *sorted((own_nonce, hello.nonce)))
        """Equal on both sides and unpredictable; of two connections to one peer, both keep the smaller."""
        self.closed: asyncio.Future[str] = self._loop.create_future()
        """Resolved with the reason as soon as the connection is of no more use."""
        self.offence: RemoteProtocolError | None = None
        """What the peer sent that ended the connection, if it did."""
        self.last_received = self._loop.time()
        """Loop time at which the last plaintext arrived."""
        self._decoder = decoder
        self._early: deque[Message] = deque(early)
        self._on_message: MessageHandler | None = None
        self._lanes = Lanes()
        self._is_flush_due = False
        self._drains: list[tuple[Lane | None, asyncio.Future[None]]] = []
        self._is_paused = False
        self._was_received = self._was_sent = True
        self._was_used = True
        """Whether anything but PING and PONG has come or gone since the last tick."""
        self._misses = 0
        self._ping_nonce = 0
        self._ping_sent = 0.0
        self.monotonic: Callable[[], float] = self._loop.time
        """Clock of round trips: uvloop's own has a resolution of one millisecond."""
        self.rtt_s: float | None = None
        """Between the last ping that was answered and its answer; pings are sent in silence only."""
        self.opened = self._loop.time()
        """Loop time at which the peer had said hello."""
        self.traffic = Traffic()
        """Where messages are counted."""
        self.on_silent: Callable[[Connection, float], None] = lambda _connection, _silent_s: None
        """Called when a peer begins to be suspected, with how long it has been silent."""
        self._frame_began: float | None = None
        self._frame_bytes = 0
        self._set_timer(self._loop.time(), PING_IDLE_S)
        pump.app = self
        pump.pause_reading()
        if self.alpn == ALPN_BULK:
            decoder.places = pump.places
            pump.land(decoder.room, self._landed)

    def __repr__(self) -> str:
        direction = "to" if self.outbound else "from"
        return f"<Connection {direction} {self.peer.hex()[:12]} at {self.remote} ({self.alpn})>"

    @property
    def peer_certificate(self) -> bytes | None:
        """The certificate that the peer has shown, in DER."""
        return self._pump.peer_certificate

    # --- sending --------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether messages can be sent."""
        return not self.closed.done()

    def send(self, message: Message, lane: Lane) -> bool:
        """Queue a message.

        Returns:
            False if it was shed: the lane is full or the connection has ended.
        """
        if self.closed.done():
            return False
        if not self._lanes.put(message, lane):
            self.traffic.shed[type(message)] += 1
            return False
        self.traffic.sent[type(message)] += 1
        self._was_sent = True
        self._was_used = self._was_used or lane is not Lane.MEMBERSHIP
        self._flush_soon()
        return True

    def queued_bytes(self, lane: Lane | None = None) -> int:
        """Bytes that wait in one lane, or in all."""
        return self._lanes.nbytes(lane)

    async def drain(self, lane: Lane | None = None) -> None:
        """Return once at most ``DRAIN_BYTES`` wait in ``lane`` (or in all): it is time to send more.

        Raises:
            PeerUnreachableError: The connection has ended; the message says why.
        """
        while self.is_open and self.queued_bytes(lane) > DRAIN_BYTES:
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._drains.append((lane, waiter))
            try:
                await waiter
            finally:
                with contextlib.suppress(ValueError):
                    self._drains.remove((lane, waiter))
        if not self.is_open:
            raise PeerUnreachableError(
                f"the connection to {self.peer.hex()[:12]} ended: {self.closed.result()}."
            )

    def _flush_soon(self) -> None:
        """Send at the end of this turn of the loop, so that what is sent together is encrypted together."""
        if not self._is_flush_due:
            self._is_flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flush_due = False
        for _ in range(_TURN_SLICES):
            if not (self._pump.is_writable and self.is_open and (pieces := self._lanes.take())):
                break
            self._pump.write(*pieces)
        else:
            self._flush_soon()
        for lane, waiter in self._drains:
            if not waiter.done() and self.queued_bytes(lane) <= DRAIN_BYTES:
                waiter.set_result(None)

    # --- receiving ------------------------------------------------------------------------------------

    @property
    def on_message(self) -> MessageHandler | None:
        """Called with every message but the connection's own. Nothing is read before it is set."""
        return self._on_message

    @on_message.setter
    def on_message(self, handler: MessageHandler) -> None:
        is_first = self._on_message is None
        self._on_message = handler
        if is_first:
            self._loop.call_soon(self._deliver_early)

    def pause_reading(self) -> None:
        """Take nothing more from the peer for now; TCP slows it down."""
        self._is_paused = True
        self._pump.pause_reading()

    def resume_reading(self) -> None:
        """Take messages again."""
        self._is_paused = False
        if self._on_message is not None:
            self._loop.call_soon(self._deliver_early)

    def _deliver_early(self) -> None:
        """Deliver what came in the same bytes as an earlier message, then let the pump read."""
        while self._early and self.is_open and not self._is_paused:
            self._dispatch(self._early.popleft())
        if not self._is_paused and self.is_open:
            self._pump.resume_reading()

    def _dispatch(self, message: Message) -> None:
        try:
            self._handle(message)
        except RemoteProtocolError as error:
            self._offended(error)

    def _handle(self, message: Message) -> None:
        self.traffic.received[type(message)] += 1
        match message:
            case Ping(nonce=nonce):
                self.send(Pong(nonce=nonce), Lane.MEMBERSHIP)
            case Pong(nonce=nonce):
                if nonce == self._ping_nonce:
                    self.rtt_s = max(0.0, self.monotonic() - self._ping_sent)
            case Goodbye(reason=reason):
                self._end(f"the peer closed: {reason}")
                self._pump.close()
            case Refuse(code=code, reason=reason):
                self._end(f"the peer refused ({code}): {reason}")
                self._pump.close()
            case Hello():
                raise MalformedMessageError("a second hello on one connection")
            case _:
                assert self._on_message is not None, "nothing is delivered before there is a handler"
                self._was_used = True
                self._on_message(self, message)

    # --- the pump's calls -----------------------------------------------------------------------------

    def tls_connecting(self) -> None:
        """Not called: the connection takes over after the handshake."""

    def tls_ready(self) -> None:
        """Not called: the connection takes over after the handshake."""

    def tls_data(self, data: memoryview) -> None:
        """Decode and dispatch."""
        self._receive(self._decoder.feed, data, len(data))

    def _landed(self, nbytes: int) -> None:
        """Dispatch what is complete now that the decoder's room has been filled that far."""
        self._receive(self._decoder.landed, nbytes, nbytes)

    def _receive(self, decode: Callable[[Any], list[Message]], what: Any, nbytes: int) -> None:
        self.last_received = self._loop.time()
        self._was_received = True
        try:
            messages = decode(what)
        except RemoteProtocolError as error:
            self._offended(error)
            return
        self._note_progress(nbytes, is_complete=bool(messages))
        self._early.extend(messages)
        while self._early and self.is_open and not self._is_paused:
            self._dispatch(self._early.popleft())

    def tls_writable(self) -> None:
        """Send what waits."""
        self._flush()

    def tls_closed(self, error: Exception | None) -> None:
        """Note the end."""
        if self.is_open:
            self._end("the peer closed the connection" if error is None else explain(error).reason)

    # --- liveness -------------------------------------------------------------------------------------

    def _note_progress(self, nbytes: int, *, is_complete: bool) -> None:
        if is_complete or self._frame_began is None:
            self._frame_began = self._loop.time() if self._decoder.buffered_bytes else None
            self._frame_bytes = self._decoder.buffered_bytes
            if self._frame_began is not None and self._due > self._frame_began + PING_IDLE_S:
                self._tick_timer.cancel()
                self._set_timer(self._frame_began, PING_IDLE_S)
        elif not self._decoder.buffered_bytes:
            self._frame_began = None
        else:
            self._frame_bytes += nbytes

    def _tick(self) -> None:
        now = self._loop.time()
        lag = now - self._due
        if lag > _LAG_S_MAX or self._is_paused or self._on_message is None:
            self._excuse(now)
        elif self._is_frame_too_slow(now):
            self.close(f"a frame arrives at less than {FRAME_BYTES_PER_S_MIN} bytes a second")
            return
        elif self._was_received:
            self._misses = 0
        else:
            self._misses += 1
            if self._misses == SUSPECT_MISSES:
                self.on_silent(self, now - self.last_received)
        if self._misses > PING_MISSES_MAX:
            self.close(
                f"no sign of life in {now - self.last_received:.0f} s, {PING_MISSES_MAX} pings unanswered"
            )
            return
        if not (self._was_received and self._was_sent):
            self._ping_nonce += 1
            self._ping_sent = self.monotonic()
            self.send(Ping(nonce=self._ping_nonce), Lane.MEMBERSHIP)
        is_quiet = not (self._was_used or self._misses) and self._frame_began is None
        self._was_received = self._was_sent = self._was_used = False
        self._set_timer(now, BULK_PING_IDLE_S if is_quiet and self.alpn == ALPN_BULK else PING_IDLE_S)

    def _set_timer(self, now: float, delay_s: float) -> None:
        self._due = now + delay_s
        self._tick_timer = self._loop.call_at(self._due, self._tick)

    def _excuse(self, now: float) -> None:
        """Let the time since the last tick count for nothing."""
        if self._frame_began is not None:
            self._frame_began, self._frame_bytes = now, 0

    def _is_frame_too_slow(self, now: float) -> bool:
        if self._frame_began is None or now - self._frame_began <= FRAME_GRACE_S:
            return False
        return self._frame_bytes < FRAME_BYTES_PER_S_MIN * (now - self._frame_began)

    # --- ending ---------------------------------------------------------------------------------------

    def close(self, reason: str) -> None:
        """Tell the peer why, then close. What waits in lanes is dropped: ``drain`` first if it matters."""
        self._close(reason, said=reason)

    def abort(self, reason: str) -> None:
        """Cut the connection without a word."""
        self._end(reason)
        self._pump.abort()

    def _close(self, reason: str, *, said: str) -> None:
        if self.is_open:
            goodbye = encode_frame(Goodbye(reason=said[:_REASON_CHARS_MAX]))
            self._pump.write(*self._lanes.clear(), goodbye)
            self._end(reason)
            self._pump.close()

    def _offended(self, error: RemoteProtocolError) -> None:
        self.offence = self.offence or error
        self._close(f"{error.code}: {error.message}", said=f"you broke the protocol: {error.message}")

    def _end(self, reason: str) -> None:
        if self.closed.done():
            return
        self.closed.set_result(reason)
        self._tick_timer.cancel()
        self._lanes.clear()
        self._decoder.places.clear()  # Others that still use them take new ones.
        self._early.clear()
        for _, waiter in self._drains:
            if not waiter.done():
                waiter.set_result(None)

    @property
    def bytes_in(self) -> int:
        """Bytes received on the wire, TLS included."""
        return self._pump.wire_bytes_in

    @property
    def bytes_out(self) -> int:
        """Bytes sent on the wire, TLS included."""
        return self._pump.wire_bytes_out
