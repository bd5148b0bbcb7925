"""Callers that are slow, silent or many (SCENARIOS 6.2: B3, B4, B64; T15, T16).

How long somebody may take is tried in virtual time; how many there may be, with real sockets.
``CRDT_MERGE_TEST_SOCKETS`` sets how many.
"""

import asyncio
import os
import resource
import socket
import struct
from types import SimpleNamespace

import pytest
from crdt_merge_node.transport.contexts import ALPN_BULK, ALPN_GOSSIP, client_context, joiner_context
from crdt_merge_node.transport.join import JoinService
from crdt_merge_protocol.limits import (
    FRAME_BYTES_PER_S_MIN,
    FRAME_GRACE_S,
    HANDSHAKE_TIMEOUT_S,
    HELLO_TIMEOUT_S,
    JOIN_TIMEOUT_S,
    LINGER_S,
    MIB,
    PING_IDLE_S,
    PING_MISSES_MAX,
    UNAUTHENTICATED_MAX,
    UNAUTHENTICATED_PER_ADDRESS_MAX,
)
from crdt_merge_protocol.messages.membership import Hello, Ping
from support.siege import MEMORY_BYTES_MAX, PATIENCE_S, Siege, bounded_memory
from support.transport_world import RawProtocol, RawTls, World

SOCKETS = int(os.environ.get("CRDT_MERGE_TEST_SOCKETS", "500"))
if SOCKETS > 2000:  # Both ends are in this process.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
FLOOD_BYTES_MAX = MEMORY_BYTES_MAX if SOCKETS <= 1000 else 64 * MIB
"""T16; the flooding sockets are in this process, too."""
HALF_HANDSHAKE = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


# --- slow, in virtual time ----------------------------------------------------------------------------


@pytest.mark.parametrize("said", [b"", b"\x16", HALF_HANDSHAKE, b"\x16\x03\x01\x40\x00" + bytes(9000)])
def test_b64_a_handshake_takes_five_seconds_or_is_none(world: World, members: SimpleNamespace, said):
    """Not one that stalls, and not one that trickles: the clock runs from the beginning."""

    async def scenario() -> None:
        node = await world.node(members.a)
        raw = RawProtocol()
        await world.net.connect(lambda: raw, *node.endpoint.address)
        began = world.loop.time()
        raw.transport.write(said)
        for _ in range(100):
            await asyncio.sleep(0.1)
            if raw.is_ended:
                break
            raw.transport.write(b"\x00" if len(said) > 1 else b"")

        assert HANDSHAKE_TIMEOUT_S - 0.01 <= world.loop.time() - began <= HANDSHAKE_TIMEOUT_S + 0.3
        assert not node.endpoint._pumps
        assert "no TLS handshake within 5 s" in node.reasons[0] or "TLS" in node.reasons[0]

    world.run(scenario())


@pytest.mark.parametrize("alpn", [ALPN_GOSSIP, ALPN_BULK])
@pytest.mark.parametrize("said", [b"", b"\x00\x00\x01\x00\x01\x01", b"\x00"])
def test_b09_b64_a_hello_takes_two_seconds_or_is_none(world: World, members: SimpleNamespace, alpn, said):
    async def scenario() -> None:
        node = await world.node(members.a)
        raw = await RawTls(client_context(members.b, alpn)).connect(world, node)
        began = world.loop.time()
        for _ in range(60):
            raw.pump.write(said)
            await asyncio.sleep(0.1)
            if raw.is_closed:
                break

        assert HELLO_TIMEOUT_S - 0.01 <= world.loop.time() - began <= HELLO_TIMEOUT_S + 0.3
        assert "no hello within 2 s" in raw.told

    world.run(scenario())


def test_b64_a_joiner_that_says_nothing_is_sent_away(world: World, members: SimpleNamespace):
    async def scenario() -> None:
        service = JoinService(
            members.authority, SimpleNamespace(), cluster_name="prod", clock=world, introducers=tuple
        )
        node = await world.node(members.a, join_service=service)
        raw = await RawTls(joiner_context()).connect(world, node)
        began = world.loop.time()
        while not raw.is_closed:  # noqa: ASYNC110 - virtual time; nobody tells.
            await asyncio.sleep(0.1)

        assert world.loop.time() - began <= JOIN_TIMEOUT_S + 0.3
        assert "said nothing" in raw.told

    world.run(scenario())


@pytest.mark.parametrize("bytes_per_s", [0, 1, 1000, FRAME_BYTES_PER_S_MIN - 200])
def test_b03_b04_a_frame_that_comes_too_slowly_ends_the_connection(
    world: World, members: SimpleNamespace, bytes_per_s
):
    async def scenario() -> None:
        node = await world.node(members.a)
        node.endpoint._on_connection = node.hear
        raw = await RawTls(client_context(members.b, ALPN_BULK)).connect(world, node)
        raw.send(hello_of(members))
        await world.settle()
        raw.pump.write((1 << 20).to_bytes(4, "big") + bytes([83, 1]))
        began = world.loop.time()
        for _ in range(300):
            raw.pump.write(bytes(bytes_per_s // 10 or (bytes_per_s and int(_ % 10 == 0))))
            await asyncio.sleep(0.1)
            if raw.is_closed:
                break

        took = world.loop.time() - began
        assert raw.is_closed
        assert FRAME_GRACE_S <= took <= FRAME_GRACE_S + 2 * PING_IDLE_S + 0.5 or bytes_per_s == 0
        assert "bytes a second" in raw.told or "no sign of life" in raw.told

    world.run(scenario())


def test_b04_a_frame_that_comes_slowly_but_fast_enough_is_waited_for(world: World, members: SimpleNamespace):
    async def scenario() -> None:
        node = await world.node(members.a)
        node.endpoint._on_connection = node.hear
        raw = await RawTls(client_context(members.b, ALPN_BULK)).connect(world, node)
        raw.send(hello_of(members))
        await world.settle()
        raw.pump.write((1 << 20).to_bytes(4, "big") + bytes([83, 1]))
        for _ in range(400):
            raw.pump.write(bytes(FRAME_BYTES_PER_S_MIN // 10 + 40))
            await asyncio.sleep(0.1)

        assert not raw.is_closed

    world.run(scenario())


def test_b03_who_falls_silent_is_given_up_after_three_pings(world: World, members: SimpleNamespace):
    """That is the idle limit: nobody who is alive is silent for longer, and nobody else is waited for."""

    async def scenario() -> None:
        node = await world.node(members.a)
        node.endpoint._on_connection = node.hear
        raw = await RawTls(client_context(members.b, ALPN_GOSSIP)).connect(world, node)
        raw.send(hello_of(members))
        began = world.loop.time()
        while not raw.is_closed and world.loop.time() < began + 60:  # noqa: ASYNC110 - virtual time.
            await asyncio.sleep(0.1)

        assert [message for message in raw.messages if isinstance(message, Ping)]
        assert world.loop.time() - began <= (PING_MISSES_MAX + 3) * PING_IDLE_S
        assert "no sign of life" in raw.told

    world.run(scenario())


def test_b64_a_crowd_that_stalls_is_gone_ten_seconds_later_and_nobody_honest_waits(
    world: World, members: SimpleNamespace
):
    """T15: hundreds of half handshakes from many addresses, and a member gets in between all of them."""

    async def scenario() -> None:
        node, honest = await world.node(members.a), await world.node(members.b)
        crowd = []
        for number in range(400):
            raw = RawProtocol()
            source = f"10.0.{number % 40}.7"
            await world.net.connect(lambda raw=raw: raw, *node.endpoint.address, source=source)
            raw.transport.write(HALF_HANDSHAKE)
            crowd.append(raw)
            if number % 50 == 49:
                connection = await honest.endpoint.dial(node.address)
                connection.close("seen")
                await world.settle()
            assert node.endpoint._gate.unauthenticated_count <= UNAUTHENTICATED_MAX
        await asyncio.sleep(HANDSHAKE_TIMEOUT_S + LINGER_S + 1)

        assert all(raw.is_ended for raw in crowd)
        assert not node.endpoint._pumps
        assert not node.endpoint._greetings

    world.run(scenario())


def hello_of(members: SimpleNamespace) -> Hello:
    return Hello(
        version_min=1,
        version_max=1,
        cluster=members.a.cluster,
        node=members.b.node,
        nonce=bytes(16),
        agent="slow",
        addresses=(),
    )


# --- many, with real sockets --------------------------------------------------------------------------


class Crowd:
    """Sockets from many addresses of this machine."""

    def __init__(self, siege: Siege) -> None:
        host, _, port = siege.live.address.rpartition(":")
        self.target = host, int(port)
        self.sockets: list[socket.socket] = []

    async def grow(self, count: int, said: bytes, *, addresses: int = 20) -> None:
        loop = asyncio.get_running_loop()
        for number in range(count):
            one = socket.socket()
            one.setblocking(False)
            one.bind((f"127.0.1.{1 + number % addresses}", 0))
            self.sockets.append(one)
            await loop.sock_connect(one, self.target)
            if said:
                await ignoring_resets(loop.sock_sendall(one, said))

    def reset(self) -> None:
        """Leave with RSTs."""
        for one in self.sockets:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.leave()

    def leave(self) -> None:
        for one in self.sockets:
            one.close()
        self.sockets.clear()


async def ignoring_resets(work) -> None:
    try:
        await work
    except ConnectionError:
        return


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("said", [b"", HALF_HANDSHAKE], ids=["idle", "half a handshake"])
@pytest.mark.parametrize("addresses", [1, 20], ids=["one address", "twenty addresses"])
async def test_b64_many_sockets_hold_a_bounded_number_of_places(siege: Siege, said, addresses):
    crowd, endpoint = Crowd(siege), siege.live.services.endpoint
    cap = UNAUTHENTICATED_PER_ADDRESS_MAX if addresses == 1 else UNAUTHENTICATED_MAX
    try:
        async with siege.unharmed(is_offence=None, memory_bytes=FLOOD_BYTES_MAX):
            await crowd.grow(SOCKETS // 4, said, addresses=addresses)
            await siege.turns()

            assert endpoint._gate.unauthenticated_count <= cap
            if addresses > 1:
                async with siege.hostile() as member:
                    await member.is_still_heard()
    finally:
        crowd.leave()
    await siege.live.until(lambda: endpoint._gate.unauthenticated_count == 0)


@pytest.mark.asyncio(loop_scope="module")
async def test_b64_a_storm_of_resets_leaves_nothing_behind(siege: Siege):
    crowd, endpoint = Crowd(siege), siege.live.services.endpoint
    with bounded_memory():
        for number in range(max(4, SOCKETS // 50)):
            await crowd.grow(20, HALF_HANDSHAKE if number % 2 else b"", addresses=1 + number % 40)
            crowd.reset()
            await siege.turns()
    await siege.serves_the_honest()
    await siege.live.until(lambda: not endpoint._greetings and not endpoint._gate.unauthenticated_count)


@pytest.mark.asyncio(loop_scope="module")
async def test_t16_members_of_one_host_are_not_what_the_caps_are_for(siege: Siege):
    """Twelve members from one address at once: all get in, for who has proven itself counts no more."""
    members = [siege.member() for _ in range(12)]
    async with asyncio.timeout(PATIENCE_S):
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(visit(siege, identity)) for identity in members]
    assert all(task.result() for task in tasks)


async def visit(siege: Siege, identity) -> bool:
    async with siege.hostile(identity=identity) as member:
        await member.is_still_heard()
    return True


@pytest.mark.asyncio(loop_scope="module")
async def test_b64_who_does_not_read_is_dropped_and_what_waits_for_it_with_it(siege: Siege):
    async with siege.unharmed(is_offence=None), siege.hostile() as hostile:
        hostile.pump.pause_reading()
        for number in range(5_000):
            hostile.send(Ping(nonce=number))
            if not hostile.pump.is_writable:
                break
        await siege.turns()
