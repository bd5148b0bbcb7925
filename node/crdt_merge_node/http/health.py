"""``/healthz`` and ``/readyz``: whether to restart the process, and whether to count on it."""

from __future__ import annotations

from typing import Any

from crdt_merge_protocol.errors import CrdtMergeError

from crdt_merge_node.documents import document
from crdt_merge_node.services import Services
from crdt_merge_node.version import VERSION


def health(services: Services) -> dict[str, Any]:
    """Return ``healthz/1``. That it is returned says all: the process lives and its loop turns."""
    return document(
        "healthz/1",
        is_alive=True,
        version=VERSION,
        node=services.engine.node.hex(),
        uptime_s=max(services.clock.now() - services.started, 0.0),
    )


def readiness(services: Services) -> dict[str, Any]:
    """Return ``readyz/1``: the store is open and writable, and the node is where its peers are."""
    reasons = [*_store_reasons(services), *_peer_reasons(services)]
    return document("readyz/1", is_ready=not reasons, reasons=reasons)


def _store_reasons(services: Services) -> list[str]:
    store = services.store
    try:
        store.health.check()
        store.room.require_rows()
    except CrdtMergeError as error:
        return [f"the store is not writable: {error.message}"]
    return []


def _peer_reasons(services: Services) -> list[str]:
    """Return why this node is cut off. One that knows of no peer is alone on purpose, and ready."""
    blocked = services.engine.overlay.blocked
    known = [peer for peer in services.driver.known if peer not in blocked]
    seeds = {*services.config.peers.seeds, *services.identity.introducers}
    if services.driver.connections or not (known or seeds):
        return []
    return [f"no peer is connected; {len(known)} known, {len(seeds)} seeds: see `crdt-merge-node why`"]
