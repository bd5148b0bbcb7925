"""Messages that spread what is new: GOSSIP, WANT_GENESIS, GENESIS, ATTEST."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from crdt_merge_protocol.limits import GENESIS_BYTES_MAX, GROUPS_MAX, OPERATION_BYTES_MAX

from .base import ControlMessage, Fields, register

SIGNED_OPERATION_BYTES_MAX = OPERATION_BYTES_MAX + 128


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Gossip(ControlMessage):
    """New operations, pushed by their author as soon as they are durable there."""

    TYPE: ClassVar[int] = 17

    group: bytes
    operations: tuple[bytes, ...]
    """Each the wire form of one signed operation."""

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        group = fields.id()
        values = fields.items(count_max=1024)
        reader = Fields(values, what=cls.__name__)
        return cls(
            group=group,
            operations=tuple(reader.blob(size_max=SIGNED_OPERATION_BYTES_MAX) for _ in values),
        )


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class WantGenesis(ControlMessage):
    """Asks for the genesis of groups that the sender has heard of but does not hold."""

    TYPE: ClassVar[int] = 18

    groups: tuple[bytes, ...]

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        return cls(groups=fields.ids(count_max=GROUPS_MAX))


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class GenesisFound(ControlMessage):
    """A genesis. It certifies itself: the group id is its hash (PROTOCOL R0)."""

    TYPE: ClassVar[int] = 19

    genesis: bytes

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        return cls(genesis=fields.blob(size_max=GENESIS_BYTES_MAX))


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Attest(ControlMessage):
    """What the sender wrote for a resolve key. Equal keys must have equal outputs, or it is an alarm."""

    TYPE: ClassVar[int] = 20

    group: bytes
    resolve_key: bytes
    output_digest: bytes
    profile: str
    """Numerics profile; empty for strategies whose output is bitwise the same everywhere."""

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        return cls(
            group=fields.id(),
            resolve_key=fields.id(),
            output_digest=fields.id(),
            profile=fields.text(size_max=256),
        )
