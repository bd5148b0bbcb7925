"""A short exchange of messages over a pump, written as a coroutine: what joining needs, and no more."""

from __future__ import annotations

import asyncio
from typing import Final

from crdt_merge_protocol.errors import CrdtMergeError, LimitExceededError, RemoteProtocolError
from crdt_merge_protocol.limits import CONTROL_BODY_BYTES_MAX, FRAME_HEADER_BYTES
from crdt_merge_protocol.messages.base import Message
from crdt_merge_protocol.messages.membership import Goodbye, Refuse
from crdt_merge_protocol.wire import FrameDecoder, encode_frame

from crdt_merge_node.errors import PeerRefusedError, PeerUnreachableError

from .refusals import transport_error
from .tls import TlsPump

_REASON_CHARS_MAX: Final = 1000
_MESSAGES_MAX: Final = 4
"""Nobody has reason to send more than this unasked."""


class Dialogue:
    """Sends and awaits messages. A :class:`TlsApp` whose pump is up, or comes up."""

    def __init__(self, remote: str = "") -> None:
        self.pump: TlsPump
        """Set by whoever makes the pump."""
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._remote = remote
        self._decoder = FrameDecoder()
        self._messages: asyncio.Queue[Message | CrdtMergeError] = asyncio.Queue()

    @classmethod
    def take_over(cls, pump: TlsPump) -> Dialogue:
        """Return the dialogue on a connection whose handshake is done."""
        dialogue = cls()
        dialogue.pump = pump
        dialogue.ready.set_result(None)
        pump.app = dialogue
        return dialogue

    @property
    def remote(self) -> str:
        """The peer's address."""
        return self._remote or self.pump.remote

    def send(self, message: Message) -> None:
        """Send a message."""
        self.pump.write(encode_frame(message))

    def refuse(self, error: CrdtMergeError) -> None:
        """Tell the peer why this ends, and end."""
        self.send(Refuse(code=error.code, reason=error.message.rstrip(".")[:_REASON_CHARS_MAX]))
        self.pump.close()

    async def receive(self, *, timeout_s: float) -> Message:
        """Return the peer's next message.

        Raises:
            PeerRefusedError: The peer refused; the message says why.
            TransportError: The connection ended, or nothing came in time.
            RemoteProtocolError: The peer sent nonsense.
        """
        try:
            async with asyncio.timeout(timeout_s):
                message = await self._messages.get()
        except TimeoutError:
            raise PeerUnreachableError(f"{self.remote} said nothing for {timeout_s:g} s.") from None
        if isinstance(message, Refuse | Goodbye):
            raise PeerRefusedError(f"{self.remote} refused this node: {message.reason}.")
        if isinstance(message, CrdtMergeError):
            raise message
        return message

    def tls_connecting(self) -> None:
        """Nothing to do."""

    def tls_ready(self) -> None:
        """Let whoever waits begin."""
        if not self.ready.done():
            self.ready.set_result(None)

    def tls_data(self, data: memoryview) -> None:
        """Queue what is complete."""
        try:
            messages = self._decoder.feed(data)
            if self._decoder.buffered_bytes > CONTROL_BODY_BYTES_MAX + FRAME_HEADER_BYTES:
                # Who is not known yet must not make this node keep more (SCENARIOS T16).
                raise LimitExceededError("a frame that is longer than any that belongs here")
        except RemoteProtocolError as error:
            self._messages.put_nowait(error)
            self.refuse(error)
            return
        for message in messages:
            self._messages.put_nowait(message)
        if self._messages.qsize() > _MESSAGES_MAX:
            self.pump.abort()

    def tls_writable(self) -> None:
        """What is said here fits any buffer."""

    def tls_closed(self, error: Exception | None) -> None:
        """Wake whoever waits."""
        reason = transport_error(self.remote, error)
        self._messages.put_nowait(reason)
        if not self.ready.done():
            self.ready.set_exception(reason)
