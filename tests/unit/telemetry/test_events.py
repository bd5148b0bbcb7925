"""The node's memory of its own log: bounded, of one node, and honest to whoever is too slow."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import structlog
from crdt_merge_node.control.model import EventsMissed, LogEvent
from crdt_merge_node.errors import FullError
from crdt_merge_node.telemetry.events import TEXT_CHARS_MAX, EventLog, each_bound, of_this_node
from crdt_merge_node.telemetry.logging import get_logger

log = get_logger()


@pytest.fixture(autouse=True)
def _quiet():
    with structlog.testing.capture_logs():
        yield


class SetClock:
    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


def names(events: list[LogEvent]) -> list[str]:
    return [event.event for event in events]


def test_a_line_is_kept_with_its_level_time_and_fields() -> None:
    events = EventLog(SetClock())
    error = FullError("no room.", hint="Free some.")

    with events.bound():
        log.warning(
            "blob.failed", blob=b"\xab" * 32, error=error, count=2, module="x", is_late=True, none=None
        )

    (event,) = events.read()
    assert event == LogEvent(
        seq=1,
        time=1000.0,
        level="warning",
        event="blob.failed",
        fields={
            "blob": "ab" * 32,
            "error": "no room. Free some.",
            "error_code": "E1502",
            "is_late": "true",
        },
        numbers={"count": 2},
    )


def test_a_line_that_the_log_leaves_out_is_kept_all_the_same() -> None:
    events = EventLog(SetClock())

    with events.bound():
        log.debug("exchange.completed", outcome="equal")

    assert names(events.read(level="debug")) == ["exchange.completed"]
    assert events.read(level="info") == []


def test_long_texts_are_cut() -> None:
    events = EventLog(SetClock())

    with events.bound():
        log.info("peer.left", reason="x" * 10_000)

    assert len(events.read()[0].fields["reason"]) == TEXT_CHARS_MAX


def test_only_so_many_are_kept_and_debug_lines_push_out_no_others() -> None:
    events = EventLog(SetClock(), kept_max=3, debug_kept_max=2)

    with events.bound():
        for number in range(5):
            log.info("peer.joined", number=number)
            for _ in range(10):
                log.debug("bulk.lost")

    assert [event.numbers["number"] for event in events.read()] == [2, 3, 4]
    kept = events.read(level="debug")
    assert len(kept) == 5
    assert [event.seq for event in kept] == sorted(event.seq for event in kept)
    assert events.counts == {"debug": 50, "info": 5, "warning": 0, "error": 0}


def test_a_line_outside_every_node_is_of_no_node() -> None:
    events = EventLog(SetClock())

    with events.bound():
        pass
    log.info("node.ready")

    assert events.read() == []


@pytest.mark.asyncio
async def test_tasks_timers_and_threads_belong_to_the_node_they_were_begun_in() -> None:
    one, other = EventLog(SetClock()), EventLog(SetClock())
    done = asyncio.Event()

    async def work(name: str) -> None:
        await asyncio.sleep(0)
        log.info("node.ready", name=name)
        await asyncio.to_thread(log.info, "group.created", name=name)
        asyncio.get_running_loop().call_soon(log.info, "node.admitted")

    with one.bound():
        first = asyncio.create_task(work("one"))
        asyncio.get_running_loop().call_later(0, done.set)
    with other.bound():
        second = asyncio.create_task(work("other"))
    await asyncio.gather(first, second, done.wait())
    await asyncio.sleep(0)

    for events, name in ((one, "one"), (other, "other")):
        assert names(events.read()) == ["node.ready", "group.created", "node.admitted"]
        assert {event.fields.get("name", name) for event in events.read()} == {name}


def test_a_thread_of_a_pool_speaks_for_the_node_that_gave_it_the_function() -> None:
    events = EventLog(SetClock())

    with events.bound():
        tell = of_this_node(lambda: log.error("store.full"))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(tell).result()
        pool.submit(lambda: log.error("store.failed")).result()

    assert names(events.read()) == ["store.full"]


@pytest.mark.asyncio
async def test_each_step_of_an_iterator_is_taken_in_the_name_of_its_node() -> None:
    one, other = EventLog(SetClock()), EventLog(SetClock())

    async def steps():
        try:
            log.info("resolve.completed")
            yield 1
            log.info("resolve.failed")
            yield 2
        finally:
            log.info("group.created")

    with other.bound():
        values = each_bound(one, steps())
        assert await anext(values) == 1
        log.info("peer.joined")
        assert await anext(values) == 2
        await values.aclose()

    assert names(one.read()) == ["resolve.completed", "resolve.failed", "group.created"]
    assert names(other.read()) == ["peer.joined"]


def test_what_is_read_can_be_narrowed_by_number_age_count_and_level() -> None:
    clock = SetClock()
    events = EventLog(clock)
    with events.bound():
        for number in range(6):
            clock.time = 1000.0 + number
            log.info("peer.joined")
        log.error("node.failed")

    assert [event.seq for event in events.read(after=4)] == [5, 6, 7]
    assert [event.seq for event in events.read(age_s=1.0)] == [5, 6, 7]
    assert [event.seq for event in events.read(last=2)] == [6, 7]
    assert [event.seq for event in events.read(level="error")] == [7]
    assert len(events.read(after=10_000)) == 7, "a number of an earlier life"


async def _take(values: Any, count: int) -> list[Any]:
    return [await anext(values) for _ in range(count)]


@pytest.mark.asyncio
async def test_who_follows_has_what_is_kept_and_then_what_happens_until_the_end() -> None:
    events = EventLog(SetClock())
    with events.bound():
        log.info("node.ready")
        log.debug("bulk.lost")
    following = events.follow()

    assert names(await _take(following, 1)) == ["node.ready"]
    later = asyncio.create_task(_take(following, 2))
    await asyncio.sleep(0)
    with events.bound():
        log.info("peer.joined")
        log.debug("bulk.lost")
        await asyncio.to_thread(log.info, "peer.left")
    assert names(await later) == ["peer.joined", "peer.left"]

    rest = asyncio.create_task(_all(following))
    await asyncio.sleep(0)
    with events.bound():
        log.info("node.stopped")
    events.close()
    assert names(await rest) == ["node.stopped"]


async def _all(values: Any) -> list[Any]:
    return [value async for value in values]


@pytest.mark.asyncio
async def test_who_is_too_slow_is_told_how_many_it_missed() -> None:
    events = EventLog(SetClock(), kept_max=4, debug_kept_max=1)
    with events.bound():
        log.info("node.ready")
        following = events.follow()
        await anext(following)
        for _ in range(10):
            log.info("peer.joined")
            log.debug("bulk.lost")

    assert await anext(following) == EventsMissed(count=6)
    assert len(await _take(following, 4)) == 4
    events.close()
    assert await _all(following) == []


@pytest.mark.asyncio
async def test_who_comes_back_too_late_is_told_so() -> None:
    events = EventLog(SetClock(), kept_max=2)
    with events.bound():
        for _ in range(5):
            log.info("peer.joined")

    following = events.follow(after=1)
    assert await anext(following) == EventsMissed(count=2)
    assert [event.seq for event in await _take(following, 2)] == [4, 5]
    await following.aclose()


@pytest.mark.asyncio
async def test_nobody_is_waited_for_who_has_gone() -> None:
    events = EventLog(SetClock())
    following = events.follow()
    waiting = asyncio.create_task(anext(following))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    assert not events._followers


@pytest.mark.asyncio
async def test_lines_of_many_threads_are_numbered_without_a_gap() -> None:
    events = EventLog(SetClock())

    def write() -> None:
        with events.bound():
            for _ in range(200):
                log.info("peer.joined")

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [event.seq for event in events.read()] == list(range(1, 801))
