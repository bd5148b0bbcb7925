"""The world of protocol engines: virtual time, and everything between the nodes.

The engines are the ones that the daemon runs, unmodified. Around each is what a driver does, in a few lines
(``engine_node.py``); between them are connections (``engine_links.py``). Everything that draws has a random
stream of its own, so equal plans give equal traces under any hash seed, and taking one fault away leaves all
other draws as they were.
"""

from __future__ import annotations

import hashlib
import heapq
import traceback
from collections import Counter
from collections.abc import Callable
from random import Random
from struct import Struct
from typing import Any, Final
from zlib import crc32

from crdt_merge_protocol.errors import RemoteProtocolError
from crdt_merge_protocol.events import DialAnswered, DialFailed, Event, MessageReceived, PeerDown, PeerUp
from crdt_merge_protocol.identity import NodeKey
from crdt_merge_protocol.messages.base import Message
from crdt_merge_protocol.messages.gossip import Gossip
from crdt_merge_protocol.operations import SignedOperation
from crdt_merge_protocol.overlay import Dial
from crdt_merge_protocol.wire import FrameDecoder

from .economy import DialLog
from .engine_links import CONNECT_TIMEOUT_S, SILENCE_S, SYN_RETRIES_S, Line, Network, connect
from .engine_node import SimulatedNode
from .invariants import Checker
from .meter import CARRIERS, Meter
from .plan import Plan
from .planning import stream
from .sharing import Codec, Frame
from .topology import LinkTable

SEEDS_MAX: Final = 3
"""Addresses that a node is given to begin with, where everybody may talk to everybody."""
_STAMP: Final = Struct("<dIII")


class World:
    """All nodes, the connections between them, and virtual time."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.now = 0.0
        self.events = 0
        self.epoch = 0.0
        """When the work began; times of the plan and the log are relative to it."""
        self.log: list[str] = []
        self.trace = hashlib.sha256()
        self.checker = Checker()
        self.meter = Meter(plan.scenario.nodes)
        self.dials = DialLog()
        self.network = Network()
        self.roots: Counter[bytes] = Counter()
        """Root over all groups -> how many living honest nodes have it; empty bytes: not all groups."""
        self.culprits: set[int] = set()
        """Nodes that lie at some time in this run; they need not agree."""
        self.twins: list[tuple[bytes, bytes, bytes]] = []
        """(author, id, id) of the forks that were sent."""
        self.groups: list[bytes] = []
        self._queue: list[
            tuple[float, int, SimulatedNode | None, int, Callable[..., None], tuple[Any, ...]]
        ] = []
        self._sequence = 0
        self._codec = Codec()
        self._table = LinkTable(plan)
        self._bandwidth = plan.scenario.topology.bandwidth_bytes_per_s
        self._losses = self.stream("loss")
        self._tampering = self.stream("tamper")
        self._silences = self.stream("silence")
        self.nodes = [self._new_node(index) for index in range(plan.scenario.nodes)]
        self.by_address = {node.address: node for node in self.nodes}
        for node in self.nodes:
            node.seeds = [self.nodes[other].address for other in self._seeds(node.index)]

    def _new_node(self, index: int) -> SimulatedNode:
        key = NodeKey(hashlib.sha256(f"{self.plan.seed}/key/{index}".encode()).digest())
        return SimulatedNode(self, index, index, key, f"n{index}")

    def _seeds(self, index: int) -> list[int]:
        """Return whom a node knows at first: its older neighbours, or a few of all older nodes."""
        if self._table.is_everybody:
            return sorted(self.stream("seeds", index).sample(range(index), min(SEEDS_MAX, index)))
        return [other for other in self._table.neighbours(index) if other < index]

    def stream(self, *purpose: object) -> Random:
        """Return a new random stream for a purpose."""
        return stream(self.plan.seed, "engine", *purpose)

    # --- time -----------------------------------------------------------------------------------------------

    def note(self, line: str) -> None:
        """Write a line of the story into the log and the trace."""
        text = f"{self.now - self.epoch:9.3f}  {line}"
        self.log.append(text)
        self.trace.update(text.encode())

    def at(self, time: float, node: SimulatedNode | None, action: Callable[..., None], *args: Any) -> None:
        """Do something at a time, unless the process of ``node`` has ended by then."""
        self._sequence += 1
        epoch = node.epoch if node is not None else 0
        heapq.heappush(self._queue, (time, self._sequence, node, epoch, action, args))

    def run(self, until: float, *, stop: Callable[[], bool] | None = None) -> bool:
        """Let time pass until ``until`` or until ``stop`` holds; tell whether it held."""
        queue = self._queue
        while queue and queue[0][0] <= until:
            time, sequence, node, epoch, action, args = heapq.heappop(queue)
            if node is not None:
                if node.epoch != epoch:
                    continue
                if node.frozen_until > time:
                    heapq.heappush(queue, (node.frozen_until, sequence, node, epoch, action, args))
                    continue
            self.now = time
            self.events += 1
            action(*args)
            if stop is not None and stop():
                return True
        self.now = until
        return stop is not None and stop()

    # --- connections ----------------------------------------------------------------------------------------

    def dial(self, node: SimulatedNode, dial: Dial) -> None:
        """Try to connect: two delays if all is well."""
        is_hasty = self.dials.is_hasty(node, dial.address, now=self.now)
        self.checker.expect("I18", not is_hasty, f"{node.name} dials {dial.address} again and again")
        target = self.by_address.get(dial.address)
        delay_s = self._table.latency_s(node.place, target.place) if target is not None else None
        if target is None or delay_s is None:
            self.at(self.now + 0.001, node, self._dial_failed, node, dial, "no route")
            return
        self.at(self.now + 2 * self._delay(node, target, delay_s), node, self._dialled, node, target, dial, 0)

    def _dialled(self, node: SimulatedNode, target: SimulatedNode, dial: Dial, attempt: int) -> None:
        if target.frozen_until > self.now or self.network.is_severed(node.place, target.place):
            self.checker.sometimes["a dial met silence"] += 1
            times = (*SYN_RETRIES_S, CONNECT_TIMEOUT_S)
            wait_s = times[attempt] - (times[attempt - 1] if attempt else 0.0)
            if attempt + 1 < len(times):
                self.at(self.now + wait_s, node, self._dialled, node, target, dial, attempt + 1)
            else:
                self.at(self.now + wait_s, node, self._dial_failed, node, dial, "timed out")
        elif not target.is_up:
            self._dial_failed(node, dial, "refused")
        elif target.id == node.id or dial.expect not in (None, target.id):
            self._dial_failed(node, dial, "another node answers there")
        elif reason := (
            target.engine.overlay.refusal(node.id, now=self.now)
            or node.engine.overlay.refusal(target.id, now=self.now)
        ):
            self.checker.sometimes["a peer was refused"] += 1
            node.handle(DialFailed(dial=dial, reason=reason, is_refused=True))
        else:
            self._established(node, target, dial)

    def _dial_failed(self, node: SimulatedNode, dial: Dial, reason: str) -> None:
        node.handle(DialFailed(dial=dial, reason=reason))

    def _established(self, node: SimulatedNode, target: SimulatedNode, dial: Dial) -> None:
        present = node.lines.get(target.id)
        if present is not None and present.target is target and present.back.is_open:
            node.handle(DialAnswered(dial=dial, peer=target.id))
            return
        delay_s = self._table.latency_s(node.place, target.place)
        assert delay_s is not None, "it was dialled"
        for end, other in ((node, target), (target, node)):
            if (stale := end.lines.get(other.id)) is not None:
                self.checker.sometimes["a connection replaced another"] += 1
                self._tell(stale, "replaced by another connection")
        line = connect(node, target, delay_s)
        node.lines[target.id], target.lines[node.id] = line, line.back
        target.handle(PeerUp(peer=node.id, addresses=(node.address,)))
        if line.is_open:
            node.handle(PeerUp(peer=target.id, addresses=(target.address,), dialled=dial.address))

    def hang_up(self, line: Line, reason: str) -> None:
        """Close a connection from the sending end of ``line``; the other end learns it after the delay."""
        if not line.is_open:
            return
        node = line.source
        del node.lines[line.target.id]
        self._tell(line, reason)
        self.at(self.now, node, self._peer_down, node, line.target.id, reason)

    def _tell(self, line: Line, reason: str) -> None:
        """Let the other end of a line learn that it is over."""
        node, target = line.source, line.target
        if self.network.is_cut(node.place, target.place):
            self._fall_silent(line.back)
        else:
            time = max(line.arrived, self.now + self._delay(node, target, line.delay_s))
            self.at(time, target, self.closed, line.back, reason)

    def dropped(self, line: Line, *, is_silent: bool) -> None:
        """Note that the process at the sending end is gone."""
        if is_silent:
            self._fall_silent(line.back)
        else:
            self._tell(line, "connection reset")

    def closed(self, line: Line, reason: str) -> None:
        """Let the sending end of a line learn that its connection is over."""
        if line.is_open:
            del line.source.lines[line.target.id]
            line.source.handle(PeerDown(peer=line.target.id, reason=reason))

    def _peer_down(self, node: SimulatedNode, peer: bytes, reason: str) -> None:
        if peer not in node.lines:
            node.handle(PeerDown(peer=peer, reason=reason))

    def _fall_silent(self, line: Line) -> None:
        """Let the sending end of a line miss the other one, and give up in the end."""
        wait_s = SILENCE_S + self._silences.uniform(0.0, 0.5)
        self.at(self.now + wait_s, line.source, self.closed, line, "no answer")

    def check_silence(self, line: Line) -> None:
        """Give a connection up if it is still mute: its link cut, or the other process stopped."""
        node, target = line.source, line.target
        if line.is_open and (
            self.network.is_severed(node.place, target.place) or target.frozen_until > self.now
        ):
            self.checker.sometimes["silence ended a connection"] += 1
            self.hang_up(line, "no answer")

    def listen_for(self, line: Line) -> None:
        """Check in a while whether a line is mute."""
        wait_s = SILENCE_S + self._silences.uniform(0.0, 0.5)
        self.at(self.now + wait_s, line.source, self.check_silence, line)

    # --- frames ---------------------------------------------------------------------------------------------

    def send(self, line: Line, message: Message) -> None:
        """Carry a message to the other end of a connection: in order, with delay, as bytes."""
        node = line.source
        if node.mischief is not None:
            changed = node.mischief.outgoing(message)
            if changed is None:
                return
            message = changed
        if type(message) is Gossip and (self.network.loss or self.network.loss_everywhere):
            ratio = self.network.loss.get((node.place, line.target.place), self.network.loss_everywhere)
            if ratio and self._losses.random() < ratio:
                self.checker.sometimes["a payload was lost"] += 1
                return
        self._carry(line, self._codec.frame(message))

    def send_frame(self, line: Line, data: bytes) -> None:
        """Carry bytes, whatever they are, to the other end of a connection."""
        self._carry(line, Frame(data, crc32(data)))

    def _carry(self, line: Line, frame: Frame) -> None:
        node, network = line.source, self.network
        node.bytes_sent += len(frame.data)
        if line.tamper:
            frame = self._tampered(line, frame.data)
        if line.held or (network.cuts and network.is_cut(node.place, line.target.place)):
            line.held.append(frame)
            return
        time = self.now + self._delay(node, line.target, line.delay_s)
        if self._bandwidth:
            line.busy_until = max(line.busy_until, self.now) + len(frame.data) / self._bandwidth
            time += line.busy_until - self.now
        line.arrived = max(line.arrived, time)
        self.at(line.arrived, line.target, self._deliver, line, frame)

    def release(self, line: Line) -> None:
        """Send what a cut held back."""
        if line.held and not self.network.is_cut(line.source.place, line.target.place):
            frames, line.held = line.held, []
            if not line.is_open:
                return
            for frame in frames:
                line.arrived = max(
                    line.arrived, self.now + self._delay(line.source, line.target, line.delay_s)
                )
                self.at(line.arrived, line.target, self._deliver, line, frame)

    def _delay(self, node: SimulatedNode, target: SimulatedNode, delay_s: float) -> float:
        if self.network.extra_s:
            delay_s += self.network.extra_s.get((node.place, target.place), 0.0)
        if node.slowness == target.slowness == 1.0:
            return delay_s
        return delay_s + 0.001 * (node.slowness - 1 + target.slowness - 1)

    def _tampered(self, line: Line, frame: bytes) -> Frame:
        """Change a byte of a frame, or break off in the middle of it."""
        line.decoder = FrameDecoder()
        position = self._tampering.randrange(len(frame))
        if line.tamper == 1:
            self.checker.sometimes["a byte was changed on the way"] += 1
            changed = frame[position] ^ (1 + self._tampering.randrange(255))
            frame = frame[:position] + bytes([changed]) + frame[position + 1 :]
        else:
            self.checker.sometimes["a connection broke in the middle of a frame"] += 1
            frame = frame[:position]
            delay_s = self._delay(line.source, line.target, line.delay_s)
            self.at(self.now + delay_s, line.target, self.hang_up, line.back, "connection reset")
        line.tamper = 0
        return Frame(frame, crc32(frame))

    def _deliver(self, line: Line, frame: Frame) -> None:
        if not line.back.is_open:
            return
        self.trace.update(_STAMP.pack(self.now, line.source.index, line.target.index, frame.mark))
        if frame.message is not None and line.decoder is None:
            self._receive(line, frame.message)
            return
        if line.decoder is None:
            line.decoder = FrameDecoder()
        try:
            messages = line.decoder.feed(frame.data)
        except RemoteProtocolError as error:
            self.checker.sometimes["a frame was refused"] += 1
            self.hang_up(line.back, error.message)
            return
        for message in messages:
            if line.back.is_open:
                self._receive(line, message)

    def _receive(self, line: Line, message: Message) -> None:
        if type(message) in CARRIERS:
            self.meter.received(line.source, line.target, message)
        line.target.handle(MessageReceived(peer=line.source.id, message=message))

    # --- what nodes report ----------------------------------------------------------------------------------

    def root_changed(self, node: SimulatedNode) -> None:
        """Count the roots of the living honest nodes anew, for one of them."""
        if node.index in self.culprits or node.index >= len(self.nodes):
            return
        before = node.root
        node.root = self._root(node) if node.is_up else None
        if before is not None:
            self.roots[before] -= 1
            if not self.roots[before]:
                del self.roots[before]
        if node.root is not None:
            self.roots[node.root] += 1

    def _root(self, node: SimulatedNode) -> bytes:
        roots = []
        for group in self.groups:
            state = node.engine.state(group)
            if state is None:
                return b""
            roots.append(state.sync_root)
        return roots[0] if len(roots) == 1 else hashlib.sha256(b"".join(roots)).digest()

    @property
    def is_converged(self) -> bool:
        """Whether all living honest nodes hold the same operations."""
        return len(self.roots) == 1 and b"" not in self.roots

    def authored(self, node: SimulatedNode, signed: SignedOperation) -> None:
        """Note a new operation."""
        self.checker.authored(node.index, signed)
        self.meter.authored(node, signed, now=self.now)

    def stored(self, node: SimulatedNode, group: bytes, operations: tuple[SignedOperation, ...]) -> None:
        """Note that operations are durable on a node."""
        self.checker.stored(node.index, group, [signed.id for signed in operations])
        self.meter.stored(node, operations, now=self.now)

    def acknowledged(self, node: SimulatedNode, group: bytes, operations: list[SignedOperation]) -> None:
        """Note that a node tells its user that operations are durable, and look at the node."""
        state = node.engine.state(group)
        assert state is not None, "its operation was stored"
        self.checker.durable(node.index, state)
        for signed in operations:
            self.checker.acknowledged(node.index, state, signed.id)
        if node.index not in self.culprits:
            self.checker.look(node.index, node.engine.replicas[group], self.honest, thoroughly=False)
            self.checker.sessions(node.index, node.engine.reconciler.session_count)

    @property
    def honest(self) -> frozenset[bytes]:
        """Ids of the nodes that never fork."""
        return self._honest

    def settle_honesty(self) -> None:
        """Fix who is honest, before the work begins."""
        self._honest = frozenset(node.id for node in self.nodes if node.index not in self.culprits)

    def engine_failed(self, node: SimulatedNode, event: Event, error: Exception) -> None:
        """End a process whose engine raised, as the daemon does; its supervisor starts it again."""
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}"
        text = f"{node.name} failed at {type(event).__name__}: {error!r} in {place}"
        self.note(text)
        self.checker.expect("I9", False, text)
        node.kill()
        self.at(self.now + 1.0, None, self.start, node)

    def failed_disk(self, node: SimulatedNode) -> None:
        """End a process whose disk failed, as the daemon does; its supervisor starts it again."""
        self.note(f"{node.name} stops: its disk failed")
        self.checker.sometimes["a disk failed"] += 1
        node.kill()
        self.at(self.now + 1.0, None, self.start, node)

    def start(self, node: SimulatedNode) -> None:
        """Start a node that is down."""
        if not node.is_up:
            self.note(f"{node.name} starts")
            node.start()
