"""Round trips and the silence of a peer, as a connection tells them: in virtual time."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from crdt_merge_node.transport.connection import SUSPECT_MISSES, Connection, Lane
from crdt_merge_protocol.limits import PING_IDLE_S
from crdt_merge_protocol.messages.membership import Pong


def ignore(_connection: Connection, _message: object) -> None:
    pass


async def _idle_pair(world: Any, members: SimpleNamespace) -> tuple[Connection, Connection]:
    here, there = await world.pair(members.a, members.b)
    here.on_message = there.on_message = ignore
    return here, there


def test_a_round_trip_is_measured_by_the_pings_of_an_idle_connection(
    world: Any, members: SimpleNamespace
) -> None:
    async def scenario() -> None:
        here, _ = await _idle_pair(world, members)
        ends = world.net.pipes[0]
        assert here.rtt_s is None

        await asyncio.sleep(3 * PING_IDLE_S)
        assert here.rtt_s == 0.0, "pipes in memory take no time"

        ends[0].is_stalled = True
        await asyncio.sleep(1.5 * PING_IDLE_S)
        ends[0].is_stalled = False
        ends[0].deliver()
        await asyncio.sleep(0.1)
        assert 0.0 < here.rtt_s <= 1.5 * PING_IDLE_S

    world.run(scenario())


def test_an_answer_to_another_ping_is_no_measurement(world: Any, members: SimpleNamespace) -> None:
    async def scenario() -> None:
        here, there = await _idle_pair(world, members)
        await asyncio.sleep(3 * PING_IDLE_S)
        here.rtt_s = None
        there.send(Pong(nonce=10**6), Lane.MEMBERSHIP)
        await world.settle()

        assert here.rtt_s is None

    world.run(scenario())


@pytest.mark.parametrize("is_back", [True, False])
def test_silence_is_told_once_until_there_is_a_sign_of_life(
    world: Any, members: SimpleNamespace, is_back: bool
) -> None:
    async def scenario() -> None:
        here, _ = await _idle_pair(world, members)
        told: list[float] = []
        here.on_silent = lambda _connection, silent_s: told.append(silent_s)
        await asyncio.sleep(2 * PING_IDLE_S)
        ends = world.net.pipes[0]
        for _ in range(2):
            for end in ends:
                end.is_stalled = True
            await asyncio.sleep((SUSPECT_MISSES + 0.9) * PING_IDLE_S)
            if not is_back:
                break
            for end in ends:
                end.is_stalled = False
                end.deliver()
            await asyncio.sleep(2 * PING_IDLE_S)

        assert len(told) == (2 if is_back else 1)
        assert all(silent_s >= SUSPECT_MISSES * PING_IDLE_S for silent_s in told)
        assert here.is_open

    world.run(scenario())
