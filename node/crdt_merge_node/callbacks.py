"""Who wants to know what the driver of the engine learns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from crdt_merge_protocol.events import AttestationMismatch


@dataclass(slots=True)
class Callbacks:
    """One for each kind of news; set by whoever puts the node together."""

    group_changed: Callable[[bytes], None] = lambda _group: None
    peers_changed: Callable[[], None] = lambda: None
    mismatch: Callable[[AttestationMismatch], None] = lambda _effect: None
    cloned: Callable[[bytes, str], None] = lambda _peer, _remote: None
    fatal: Callable[[BaseException], None] = lambda _error: None
