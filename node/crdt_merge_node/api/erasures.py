"""How far erasures have come: who signed that the bytes are gone, and who has not (SCENARIOS T36)."""

from __future__ import annotations

from collections.abc import Iterable

from crdt_merge_protocol.acts import Erase

from crdt_merge_node.control.model import ErasureInfo, ErasureNode
from crdt_merge_node.services import Services

from .act_words import describe, in_force


def erasure_list(services: Services, group: bytes) -> tuple[ErasureInfo, ...]:
    """Return the erasures of a group, the oldest first.

    Known are this node, its peers that have not left for good, and whoever signed anything in the group.
    """
    state = services.engine.replicas[group].state
    receipts = state.view.decided.receipts
    authors = {author for author, _ in state.version_vector}
    known = {services.engine.node, *authors, *services.driver.known}.difference(services.engine.overlay.left)
    found = []
    for operation, act in in_force(services, group):
        if isinstance(act, Erase):
            done = {author for erasure, author in receipts if erasure == operation}
            outstanding = known - done
            found.append(
                ErasureInfo(
                    act=describe(services, group, act, operation=operation),
                    done=_nodes(services, done),
                    outstanding=_nodes(services, outstanding),
                    is_complete=not outstanding,
                )
            )
    return tuple(found)


def _nodes(services: Services, nodes: Iterable[bytes]) -> tuple[ErasureNode, ...]:
    return tuple(ErasureNode(id=node.hex(), name=services.driver.name(node)) for node in sorted(nodes))
