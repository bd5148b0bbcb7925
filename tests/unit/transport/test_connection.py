"""A connection between two nodes, over pipes in memory and on virtual time."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from crdt_merge_node.errors import PeerUnreachableError
from crdt_merge_node.transport.connection import BULK_PING_IDLE_S, DRAIN_BYTES, Connection, Lane
from crdt_merge_node.transport.contexts import ALPN_BULK
from crdt_merge_protocol.limits import LANE_BYTES_MAX, PING_IDLE_S, PING_MISSES_MAX
from crdt_merge_protocol.messages.base import Message
from crdt_merge_protocol.messages.bulk import Object
from crdt_merge_protocol.messages.membership import Goodbye, Hello, Peers, Ping, Refuse
from crdt_merge_protocol.wire import encode_frame

DEAD_S = (PING_MISSES_MAX + 2) * PING_IDLE_S
"""By then a peer that says nothing is dead: one idle period, the misses, and one for the phase."""


def peers(number: int, *, size: int = 0) -> Peers:
    """Return a message with a number in it and ``size`` addresses of 250 bytes."""
    return Peers(peers=((number.to_bytes(32, "big"), ()),) + ((bytes(32), ("a" * 250,)),) * size)


def large(number: int) -> Object:
    """Return a message of 50 kB with a number in it."""
    return Object(id=bytes(32), nbytes=1 << 20, offset=number, data=bytes(50_000))


def number_of(message: Message) -> int:
    if isinstance(message, Object):
        return message.offset
    assert isinstance(message, Peers)
    return int.from_bytes(message.peers[0][0], "big")


def collect(connection: Connection) -> list[Message]:
    """Let a connection deliver into the returned list."""
    messages: list[Message] = []
    connection.on_message = lambda _, message: messages.append(message)
    return messages


def test_messages_arrive_in_order_and_both_sides_know_each_other(
    world: Any, members: SimpleNamespace
) -> None:
    async def scenario() -> None:
        here, there = await world.pair(members.a, members.b)
        received = collect(there)

        for number in range(100):
            assert here.send(peers(number), Lane.SYNC)
        await world.settle()

        assert list(range(100)) == [number_of(message) for message in received]
        assert (members.b.node, members.a.node) == (here.peer, there.peer)
        assert (here.outbound, there.outbound) == (True, False)
        assert here.session == there.session
        assert here.alpn == there.alpn == "crdt-merge-gossip/1"
        assert there.hello.addresses == ("127.0.0.1:40000",)

    world.run(scenario())


@pytest.mark.parametrize("segment", [1, 7, 1000])
def test_frames_cut_at_every_byte_boundary_arrive_whole(
    world: Any, members: SimpleNamespace, segment: int
) -> None:
    """SCENARIOS B5: not a single boundary of TLS record or frame coincides with a segment."""

    async def scenario() -> None:
        world.net.segment = segment
        here, there = await world.pair(members.a, members.b)
        received = collect(there)
        for number in range(3):
            here.send(peers(number, size=2), Lane.OPERATIONS)
        await world.until(lambda: len(received) == 3)

        assert [number_of(message) for message in received] == [0, 1, 2]

    world.run(scenario())


def test_messages_wait_until_there_is_a_handler(world: Any, members: SimpleNamespace) -> None:
    async def scenario() -> None:
        here, there = await world.pair(members.a, members.b)
        here.send(peers(1), Lane.SYNC)
        await asyncio.sleep(20)
        received = collect(there)
        await world.settle()

        assert [number_of(message) for message in received] == [1]
        assert here.is_open
        assert there.is_open

    world.run(scenario())


def test_a_more_important_lane_overtakes_what_still_waits(world: Any, members: SimpleNamespace) -> None:
    async def scenario() -> None:
        here, there = await world.pair(members.a, members.b)
        received = collect(there)
        pipe = world.net.pipes[0][0]
        pipe.is_stalled = True
        for number in range(60):
            here.send(large(number), Lane.BULK)
        await world.settle()
        here.send(peers(1000), Lane.MEMBERSHIP)
        here.send(peers(1001), Lane.SYNC)
        here.send(peers(1002), Lane.OPERATIONS)
        pipe.is_stalled = False
        pipe.deliver()
        await world.settle()

        order = [number_of(message) for message in received]
        overtaken = order.index(1000)
        assert sorted([*range(60), 1000, 1001, 1002]) == sorted(order)
        assert overtaken < 20, "only what the transport held already may go first"
        assert order[overtaken : overtaken + 3] == [1000, 1002, 1001]

    world.run(scenario())


def test_a_full_lane_sheds_and_leaves_the_others_alone(world: Any, members: SimpleNamespace) -> None:
    async def scenario() -> None:
        here, there = await world.pair(members.a, members.b)
        collect(there)
        world.net.pipes[0][0].is_stalled = True
        accepted = 0
        while here.send(large(accepted), Lane.OPERATIONS):
            accepted += 1
            await asyncio.sleep(0)

        assert here.queued_bytes(Lane.OPERATIONS) <= LANE_BYTES_MAX < here.queued_bytes() + 60_000
        assert here.send(peers(1), Lane.MEMBERSHIP)
        world.net.pipes[0][0].is_stalled = False
        world.net.pipes[0][0].deliver()
        await world.settle()
        assert here.send(peers(1), Lane.OPERATIONS)

    world.run(scenario())


def test_drain_waits_for_a_slow_peer_and_returns_when_there_is_room(
    world: Any, members: SimpleNamespace
) -> None:
    async def scenario() -> None:
        here, there = await world.pair(members.a, members.b)
        received = collect(there)
        pipe = world.net.pipes[0][0]
        pipe.is_stalled = True
        sent = 0
        while here.queued_bytes() <= 2 * DRAIN_BYTES:
            here.send(large(sent), Lane.BULK)
            sent += 1
            await asyncio.sleep(0)
        draining = asyncio.create_task(here.drain(Lane.BULK))
        await world.settle()
        assert not draining.done()
        pipe.is_stalled = False
        pipe.deliver()
        await draining

        assert here.queued_bytes() <= DRAIN_BYTES
        await world.settle()
        assert sent == len(received)

    world.run(scenario())


def test_drain_tells_that_the_connection_ended(world: Any, members: SimpleNamespace) -> None:
    async def scenario() -> None:
        here, _ = await world.pair(members.a, members.b)
        world.net.pipes[0][0].is_stalled = True
        for number in range(60):
            here.send(large(number), Lane.BULK)
        draining = asyncio.create_task(here.drain())
        await world.settle()
        here.abort("the operator said so")

        with pytest.raises(PeerUnreachableError, match="the operator said so"):
            await draining
        assert not here.send(peers(1), Lane.SYNC)

    world.run(scenario())


def test_a_close_tells_the_other_side_why(world: Any, members: SimpleNamespace) -> None:
    async def scenario() -> None:
        here, there = await world.pair(members.a, members.b)
        collect(here), collect(there)
        here.close("the node is shutting down")

        assert await here.closed == "the node is shutting down"
        assert await there.closed == "the peer closed: the node is shutting down"

    world.run(scenario())


def test_a_reset_is_an_end_with_a_reason_too(world: Any, members: SimpleNamespace) -> None:
    async def scenario() -> None:
        here, there = await world.pair(members.a, members.b)
        collect(here), collect(there)
        here.abort("gone")

        assert await there.closed == "the connection broke (reset)"

    world.run(scenario())


def test_an_end_without_close_notify_is_told_from_a_proper_one(world: Any, members: SimpleNamespace) -> None:
    """A cut by the network must not look like the peer's will."""

    async def scenario() -> None:
        here, there = await world.pair(members.a, members.b)
        collect(here), collect(there)
        world.net.pipes[0][0].close()

        assert await there.closed == "it closed the connection without a reason"

    world.run(scenario())


def test_an_idle_connection_lives_and_costs_little(world: Any, members: SimpleNamespace) -> None:
    async def scenario() -> None:
        here, there = await world.pair(members.a, members.b)
        collect(here), collect(there)
        await asyncio.sleep(2)
        before = here.bytes_in + here.bytes_out
        await asyncio.sleep(300)

        assert here.is_open
        assert there.is_open
        assert (here.bytes_in + here.bytes_out - before) / 300 < 100

    world.run(scenario())


def test_a_silent_peer_is_dead_after_three_unanswered_pings(world: Any, members: SimpleNamespace) -> None:
    async def scenario() -> None:
        here, there = await world.pair(members.a, members.b)
        collect(here), collect(there)
        await asyncio.sleep(10)
        for end in world.net.pipes[0]:
            end.is_stalled = True
        began = world.loop.time()
        reason = await here.closed

        assert "no sign of life" in reason
        assert PING_MISSES_MAX * PING_IDLE_S <= world.loop.time() - began <= DEAD_S

    world.run(scenario())


def test_an_unused_bulk_connection_is_probed_every_ten_seconds(world: Any, members: SimpleNamespace) -> None:
    async def scenario() -> None:
        here, there = await world.pair(members.a, members.b, alpn=ALPN_BULK)
        collect(here), collect(there)
        await asyncio.sleep(5)
        before = here.bytes_in + here.bytes_out
        await asyncio.sleep(300)

        assert here.is_open
        assert there.is_open
        assert (here.bytes_in + here.bytes_out - before) / 300 < 20

    world.run(scenario())


def test_a_silent_peer_is_missed_on_a_bulk_connection_too(world: Any, members: SimpleNamespace) -> None:
    async def scenario() -> None:
        here, there = await world.pair(members.a, members.b, alpn=ALPN_BULK)
        collect(here), collect(there)
        await asyncio.sleep(30)
        for end in world.net.pipes[0]:
            end.is_stalled = True
        began = world.loop.time()
        reason = await here.closed

        assert "no sign of life" in reason
        assert world.loop.time() - began <= BULK_PING_IDLE_S + DEAD_S

    world.run(scenario())


def test_a_slow_line_in_one_direction_is_not_taken_for_death(world: Any, members: SimpleNamespace) -> None:
    """The receiver of a long transfer has nothing to say, but says that it lives."""

    async def scenario() -> None:
        here, there = await world.pair(members.a, members.b)
        received = collect(there)
        collect(here)
        pipe = world.net.pipes[0][0]
        for number in range(40):
            here.send(large(number), Lane.BULK)
        pipe.segment = 20_000
        while len(received) < 40:
            pipe.is_stalled = False
            pipe.deliver()
            pipe.is_stalled = True
            await asyncio.sleep(0.9)

        assert world.loop.time() > 50
        assert here.is_open
        assert there.is_open
        pipe.is_stalled = False

    world.run(scenario())


def test_a_pause_of_this_process_convicts_nobody(world: Any, members: SimpleNamespace) -> None:
    """Both ends are in one stopped process; afterwards each finds the other silent for long."""

    async def scenario() -> None:
        here, there = await world.pair(members.a, members.b)
        collect(here), collect(there)
        for _ in range(10):
            await asyncio.sleep(1.3)
            world.loop.freeze(20)
        await asyncio.sleep(DEAD_S)

        assert here.is_open
        assert there.is_open

    world.run(scenario())


def test_who_pauses_reading_does_not_blame_the_peer(world: Any, members: SimpleNamespace) -> None:
    async def scenario() -> None:
        here, there = await world.pair(members.a, members.b)
        received = collect(there)
        collect(here)
        there.pause_reading()
        here.send(peers(5), Lane.SYNC)
        await asyncio.sleep(60)
        assert received == []
        there.resume_reading()
        await world.settle()

        assert [number_of(message) for message in received] == [5]
        assert here.is_open
        assert there.is_open

    world.run(scenario())


@pytest.mark.parametrize("stop", [0, 3, 6, 7, 300])
def test_a_frame_that_trickles_in_ends_the_connection(
    world: Any, members: SimpleNamespace, stop: int
) -> None:
    """SCENARIOS B3, B4: a header or part of a body, then a byte a second."""

    async def scenario() -> None:
        here, there = await world.pair(members.a, members.b)
        collect(here), collect(there)
        frame = encode_frame(peers(1, size=200))
        here._tick_timer.cancel()  # A ping or pong in the middle would be part of the frame.
        here.pause_reading()
        here._pump.write(frame[:stop])
        for position in range(stop, stop + 12):
            here._pump.write(frame[position : position + 1])
            await asyncio.sleep(1)
            if not there.is_open:
                break

        here.resume_reading()

        assert "less than 4096 bytes a second" in there.closed.result()
        assert "less than 4096 bytes a second" in await here.closed

    world.run(scenario())


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(b"\xff\xff\xff\xff\x05\x01", id="B1 length 0xffffffff"),
        pytest.param(b"\x00\x00\x00\x00\x05\x01", id="B2 length 0"),
        pytest.param(b"\x00\x00\x00\x01\x05\x01\x90", id="B2 length 1"),
        pytest.param(encode_frame(peers(1)) + b"\x00garbage!", id="B6 garbage between frames"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", id="B7 another protocol inside TLS"),
        pytest.param(b"\x00\x00\x00\x00\xee\x01", id="B8 unknown critical type"),
        pytest.param(b"\x00\x00\x00\x01\x05\x80\x90", id="unknown flags"),
        pytest.param(b"\x00\x00\x00\x01\x05\x01\xc1", id="not msgpack"),
    ],
)
def test_nonsense_ends_the_connection_with_a_reason_on_both_sides(
    world: Any, members: SimpleNamespace, frame: bytes
) -> None:
    async def scenario() -> None:
        here, there = await world.pair(members.a, members.b)
        collect(here), collect(there)
        here._pump.write(frame)

        assert (await there.closed).startswith(("E1201", "E1202"))
        assert (await here.closed).startswith("the peer closed: you broke the protocol: ")

    world.run(scenario())


def test_an_unknown_message_that_is_not_critical_is_ignored(world: Any, members: SimpleNamespace) -> None:
    async def scenario() -> None:
        here, there = await world.pair(members.a, members.b)
        received = collect(there)
        here._pump.write(b"\x00\x00\x00\x05\xee\x00hello")
        here.send(peers(3), Lane.SYNC)
        await world.settle()

        assert [number_of(message) for message in received] == [3]

    world.run(scenario())


def test_a_second_hello_ends_the_connection(world: Any, members: SimpleNamespace) -> None:
    """SCENARIOS B9."""

    async def scenario() -> None:
        here, there = await world.pair(members.a, members.b)
        collect(here), collect(there)
        here.send(there.hello, Lane.MEMBERSHIP)

        assert isinstance(there.hello, Hello)
        assert "a second hello" in await there.closed
        assert "a second hello" in await here.closed

    world.run(scenario())


def test_messages_right_behind_the_hello_are_delivered(world: Any, members: SimpleNamespace) -> None:
    """They may arrive in the same segment as the hello, before anybody listens."""

    async def scenario() -> None:
        acceptor = await world.node(members.b)
        dialler = await world.node(members.a)
        heard: list[int] = []

        def greet(connection: Connection) -> None:
            for number in range(5):
                connection.send(peers(number), Lane.SYNC)

        acceptor.endpoint._on_connection = greet
        connection = await dialler.endpoint.dial(acceptor.address)
        await asyncio.sleep(0)
        connection.on_message = lambda _, message: heard.append(number_of(message))
        await world.settle()

        assert heard == [0, 1, 2, 3, 4]

    world.run(scenario())


def test_nothing_is_delivered_after_the_end(world: Any, members: SimpleNamespace) -> None:
    async def scenario() -> None:
        here, there = await world.pair(members.a, members.b)
        received: list[Message] = []

        def hear(connection: Connection, message: Message) -> None:
            received.append(message)
            connection.close("enough")

        there.on_message = hear
        collect(here)
        for number in range(5):
            here.send(peers(number), Lane.SYNC)

        assert await here.closed == "the peer closed: enough"
        await world.settle()
        assert [number_of(message) for message in received] == [0]

    world.run(scenario())


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (Goodbye(reason="bye"), "the peer closed: bye"),
        (Refuse(code="E9", reason="no"), "the peer refused (E9): no"),
    ],
)
def test_a_word_of_farewell_becomes_the_reason(
    world: Any, members: SimpleNamespace, message: Message, reason: str
) -> None:
    async def scenario() -> None:
        here, there = await world.pair(members.a, members.b)
        collect(there)
        here.send(message, Lane.MEMBERSHIP)

        assert reason == await there.closed

    world.run(scenario())


def test_pings_are_answered_and_never_shown(world: Any, members: SimpleNamespace) -> None:
    async def scenario() -> None:
        here, there = await world.pair(members.a, members.b)
        seen_here, seen_there = collect(here), collect(there)
        before = here.last_received
        await asyncio.sleep(0.5)
        here.send(Ping(nonce=1), Lane.MEMBERSHIP)
        await world.settle()

        assert (seen_here, seen_there) == ([], [])
        assert here.last_received > before

    world.run(scenario())
