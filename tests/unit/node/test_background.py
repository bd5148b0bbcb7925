"""Long work: its progress, its end, and its cancellation."""

import asyncio
import threading
from contextlib import aclosing

import pytest
from crdt_merge_node.background import Done, Duties, finish, run_with_progress
from crdt_merge_node.control.model import Progress

pytestmark = pytest.mark.asyncio


async def test_work_ends_with_its_result() -> None:
    steps = [step async for step in run_with_progress(lambda _report, _cancelled: 42)]

    assert steps == [Done(42)]


async def test_only_the_newest_progress_is_passed_on() -> None:
    told, go_on = threading.Event(), threading.Event()

    def work(report, _cancelled) -> None:
        report(1, 10, "early")
        report(2, 10, "late")
        told.set()
        assert go_on.wait(60.0)

    async with aclosing(run_with_progress(work)) as steps:
        newest = asyncio.ensure_future(anext(steps))
        await asyncio.sleep(0)
        assert told.wait(60.0)  # The loop stands still meanwhile: it looks at neither before both are told.
        first = await newest
        go_on.set()

        assert first == Progress(step="late", done_bytes=2, total_bytes=10)
        assert [step async for step in steps] == [Done(None)]


async def test_what_the_work_raises_is_raised() -> None:
    def work(_report, _cancelled) -> None:
        raise KeyError("missing")

    with pytest.raises(KeyError, match="missing"):
        [step async for step in run_with_progress(work)]


async def test_who_closes_early_waits_until_the_work_has_noticed() -> None:
    ended = threading.Event()

    def work(report, is_cancelled) -> None:
        report(0, 1, "working")
        while not is_cancelled():
            ended.wait(0.001)
        ended.set()

    steps = run_with_progress(work)
    await anext(steps)
    await steps.aclose()

    assert ended.is_set()


async def test_who_is_cancelled_while_it_finishes_ends_after_it() -> None:
    """From its signature on, only storage decides whether an operation exists."""
    release, noted = asyncio.Event(), []

    async def work() -> int:
        await release.wait()
        return 7

    task = asyncio.create_task(finish(work(), then=noted.append))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert noted == [7]


async def test_what_cannot_be_finished_is_not_noted() -> None:
    noted: list[int] = []

    async def work() -> int:
        raise KeyError("no")

    with pytest.raises(KeyError):
        await finish(work(), then=noted.append)
    assert noted == []


async def test_a_duty_that_fails_is_told_and_one_that_is_closed_is_not() -> None:
    failures: list[BaseException] = []
    duties = Duties(failures.append)
    error = ValueError("a bug")

    async def fail() -> None:
        raise error

    async def wait() -> None:
        await asyncio.Event().wait()

    failing = duties.begin(fail(), name="failing")
    waiting = duties.begin(wait(), name="waiting")
    await asyncio.wait({failing})
    await asyncio.sleep(0)  # Its end is told in the next turn.
    await duties.close()

    assert failures == [error]
    assert waiting.cancelled()
