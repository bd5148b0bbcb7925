"""The form that all bodies have: a version byte, then a canonical list of fields (PROTOCOL R1, R2)."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, ClassVar, Final, Self

from .canonical import decode, encode
from .errors import LocalProtocolError, RemoteProtocolError
from .fields import Fields
from .limits import OPERATION_BYTES_MAX

BODY_VERSION: Final = 1


class Kind(IntEnum):
    """Kinds of operations. Numbers are never reused."""

    ADD = 1
    REMOVE = 2
    POLICY = 3
    ADMIT = 4
    REVOKE = 5
    BAN = 6
    ERASE = 7
    RECEIPT = 8
    HOLD = 9


_WHAT: Final = tuple(f"body of kind {kind}" for kind in range(max(Kind) + 1))


class Said:
    """What an operation of one kind says. Every subclass is an immutable value."""

    __slots__ = ()
    KIND: ClassVar[Kind]

    def fields(self) -> list[Any]:
        """Return the values of the body, in order."""
        raise NotImplementedError

    @classmethod
    def read(cls, fields: Fields) -> Self:
        """Read the fields in order.

        Raises:
            RemoteProtocolError: One is missing or outside its range.
        """
        raise NotImplementedError

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """Return what a body says whose version is this one.

        Raises:
            RemoteProtocolError: It is not a body of this kind.
        """
        fields = Fields(decode(body[1:], bytes_max=OPERATION_BYTES_MAX), what=_WHAT[cls.KIND])
        said = cls.read(fields)
        fields.end()
        return said

    def encode(self) -> bytes:
        """Return the body, and make sure that it reads back as the same value.

        Raises:
            LocalProtocolError: No node could read it.
        """
        body = bytes([BODY_VERSION]) + encode(self.fields())
        try:
            if self.decode(body) == self:
                return body
        except RemoteProtocolError:
            pass
        raise LocalProtocolError(
            f"{self!r:.200} cannot be encoded: a field is outside its range or not sorted."
        )
