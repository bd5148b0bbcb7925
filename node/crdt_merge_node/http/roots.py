"""What each peer announced of a group: who holds the same set as this node, and who not."""

from __future__ import annotations

from typing import Any, Final

from crdt_merge_node.documents import document
from crdt_merge_node.services import Services

PEERS_MAX: Final = 1000


def group_roots(services: Services, group: bytes) -> dict[str, Any]:
    """Return ``group-roots/1``: this node's root of a group, and the last one that each peer announced."""
    state = services.engine.replicas[group].state
    roots = services.engine.reconciler.roots(group).items()
    announced = sorted((services.driver.name(peer), peer, *found) for peer, found in roots)
    peers = [
        {
            "peer": peer.hex(),
            "name": name,
            "root": root.hex(),
            "operations": operations,
            "is_equal": root == state.sync_root,
            "is_connected": peer in services.driver.connections,
        }
        for name, peer, root, operations in announced[:PEERS_MAX]
    ]
    return document(
        "group-roots/1",
        group=group.hex(),
        name=state.genesis.name,
        root=state.sync_root.hex(),
        operations=len(state),
        peers=peers,
    )
