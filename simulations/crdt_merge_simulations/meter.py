"""How operations spread: hops, times, duplicates, and how many bytes had to be sent at all."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from crdt_merge_protocol.messages.base import Message
from crdt_merge_protocol.messages.gossip import Gossip
from crdt_merge_protocol.messages.sync import Operations
from crdt_merge_protocol.operations import SignedOperation

if TYPE_CHECKING:
    from .engine_node import SimulatedNode

CARRIERS: Final = frozenset({Gossip, Operations})
"""Kinds of messages that operations travel in."""


class Meter:
    """Counts for all nodes of a world."""

    def __init__(self, nodes: int) -> None:
        self.hops: Counter[int] = Counter()
        self.duplicates = 0
        self.deliveries = 0
        self.bytes_needed = 0
        self.delivery_s: list[float] = []
        self._nodes = nodes
        self._born: dict[bytes, float] = {}
        self._holders: dict[bytes, set[int]] = {}

    def authored(self, node: SimulatedNode, signed: SignedOperation, *, now: float) -> None:
        """An operation was signed."""
        self._born[signed.id] = now
        node.hops[signed.id] = 0

    def received(self, source: SimulatedNode, target: SimulatedNode, message: Message) -> None:
        """A message of the :data:`CARRIERS` reached a node."""
        is_broadcast = type(message) is Gossip
        known = target.hops
        for wire in message.operations:  # type: ignore[attr-defined]
            id_ = self._id(wire)
            if id_ is None:
                continue
            is_new = id_ not in known
            if is_new:
                known[id_] = source.hops.get(id_, 0) + 1
            if is_broadcast:
                self.deliveries += 1
                if is_new:
                    self.hops[known[id_]] += 1
                else:
                    self.duplicates += 1

    def stored(self, node: SimulatedNode, operations: tuple[SignedOperation, ...], *, now: float) -> None:
        """Operations are durable on a node."""
        for signed in operations:
            if signed.operation.author != node.id:
                self.bytes_needed += len(signed.encoded) + len(signed.signature)
            if node.index >= self._nodes:
                continue
            holders = self._holders.get(signed.id)
            if holders is None:
                holders = self._holders[signed.id] = set()
            if node.index not in holders:
                holders.add(node.index)
                if len(holders) == self._nodes and signed.id in self._born:
                    self.delivery_s.append(now - self._born[signed.id])

    @staticmethod
    def _id(wire: bytes) -> bytes | None:
        try:
            return SignedOperation.load(wire).id
        except Exception:  # noqa: BLE001  (whatever it is, the engine will say so)
            return None
