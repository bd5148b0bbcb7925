"""TLS 1.3 over any byte transport, in which neither side loses the reason of a failure.

The TLS of asyncio and of uvloop drops the alert: when a handshake fails they close without flushing what
OpenSSL had to say, so the refused side never learns why and the refusing side's callbacks are never called.
Here OpenSSL runs on two memory buffers and this protocol moves the bytes:

* every step ends with a flush, also the failing one, and a failed connection is *half*-closed: the alert
  leaves, the peer's remaining bytes are read and discarded, and only then does the socket close. Closing at
  once with unread input would make the kernel send a reset, which may overtake the alert;
* a close sends close_notify, so the peer can tell an end from a cut;
* records (16 KiB at most) are coalesced before they go up;
* the transport's back-pressure is visible as :attr:`TlsPump.is_writable` and ``tls_writable``.

Timers are the loop's own, so this runs unchanged on virtual time.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from enum import Enum, auto
from typing import Any, Final, Protocol, cast

from crdt_merge_protocol.limits import HANDSHAKE_TIMEOUT_S, KIB, LINGER_S
from crdt_merge_protocol.wire import Places

from .addresses import join_address
from .refusals import plaintext_answer

READ_BUFFER_BYTES: Final = 256 * KIB
TURN_READS: Final = 2
"""Full buffers read before other connections have their turn. libuv alone would read 32 (8 MiB, 10 ms)."""
RECORD_BYTES: Final = 16 * KIB
"""Plaintext of one TLS record at most."""
WRITE_SLICE_BYTES: Final = 128 * KIB
"""Encrypted at a time: memory that is reused, where a megabyte would be mapped anew for every chunk."""
WRITE_HIGH_BYTES: Final = 256 * KIB
"""Ciphertext that may wait in the transport. What is in there cannot be overtaken by a higher lane."""


class TlsApp(Protocol):
    """What sits above a pump. Calls come in this order; ``tls_closed`` comes once and last."""

    def tls_connecting(self) -> None:
        """The byte transport is there, TLS has not begun; the pump may be aborted now."""
        ...

    def tls_ready(self) -> None:
        """The handshake is done as far as this side can tell (TLS 1.3: the peer may yet refuse us)."""
        ...

    def tls_data(self, data: memoryview) -> None:
        """Plaintext arrived; valid only during the call."""
        ...

    def tls_writable(self) -> None:
        """There is room again for writing."""
        ...

    def tls_closed(self, error: Exception | None) -> None:
        """Nothing more will arrive. None: the peer said close_notify, or this side closed."""
        ...


class PumpBuffers:
    """Scratch space shared by all pumps of one loop: it is used within one callback, never across two."""

    def __init__(self) -> None:
        self.raw = bytearray(READ_BUFFER_BYTES)
        self.plain = bytearray(READ_BUFFER_BYTES)
        self.raw_view = memoryview(self.raw)
        self.plain_view = memoryview(self.plain)
        self.places = Places()
        """Of large frames; outlives callbacks, and is used again once nobody looks at it any more."""


class _State(Enum):
    IDLE = auto()
    HANDSHAKE = auto()
    OPEN = auto()
    CLOSING = auto()
    """Everything is said; input is discarded until the peer ends too."""
    LOST = auto()


class TlsPump(asyncio.BufferedProtocol):
    """Moves bytes between a transport, OpenSSL and a :class:`TlsApp`."""

    def __init__(
        self,
        context: ssl.SSLContext,
        app: TlsApp,
        *,
        is_server: bool,
        buffers: PumpBuffers,
        handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.app = app
        self.is_server = is_server
        self.is_writable = True
        self.wire_bytes_in = 0
        self.wire_bytes_out = 0
        self.lost: asyncio.Future[None] = self._loop.create_future()
        """Done when the byte transport is gone."""
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=is_server)
        self._buffers = buffers
        self._gather_bytes = READ_BUFFER_BYTES
        self._room: Callable[[], memoryview | None] = _no_room
        self._landed: Callable[[int], None] | None = None
        self._handshake_timeout_s = handshake_timeout_s
        self._state = _State.IDLE
        self._is_reading = True
        self._full_reads = 0
        self._saw_eof = False
        self._is_reported = False
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None

    # --- facts ----------------------------------------------------------------------------------------

    @property
    def remote_host(self) -> str:
        """The peer's address without port; empty where the transport does not tell."""
        return self._address("peername")[0]

    @property
    def remote(self) -> str:
        """The peer's ``host:port``."""
        return join_address(*self._address("peername"))

    @property
    def local_host(self) -> str:
        """The address of this node that the connection uses; empty where the transport does not tell."""
        return self._address("sockname")[0]

    def _address(self, which: str) -> tuple[str, int]:
        name = self._transport.get_extra_info(which) if self._transport is not None else None
        return (str(name[0]), int(name[1])) if isinstance(name, tuple | list) and len(name) > 1 else ("", 0)

    @property
    def alpn(self) -> str | None:
        """The application protocol that both sides chose, if any."""
        return self._tls.selected_alpn_protocol()

    @property
    def peer_certificate(self) -> bytes | None:
        """The peer's certificate in DER; None if it showed none."""
        return self._tls.getpeercert(binary_form=True)

    @property
    def is_open(self) -> bool:
        """Whether plaintext can be written."""
        return self._state is _State.OPEN

    # --- down: from the app ---------------------------------------------------------------------------

    def write(self, *pieces: bytes | bytearray | memoryview) -> None:
        """Encrypt and send; ignored once closing. Heed :attr:`is_writable` to bound memory."""
        try:
            for piece in pieces:
                rest = memoryview(piece)
                while rest and self._state is _State.OPEN:
                    rest = rest[self._tls.write(rest[:WRITE_SLICE_BYTES]) :]
                    if self._outgoing.pending >= WRITE_SLICE_BYTES:
                        self._flush()
            if self._state is _State.OPEN:
                self._flush()
        except ssl.SSLError as error:
            self._fail(error)

    @property
    def places(self) -> Places:
        """Memory for large frames, shared by all pumps of the loop."""
        return self._buffers.places

    def land(self, room: Callable[[], memoryview | None], landed: Callable[[int], None]) -> None:
        """Decrypt to where the app wants it from now on, not to scratch space of which it takes a copy.

        Args:
            room: Returns where the next plaintext belongs, or None: then ``tls_data`` gets one record of it.
            landed: Gets the number of bytes that were put there.
        """
        self._room, self._landed, self._gather_bytes = room, landed, RECORD_BYTES

    def close(self) -> None:
        """Send close_notify after what was written, let the peer end too, then close. Idempotent."""
        if self._state in (_State.IDLE, _State.HANDSHAKE):
            self.abort()
        elif self._state is _State.OPEN:
            self._say_close_notify()
            self._shut()
            self._report(None)

    def abort(self) -> None:
        """Cut the connection. Nothing that is buffered leaves any more."""
        if self._transport is not None and self._state is not _State.LOST:
            self._state = _State.CLOSING
            self._transport.abort()
        self._report(None)

    def pause_reading(self) -> None:
        """Deliver nothing more for now; the kernel's window then slows the peer."""
        if self._is_reading and self._state is _State.OPEN and self._transport is not None:
            self._is_reading = False
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Deliver again, also what was decrypted or received before the pause."""
        if not self._is_reading and self._transport is not None and self._state is not _State.LOST:
            self._is_reading = True
            self._transport.resume_reading()
            self._loop.call_soon(self._step)

    # --- up: from the transport -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake, unless the app objects."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop has classes of its own.
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        self._state = _State.HANDSHAKE
        self._timer = self._loop.call_later(self._handshake_timeout_s, self._handshake_timed_out)
        self.app.tls_connecting()
        self._step()

    def get_buffer(self, sizehint: int) -> bytearray:  # noqa: ARG002  (asyncio names it)
        """Return where the transport puts what it receives."""
        return self._buffers.raw

    def buffer_updated(self, nbytes: int) -> None:
        """Take ``nbytes`` of ciphertext."""
        self.wire_bytes_in += nbytes
        if self._state in (_State.HANDSHAKE, _State.OPEN):
            self._incoming.write(self._buffers.raw_view[:nbytes])
            self._step()
        self._full_reads = self._full_reads + 1 if nbytes == READ_BUFFER_BYTES else 0
        if self._full_reads >= TURN_READS and self._is_reading and self._transport is not None:
            self._full_reads = 0
            self._transport.pause_reading()
            self._loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        transport = self._transport
        if self._is_reading and transport is not None and not transport.is_closing():
            transport.resume_reading()

    def eof_received(self) -> bool:
        """Note the peer's end. True keeps our half open: the answer may have to leave first."""
        self._saw_eof = True
        if self._state in (_State.HANDSHAKE, _State.OPEN):
            self._incoming.write_eof()
            self._step()
        elif self._transport is not None:
            self._transport.close()
        return True

    def pause_writing(self) -> None:
        """Stop writing: the transport's buffer is full."""
        self.is_writable = False

    def resume_writing(self) -> None:
        """Go on writing: the transport's buffer has drained."""
        self.is_writable = True
        if self._state is _State.OPEN:
            self.app.tls_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the app, unless it knows."""
        self._cancel_timer()
        self._state = _State.LOST
        self._report(exc or ConnectionResetError("closed"))
        if not self.lost.done():
            self.lost.set_result(None)

    # --- between --------------------------------------------------------------------------------------

    def _step(self) -> None:
        if self._state is _State.HANDSHAKE:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                return
            except ssl.SSLError as error:
                self._fail(error)
                return
            self._cancel_timer()
            self._state = _State.OPEN
            self._flush()
            self.app.tls_ready()
        while self._state is _State.OPEN and self._is_reading:
            room = self._room()
            view = self._buffers.plain_view[: self._gather_bytes] if room is None else room
            nbytes, outcome = self._decrypt(view)
            if nbytes and room is None:
                self.app.tls_data(view[:nbytes])
            elif nbytes and self._landed is not None:
                self._landed(nbytes)
            if outcome is None:
                continue  # It was full; there may be more.
            if self._state is _State.OPEN:
                self._conclude(outcome)
            return

    def _decrypt(self, view: memoryview) -> tuple[int, ssl.SSLError | None]:
        """Return how many bytes of plaintext were put into ``view``, and why there are no more."""
        read: Any = self._tls.read  # typeshed knows only a bytearray here, and that bytes come back.
        nbytes, room = 0, len(view)
        try:
            while nbytes < room:
                count = read(room - nbytes, view[nbytes:])
                if not count:  # close_notify, which OpenSSL reports as an end of file here.
                    return nbytes, ssl.SSLZeroReturnError()
                nbytes += count
        except ssl.SSLError as error:
            # Its traceback leads to the caller's frame, which holds the error: garbage that holds chunks.
            return nbytes, error.with_traceback(None)
        return nbytes, None

    def _conclude(self, outcome: ssl.SSLError) -> None:
        if isinstance(outcome, ssl.SSLWantReadError):
            self._flush()
        elif isinstance(outcome, ssl.SSLZeroReturnError):
            self._say_close_notify()
            self._shut()
            self._report(None)
        else:
            self._fail(outcome)

    def _flush(self) -> None:
        if self._outgoing.pending and self._transport is not None and self._state is not _State.LOST:
            data = self._outgoing.read()
            self.wire_bytes_out += len(data)
            self._transport.write(data)

    def _fail(self, error: ssl.SSLError) -> None:
        """End because of ``error``, after the alert that says so."""
        in_handshake = self._state is _State.HANDSHAKE
        self._flush()
        if in_handshake and self.is_server and self._transport is not None:
            self._transport.write(plaintext_answer(error))
        self._shut()
        self._report(error)

    def _say_close_notify(self) -> None:
        with contextlib.suppress(ssl.SSLError):  # Wanting to read the peer's answer is the normal case.
            self._tls.unwrap()

    def _shut(self) -> None:
        """End our half after everything flushed; close when the peer ended too or the linger is over."""
        self._cancel_timer()
        self._flush()
        self._state = _State.CLOSING
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self._timer = self._loop.call_later(LINGER_S, transport.abort)
        if self._saw_eof or not transport.can_write_eof():
            transport.close()
            return
        transport.write_eof()
        if not self._is_reading:
            self._is_reading = True
            transport.resume_reading()

    def _handshake_timed_out(self) -> None:
        self._report(TimeoutError(f"no TLS handshake within {self._handshake_timeout_s:g} s"))
        self.abort()

    def _report(self, error: Exception | None) -> None:
        if not self._is_reported:
            self._is_reported = True
            self.app.tls_closed(error)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _no_room() -> None:
    """Everything goes to scratch space."""
