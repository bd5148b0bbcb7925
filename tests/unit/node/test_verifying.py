"""Signatures are checked beside the loop; who sent what, and in which order, is not changed by that (T17)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future

import pytest
from crdt_merge_node.pacing import Pacing
from crdt_merge_node.ports import SystemClock
from crdt_merge_node.telemetry.counters import Counters
from crdt_merge_node.verifying import LONE_INTERVAL_S, SLICE_MAX, THREADS, WAITING_BYTES_MAX, Verifier
from crdt_merge_protocol.errors import BadSignatureError
from crdt_merge_protocol.messages.gossip import Gossip
from crdt_merge_protocol.messages.membership import Roots
from crdt_merge_protocol.operations import SignedOperation
from crdt_merge_protocol.reading import Reading
from crdt_merge_protocol.replica import Replica
from support.authors import KEYS, Author, make_genesis
from support.unsent import Line

pytestmark = pytest.mark.asyncio

GENESIS = make_genesis()
AUTHOR = Author(GENESIS, 0)
OPERATIONS = [AUTHOR.add(f"content {number}", slot=f"s{number % 4}") for number in range(300)]
ROOTS = Roots(roots=())


class Clock(SystemClock):
    def __init__(self) -> None:
        self.time = 1000.0

    def monotonic(self) -> float:
        return self.time


class Bench(Executor):
    """Threads that begin, in whatever order, when the test says so."""

    def __init__(self) -> None:
        self.jobs: deque[tuple[Future[object], Callable[[], object]]] = deque()
        self.begun = 0
        self.error: Exception | None = None

    def submit(self, work, /, *args, **kwargs):
        future: Future[object] = Future()
        self.jobs.append((future, lambda: work(*args, **kwargs)))
        self.begun += 1
        return future

    async def finish(self, index: int = 0) -> None:
        """Let one of the jobs under way end, and the loop see it."""
        future, work = self.jobs[index]
        del self.jobs[index]
        if self.error is not None:
            future.set_exception(self.error)
        else:
            future.set_result(work())
        for _ in range(10):
            await asyncio.sleep(0)

    async def finish_all(self) -> None:
        while self.jobs:
            await self.finish()


class NoCredit(Pacing):
    """Stops and goes as the verifier says, and only so."""

    def received(self, _connection, _operations) -> None:
        pass


class World:
    def __init__(self) -> None:
        self.replica = Replica(GENESIS, KEYS[7], bytes(16))
        self.clock = Clock()
        self.bench = Bench()
        self.delivered: list[tuple[Line, object]] = []
        self.readings: list[Reading | None] = []
        self.on_deliver: Callable[[Line], None] = lambda _line: None
        self.verifier = Verifier(
            self.clock, NoCredit(self.clock, Counters()), read=self._read, deliver=self._deliver
        )
        self.verifier._executor = self.bench  # type: ignore[assignment]

    def _read(self, _peer, message):
        reading = Reading()
        return reading, self.replica.unchecked(message.operations, reading)

    def _deliver(self, connection, message, reading) -> None:
        self.delivered.append((connection, message))
        self.readings.append(reading)
        self.on_deliver(connection)

    def of(self, line: Line) -> list[object]:
        return [message for connection, message in self.delivered if connection is line]


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def peer() -> Line:
    return Line(KEYS[1].node_id)


@pytest.fixture
def other() -> Line:
    return Line(KEYS[2].node_id)


def gossip(operations: Iterable[SignedOperation]) -> Gossip:
    return Gossip(group=GENESIS.group, operations=tuple(signed.wire() for signed in operations))


def forged(signed: SignedOperation) -> SignedOperation:
    return SignedOperation(signed.operation, signed.encoded, bytes(64), signed.id)


async def test_a_lone_operation_is_handed_on_at_once_and_the_next_after_a_check_elsewhere(world, peer):
    first, second, third = (gossip([signed]) for signed in OPERATIONS[:3])
    world.verifier.arrived(peer, first)
    world.verifier.arrived(peer, second)

    assert world.of(peer) == [first]
    assert world.bench.begun == 1
    await world.bench.finish_all()
    world.clock.time += LONE_INTERVAL_S
    world.verifier.arrived(peer, third)
    assert world.of(peer) == [first, second, third]
    assert world.bench.begun == 1


async def test_messages_of_a_peer_keep_their_order_though_checks_end_in_another(world, peer):
    messages = [gossip(OPERATIONS[:100]), ROOTS, gossip(OPERATIONS[100:110]), ROOTS]
    for message in messages:
        world.verifier.arrived(peer, message)
    while world.bench.jobs:
        await world.bench.finish(-1)

    assert world.of(peer) == messages
    assert world.verifier.waiting == 0


async def test_a_long_message_is_checked_in_slices_and_none_of_them_by_the_engine(world, peer, monkeypatch):
    sizes = []
    submit = world.bench.submit
    world.bench.submit = lambda work, slice_: (sizes.append(len(slice_)), submit(work, slice_))[1]
    message = gossip(OPERATIONS)
    world.verifier.arrived(peer, message)
    assert len(world.bench.jobs) == THREADS
    await world.bench.finish_all()
    monkeypatch.setattr(SignedOperation, "check_signature", lambda _self: pytest.fail("checked again"))
    receipt = world.replica.receive(message.operations, peer.peer, world.readings[0])

    assert max(sizes) == SLICE_MAX
    assert sum(sizes) == len(OPERATIONS)
    assert list(receipt.accepted) == OPERATIONS


async def test_who_sends_a_little_waits_for_a_thread_and_not_for_those_who_send_much(world, peer, other):
    for _ in range(3):
        world.verifier.arrived(peer, gossip(OPERATIONS[:200]))
    little = gossip(OPERATIONS[200:202])
    world.verifier.arrived(other, little)
    await world.bench.finish()  # A thread is free now.
    await world.bench.finish(-1)

    assert world.of(other) == [little]
    assert world.verifier.waiting


async def test_nobody_waits_for_a_peer_that_sends_nothing_to_be_checked(world, peer, other):
    world.verifier.arrived(peer, gossip(OPERATIONS[:200]))
    world.verifier.arrived(other, ROOTS)

    assert world.of(other) == [ROOTS]
    assert world.of(peer) == []


async def test_what_waits_of_a_peer_is_bounded_and_then_it_is_read_again(world, peer):
    message = gossip(OPERATIONS[:200])
    size = sum(map(len, message.operations))
    count = 0
    while peer.is_read:
        world.verifier.arrived(peer, message)
        await asyncio.sleep(0)
        count += 1
        assert count * size <= WAITING_BYTES_MAX + size
    while not peer.is_read:
        await world.bench.finish()

    assert world.verifier.waiting < count
    await world.bench.finish_all()
    assert len(world.of(peer)) == count


async def test_messages_that_wait_behind_checks_are_bounded_too(world, peer):
    world.verifier.arrived(peer, gossip(OPERATIONS[:2]))
    count = 0
    while peer.is_read:
        world.verifier.arrived(peer, ROOTS)
        count += 1
        assert count < 100
    await world.bench.finish_all()

    assert peer.is_read
    assert len(world.of(peer)) == count + 1


async def test_the_first_bad_signature_ends_all_checks_of_what_its_sender_has_sent(world, peer):
    bad = [forged(signed) for signed in OPERATIONS]
    for start in (0, 100, 200):
        world.verifier.arrived(peer, gossip(bad[start : start + 100]))
    await world.bench.finish_all()

    assert world.bench.begun == THREADS
    assert len(world.of(peer)) == 3
    receipt = world.replica.receive([bad[0].wire()], peer.peer, world.readings[0])
    assert type(receipt.refused) is BadSignatureError


async def test_a_verdict_is_about_all_signed_bytes_and_never_about_the_id_alone(world, peer):
    """A good copy that was checked must not let a bad copy of the same operation pass, nor the reverse."""
    good, bad = OPERATIONS[0], forged(OPERATIONS[0])
    world.verifier._next_lone[peer] = float("inf")
    world.verifier.arrived(peer, gossip([good]))
    await world.bench.finish_all()
    reading = world.readings[0]

    assert type(world.replica.receive([bad.wire()], peer.peer, reading).refused) is BadSignatureError
    assert world.replica.receive([good.wire()], peer.peer, reading).accepted == (good,)


async def test_what_a_closed_connection_brought_is_handed_on_before_its_end(world, peer):
    message = gossip(OPERATIONS[:10])
    world.verifier.arrived(peer, message)
    peer.is_open = False
    ends = []
    world.verifier.ended(peer, lambda: ends.append(list(world.of(peer))))
    assert ends == []
    await world.bench.finish_all()

    assert ends == [[message]]


async def test_what_is_dropped_is_never_handed_on_and_the_next_connection_begins_anew(world, peer, other):
    for start in (0, 100):
        world.verifier.arrived(peer, gossip(OPERATIONS[start : start + 100]))
    message = gossip(OPERATIONS[:5])
    world.verifier.drop(peer)
    world.verifier.arrived(other, message)
    await world.bench.finish_all()

    assert world.delivered == [(other, message)]
    assert (world.verifier.waiting, peer.is_read) == (0, True)


async def test_a_connection_that_is_dropped_by_what_it_sent_hands_on_nothing_more(world, peer):
    world.on_deliver = world.verifier.drop
    first = gossip(OPERATIONS[:10])
    world.verifier.arrived(peer, first)
    world.verifier.arrived(peer, ROOTS)
    await world.bench.finish_all()

    assert world.of(peer) == [first]
    assert world.verifier.waiting == 0


async def test_threads_that_fail_leave_the_checks_to_the_engine(world, peer):
    world.bench.error = RuntimeError("no thread can be started")
    message = gossip([*OPERATIONS[:2], forged(OPERATIONS[2])])
    world.verifier.arrived(peer, message)
    await world.bench.finish_all()
    receipt = world.replica.receive(message.operations, peer.peer, world.readings[0])

    assert list(receipt.accepted) == OPERATIONS[:2]
    assert type(receipt.refused) is BadSignatureError


async def test_closing_waits_for_the_threads_and_hands_on_nothing(world, peer):
    world.verifier.arrived(peer, gossip(OPERATIONS))
    closing = asyncio.create_task(world.verifier.close())
    await asyncio.sleep(0)
    assert not closing.done()
    await world.bench.finish_all()
    await closing
    world.verifier.arrived(peer, ROOTS)

    assert world.delivered == []


async def test_real_threads_say_what_the_engine_would_say(peer):
    world = World()
    world.verifier = Verifier(
        world.clock, NoCredit(world.clock, Counters()), read=world._read, deliver=world._deliver
    )
    is_there = asyncio.Event()
    world.on_deliver = lambda _line: is_there.set()
    world.verifier.arrived(peer, gossip(OPERATIONS))
    await asyncio.wait_for(is_there.wait(), 60)
    receipt = world.replica.receive([s.wire() for s in OPERATIONS], peer.peer, world.readings[0])
    await world.verifier.close()

    assert list(receipt.accepted) == OPERATIONS
    assert receipt.refused is None
