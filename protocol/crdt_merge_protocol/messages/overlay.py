"""Messages of the partial view (HyParView) and of the broadcast tree (Plumtree), PROTOCOL 3.

Leitão, Pereira, Rodrigues: "HyParView: a membership protocol for reliable gossip-based broadcast" (DSN 2007)
and "Epidemic broadcast trees" (SRDS 2007). A node here keeps its connections, so a walk and its answer go
along connections that exist; only becoming neighbours takes a new one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from crdt_merge_protocol.limits import (
    ADDRESS_CHARS_MAX,
    IHAVE_IDS_MAX,
    SAMPLE_ADDRESSES_MAX,
    SAMPLE_PEERS_MAX,
    WALK_STEPS_MAX,
)

from .base import U32_MAX, ControlMessage, Fields, register

Contact = tuple[bytes, tuple[str, ...]]
"""A node id and addresses at which it is said to answer."""
NONCE_BYTES = 8


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Join(ControlMessage):
    """The sender is new or alone: become its neighbour, and carry its name around."""

    TYPE: ClassVar[int] = 7


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardJoin(ControlMessage):
    """A newcomer on its random walk: who takes it last offers itself as a neighbour."""

    TYPE: ClassVar[int] = 8

    contact: Contact
    steps: int
    """How much further it goes."""

    def to_fields(self) -> list[Any]:
        """Return the fields in wire order."""
        node, addresses = self.contact
        return [node, list(addresses), self.steps]

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        node, addresses = fields.id(), _addresses(fields)
        return cls(contact=(node, addresses), steps=fields.integer(high=WALK_STEPS_MAX))


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbor(ControlMessage):
    """Asks to become neighbours; answered by :class:`Accepted` or :class:`Leave`."""

    TYPE: ClassVar[int] = 9

    is_urgent: bool
    """The sender has few neighbours, or crosses over to where it has none: room is made for it."""

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        return cls(is_urgent=fields.boolean())


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted(ControlMessage):
    """The two are neighbours now; and whom else the sender knows."""

    TYPE: ClassVar[int] = 10

    peers: tuple[Contact, ...] = ()

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        return cls(peers=_contacts(fields))


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Leave(ControlMessage):
    """The two are not neighbours, or not any more; whom to ask instead. The connection may close."""

    TYPE: ClassVar[int] = 11

    peers: tuple[Contact, ...] = ()

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        return cls(peers=_contacts(fields))


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Shuffle(ControlMessage):
    """A sample of the origin's views on a random walk; the last to get it answers with one of its own."""

    TYPE: ClassVar[int] = 12

    nonce: bytes
    """8 random bytes by which the answer finds its way back."""
    population: int
    """Nodes that the origin knows."""
    steps: int
    peers: tuple[Contact, ...]

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        return cls(
            nonce=fields.blob(size=NONCE_BYTES),
            population=fields.integer(high=U32_MAX),
            steps=fields.integer(high=WALK_STEPS_MAX),
            peers=_contacts(fields),
        )


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class ShuffleReply(ControlMessage):
    """The answer to :class:`Shuffle`, back along the way that it came."""

    TYPE: ClassVar[int] = 13

    nonce: bytes
    peers: tuple[Contact, ...]

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        return cls(nonce=fields.blob(size=NONCE_BYTES), peers=_contacts(fields))


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class View(ControlMessage):
    """The sender keeps a partial view: who wants to be its neighbour must ask. Said first on a connection."""

    TYPE: ClassVar[int] = 14

    population: int
    """Nodes that the sender knows, itself included: whether a full mesh would do."""

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        return cls(population=fields.integer(high=U32_MAX))


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class IHave(ControlMessage):
    """Operations that are durable at the sender, and that it does not push on this link."""

    TYPE: ClassVar[int] = 21

    group: bytes
    ids: tuple[bytes, ...]

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        return cls(group=fields.id(), ids=fields.ids(count_max=IHAVE_IDS_MAX))


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Graft(ControlMessage):
    """Push these, and from now on everything, on this link."""

    TYPE: ClassVar[int] = 22

    group: bytes
    ids: tuple[bytes, ...]

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        return cls(group=fields.id(), ids=fields.ids(count_max=IHAVE_IDS_MAX))


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Prune(ControlMessage):
    """What is pushed on this link comes another way as well: announce it only."""

    TYPE: ClassVar[int] = 23


VIEW_MESSAGES = (Join, ForwardJoin, Neighbor, Accepted, Leave, Shuffle, ShuffleReply, View)
TREE_MESSAGES = (IHave, Graft, Prune)


def _contacts(fields: Fields) -> tuple[Contact, ...]:
    contacts = []
    for record in fields.records(count_max=SAMPLE_PEERS_MAX):
        contacts.append((record.id(), _addresses(record)))
        record.end()
    return tuple(contacts)


def _addresses(fields: Fields) -> tuple[str, ...]:
    texts = fields.items(count_max=SAMPLE_ADDRESSES_MAX)
    reader = Fields(texts, what="addresses")
    return tuple(reader.text(size_max=ADDRESS_CHARS_MAX) for _ in texts)
