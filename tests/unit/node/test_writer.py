"""What the engine wants stored: in order, shared commits, and a full disk that is no end."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from crdt_merge_node.errors import FullError, StorageError, StoreFailedError
from crdt_merge_node.storage import OpRow
from crdt_merge_node.writer import StoreWriter
from crdt_merge_protocol.events import (
    DropOperations,
    GroupStored,
    NotStored,
    OperationsStored,
    StoreGroup,
    StoreOperations,
)
from crdt_merge_protocol.limits import OPERATIONS_PER_TURN_MAX
from support.authors import Author, hash_of, make_genesis

pytestmark = pytest.mark.asyncio

GENESIS = make_genesis()
AUTHOR = Author(GENESIS)
OPERATIONS = [AUTHOR.add(f"content {number}") for number in range(4)]
NEW_GROUP = StoreGroup(group=GENESIS.group, genesis=GENESIS.encode())


def effect(number: int) -> StoreOperations:
    return StoreOperations(group=GENESIS.group, operations=(OPERATIONS[number],))


class FakeStore:
    """A store whose commits wait at a gate and fail as told."""

    def __init__(self) -> None:
        self.commits: list[list[bytes]] = []
        self.groups: list[bytes] = []
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def add_group(self, _genesis: bytes, group: bytes) -> None:
        self.groups.append(group)

    async def append(self, rows: list[OpRow]) -> None:
        await self.gate.wait()
        if rows and self.failure is not None:
            raise self.failure
        self.commits.append([row.id for row in rows])

    async def drop_operations(self, _group: bytes, ids: tuple[bytes, ...]) -> None:
        await self.gate.wait()
        self.commits.append([b"dropped", *ids])


class World:
    def __init__(self) -> None:
        self.store = FakeStore()
        self.reports: list[Any] = []
        self.fatal: list[BaseException] = []
        store: Any = self.store
        self.on_report: Callable[[], None] = lambda: None
        self.writer = StoreWriter(store, report=self._report, fatal=self.fatal.append)
        self.writer.start()

    def _report(self, event: Any) -> None:
        self.reports.append(event)
        self.on_report()


async def test_what_queues_up_during_a_commit_shares_the_next() -> None:
    world = World()
    world.store.gate.clear()
    world.writer.put(effect(0))
    await asyncio.sleep(0)
    for number in (1, 2, 3):
        world.writer.put(effect(number))
    world.store.gate.set()
    await world.writer.close()

    assert world.store.commits == [[OPERATIONS[0].id], [signed.id for signed in OPERATIONS[1:]]]
    assert [report.ids for report in world.reports] == [
        (OPERATIONS[0].id,),
        tuple(signed.id for signed in OPERATIONS[1:]),
    ]


async def test_what_is_dropped_has_its_turn_between_what_came_before_and_after() -> None:
    world = World()
    world.store.gate.clear()
    world.writer.put(effect(0))
    await asyncio.sleep(0)
    world.writer.put(effect(1))
    world.writer.put(DropOperations(group=GENESIS.group, ids=(OPERATIONS[0].id,)))
    for number in (2, 3):
        world.writer.put(effect(number))
    world.store.gate.set()
    await world.writer.close()

    ids = [signed.id for signed in OPERATIONS]
    assert world.store.commits == [[ids[0]], [ids[1]], [b"dropped", ids[0]], ids[2:]]


async def test_t20_a_full_disk_keeps_nothing_from_being_deleted() -> None:
    """Its rows would stay until the next start, on the disk that has no room for others."""
    world = World()
    world.store.gate.clear()
    world.store.failure = FullError("full.")
    world.writer.put(effect(1))
    await asyncio.sleep(0)
    world.writer.put(DropOperations(group=GENESIS.group, ids=(OPERATIONS[0].id,)))
    world.writer.put(effect(2))
    world.store.gate.set()
    await world.writer.close()

    assert world.store.commits == [[b"dropped", OPERATIONS[0].id]]
    assert world.reports == [NotStored(groups=(GENESIS.group,))]


async def test_what_shared_a_commit_is_reported_in_order_and_not_all_in_one_turn() -> None:
    """Applying takes a while, so nobody waits for more than a turn of it."""
    world = World()
    other = hash_of("other")
    world.store.gate.clear()
    world.writer.put(effect(0))
    await asyncio.sleep(0)
    turn = (OPERATIONS[1],) * OPERATIONS_PER_TURN_MAX
    effects = [
        effect(1),
        effect(2),
        StoreOperations(group=other, operations=(OPERATIONS[3],)),
        StoreOperations(group=GENESIS.group, operations=turn),
        effect(2),
        StoreOperations(group=GENESIS.group, operations=(*turn, *turn)),
        effect(3),
    ]
    for each in effects:
        world.writer.put(each)
    world.store.gate.set()
    await world.writer.close()

    assert [(report.group, len(report.ids)) for report in world.reports] == [
        (GENESIS.group, 1),
        (GENESIS.group, 2),
        (other, 1),
        (GENESIS.group, OPERATIONS_PER_TURN_MAX),
        (GENESIS.group, OPERATIONS_PER_TURN_MAX),
        (GENESIS.group, OPERATIONS_PER_TURN_MAX),
        (GENESIS.group, 2),
    ]
    reported = [id_ for report in world.reports for id_ in report.ids]
    assert reported == [id_ for commit in world.store.commits for id_ in commit]


async def test_who_waits_is_told_once_all_of_it_is_reported() -> None:
    world = World()
    many = StoreOperations(group=GENESIS.group, operations=(OPERATIONS[0],) * (OPERATIONS_PER_TURN_MAX + 1))
    told: list[int] = []
    waiting = asyncio.ensure_future(world.writer.put_and_wait(many))
    waiting.add_done_callback(lambda _: told.append(len(world.reports)))
    await waiting
    await world.writer.close()

    assert told == [2]


async def test_the_next_commit_is_under_way_while_the_last_one_is_reported() -> None:
    world = World()
    turn = (OPERATIONS[0],) * OPERATIONS_PER_TURN_MAX
    seen: list[tuple[int, int]] = []
    world.on_report = lambda: seen.append((len(world.store.commits), len(world.reports)))
    world.writer.put(StoreOperations(group=GENESIS.group, operations=turn * 8))
    world.writer.put(effect(1))
    await world.writer.close()

    assert seen[0] == (2, 1)
    assert [len(report.ids) for report in world.reports] == [OPERATIONS_PER_TURN_MAX] * 8 + [1]


async def test_what_found_no_room_is_told_after_all_that_is_durable() -> None:
    """The engine then forgets all that is in flight, and what is on the disk must not be among that."""
    world = World()
    turn = (OPERATIONS[0],) * OPERATIONS_PER_TURN_MAX
    append = world.store.append

    async def second_fails(rows: list[OpRow]) -> None:
        if world.store.commits:
            raise FullError("full.")
        await append(rows)

    world.store.append = second_fails  # type: ignore[method-assign]
    world.writer.put(StoreOperations(group=GENESIS.group, operations=turn * 8))
    world.writer.put(effect(1))
    await world.writer.close()

    assert [type(report) for report in world.reports] == [OperationsStored] * 8 + [NotStored]


async def test_a_report_that_fails_ends_the_writer_and_nobody_waits_for_ever() -> None:
    world = World()
    error = ZeroDivisionError("a bug of the engine")

    def fail() -> None:
        raise error

    world.on_report = fail
    results = await asyncio.gather(
        world.writer.put_and_wait(effect(0)), world.writer.put_and_wait(effect(1)), return_exceptions=True
    )
    await world.writer.close()

    assert results == [error, error]
    assert world.fatal == [error]
    with pytest.raises(ZeroDivisionError):
        await world.writer.put_and_wait(effect(2))


async def test_a_group_is_stored_before_its_operations() -> None:
    world = World()
    world.writer.put(effect(0))
    world.writer.put(NEW_GROUP)
    await world.writer.close()

    assert [type(report) for report in world.reports] == [GroupStored, OperationsStored]


async def test_who_waits_is_told_when_it_is_durable() -> None:
    world = World()
    world.store.gate.clear()
    waiting = asyncio.create_task(world.writer.put_and_wait(effect(0)))
    await asyncio.sleep(0)
    assert not waiting.done()
    world.store.gate.set()
    await waiting

    assert world.store.commits
    await world.writer.close()


async def test_a_full_disk_refuses_what_is_queued_and_goes_on() -> None:
    """What came later may build upon what found no room."""
    world = World()
    world.store.failure = FullError("no room.")
    waiting = [asyncio.create_task(world.writer.put_and_wait(effect(number))) for number in (0, 1)]
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    world.store.failure = None
    await world.writer.put_and_wait(effect(2))
    await world.writer.close()

    assert [type(outcome) for outcome in outcomes] == [FullError, FullError]
    assert isinstance(world.reports[0], NotStored)
    assert world.reports[0].groups == (GENESIS.group,)
    assert world.reports[-1].ids == (OPERATIONS[2].id,)
    assert world.fatal == []


@pytest.mark.parametrize("failure", [StoreFailedError("the disk failed."), KeyError("a bug")])
async def test_any_other_failure_ends_the_node_and_keeps_nobody_waiting(failure: Exception) -> None:
    world = World()
    world.store.failure = failure
    with pytest.raises(type(failure)):
        await world.writer.put_and_wait(effect(0))
    with pytest.raises(type(failure)):
        await world.writer.put_and_wait(effect(1))
    await world.writer.close()

    assert world.fatal == [failure]


async def test_who_stops_waiting_does_not_stop_the_storing() -> None:
    world = World()
    world.store.gate.clear()
    waiting = asyncio.create_task(world.writer.put_and_wait(effect(0)))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    world.store.gate.set()
    await world.writer.close()

    assert world.store.commits == [[OPERATIONS[0].id]]
    assert len(world.reports) == 1


async def test_after_the_end_nothing_is_taken() -> None:
    world = World()
    await world.writer.close()
    with pytest.raises(StorageError, match="closed"):
        await world.writer.put_and_wait(effect(0))
