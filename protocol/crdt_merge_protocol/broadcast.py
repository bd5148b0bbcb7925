"""How a new operation spreads fast; anti-entropy repairs what this misses.

In a full mesh the author pushes each of its operations to every connected peer once it is durable, and
receivers do not forward: one payload per delivery and one hop. Where links are missing (a blocked peer, a
partition with a bridge) the announced roots differ, and a sync session carries the operation on. In a partial
view operations travel along a tree (``plumtree.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from .messages.overlay import TREE_MESSAGES, Graft, IHave, Prune
from .operations import SignedOperation
from .plumtree import Outgoing, Plumtree, gossip_messages
from .replica import Receipt, Replica

__all__ = ["TREE_MESSAGES", "Broadcast"]

SYNCED_INTERVAL_S: Final = 10.0
SYNCED_MAX: Final = 512
"""Operations in that time that came by anti-entropy and are announced one by one. Whoever catches up on more
has been away; its neighbours hold them, and otherwise its root tells them."""


class Broadcast:
    """Chooses whom to push operations to."""

    def __init__(self, node: bytes) -> None:
        self.tree = Plumtree(node)
        self._node = node
        self._synced_count = 0
        self._synced_until = 0.0

    def received(
        self, peer: bytes, receipt: Receipt, *, is_push: bool, is_mesh: bool, now: float
    ) -> Outgoing:
        """Note which operations a peer pushed or sent in a sync session."""
        if is_mesh:
            return []
        new = [signed.id for signed in receipt.accepted]
        new += receipt.aside  # Whoever brings what is refused here is no slower than others for it.
        if is_push:
            return self.tree.pushed(peer, new=new, known=(*receipt.durable, *receipt.in_flight), now=now)
        self.tree.synced(peer, new)
        return []

    def stored(
        self,
        group: bytes,
        operations: Sequence[SignedOperation],
        *,
        mesh: Iterable[bytes] | None,
        now: float,
    ) -> Outgoing:
        """Return what to send because operations have become durable here.

        Args:
            group: Their group.
            operations: In causal order.
            mesh: All connected peers in a full mesh; None in a partial view.
            now: Seconds.
        """
        if mesh is not None:
            own = [signed for signed in operations if signed.operation.author == self._node]
            messages = gossip_messages(group, own)
            return [(peer, message) for message in messages for peer in mesh]
        if now >= self._synced_until:
            self._synced_until, self._synced_count = now + SYNCED_INTERVAL_S, 0
        outgoing, synced_count = self.tree.stored(
            group, operations, synced_max=SYNCED_MAX - self._synced_count, now=now
        )
        self._synced_count += synced_count
        return outgoing

    def told(
        self, peer: bytes, message: IHave | Graft | Prune, replica: Replica | None, *, now: float
    ) -> Outgoing:
        """Take in a message of the tree."""
        if isinstance(message, Prune):
            self.tree.pruned(peer)
        elif replica is not None and isinstance(message, IHave):
            return self.tree.announced(peer, message, replica.is_here, now=now)
        elif replica is not None and isinstance(message, Graft):
            return self.tree.grafted(peer, message, replica.state.get)
        return []
