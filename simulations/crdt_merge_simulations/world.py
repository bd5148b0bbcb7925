"""A discrete-event world for the protocol engines: virtual time, links, disks, kills, partitions.

The engines are the ones that the daemon runs, unmodified. Around each is what a driver does, in a few lines:
messages travel along links in order and with delay, stores become durable after a delay, dials succeed if
the other side is up and the link is not cut. A kill forgets everything but the disk, and whatever was under
way for the dead process never happens.

Randomness comes from independent streams, one per purpose and entity, so that taking one fault away leaves
all other draws as they were. Equal seeds give equal traces.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

from crdt_merge_protocol.engine import Engine
from crdt_merge_protocol.events import (
    AttestationMismatch,
    DialAnswered,
    DialFailed,
    DialPeer,
    Disconnect,
    Effect,
    Event,
    GroupChanged,
    GroupStored,
    MessageReceived,
    OperationsStored,
    PeerDown,
    PeerUp,
    RememberPeer,
    Send,
    StoreGroup,
    StoreOperations,
    Tick,
)
from crdt_merge_protocol.genesis import Genesis
from crdt_merge_protocol.identity import NodeKey
from crdt_merge_protocol.messages.base import Message
from crdt_merge_protocol.operations import SignedOperation
from crdt_merge_protocol.overlay import Dial
from crdt_merge_protocol.reconciler import Ended
from crdt_merge_protocol.wire import FrameDecoder, encode_frame

LATENCY_S = (0.010, 0.050)
STORE_S = (0.001, 0.008)


@dataclass(slots=True)
class Disk:
    """What survives a kill."""

    genesis: dict[bytes, bytes] = field(default_factory=dict)
    operations: list[tuple[bytes, bytes]] = field(default_factory=list)
    """(group, wire) in the order of the commits."""
    acknowledged: set[bytes] = field(default_factory=set)
    """Ids of own operations that were acknowledged to their author."""


class SimulatedNode:
    """One node: an engine, a disk, and the epoch of its present process."""

    def __init__(self, world: World, index: int) -> None:
        self.world = world
        self.index = index
        self.name = f"n{index}"
        self.address = f"{self.name}:1"
        self.key = NodeKey(hashlib.sha256(f"{world.seed}/key/{index}".encode()).digest())
        self.disk = Disk()
        self.epoch = 0
        self.is_up = False
        self.peers: set[SimulatedNode] = set()
        self._timer: float | None = None
        self.engine = self._new_engine()

    def _new_engine(self) -> Engine:
        rng = self.world.stream("node", self.name, self.epoch)
        engine = Engine(self.key, random_bytes=rng.randbytes)
        for group in self.disk.genesis.values():
            genesis = Genesis.decode(group)
            state = engine.open_group(genesis).state
            for of_group, wire in self.disk.operations:
                if of_group == genesis.group:
                    state.apply(SignedOperation.load(wire))
        for other in range(self.index):
            engine.overlay.add_seed(f"n{other}:1")
        return engine

    def start(self) -> None:
        """Start the process on what the disk holds."""
        self.epoch += 1
        self.is_up = True
        self.engine = self._new_engine()
        self.handle(Tick())

    def kill(self) -> None:
        """End the process at once: no goodbye, no cleanup; peers see a reset."""
        self.is_up = False
        self.epoch += 1
        self._timer = None
        for peer in list(self.peers):
            self.world.disconnect(self, peer, "connection reset")

    def handle(self, event: Event) -> None:
        """Feed one event to the engine and carry out the effects."""
        self.carry_out(self.engine.handle(event, now=self.world.now))

    def author(self, group: bytes, kind: int, body: bytes, refs: tuple[bytes, ...] = ()) -> SignedOperation:
        """Author an operation; it is acknowledged once it is durable here."""
        signed, effects = self.engine.author(group, kind, body, refs)
        self.carry_out(effects)
        return signed

    def carry_out(self, effects: list[Effect]) -> None:
        """Do what a driver does with effects, in virtual time."""
        for effect in effects:
            match effect:
                case Send():
                    self.world.send(self, effect.peer, effect.message)
                case StoreGroup() | StoreOperations():
                    self.world.store(self, effect)
                case DialPeer():
                    self.world.dial(self, effect.dial)
                case Disconnect():
                    if (peer := self.world.by_id.get(effect.peer)) is not None:
                        self.world.disconnect(self, peer, effect.reason)
                case GroupChanged() | RememberPeer() | Ended():
                    pass
                case AttestationMismatch():
                    self.world.note(f"{self.name} MISMATCH")
        self._arm()

    def _arm(self) -> None:
        deadline = self.engine.deadline(now=self.world.now)
        if deadline is None or not self.is_up or (self._timer is not None and self._timer <= deadline):
            return
        self._timer = max(deadline, self.world.now)
        self.world.at(self._timer, self, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.handle(Tick())


class World:
    """All nodes, the links between them, and virtual time."""

    def __init__(self, count: int, *, seed: int) -> None:
        self.seed = seed
        self.now = 0.0
        self.events = 0
        self.bytes_sent = 0
        self.trace = hashlib.sha256()
        self.log: list[str] = []
        self._queue: list[tuple[float, int, SimulatedNode | None, int, Callable[[], None]]] = []
        self._sequence = 0
        self._cut: set[frozenset[str]] = set()
        self._arrivals: dict[tuple[str, str], float] = {}
        self._commits: dict[str, float] = {}
        self._decoders: dict[tuple[str, str], FrameDecoder] = {}
        self._streams: dict[str, Random] = {}
        self.nodes = [SimulatedNode(self, index) for index in range(count)]
        self.by_id = {node.key.node_id: node for node in self.nodes}
        self.by_address = {node.address: node for node in self.nodes}

    def stream(self, *purpose: object) -> Random:
        """Return the random stream of a purpose; streams do not influence each other."""
        name = "/".join(str(part) for part in (self.seed, *purpose))
        return self._streams.setdefault(name, Random(name))  # noqa: S311  Reproducible on purpose.

    def note(self, line: str) -> None:
        """Write a line of the story into the log and the trace."""
        text = f"{self.now:9.3f}  {line}"
        self.log.append(text)
        self.trace.update(text.encode())

    def at(self, time: float, node: SimulatedNode | None, action: Callable[[], None]) -> None:
        """Do something at a time, unless the process of ``node`` has ended by then."""
        self._sequence += 1
        epoch = node.epoch if node else 0
        heapq.heappush(self._queue, (time, self._sequence, node, epoch, action))

    def run(self, until: float, *, stop: Callable[[], bool] | None = None) -> bool:
        """Let time pass until ``until`` or until ``stop`` holds; tell whether it held."""
        while self._queue and self._queue[0][0] <= until:
            time, _, node, epoch, action = heapq.heappop(self._queue)
            if node is not None and node.epoch != epoch:
                continue
            self.now = time
            self.events += 1
            action()
            if stop is not None and self.events % 16 == 0 and stop():
                return True
        self.now = until
        return stop is not None and stop()

    # --- links --------------------------------------------------------------------------------------------

    def is_cut(self, one: SimulatedNode, other: SimulatedNode) -> bool:
        """Whether nothing passes between two nodes."""
        return frozenset((one.name, other.name)) in self._cut

    def split(self, sides: list[list[SimulatedNode]]) -> None:
        """Cut every link between different sides."""
        for number, side in enumerate(sides):
            for other_side in sides[number + 1 :]:
                for one in side:
                    for other in other_side:
                        self._cut.add(frozenset((one.name, other.name)))
                        self.disconnect(one, other, "partitioned")

    def heal(self) -> None:
        """Mend all links."""
        self._cut.clear()

    def dial(self, node: SimulatedNode, dial: Dial) -> None:
        """Connect after two delays, or fail after one."""
        target = self.by_address.get(dial.address)
        delay = self._latency(node.name, dial.address)

        def outcome() -> None:
            if target is None or not target.is_up or self.is_cut(node, target) or target is node:
                node.handle(DialFailed(dial=dial, reason="unreachable"))
            elif target not in node.peers:
                node.peers.add(target)
                target.peers.add(node)
                self._decoders.pop((node.name, target.name), None)
                self._decoders.pop((target.name, node.name), None)
                target.handle(PeerUp(peer=node.key.node_id, addresses=(node.address,)))
                node.handle(
                    PeerUp(peer=target.key.node_id, addresses=(target.address,), dialled=dial.address)
                )
            else:
                node.handle(DialAnswered(dial=dial, peer=target.key.node_id))

        self.at(self.now + 2 * delay, node, outcome)

    def disconnect(self, one: SimulatedNode, other: SimulatedNode, reason: str) -> None:
        """End a connection; both sides learn it, the living at once."""
        if other not in one.peers:
            return
        one.peers.discard(other)
        other.peers.discard(one)
        for here, there in ((one, other), (other, one)):
            self._arrivals.pop((here.name, there.name), None)
            if here.is_up:
                here.handle(PeerDown(peer=there.key.node_id, reason=reason))

    def send(self, node: SimulatedNode, peer: bytes, message: Message) -> None:
        """Carry a frame to a connected peer: in order, with delay, through the real codec."""
        target = self.by_id[peer]
        if target not in node.peers:
            return
        frame = encode_frame(message)
        self.bytes_sent += len(frame)
        link = (node.name, target.name)
        arrival = max(self._arrivals.get(link, 0.0), self.now + self._latency(*link))
        self._arrivals[link] = arrival
        epoch = node.epoch

        def deliver() -> None:
            if node.epoch != epoch or node not in target.peers:
                return
            self.trace.update(f"{self.now:.9f}{link}".encode() + frame)
            for received in self._decoders.setdefault(link, FrameDecoder()).feed(frame):
                target.handle(MessageReceived(peer=node.key.node_id, message=received))

        self.at(arrival, target, deliver)

    def _latency(self, source: str, target: str) -> float:
        return self.stream("latency", source, target).uniform(*LATENCY_S)

    # --- disks --------------------------------------------------------------------------------------------

    def store(self, node: SimulatedNode, effect: StoreGroup | StoreOperations) -> None:
        """Make something durable after a delay, in the order asked for."""
        delay = self.stream("disk", node.name).uniform(*STORE_S)
        time = max(self._commits.get(node.name, 0.0), self.now + delay)
        self._commits[node.name] = time

        def commit() -> None:
            if isinstance(effect, StoreGroup):
                node.disk.genesis[effect.group] = effect.genesis
                node.handle(GroupStored(genesis=effect.genesis))
                return
            for signed in effect.operations:
                node.disk.operations.append((effect.group, signed.wire()))
                if signed.operation.author == node.key.node_id:
                    node.disk.acknowledged.add(signed.id)
            ids = tuple(signed.id for signed in effect.operations)
            node.handle(OperationsStored(group=effect.group, ids=ids))

        self.at(time, node, commit)

    # --- what the tests ask -------------------------------------------------------------------------------

    def living(self) -> Iterator[SimulatedNode]:
        """Yield the nodes that are up."""
        return (node for node in self.nodes if node.is_up)

    def is_converged(self, group: bytes) -> bool:
        """Whether all living nodes hold the same set of operations."""
        states = [node.engine.state(group) for node in self.living()]
        return None not in states and len({state.sync_root for state in states if state}) == 1
