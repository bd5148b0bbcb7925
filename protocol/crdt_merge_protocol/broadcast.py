"""How a new operation spreads fast; anti-entropy repairs what this misses.

In a full mesh the author pushes each of its operations to every connected peer once it is durable, and
receivers do not forward: one payload per delivery and one hop. Where links are missing (a blocked peer, a
partition with a bridge) the announced roots differ, and a sync session carries the operation on.

The engine asks ``targets`` only, so a broadcast tree can take the place of this class.
"""

from __future__ import annotations

from collections.abc import Iterable


class FullMeshBroadcast:
    """Push to everybody, forward nothing."""

    @staticmethod
    def targets(*, is_own: bool, active: Iterable[bytes]) -> list[bytes]:
        """Return the peers to push an operation to, which has just become durable here."""
        return sorted(active) if is_own else []
