"""Messages of an anti-entropy session: OPEN, NODES, OPERATIONS, ACK, LIST, LACK, END, BUSY (PROTOCOL 2).

Every message but OPEN and BUSY belongs to a session that is under way on the same connection. What they may
say when is the business of ``sync.py``; here they only have to be well formed and within the limits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

from crdt_merge_protocol.errors import LimitExceededError, MalformedMessageError
from crdt_merge_protocol.limits import CONTROL_BODY_BYTES_MAX, SYNC_PAGE_IDS_MAX

from .base import U32_MAX, ControlMessage, Fields, register
from .walk import Entry, decode_entries, encode_entries

SESSION_BYTES: Final = 4
"""Enough to tell apart the handful of sessions of two peers, and small: every message repeats it."""
SESSION_BYTES_MAX: Final = 16
NONCE_BYTES: Final = 8
"""A side's share of the key of short digests; nobody can prepare collisions for 2^64 keys."""
OPERATIONS_PER_MESSAGE_MAX: Final = 512


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Open(ControlMessage):
    """Opens a session: what the sender has, in one root. Equal roots end the session with the answer."""

    TYPE: ClassVar[int] = 48

    session: bytes
    """4 to 16 random bytes."""
    group: bytes
    root: bytes
    """32 bytes, the sender's sync root."""
    count: int
    """Operations under that root."""
    nonce: bytes
    after: bytes | None = None
    """Last id of the list that an earlier session broke off at."""

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        return cls(
            session=_session(fields),
            group=fields.id(),
            root=fields.id(),
            count=fields.integer(high=U32_MAX),
            nonce=fields.blob(size=NONCE_BYTES),
            after=fields.optional_id(),
        )


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes(ControlMessage):
    """One step of the walk: entries about the trie, in one frame or several."""

    TYPE: ClassVar[int] = 49

    session: bytes
    nonce: bytes = b""
    """The responder's, in its first NODES; empty in all others."""
    is_last: bool = True
    """Whether the step ends here and the turn passes."""
    left_count: int = 0
    """If the step asks nothing: how many operations the sender is going to send."""
    entries: tuple[Entry, ...]

    def to_fields(self) -> list[Any]:
        """Return the fields in wire order."""
        return [self.session, self.nonce, self.is_last, self.left_count, encode_entries(self.entries)]

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        message = cls(
            session=_session(fields),
            nonce=fields.blob(size_max=NONCE_BYTES),
            is_last=fields.boolean(),
            left_count=fields.integer(high=U32_MAX),
            entries=decode_entries(fields.blob()),
        )
        if len(message.nonce) not in (0, NONCE_BYTES):
            raise MalformedMessageError(f"a nonce of {len(message.nonce)} bytes, {NONCE_BYTES} are needed.")
        return message


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Operations(ControlMessage):
    """Signed operations that the receiver lacks, in (depth, id) order."""

    TYPE: ClassVar[int] = 50

    session: bytes
    left_count: int
    """How many follow after this message; in a list: of the same page."""
    operations: tuple[bytes, ...]
    """``SignedOperation.wire()``, unverified."""

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        session, left_count = _session(fields), fields.integer(high=U32_MAX)
        items = fields.items(count_max=OPERATIONS_PER_MESSAGE_MAX)
        operations = Fields(items, what="operations")
        if not items:
            raise MalformedMessageError("a message of operations holds none.")
        return cls(session=session, left_count=left_count, operations=tuple(operations.blob() for _ in items))


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Ack(ControlMessage):
    """Operations of this session that are durable at the sender, in total. Opens the window again."""

    TYPE: ClassVar[int] = 51

    session: bytes
    count: int

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        return cls(session=_session(fields), count=fields.integer(low=1, high=U32_MAX))


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class End(ControlMessage):
    """The sender has sent everything, and everything it was sent is durable there."""

    TYPE: ClassVar[int] = 52

    session: bytes
    root: bytes | None
    """The sender's sync root; None: the same as the one that it answers."""

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        return cls(session=_session(fields), root=fields.optional_id())


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Busy(ControlMessage):
    """Refuses a session, says why and when to ask again."""

    TYPE: ClassVar[int] = 53

    session: bytes
    reason: str
    """Names the cap that is reached."""
    retry_after_ms: int

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        return cls(
            session=_session(fields),
            reason=fields.text(size_max=256),
            retry_after_ms=fields.integer(high=U32_MAX),
        )


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class List(ControlMessage):
    """A page of the ids that the sender holds, in (depth, id) order."""

    TYPE: ClassVar[int] = 54

    session: bytes
    left_count: int
    """Ids on later pages; 0 on the last one."""
    ids: tuple[bytes, ...]

    def to_fields(self) -> list[Any]:
        """Return the fields in wire order."""
        return [self.session, self.left_count, b"".join(self.ids)]

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        session, left_count, data = _session(fields), fields.integer(high=U32_MAX), fields.blob()
        if len(data) % 32 or (left_count and not data):
            raise MalformedMessageError(f"a page of {len(data)} bytes is not a page of 32-byte ids.")
        if len(data) > 32 * SYNC_PAGE_IDS_MAX:
            raise LimitExceededError(
                f"{len(data) // 32} ids on a page, at most {SYNC_PAGE_IDS_MAX} are read."
            )
        ids = tuple(data[start : start + 32] for start in range(0, len(data), 32))
        if len(set(ids)) != len(ids):
            raise MalformedMessageError("a page names an id twice.")
        return cls(session=session, left_count=left_count, ids=ids)


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Lack(ControlMessage):
    """Answers a page: bit n (of byte n // 8, from the lowest) means that its n-th id is lacking.

    An empty bitmap before any page asks the other side to list what it has.
    """

    TYPE: ClassVar[int] = 55

    session: bytes
    bitmap: bytes
    after: bytes | None = None
    """With an empty bitmap: last id of the list that an earlier session broke off at."""

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        return cls(
            session=_session(fields),
            bitmap=fields.blob(size_max=SYNC_PAGE_IDS_MAX // 8),
            after=fields.optional_id(),
        )


SyncMessage = Open | Nodes | Operations | Ack | End | Busy | List | Lack
SYNC_MESSAGES: Final = (Open, Nodes, Operations, Ack, End, Busy, List, Lack)

assert CONTROL_BODY_BYTES_MAX >= 64 + 32 * SYNC_PAGE_IDS_MAX, "a page must fit one frame"


def _session(fields: Fields) -> bytes:
    session = fields.blob(size_max=SESSION_BYTES_MAX)
    if len(session) < SESSION_BYTES:
        raise MalformedMessageError(f"a session id of {len(session)} bytes, at least {SESSION_BYTES} needed.")
    return session
