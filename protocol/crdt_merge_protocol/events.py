"""What can happen to an engine (events) and what it wants done (effects). Values only.

An event carries everything the engine may know about it; an effect everything the driver needs to carry it
out. Neither refers to a socket, a file or a clock, so the daemon and the simulator drive the same engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from .messages.base import Message
from .operations import SignedOperation
from .overlay import Dial
from .reading import Reading
from .reconciler import Ended


class Lane(IntEnum):
    """Priority of a message on its connection; lower goes first."""

    MEMBERSHIP = 0
    OPERATIONS = 1
    SYNC = 2


# --- events -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerUp:
    """A gossip connection to ``peer`` is open and both sides have said HELLO."""

    peer: bytes
    addresses: tuple[str, ...]
    dialled: str | None = None
    """The address we dialled; None when the peer dialled us."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerDown:
    """The gossip connection to ``peer`` is gone."""

    peer: bytes
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DialAnswered:
    """An attempt that :class:`DialPeer` asked for was answered, but there is a connection already."""

    dial: Dial
    peer: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DialFailed:
    """An attempt that :class:`DialPeer` asked for did not lead to a connection."""

    dial: Dial
    reason: str
    is_refused: bool = False
    """One of the two does not want the other, so there is no hurry to try again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageReceived:
    """A message of a gossip connection."""

    peer: bytes
    message: Message
    reading: Reading | None = None
    """What :meth:`Engine.read` returned for it, if the driver asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStored:
    """The genesis that :class:`StoreGroup` named is durable."""

    genesis: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationsStored:
    """Operations of one or several :class:`StoreOperations`, next in the order asked for, are durable."""

    group: bytes
    ids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NotStored:
    """There was no room for these. Whatever was asked for after them was not stored either."""

    groups: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerBlocked:
    """The operator blocks or unblocks a peer."""

    peer: bytes
    is_blocked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerForgotten:
    """The operator gives up a peer that will not come back."""

    peer: bytes


@dataclass(frozen=True, slots=True)
class Tick:
    """The deadline of the engine has come."""


Event = (
    PeerUp
    | PeerDown
    | DialAnswered
    | DialFailed
    | MessageReceived
    | GroupStored
    | OperationsStored
    | NotStored
    | PeerBlocked
    | PeerForgotten
    | Tick
)

# --- effects ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Queue a message for a peer. It may be shed when the lane is full; anti-entropy repairs that."""

    peer: bytes
    message: Message
    lane: Lane


@dataclass(frozen=True, slots=True, kw_only=True)
class DialPeer:
    """Try to connect; report :class:`PeerUp` or :class:`DialFailed`."""

    dial: Dial


@dataclass(frozen=True, slots=True, kw_only=True)
class Disconnect:
    """Close the connection to a peer, telling it the error code and the reason."""

    peer: bytes
    code: str
    reason: str
    is_routine: bool = False
    """The connection has served its purpose; nobody did anything wrong, and ``code`` is empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreGroup:
    """Make a genesis durable, then report :class:`GroupStored` or :class:`NotStored`."""

    group: bytes
    genesis: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOperations:
    """Make operations durable in this order, then report :class:`OperationsStored` or :class:`NotStored`."""

    group: bytes
    operations: tuple[SignedOperation, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RememberPeer:
    """A peer that we have met gave these addresses; worth keeping over a restart."""

    peer: bytes
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerLeft:
    """A peer has left, or was given up: its addresses are not worth keeping any more."""

    peer: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupChanged:
    """Operations were applied: the view of the group may be another one."""

    group: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DropOperations:
    """A REVOKE lets these count no more, and nothing kept was made after them: delete them (PROTOCOL R7).

    All or none, since some are made after others; and before whatever :class:`StoreOperations` asks for next,
    which may bring some of them back. Some may not be stored at all.
    """

    group: bytes
    ids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationMismatch:
    """Two nodes wrote different bytes for one resolve key: an alarm, never a silence (DESIGN 3.2)."""

    group: bytes
    resolve_key: bytes
    peer: bytes
    theirs: bytes
    ours: bytes


Effect = (
    Send
    | DialPeer
    | Disconnect
    | StoreGroup
    | StoreOperations
    | DropOperations
    | RememberPeer
    | PeerLeft
    | GroupChanged
    | AttestationMismatch
    | Ended
)
