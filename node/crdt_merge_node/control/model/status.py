"""One screen of facts."""

from __future__ import annotations

from dataclasses import dataclass

from .groups import GroupInfo
from .peers import Alarm, PeerInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One screen about the node."""

    is_healthy: bool
    node: str
    name: str = ""
    cluster: str = ""
    cluster_name: str = ""
    version: str = ""
    pid: int = 0
    started: float = 0.0
    """Unix seconds."""
    now: float = 0.0
    """Unix seconds on the daemon's clock: ages are taken against it."""
    listen: str = ""
    advertise: tuple[str, ...] = ()
    data_dir: str = ""
    store_bytes: int = 0
    """Bytes of operations and blobs on disk."""
    free_bytes: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    """On the wire, all connections since the start."""
    peers: tuple[PeerInfo, ...] = ()
    groups: tuple[GroupInfo, ...] = ()
    alarms: tuple[Alarm, ...] = ()
    dashboard: str = ""
    """Address for a browser on this machine; empty: HTTP is not served."""
    certificate_expires: float = 0.0
    """Unix seconds at which the certificate of the node ends; 0: a daemon that does not tell."""
