"""A sync session under way, as the reconciler keeps it."""

from __future__ import annotations

from dataclasses import dataclass

from .sync import SyncSession

Place = tuple[bytes, bytes]
"""(peer, group)."""


@dataclass(slots=True)
class Running:
    """A session and where it runs."""

    peer: bytes
    group: bytes
    session: SyncSession
    is_inbound: bool
    began: float
    roots: tuple[bytes, bytes] = (b"", b"")
    """Ours and theirs, as far as it is known, when it began."""
    aside_count: int = 0
    """Operations that it brought and that are not kept here."""

    @property
    def place(self) -> Place:
        """Peer and group."""
        return self.peer, self.group
