"""What others notice of a member that floods a node with valid operations, in virtual time (SCENARIOS T17).

The driver and the engine are the real ones. Work costs virtual time as it was measured on one core: on the
loop, where everybody waits for it, and on the threads that check signatures, of which there are two.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any, Final

import pytest
from crdt_merge_node.gossip import GossipDriver
from crdt_merge_node.verifying import THREADS, Verifier
from crdt_merge_protocol.engine import Engine
from crdt_merge_protocol.events import MessageReceived, OperationsStored, PeerUp
from crdt_merge_protocol.identity import NodeKey
from crdt_merge_protocol.limits import OPERATIONS_BURST
from crdt_merge_protocol.messages.gossip import Gossip
from crdt_merge_protocol.operations import SignedOperation
from support.authors import KEYS, Author, make_genesis
from support.transport_world import VirtualLoop, World
from support.unsent import Line

CHECK_S: Final = 110e-6
LOAD_S: Final = 8e-6
TAKE_S: Final = 4e-6
APPLY_S: Final = 20e-6
EVENT_S: Final = 50e-6
COMMIT_S: Final = 0.004

GENESIS: Final = make_genesis()
HONEST: Final = 4
INTERVAL_S: Final = 0.01
COUNT: Final = 40
"""Operations of each honest peer."""
PER_MESSAGE: Final = 220
"""What fits a frame."""
FLOOD: Final = 7000


@functools.cache
def make_flood() -> list[Gossip]:
    author = Author(GENESIS, 0)
    wires = [author.add(f"flood {number}", slot="flood").wire() for number in range(FLOOD)]
    return [
        Gossip(group=GENESIS.group, operations=tuple(wires[start : start + PER_MESSAGE]))
        for start in range(0, FLOOD, PER_MESSAGE)
    ]


class CostlyLoop(VirtualLoop):
    """Threads that take as long as the checks in their slice, and have one slice at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.free_at = [0.0] * THREADS
        self.is_in_thread = False

    def run_in_executor(self, executor: object, func: Callable[..., Any], *args: Any) -> Any:
        thread = self.free_at.index(min(self.free_at))
        self.free_at[thread] = max(self.free_at[thread], self.time()) + CHECK_S * len(args[0])
        future = self.create_future()
        self.call_at(self.free_at[thread], self._run, future, func, args)
        return future

    def _run(self, future: Any, func: Callable[..., Any], args: Any) -> None:
        self.is_in_thread = True
        try:
            future.set_result(func(*args))
        finally:
            self.is_in_thread = False


class Disk:
    """A store whose commits take a while."""

    async def append(self, _rows: object) -> None:
        await asyncio.sleep(COMMIT_S)


class Cluster:
    """One node, its honest peers and perhaps one that is not."""

    def __init__(self, loop: CostlyLoop, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loop = loop
        self.engine = Engine(NodeKey(bytes(31) + b"\x07"), random_bytes=lambda count: b"\x5a" * count)
        self.state = self.engine.open_group(GENESIS).state
        self.driver = GossipDriver(self.engine, Disk(), World(loop))
        self.driver.callbacks.group_changed = self._note
        self.due: dict[bytes, float] = {}
        self.latencies: list[float] = []
        self.is_done = asyncio.Event()
        monkeypatch.setattr(SignedOperation, "check_signature", lambda _signed: self._check())
        self._charge()
        self.driver.start()

    def _charge(self) -> None:
        """Let what the engine does take time."""
        read, handle = self.driver._verifier._read, self.engine.handle

        def costly_read(peer, message):
            self.loop.freeze(LOAD_S * len(message.operations))
            return read(peer, message)

        def costly_handle(event, *, now):
            self.loop.freeze(EVENT_S)
            if isinstance(event, MessageReceived) and isinstance(event.message, Gossip):
                self.loop.freeze(TAKE_S * len(event.message.operations))
            if isinstance(event, OperationsStored):
                self.loop.freeze(APPLY_S * len(event.ids))
            return handle(event, now=now)

        self.driver._verifier._read = costly_read
        self.engine.handle = costly_handle  # type: ignore[method-assign]

    def _check(self) -> None:
        if not self.loop.is_in_thread:
            self.loop.freeze(CHECK_S)

    def _note(self, _group: bytes) -> None:
        here = [id_ for id_ in self.due if id_ in self.state]
        self.latencies += [self.loop.time() - self.due.pop(id_) for id_ in here]
        if len(self.latencies) == HONEST * COUNT:
            self.is_done.set()

    def line(self, number: int) -> Line:
        line = Line(KEYS[number].node_id)
        self.driver.connections[line.peer] = line  # type: ignore[assignment]  # As far as it is used.
        self.driver.handle(PeerUp(peer=line.peer, addresses=()))
        return line

    async def honest(self, number: int) -> None:
        """Send one operation after the other, each on time, however late the node is."""
        line, author = self.line(number), Author(GENESIS, number)
        for count in range(COUNT):
            signed = author.add(f"honest {number} {count}")
            due = INTERVAL_S * (count + number / HONEST)
            await asyncio.sleep(max(0.0, due - self.loop.time()))
            self.due[signed.id] = due
            await line.reading.wait()
            self.driver.received(line, Gossip(group=GENESIS.group, operations=(signed.wire(),)))

    async def flood(self, messages: list[Gossip]) -> None:
        """Send as fast as the node reads."""
        line = self.line(HONEST + 1)
        for message in messages:
            await line.reading.wait()
            self.driver.received(line, message)
            await asyncio.sleep(0)

    async def run(self, flood: list[Gossip]) -> None:
        flooding = asyncio.ensure_future(self.flood(flood))
        await asyncio.gather(*(self.honest(number) for number in range(1, HONEST + 1)))
        await self.is_done.wait()
        flooding.cancel()
        self.driver.connections.clear()
        await self.driver.close()


def p99_s(monkeypatch: pytest.MonkeyPatch, flood: list[Gossip]) -> tuple[float, int]:
    """Return how long honest operations took from arriving to being applied, and what came of others."""
    loop = CostlyLoop()  # type: ignore[abstract]  # What it lacks, nodes do not use.
    with monkeypatch.context() as patch:

        async def body() -> tuple[float, int]:
            cluster = Cluster(loop, patch)
            await cluster.run(flood)
            assert len(cluster.latencies) == HONEST * COUNT
            others = len(cluster.state) - HONEST * COUNT
            return sorted(cluster.latencies)[-max(1, HONEST * COUNT // 100)], others

        try:
            return loop.run_until_complete(body())
        finally:
            loop.close()
            assert loop.problems == []


def test_t17_a_flood_of_valid_operations_at_most_doubles_what_others_wait(monkeypatch):
    assert FLOOD < OPERATIONS_BURST  # Its credit slows it down only later.
    quiet_s, none = p99_s(monkeypatch, [])
    flooded_s, taken = p99_s(monkeypatch, make_flood())

    assert none == 0
    assert taken > 1000
    assert flooded_s <= 2 * quiet_s


def test_t17_with_all_signatures_checked_on_the_loop_others_would_wait_longer(monkeypatch):
    """The world above can tell: this is what it is for."""
    flood = make_flood()
    beside_s, _ = p99_s(monkeypatch, flood)
    monkeypatch.setattr(Verifier, "arrived", lambda self, line, message: self._deliver(line, message, None))
    on_loop_s, _ = p99_s(monkeypatch, flood)

    assert on_loop_s > 2 * beside_s
