"""All about one peer."""

from __future__ import annotations

from dataclasses import dataclass

from .events import LogEvent
from .peers import PeerInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerExchange:
    """How this node and a peer stand with one group, and how anti-entropy about it ended last."""

    group: str
    group_name: str = ""
    is_equal: bool | None = None
    """Whether the root that the peer announced last is ours; none: it has announced none."""
    operations: int = 0
    """That are stored here."""
    peer_operations: int | None = None
    """That the peer had when it announced its root."""
    ended: float | None = None
    """Unix seconds at which anti-entropy last ended; none: not since the start."""
    outcome: str = ""
    """``equal``, ``unequal`` or ``failed``."""
    reason: str = ""
    """Why it failed, if it did."""
    sent: int = 0
    """Operations."""
    received: int = 0
    nbytes: int = 0
    """Of operations, both ways."""
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerDetail:
    """A peer with the connection to it, what one of the two lacks, and the story of the last events."""

    peer: PeerInfo
    now: float = 0.0
    """Unix seconds on the daemon's clock: ages are taken against it."""
    remote: str = ""
    """Where the connection goes, or comes from."""
    connected_since: float | None = None
    """Unix seconds; none: not connected."""
    agent: str = ""
    """What it says it runs."""
    wire_version_min: int = 0
    wire_version_max: int = 0
    certificate_expires: float | None = None
    """Unix seconds; none: not connected."""
    queued_bytes: int = 0
    """That wait here to be sent to it."""
    suspected_since: float | None = None
    """Unix seconds of its last sign of life, while it is suspected."""
    accused_by: tuple[str, ...] = ()
    """Who suspects it. No node takes another's word for it, so nobody but this one."""
    refusal: str = ""
    """Why it is not heard at present, if so: a person blocked it, or it broke the protocol."""
    dial_attempts: int = 0
    """In a row, without success."""
    missing_contributions: int = 0
    """Of its own, of which bytes are not here."""
    missing_bytes: int = 0
    exchanges: tuple[PeerExchange, ...] = ()
    """One for each group, by name."""
    events: tuple[LogEvent, ...] = ()
    """The last that name it, the oldest first."""
