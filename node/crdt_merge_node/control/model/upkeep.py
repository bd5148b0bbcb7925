"""Looking after a node: its certificate, its leaving, its backups."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateInfo:
    """The certificate of a node, and how renewing it goes."""

    node: str
    cluster: str = ""
    begins: float = 0.0
    """Unix seconds."""
    renews: float = 0.0
    """Unix seconds from which on it is renewed."""
    expires: float = 0.0
    """Unix seconds."""
    ca_expires: float = 0.0
    """Unix seconds; of the CA's own certificate."""
    has_ca: bool = False
    """Whether this node holds the cluster's CA, and so renews by itself."""
    last_attempt: float = 0.0
    """Unix seconds since the daemon's start; 0: none yet."""
    last_error: str = ""
    """Why that failed, if it did."""
    next_attempt: float = 0.0
    """Unix seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaveItem:
    """A contribution that too few others hold."""

    group: str
    group_name: str = ""
    tag: str
    slot: str = ""
    is_own: bool = False
    nbytes: int = 0
    holders: int = 0
    """Connected peers that hold all of it; 0: it would be lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeavePlan:
    """What would become of what is here if the node left now."""

    node: str
    copies: int = 0
    """Other nodes that shall hold everything."""
    peers: int = 0
    """Connected ones, who were asked."""
    contributions: int = 0
    """Whole here, in all groups."""
    items: tuple[LeaveItem, ...] = ()
    """Those that fewer than ``copies`` others hold."""
    groups_behind: tuple[str, ...] = ()
    """Names of groups of whose operations fewer than ``copies`` others have all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaveReport:
    """The node has left; the daemon stops."""

    node: str
    told: int = 0
    """Peers that were told, and tell the others."""
    lost: tuple[LeaveItem, ...] = ()
    """What nobody else holds."""
    groups_behind: tuple[str, ...] = ()
    """Names of groups of whose operations nobody else has all."""
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupReport:
    """A backup that is on disk, whole."""

    path: str
    node: str
    created: float = 0.0
    """Unix seconds."""
    groups: int = 0
    operations: int = 0
    blobs: int = 0
    nbytes: int = 0
    """Of all files."""
    linked_bytes: int = 0
    """Of those, shared with the data directory as second names of the same files."""
    missing_blobs: int = 0
    """Rows whose bytes had just gone away; they are not in the backup."""
    has_keys: bool = False
    """Whether the node's keys are in it, and the CA's where this node holds it."""
    duration_s: float = 0.0
