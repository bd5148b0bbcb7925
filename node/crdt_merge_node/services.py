"""The parts of a running node, as its API needs them. Made by ``runtime``."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from crdt_merge_protocol.engine import Engine

from .alarms import Alarms
from .bulk import Fetcher
from .cloning import CloneAlarm
from .config import Config
from .gossip import GossipDriver
from .imports import ImportDesk
from .keeper import ContentKeeper
from .ports import Clock, Fs, Rng
from .renewal import CertificateKeeper
from .scrub import Scrub
from .storage import Store
from .telemetry.events import EventLog
from .transport import Endpoint, Identity, StoredInvites


@dataclass(slots=True)
class Web:
    """Where HTTP is served."""

    url: str = ""
    """Empty: nowhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """One node's parts."""

    config: Config
    identity: Identity
    engine: Engine
    driver: GossipDriver
    store: Store
    fetcher: Fetcher
    keeper: ContentKeeper
    scrub: Scrub
    imports: ImportDesk
    endpoint: Endpoint
    certificate: CertificateKeeper
    invites: StoredInvites | None
    """Present where the key of the cluster's CA is."""
    alarms: Alarms
    clones: CloneAlarm
    events: EventLog
    """What this node logged lately."""
    clock: Clock
    rng: Rng
    fs: Fs
    started: float
    """Wall time of the start."""
    web: Web = field(default_factory=Web)
    stopping: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """Resolved when the node is to stop by itself, in order."""
    merging: asyncio.Lock = field(default_factory=asyncio.Lock)
    """One merge at a time: each may use the whole memory budget."""

    def stop(self) -> None:
        """Let the node stop, as SIGTERM does."""
        if not self.stopping.done():
            self.stopping.set_result(None)
