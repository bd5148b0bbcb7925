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
from .limits import DATA_BODY_BYTES_MAX, FRAME_HEADER_BYTES, KIB
from .messages.base import REGISTRY, Message

FLAG_CRITICAL: Final = 1
_HEADER: Final = struct.Struct(">IBB")


PLACE_BYTES_MIN: Final = 64 * KIB
"""Bodies from here on are gathered in memory of their own, and not copied out of the stream's buffer."""
PLACE_SHARE: Final = 64
"""The memory for such a body is taken once 1/64 of it is here: a claim alone takes none (SCENARIOS T14)."""

PLACES_MAX: Final = 16
"""Such memory kept for the next body."""

Buffer = bytes | bytearray | memoryview


def encode_frame(message: Message) -> bytes:
    """Return the frame that carries ``message``."""
    return b"".join(encode_pieces(message))


def encode_pieces(message: Message) -> tuple[bytes | memoryview, ...]:
    """Return the frame that carries ``message`` in one or more pieces, without copying raw bytes it holds."""
    first, *rest = message.to_pieces()
    length = len(first) + sum(map(len, rest))
    return _HEADER.pack(length, message.TYPE, FLAG_CRITICAL if message.CRITICAL else 0) + first, *rest


class FrameDecoder:
    """Turns a stream of bytes into messages. Buffers at most one frame.

    The rest of a large body may be written where it belongs: into :meth:`room`, and then :meth:`landed`.
    Whoever does not ask for room calls :meth:`feed` with everything.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skip = 0
        self.places = Places()
        """Where large bodies go. May be shared with other decoders."""
        self._place: memoryview | None = None
        """A large body that has begun to arrive."""
        self._placed = 0
        self._place_class: type[Message] | None = None

    @property
    def buffered_bytes(self) -> int:
        """Bytes of an incomplete frame held back."""
        return len(self._buffer) + (0 if self._place is None else FRAME_HEADER_BYTES + self._placed)

    def room(self) -> memoryview | None:
        """Return where the next bytes of the stream belong; None if they have to be fed."""
        return None if self._place is None else self._place[self._placed :]

    def landed(self, nbytes: int) -> list[Message]:
        """Return the message, if any, that is complete now that :meth:`room` has been filled that far.

        Raises:
            RemoteProtocolError: It is not valid; close the connection.
        """
        assert self._place is not None, "who has no room has nothing to put there"
        assert self._place_class is not None, "the room is for a message"
        self._placed += nbytes
        if self._placed < len(self._place):
            return []
        body, self._place, self._placed = self._place, None, 0
        return [self._place_class.from_view(body.toreadonly())]

    def feed(self, data: Buffer) -> list[Message]:
        """Return the messages completed by ``data``, in order.

        Raises:
            RemoteProtocolError: The stream is not a sequence of valid frames; close the connection.
        """
        complete: list[Message] = []
        if (room := self.room()) is not None:
            count = min(len(room), len(data))
            room[:count] = memoryview(data)[:count]
            complete += self.landed(count)
            data = memoryview(data)[count:]
        self._buffer += data
        position = 0
        while True:
            position = self._pass_over(position)
            begin = position + FRAME_HEADER_BYTES
            if self._skip or len(self._buffer) < begin:
                break
            length, kind, flags = _HEADER.unpack_from(self._buffer, position)
            message_class = self._check_header(length, kind, flags)
            if message_class is None:
                position, self._skip = begin, length
            elif len(self._buffer) - begin >= length:
                with memoryview(self._buffer) as view:  # One copy; a slice of a bytearray would be another.
                    body = bytes(view[begin : begin + length])
                complete.append(message_class.from_body(body))
                position = begin + length
            else:
                if length >= PLACE_BYTES_MIN and (len(self._buffer) - begin) * PLACE_SHARE >= length:
                    self._give_place(begin, length, message_class)
                    position = len(self._buffer)
                break
        del self._buffer[:position]
        return complete

    def _pass_over(self, position: int) -> int:
        """Return where the next frame begins, behind as much as is here of one that is skipped."""
        step = min(self._skip, len(self._buffer) - position)
        self._skip -= step
        return position + step

    def _give_place(self, begin: int, length: int, message_class: type[Message]) -> None:
        self._place, self._place_class = self.places.take(length), message_class
        self._placed = len(self._buffer) - begin
        with memoryview(self._buffer) as view:
            self._place[: self._placed] = view[begin:]

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


class Places:
    """Memory for bodies, taken again once no view of it is left: zeroing and faulting it in is dear."""

    def __init__(self) -> None:
        self._kept: list[bytearray] = []

    def take(self, nbytes: int) -> memoryview:
        """Return ``nbytes`` of memory with whatever was in it."""
        for place in self._kept:
            if len(place) == nbytes and _is_unused(place):
                return memoryview(place)
        place = bytearray(nbytes + 1)
        place.pop()  # Leaves room for the byte that _is_unused appends.
        if len(self._kept) >= PLACES_MAX:
            del self._kept[0]
        self._kept.append(place)
        return memoryview(place)

    def clear(self) -> None:
        """Keep nothing; what is in use stays with whoever uses it."""
        self._kept.clear()


def _is_unused(place: bytearray) -> bool:
    """Tell whether no view of a bytearray exists: only then Python lets its size change."""
    try:
        place.append(0)
    except BufferError:
        return False
    place.pop()
    return True
