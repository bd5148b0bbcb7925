"""Nodes that leave for good: believed on their own signature, forgotten, and told on, once (PROTOCOL 3).

Without it the others would dial a node that is gone for ever, and call it failed. Leaving is a matter of
connections alone: what the node signed stays, and if it comes back by itself it is as known as before.
"""

from __future__ import annotations

from collections import Counter

from .events import Effect, Lane, PeerLeft
from .identity import NodeKey, verify
from .limits import DEPARTURES_PER_PEER_MAX
from .messages.membership import Departed, departure
from .overlay import Overlay
from .sending import sends


class Departures:
    """Judges what connected peers say of departures."""

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay
        self._unknown: Counter[bytes] = Counter()
        """How many departures of nodes unknown here each connected peer has passed on."""

    def own(self, key: NodeKey) -> list[Effect]:
        """Tell every connected peer that this node leaves for good."""
        node, peers = key.node_id, sorted(self._overlay.active)
        message = Departed(node=node, signature=key.sign(departure(node)))
        return sends([(peer, message) for peer in peers], Lane.MEMBERSHIP)

    def received(self, peer: bytes, message: Departed) -> list[Effect]:
        """Forget who left, and tell the neighbours; nothing if this changes nothing.

        Of a node that is connected only its own word counts: what others pass on may be of an earlier time.

        Raises:
            BadSignatureError: The node never said so.
        """
        node, overlay = message.node, self._overlay
        if node == overlay.node or node in overlay.left or (node != peer and node in overlay.active):
            return []
        if node not in overlay.known:  # Anybody can make keys that nobody has heard of, and sign with them.
            self._unknown[peer] += 1
            if self._unknown[peer] > DEPARTURES_PER_PEER_MAX:
                return []
        verify(node, message.signature, departure(node))
        overlay.forget(node)
        told = [(other, message) for other in overlay.neighbours if other not in (peer, node)]
        return [PeerLeft(peer=node), *sends(told, Lane.MEMBERSHIP)]

    def forget_peer(self, peer: bytes) -> None:
        """Note the end of a connection."""
        self._unknown.pop(peer, None)
