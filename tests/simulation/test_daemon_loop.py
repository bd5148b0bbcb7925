"""The loop of the simulator: time that jumps, processes that die without a last word, order that repeats."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest
from crdt_merge_simulations.loop import DeadlockError, LivelockError, simulated_loop
from crdt_merge_simulations.simulated_process import OUTSIDE, Process


@pytest.fixture
def loop():
    with simulated_loop() as loop:
        yield loop


def process(number=0):
    return Process(number, rng=Random(number))


def test_a_long_sleep_takes_no_time_and_the_clock_says_that_it_did(loop):
    loop.run_until_complete(asyncio.sleep(86_400))

    assert loop.time() == 86_400
    assert loop.callbacks < 10


def test_timers_of_one_instant_fire_in_the_order_in_which_they_were_set(loop):
    order = []
    for number in range(20):
        loop.call_at(1.0, order.append, number)

    loop.run_until_complete(asyncio.sleep(2))

    assert order == list(range(20))


def test_a_timeout_cancels_what_waits_for_ever(loop):
    async def wait():
        async with asyncio.timeout(5):
            await loop.create_future()

    with pytest.raises(TimeoutError):
        loop.run_until_complete(wait())
    assert loop.time() == 5


def test_waiting_for_nobody_is_an_error(loop):
    async def wait():
        await loop.create_future()

    with pytest.raises(DeadlockError):
        loop.run_until_complete(wait())


def test_callbacks_that_feed_each_other_for_ever_are_an_error(loop, monkeypatch):
    monkeypatch.setattr("crdt_merge_simulations.loop.STEPS_WITHOUT_TIME_MAX", 1000)

    def again():
        loop.call_soon(again)

    again()

    with pytest.raises(LivelockError):
        loop.run_until_complete(asyncio.sleep(1))


def test_a_killed_process_runs_no_finally_block(loop):
    said = []
    victim = process()

    async def live():
        try:
            await asyncio.sleep(10)
        finally:
            said.append("finally")

    loop.create_task(live(), context=victim.context)
    loop.call_at(1.0, loop.kill, victim, context=OUTSIDE)
    loop.run_until_complete(asyncio.sleep(20))

    assert said == []


def test_what_the_dead_begin_when_they_are_buried_is_begun_on_no_other_loop():
    """Else it is on the loop that some test before left to this thread, and complains when that one ends."""
    begun = []

    async def close():
        begun.append("closing")

    async def live():
        try:
            await asyncio.sleep(10)
        finally:
            await asyncio.gather(close(), close())

    def bury():
        other = asyncio.new_event_loop()
        asyncio.set_event_loop(other)
        with simulated_loop() as loop:
            victim = process()
            loop.create_task(live(), context=victim.context)
            loop.call_at(1.0, loop.kill, victim, context=OUTSIDE)
            loop.run_until_complete(asyncio.sleep(2))
        left = asyncio.all_tasks(other)
        other.run_until_complete(asyncio.sleep(0))
        other.close()
        return left

    with ThreadPoolExecutor(1) as thread:  # Each thread has a loop of its own.
        assert thread.submit(bury).result() == set()
    assert begun == []


def test_a_killed_process_does_what_its_kernel_does_for_it(loop):
    victim, said = process(), []
    victim.at_death[1] = lambda: said.append("reset")

    loop.kill(victim)
    loop.kill(victim)

    assert said == ["reset"]


def test_a_frozen_process_goes_on_where_it_stopped(loop):
    sleeper, said = process(), []

    async def live():
        for _ in range(4):
            await asyncio.sleep(1)
            said.append(loop.time())

    loop.create_task(live(), context=sleeper.context)
    loop.call_at(1.5, setattr, sleeper, "is_frozen", True, context=OUTSIDE)
    loop.call_at(7.5, loop.thaw, sleeper, context=OUTSIDE)
    loop.run_until_complete(asyncio.sleep(20))

    assert said == [1.0, 7.5, 8.5, 9.5]


def test_blocking_work_takes_virtual_time_and_hands_over_what_it_raises(loop):
    worker = process()

    async def live():
        assert await asyncio.to_thread(lambda: 42) == 42
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 / 0)
        return loop.time()

    assert 0 < loop.run_until_complete(loop.create_task(live(), context=worker.context)) < 1


def test_sets_of_tasks_are_iterated_alike_in_every_run():
    def once():
        with simulated_loop() as loop:

            async def live():
                tasks = {loop.create_task(asyncio.sleep(n), name=str(n)) for n in range(50)}
                names = [task.get_name() for task in tasks]
                await asyncio.wait(tasks)
                return names

            return loop.run_until_complete(live())

    assert once() == once()


def test_an_exception_that_nobody_catches_is_noted_with_its_place(loop):
    loop.call_soon(lambda: {}["missing"])

    loop.run_until_complete(asyncio.sleep(1))

    assert len(loop.problems) == 1
    assert "KeyError('missing')" in loop.problems[0]
    assert "test_daemon_loop.py" in loop.problems[0]
