"""A peer that comes and goes all the time fills no log and is not hidden by it either."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from crdt_merge_node.flapping import PEERS_MAX, SAID_MAX, WINDOW_S, Changes, Flapping
from crdt_merge_simulations.loop import SimulatedLoop, simulated_loop

PEER, OTHER = b"\x01" * 32, b"\x02" * 32


class LoopClock:
    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop

    def now(self) -> float:
        return self._loop.time()

    def monotonic(self) -> float:
        return self._loop.time()


class World:
    """Virtual time and what was told in it."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self.told: list[tuple[float, bytes, Changes]] = []
        self._loop = loop
        self.flapping = Flapping(
            LoopClock(loop), tell=lambda peer, changes: self.told.append((loop.time(), peer, changes))
        )

    def run(self, story: Callable[[], Awaitable[None]]) -> None:
        self._loop.run_until_complete(story())


@pytest.fixture
def world():
    with simulated_loop() as loop:
        yield World(loop)


def test_the_first_changes_are_said_and_the_rest_is_told_when_the_minute_is_over(world: World) -> None:
    said: list[bool] = []

    async def story() -> None:
        for _ in range(10):
            said.append(world.flapping.is_said(PEER, "joined"))
            await asyncio.sleep(1.0)
            said.append(world.flapping.is_said(PEER, "left", "it broke"))
            await asyncio.sleep(1.0)
        await asyncio.sleep(WINDOW_S)

    world.run(story)

    assert said == [True] * SAID_MAX + [False] * (20 - SAID_MAX)
    ((when, peer, changes),) = world.told
    assert (when, peer) == (WINDOW_S, PEER)
    assert changes.counts == {"joined": 7, "left": 7}
    assert changes.reason == "it broke"


def test_a_peer_that_goes_on_has_one_line_a_minute(world: World) -> None:
    said: list[bool] = []

    async def story() -> None:
        for _ in range(5 * int(WINDOW_S)):
            said.append(world.flapping.is_said(PEER, "joined"))
            await asyncio.sleep(1.0)

    world.run(story)

    assert sum(said) == SAID_MAX
    assert 4 <= len(world.told) <= 5
    assert all(peer == PEER for _, peer, _ in world.told)
    assert sum(said) + sum(each.counts.total() for _, _, each in world.told) >= 4 * WINDOW_S


def test_after_a_quiet_minute_a_change_is_news_again(world: World) -> None:
    said: list[bool] = []

    async def story() -> None:
        for _ in range(SAID_MAX + 1):
            world.flapping.is_said(PEER, "joined")
        await asyncio.sleep(2 * WINDOW_S)
        said.append(world.flapping.is_said(PEER, "left"))
        said.append(world.flapping.is_said(OTHER, "left"))

    world.run(story)

    assert said == [True, True]
    assert len(world.told) == 1


def test_peers_are_counted_apart_and_only_so_many_remembered(world: World) -> None:
    async def story() -> None:
        for number in range(3 * PEERS_MAX):
            assert world.flapping.is_said(number.to_bytes(32, "big"), "joined")
            await asyncio.sleep(WINDOW_S / PEERS_MAX)

    world.run(story)

    assert len(world.flapping._windows) <= 2 * PEERS_MAX + 1
    assert world.told == []


def test_nothing_is_told_after_the_end(world: World) -> None:
    async def story() -> None:
        for _ in range(SAID_MAX + 1):
            world.flapping.is_said(PEER, "joined")
        world.flapping.close()
        await asyncio.sleep(2 * WINDOW_S)

    world.run(story)

    assert world.told == []
