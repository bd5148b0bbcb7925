"""Peers, alarms and what stands in the way of agreement: the answers about this node as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class PeerState(StrEnum):
    """Liveness of a peer, in serf's words, and what a person may have decided about it."""

    ALIVE = "alive"
    """Connected and answering."""
    SUSPECT = "suspect"
    """Connected, but silent for longer than one ping."""
    FAILED = "failed"
    """Known, wanted, and not reachable; dialled again with backoff."""
    KNOWN = "known"
    """Known, and not dialled at present: a partial view has a few neighbours only."""
    LEFT = "left"
    """Said goodbye and is not dialled."""
    BLOCKED = "blocked"
    """Refused by a person on this node."""


class PeerView(StrEnum):
    """What a peer is to this node in the overlay (PROTOCOL 3)."""

    MESH = "mesh"
    """All nodes are to be connected to all others."""
    ACTIVE = "active"
    """A neighbour in a partial view."""
    PASSIVE = "passive"
    """May become a neighbour when one is needed."""


class Severity(StrEnum):
    """How much an alarm matters."""

    WARNING = "warning"
    """Worth knowing; the node counts as healthy."""
    ERROR = "error"
    """Somebody has to act."""
    DAMAGE = "damage"
    """Data damaged or an invariant broken, for instance two outputs for one resolve key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """A standing problem of this node."""

    severity: str
    """A :class:`Severity`."""
    code: str
    """Of the error tree, such as ``E1203``, or a constant ``noun.verb_past`` as in the logs."""
    message: str
    hint: str = ""
    """What a person can do about it."""
    since: float = 0.0
    """Unix seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerInfo:
    """Another node and how this node stands with it."""

    id: str
    name: str = ""
    state: str
    """A :class:`PeerState`."""
    addresses: tuple[str, ...] = ()
    direction: str = ""
    """``inbound`` or ``outbound`` while connected."""
    since: float = 0.0
    """Unix seconds of the last change of ``state``."""
    last_received: float | None = None
    """Unix seconds of the last byte from it."""
    last_sync: float | None = None
    """Unix seconds at which an anti-entropy session with it last ended with equal roots."""
    bytes_in: int = 0
    bytes_out: int = 0
    is_converged: bool | None = None
    """Whether its roots of all groups equalled ours when last compared; none: never compared."""
    last_error: str = ""
    """Why the last connection ended or could not be made."""
    view: str = ""
    """A :class:`PeerView`; empty for a peer that is nothing of it."""
    rtt_s: float | None = None
    """Round trip when last measured on this connection; none: not measured yet, or not connected."""
    last_exchange: float | None = None
    """Unix seconds at which anti-entropy with it last ended, however it ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One thing that stands between a group and convergence."""

    subject: str
    """Id of the peer that lacks something; our own id if it is us."""
    subject_name: str = ""
    lacks: str
    """What is missing, with numbers: ``3 operations``, ``12 MiB of 2 blobs``."""
    missing: tuple[str, ...] = ()
    """Ids of what is missing, as far as they are known; tags for contributions, digests for blobs."""
    since: float = 0.0
    """Unix seconds."""
    waiting: str = ""
    """The step that waits: ``dialling 10.0.0.7:7946, attempt 14``."""
    remedy: str = ""
    """What would fix it: a command, or ``nothing to do``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WhyGroup:
    """Why one group is or is not converged."""

    group: str
    name: str
    is_converged: bool
    """Live peers have our root and no blob is missing here."""
    sync_root: str = ""
    converged_peers: int = 0
    live_peers: int = 0
    reasons: tuple[Reason, ...] = ()
    """What stands in the way; then what no resolve can use, and what acts of administrators leave to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WhyReport:
    """The answer to ``why``."""

    now: float
    """Unix seconds on the daemon's clock."""
    groups: tuple[WhyGroup, ...] = ()
    alarms: tuple[Alarm, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Invite:
    """A one-time token with which a new machine joins."""

    token: str
    expires: float = 0.0
    """Unix seconds."""
    cluster: str = ""
    cluster_name: str = ""
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionInfo:
    """Versions of a running daemon."""

    version: str
    wire_version: int = 1
    python: str = ""
    node: str = ""
