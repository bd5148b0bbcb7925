"""Opening bulk connections to peers with whom there is a gossip connection."""

from __future__ import annotations

from crdt_merge_protocol.errors import CrdtMergeError

from .errors import PeerUnreachableError
from .gossip import GossipDriver
from .transport import ALPN_BULK, Connection, Endpoint


async def open_bulk(endpoint: Endpoint, driver: GossipDriver, peer: bytes) -> Connection:
    """Open a bulk connection to a peer with whom there is a gossip connection.

    Raises:
        PeerUnreachableError: No address of it is known, or none answers.
    """
    target = driver.engine.overlay.peers.get(peer)
    error: CrdtMergeError | None = None
    for address in target.addresses if target else ():
        try:
            connection = await endpoint.dial(address, alpn=ALPN_BULK, expect=peer)
        except CrdtMergeError as failed:
            error = failed
        else:
            driver.watch(connection)
            return connection
    raise error or PeerUnreachableError(f"no address of {peer.hex()[:12]} is known.")
