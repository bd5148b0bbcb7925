"""Many engines among each other in virtual time: links with delay, instant disks, dials, cuts and kills.

A tenth of the simulator (``simulations``), for tests of the overlay that need many nodes and nothing else.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random

from crdt_merge_protocol.engine import Engine
from crdt_merge_protocol.events import (
    DialAnswered,
    DialFailed,
    DialPeer,
    Disconnect,
    DropOperations,
    Effect,
    Event,
    GroupStored,
    MessageReceived,
    OperationsStored,
    PeerDown,
    PeerUp,
    Send,
    StoreGroup,
    StoreOperations,
    Tick,
)
from crdt_merge_protocol.genesis import Genesis
from crdt_merge_protocol.identity import NodeKey
from crdt_merge_protocol.messages.gossip import Gossip
from crdt_merge_protocol.operations import Add, Kind, SignedOperation
from crdt_merge_protocol.overlay import Dial
from crdt_merge_protocol.wire import encode_frame

LATENCY_S = (0.010, 0.050)
STORE_S = 0.004


@dataclass(eq=False)
class Node:
    """An engine and its connections."""

    index: int
    key: NodeKey
    engine: Engine
    is_up: bool = False
    peers: dict[int, Node] = field(default_factory=dict)
    timer: float | None = None
    disk: dict[bytes, SignedOperation] = field(default_factory=dict)
    """What it has stored and not been told to delete, in the order in which it was stored."""

    @property
    def address(self) -> str:
        """Where it answers."""
        return f"10.0.{self.index // 250}.{self.index % 250 + 1}:7946"

    @property
    def neighbours(self) -> list[bytes]:
        """Ids of the peers that operations are exchanged with."""
        return self.engine.overlay.neighbours


class Crowd:
    """Nodes, links and virtual time."""

    def __init__(self, count: int, *, seed: int = 1) -> None:
        self.rng = Random(seed)
        self.now = 0.0
        self.group = b""
        self.dials = 0
        self.disconnects: Counter[str] = Counter()
        self.sent_bytes = 0
        self.pushes: Counter[bytes] = Counter()
        self.lost_ratio = 0.0
        self.sides: dict[int, int] = {}
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        self._arrivals: dict[tuple[int, int], float] = {}
        self.nodes = []
        for index in range(count):
            key = NodeKey(hashlib.sha256(f"{seed}/{index}".encode()).digest())
            rng = Random(f"{seed}/{index}")
            self.nodes.append(Node(index, key, Engine(key, random_bytes=rng.randbytes)))
        self._by_id = {node.key.node_id: node for node in self.nodes}
        self._by_address = {node.address: node for node in self.nodes}

    # --- time -------------------------------------------------------------------------------------------

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Do something at a time."""
        self._sequence += 1
        heapq.heappush(self._queue, (time, self._sequence, action))

    def run(self, duration_s: float, *, stop: Callable[[], bool] | None = None) -> bool:
        """Let time pass, or until ``stop`` holds; tell whether it held."""
        until, steps = self.now + duration_s, 0
        while self._queue and self._queue[0][0] <= until:
            self.now, _, action = heapq.heappop(self._queue)
            action()
            steps += 1
            if stop is not None and steps % 50 == 0 and stop():
                return True
        self.now = until
        return stop is not None and stop()

    # --- nodes ------------------------------------------------------------------------------------------

    def start(self, index: int, *seeds: int) -> None:
        """Start a node that is told of these others."""
        node = self.nodes[index]
        node.is_up = True
        for seed in seeds:
            node.engine.overlay.add_seed(self.nodes[seed].address)
        self.handle(node, Tick())

    def kill(self, index: int) -> None:
        """End a node; its peers see a reset within a second."""
        node = self.nodes[index]
        node.is_up = False
        for peer in list(node.peers.values()):
            self.hang_up(node, peer, "reset", delay_s=self.rng.random())

    def found(self, genesis: Genesis) -> None:
        """Make the group at node 0."""
        self.group = genesis.group
        self._carry_out(self.nodes[0], self.nodes[0].engine.create_group(genesis))

    def add(self, index: int, number: int) -> SignedOperation:
        """Contribute something at a node."""
        content = hashlib.sha256(f"{index}/{number}".encode()).digest()
        add = Add(slot=f"s{number}", type="model", content=content, weight=1 << 32, payload=None)
        return self.author(index, Kind.ADD, add.encode())

    def author(self, index: int, kind: int, body: bytes, refs: Iterable[bytes] = ()) -> SignedOperation:
        """Have a node sign something."""
        node = self.nodes[index]
        signed, effects = node.engine.author(self.group, kind, body, refs)
        self._carry_out(node, effects)
        return signed

    def living(self) -> list[Node]:
        """Return the nodes that are up."""
        return [node for node in self.nodes if node.is_up]

    def split(self, sides: dict[int, int]) -> None:
        """Let only nodes of one side reach each other; nothing: mend."""
        self.sides = sides
        for node in self.living():
            for peer in list(node.peers.values()):
                if self._is_cut(node, peer):
                    self.hang_up(node, peer, "cut", delay_s=0.2)

    def parts(self) -> list[int]:
        """Return the sizes of the parts that are connected by mutual neighbours, the largest first."""
        sizes, seen = [], set()
        for start in self.living():
            if start.index in seen:
                continue
            part = [start]
            seen.add(start.index)
            for node in part:
                for peer in map(self._by_id.__getitem__, node.neighbours):
                    if peer.is_up and peer.index not in seen and node.key.node_id in peer.neighbours:
                        seen.add(peer.index)
                        part.append(peer)
            sizes.append(len(part))
        return sorted(sizes, reverse=True)

    def holders(self, operation_id: bytes) -> int:
        """Return how many living nodes hold an operation durably."""
        states = [node.engine.state(self.group) for node in self.living()]
        return sum(state is not None and operation_id in state for state in states)

    @property
    def is_converged(self) -> bool:
        """Whether all living nodes have the group and one root."""
        states = [node.engine.state(self.group) for node in self.living()]
        roots = {None if state is None else state.sync_root for state in states}
        return len(roots) == 1 and None not in roots

    # --- what a driver does -----------------------------------------------------------------------------

    def handle(self, node: Node, event: Event) -> None:
        """Feed one event to a living engine and carry out the effects."""
        if node.is_up:
            self._carry_out(node, node.engine.handle(event, now=self.now))

    def _carry_out(self, node: Node, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    self._send(node, effect)
                case StoreGroup() | StoreOperations():
                    self._store(node, effect)
                case DropOperations():
                    self.at(self.now, lambda effect=effect: self._delete(node, effect))
                case DialPeer():
                    self._dial(node, effect.dial)
                case Disconnect():
                    self.disconnects[effect.code or effect.reason] += 1
                    self.hang_up(node, self._by_id[effect.peer], effect.reason, delay_s=0.03)
                case _:
                    pass
        deadline = node.engine.deadline(now=self.now)
        if deadline is not None and (node.timer is None or deadline < node.timer):
            node.timer = planned = max(deadline, self.now)
            self.at(planned, lambda: self._tick(node, planned))

    def _tick(self, node: Node, planned: float) -> None:
        if node.timer == planned:
            node.timer = None
            self.handle(node, Tick())

    def _latency(self, one: Node, other: Node) -> float:
        pair = sorted((one.index, other.index))
        return Random(str(pair)).uniform(*LATENCY_S)

    def _is_cut(self, one: Node, other: Node) -> bool:
        return self.sides.get(one.index) != self.sides.get(other.index)

    def _dial(self, node: Node, dial: Dial) -> None:
        self.dials += 1
        peer = self._by_address.get(dial.address)

        def outcome() -> None:
            if not node.is_up:
                return
            if peer is None or not peer.is_up or peer is node or self._is_cut(node, peer):
                self.handle(node, DialFailed(dial=dial, reason="unreachable"))
            elif peer.index in node.peers:
                self.handle(node, DialAnswered(dial=dial, peer=peer.key.node_id))
            else:
                node.peers[peer.index], peer.peers[node.index] = peer, node
                self.handle(peer, PeerUp(peer=node.key.node_id, addresses=(node.address,)))
                up = PeerUp(peer=peer.key.node_id, addresses=(peer.address,), dialled=dial.address)
                self.handle(node, up)

        self.at(self.now + 2 * (self._latency(node, peer) if peer else 0.03), outcome)

    def hang_up(self, one: Node, other: Node, reason: str, *, delay_s: float) -> None:
        """End a connection; the second of the two learns of it later."""
        if other.index not in one.peers:
            return
        del one.peers[other.index], other.peers[one.index]
        for here, there, wait_s in ((one, other, 0.0), (other, one, delay_s)):
            self._arrivals.pop((here.index, there.index), None)
            down = PeerDown(peer=there.key.node_id, reason=reason)
            self.at(self.now + wait_s, lambda here=here, down=down: self.handle(here, down))

    def _send(self, node: Node, effect: Send) -> None:
        peer = self._by_id[effect.peer]
        if peer.index not in node.peers:
            return
        self.sent_bytes += len(encode_frame(effect.message))
        is_push = isinstance(effect.message, Gossip)
        if is_push and self.rng.random() < self.lost_ratio:
            return
        link = (node.index, peer.index)
        arrival = max(self._arrivals.get(link, 0.0), self.now + self._latency(node, peer))
        self._arrivals[link] = arrival

        def deliver() -> None:
            if peer.index not in node.peers:
                return
            if isinstance(effect.message, Gossip):
                self.pushes.update(SignedOperation.load(wire).id for wire in effect.message.operations)
            self.handle(peer, MessageReceived(peer=node.key.node_id, message=effect.message))

        self.at(arrival, deliver)

    def _store(self, node: Node, effect: StoreGroup | StoreOperations) -> None:
        if isinstance(effect, StoreGroup):
            done: Event = GroupStored(genesis=effect.genesis)
        else:
            done = OperationsStored(group=effect.group, ids=tuple(one.id for one in effect.operations))

        def commit() -> None:
            if isinstance(effect, StoreOperations):
                for signed in effect.operations:
                    if not signed.operation.parents <= node.disk.keys():
                        raise AssertionError("stored before its past")
                    node.disk[signed.id] = signed
            self.handle(node, done)

        self.at(self.now + STORE_S, commit)

    def _delete(self, node: Node, effect: DropOperations) -> None:
        for operation_id in effect.ids:
            node.disk.pop(operation_id, None)
