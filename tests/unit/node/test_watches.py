"""Whoever asks for a fresh comparison gets one that began after the question."""

import asyncio

import pytest
from crdt_merge_node.errors import ControlError, StorageError
from crdt_merge_node.watches import Watch

pytestmark = pytest.mark.asyncio


class Work:
    """A comparison that waits until it is let go, and notes what it saw when it began."""

    def __init__(self) -> None:
        self.world = 0
        self.seen: list[int] = []
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.fatal: list[BaseException] = []

    async def compare(self) -> None:
        self.seen.append(self.world)
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure

    def watch(self) -> Watch:
        return Watch(self.compare, fatal=self.fatal.append, name="test")


async def test_a_run_under_way_does_not_answer_a_later_question() -> None:
    work = Work()
    watch = work.watch()
    work.gate.clear()
    watch.look_again()
    await asyncio.sleep(0)
    work.world = 1
    asked = asyncio.create_task(watch.current())
    await asyncio.sleep(0)
    work.gate.set()
    await asked
    await watch.close()

    assert work.seen == [0, 1]


async def test_many_changes_during_a_run_lead_to_one_more() -> None:
    work = Work()
    watch = work.watch()
    work.gate.clear()
    watch.look_again()
    await asyncio.sleep(0)
    for _ in range(10):
        watch.look_again()
    work.gate.set()
    await watch.beyond(10)
    await watch.close()

    assert len(work.seen) == 2


async def test_what_happened_before_one_began_to_wait_is_not_missed() -> None:
    work = Work()
    watch = work.watch()
    generation = watch.generation
    await watch.current()
    async with asyncio.timeout(60.0):
        await watch.beyond(generation)
    await watch.close()


async def test_a_store_that_cannot_be_read_is_told_to_who_waits_and_tried_again() -> None:
    work = Work()
    work.failure = StorageError("too many open files.")
    watch = work.watch()
    with pytest.raises(StorageError, match="open files"):
        await watch.current()
    work.failure = None
    await watch.current()
    await watch.close()

    assert work.fatal == []


async def test_a_bug_is_told_to_who_waits_and_ends_the_node() -> None:
    work = Work()
    work.failure = KeyError("a bug")
    watch = work.watch()
    with pytest.raises(ControlError, match="a bug"):
        await watch.current()
    with pytest.raises(ControlError, match="a bug"):
        await watch.current()
    await watch.close()

    assert work.fatal == [work.failure]


async def test_who_waits_when_the_node_stops_is_told() -> None:
    work = Work()
    watch = work.watch()
    work.gate.clear()
    waiting = asyncio.create_task(watch.current())
    await asyncio.sleep(0)
    await watch.close()

    with pytest.raises(ControlError, match="stopping"):
        await waiting
