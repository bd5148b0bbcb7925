"""What peers say of groups that are not here yet. Bounded per peer: a liar fills nothing but its own share.

A group that is heard of is asked for; once its genesis is durable, what was announced meanwhile tells with
whom to reconcile at once.
"""

from __future__ import annotations

from .limits import GROUPS_MAX


class Strangers:
    """Announced roots of groups that are not here, by peer."""

    def __init__(self) -> None:
        self._roots: dict[bytes, dict[bytes, tuple[bytes, int]]] = {}
        """peer -> group -> (root, count)."""

    def __len__(self) -> int:
        return sum(len(groups) for groups in self._roots.values())

    def announced(self, peer: bytes, group: bytes, root: bytes, count: int) -> bool:
        """Note a root; False if the peer has told of too many groups that nobody has seen."""
        groups = self._roots.setdefault(peer, {})
        if group not in groups and len(groups) >= GROUPS_MAX:
            return False
        groups[group] = (root, count)
        return True

    def has_named(self, peer: bytes) -> bool:
        """Tell whether a peer has groups that are not here."""
        return bool(self._roots.get(peer))

    def take(self, group: bytes) -> list[tuple[bytes, bytes, int]]:
        """Return (peer, root, count) as announced for a group that is here now, by peer."""
        return [(peer, *groups.pop(group)) for peer, groups in sorted(self._roots.items()) if group in groups]

    def forget_peer(self, peer: bytes) -> None:
        """Drop what a peer that has gone said."""
        self._roots.pop(peer, None)
