"""Frames: u32 body length, u8 type, u8 flags, body (PROTOCOL 4).

All integers are big-endian. The length is checked against the cap of its message type before a byte of the
body is buffered, so a claimed length never allocates anything. Flag bit 0 marks a *critical* type: whoever
does not know it must close. Unknown types without it are skipped, in bounded memory.
"""

from __future__ import annotations

import struct
from typing import Final

from . import messages  # noqa: F401  (importing registers the message types)
from .errors import LimitExceededError, MalformedMessageError
from .limits import DATA_BODY_BYTES_MAX, FRAME_HEADER_BYTES
from .messages.base import REGISTRY, Message

FLAG_CRITICAL: Final = 1
_HEADER: Final = struct.Struct(">IBB")


def encode_frame(message: Message) -> bytes:
    """Return the frame that carries ``message``."""
    body = message.to_body()
    return _HEADER.pack(len(body), message.TYPE, FLAG_CRITICAL if message.CRITICAL else 0) + body


class FrameDecoder:
    """Turns a stream of bytes into messages. Buffers at most one frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skip = 0

    @property
    def buffered_bytes(self) -> int:
        """Bytes of an incomplete frame held back."""
        return len(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview) -> list[Message]:
        """Return the messages completed by ``data``, in order.

        Raises:
            RemoteProtocolError: The stream is not a sequence of valid frames; close the connection.
        """
        self._buffer += data
        complete: list[Message] = []
        position = 0
        while True:
            if self._skip:
                step = min(self._skip, len(self._buffer) - position)
                position += step
                self._skip -= step
                if self._skip:
                    break
            if len(self._buffer) - position < FRAME_HEADER_BYTES:
                break
            length, kind, flags = _HEADER.unpack_from(self._buffer, position)
            message_class = self._check_header(length, kind, flags)
            if message_class is None:
                position += FRAME_HEADER_BYTES
                self._skip = length
                continue
            if len(self._buffer) - position - FRAME_HEADER_BYTES < length:
                break
            begin = position + FRAME_HEADER_BYTES
            with memoryview(self._buffer) as view:  # One copy; a slice of a bytearray would be another.
                body = bytes(view[begin : begin + length])
            complete.append(message_class.from_body(body))
            position = begin + length
        del self._buffer[:position]
        return complete

    @staticmethod
    def _check_header(length: int, kind: int, flags: int) -> type[Message] | None:
        if flags & ~FLAG_CRITICAL:
            raise MalformedMessageError(f"frame flags {flags:#04x} are unknown.")
        message_class = REGISTRY.get(kind)
        cap = message_class.BODY_BYTES_MAX if message_class else DATA_BODY_BYTES_MAX
        if length > cap:
            raise LimitExceededError(f"a frame of type {kind} claims {length} bytes, at most {cap} are read.")
        if message_class is None and flags & FLAG_CRITICAL:
            raise MalformedMessageError(f"frame type {kind} is unknown and critical.")
        return message_class
