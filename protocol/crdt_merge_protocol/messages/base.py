"""What a message is: a frozen dataclass with a number, a class of frame and one way to and from bytes.

A *control* message has a canonical body (see ``canonical.py``) of at most 64 KiB and is written as a list of
fields. A *data* message carries raw bytes behind a small fixed header, at most one chunk. Reading goes
through :class:`Fields`, whose methods refuse everything outside the stated type and range, so that a message
object in hand is always within limits.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self, TypeVar

from crdt_merge_protocol.canonical import decode, encode
from crdt_merge_protocol.errors import LocalProtocolError
from crdt_merge_protocol.fields import U32_MAX, U64_MAX, Fields
from crdt_merge_protocol.limits import CONTROL_BODY_BYTES_MAX, DATA_BODY_BYTES_MAX

__all__ = ["REGISTRY", "U32_MAX", "U64_MAX", "ControlMessage", "DataMessage", "Fields", "Message", "register"]


class Message:
    """Base of all messages. Subclasses are frozen dataclasses registered with :func:`register`."""

    TYPE: ClassVar[int]
    """Number on the wire, never reused."""
    CRITICAL: ClassVar[bool] = True
    """A receiver that does not know a critical type closes; an unknown other type is ignored."""
    BODY_BYTES_MAX: ClassVar[int] = CONTROL_BODY_BYTES_MAX

    __slots__ = ()

    def to_body(self) -> bytes:
        """Return the bytes behind the frame header."""
        raise LocalProtocolError(f"{type(self).__name__} has no body.")

    def to_pieces(self) -> tuple[bytes | memoryview, ...]:
        """Return the same in pieces, the first of them bytes, so that large ones need not be copied."""
        return (self.to_body(),)

    @classmethod
    def from_body(cls, body: bytes) -> Self:
        """Return the message in ``body``.

        Raises:
            RemoteProtocolError: The bytes are not such a message.
        """
        raise LocalProtocolError(f"{cls.__name__} has no body.")

    @classmethod
    def from_view(cls, body: memoryview) -> Self:
        """Return the message in ``body``, of which it may keep a part: nobody changes it while that lives."""
        return cls.from_body(bytes(body))


class ControlMessage(Message):
    """A message whose body is a canonical list of fields."""

    __slots__: tuple[str, ...] = ()

    def to_fields(self) -> list[Any]:
        """Return the fields in wire order: that of the class, unless a subclass says otherwise."""
        return [getattr(self, name) for name in self.__slots__]

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order; the caller checks that none is left."""
        return cls()

    def to_body(self) -> bytes:
        """Return the canonical body."""
        body = encode(self.to_fields())
        if len(body) > self.BODY_BYTES_MAX:
            raise LocalProtocolError(f"{type(self).__name__} of {len(body)} bytes does not fit a frame.")
        return body

    @classmethod
    def from_body(cls, body: bytes) -> Self:
        """Return the message in a canonical body."""
        fields = Fields(decode(body, bytes_max=cls.BODY_BYTES_MAX), what=cls.__name__)
        message = cls.from_fields(fields)
        fields.end()
        return message


class DataMessage(Message):
    """A message with raw bytes; subclasses write ``to_body`` and ``from_body`` themselves."""

    BODY_BYTES_MAX: ClassVar[int] = DATA_BODY_BYTES_MAX

    __slots__ = ()


REGISTRY: dict[int, type[Message]] = {}

M = TypeVar("M", bound=type[Message])


def register(message_class: M) -> M:
    """Make a message class known to the wire under its ``TYPE``."""
    assert message_class.TYPE not in REGISTRY, f"message type {message_class.TYPE} is taken"
    REGISTRY[message_class.TYPE] = message_class
    return message_class
