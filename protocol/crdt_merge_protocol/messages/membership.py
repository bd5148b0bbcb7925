"""Messages by which two nodes meet, stay acquainted and part: HELLO, REFUSE, PEERS, GOODBYE, DEPARTED."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Self

from crdt_merge_protocol.canonical import digest
from crdt_merge_protocol.identity import SIGNATURE_BYTES
from crdt_merge_protocol.limits import ADDRESSES_PER_PEER_MAX, CONTROL_BODY_BYTES_MAX, GROUPS_MAX

from .base import U32_MAX, ControlMessage, Fields, register

PEERS_MAX = 256


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Hello(ControlMessage):
    """First message of both sides on every connection, right after the TLS handshake."""

    TYPE: ClassVar[int] = 1

    version_min: int
    version_max: int
    cluster: bytes
    """32-byte cluster id."""
    node: bytes
    """The sender's node id; must equal the one in its certificate."""
    nonce: bytes
    """16 random bytes, so that simultaneous connections can be told apart."""
    agent: str
    """Program and release, for people."""
    addresses: tuple[str, ...]
    """``host:port`` under which the sender can be dialled."""
    features: tuple[str, ...] = ()

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        return cls(
            version_min=fields.integer(high=U32_MAX),
            version_max=fields.integer(high=U32_MAX),
            cluster=fields.id(),
            node=fields.id(),
            nonce=fields.blob(size=16),
            agent=fields.text(size_max=128),
            addresses=_texts(fields, ADDRESSES_PER_PEER_MAX),
            features=_texts(fields, 64),
        )


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse(ControlMessage):
    """The sender will not talk, why, and when to come back. The connection closes after it."""

    TYPE: ClassVar[int] = 2

    code: str
    """An error code (``E1203``)."""
    reason: str
    retry_after_ms: int = 0
    """0: retrying will not help until somebody changes something."""

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        return cls(
            code=fields.text(size_max=16),
            reason=fields.text(size_max=1024),
            retry_after_ms=fields.integer(high=U32_MAX),
        )


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Ping(ControlMessage):
    """Sent on an idle connection; answered by :class:`Pong` with the same nonce."""

    TYPE: ClassVar[int] = 3

    nonce: int

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        return cls(nonce=fields.integer())


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Pong(ControlMessage):
    """The answer to :class:`Ping`."""

    TYPE: ClassVar[int] = 4

    nonce: int

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        return cls(nonce=fields.integer())


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Peers(ControlMessage):
    """Peers the sender knows and the addresses they announced."""

    TYPE: ClassVar[int] = 5

    peers: tuple[tuple[bytes, tuple[str, ...]], ...]

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        peers = []
        for record in fields.records(count_max=PEERS_MAX):
            peers.append((record.id(), _texts(record, ADDRESSES_PER_PEER_MAX)))
            record.end()
        return cls(peers=tuple(peers))


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Goodbye(ControlMessage):
    """The sender closes the connection on purpose and says why."""

    TYPE: ClassVar[int] = 6
    CRITICAL: ClassVar[bool] = False

    reason: str

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        return cls(reason=fields.text())


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Departed(ControlMessage):
    """A node has left the cluster for good, says its own signature; passed on once by everybody."""

    TYPE: ClassVar[int] = 15
    CRITICAL: ClassVar[bool] = False

    node: bytes
    signature: bytes
    """Of :func:`departure` by the node key."""

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        return cls(node=fields.id(), signature=fields.blob(size=SIGNATURE_BYTES))


def departure(node: bytes) -> bytes:
    """Return what a node signs that leaves."""
    return digest("crdt-merge/departed/1", node)


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Roots(ControlMessage):
    """The sender's sync roots, sent on change and on connect: (group, sync_root, operation count)."""

    TYPE: ClassVar[int] = 16

    roots: tuple[tuple[bytes, bytes, int], ...]

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        roots = []
        for record in fields.records(count_max=GROUPS_MAX):
            roots.append((record.id(), record.id(), record.integer()))
            record.end()
        return cls(roots=tuple(roots))


def peers_messages(peers: Iterable[tuple[bytes, tuple[str, ...]]]) -> list[Peers]:
    """Return messages that tell of all these peers, each within the size of a frame."""
    pages: list[list[tuple[bytes, tuple[str, ...]]]] = []
    room = 0
    for node, addresses in peers:
        size = 48 + sum(4 + len(address.encode()) for address in addresses)
        if not pages or size > room or len(pages[-1]) >= PEERS_MAX:
            pages.append([])
            room = CONTROL_BODY_BYTES_MAX - 64
        pages[-1].append((node, addresses))
        room -= size
    return [Peers(peers=tuple(page)) for page in pages]


def _texts(fields: Fields, count_max: int) -> tuple[str, ...]:
    texts = fields.items(count_max=count_max)
    checked = Fields(texts, what="addresses")
    return tuple(checked.text(size_max=256) for _ in texts)
