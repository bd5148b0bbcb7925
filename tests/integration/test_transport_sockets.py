"""The transport over real sockets, on both event loops (SCENARIOS T15, T16, T29, B64)."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import struct
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
import uvloop
from crdt_merge_node.errors import PeerRefusedError, PeerUnreachableError
from crdt_merge_node.ports import SeededRng, SystemClock, SystemFs, SystemRng, TcpNet
from crdt_merge_node.transport import (
    ALPN_BULK,
    Connection,
    Endpoint,
    EndpointConfig,
    Identity,
    JoinService,
    Lane,
    StoredInvites,
    create_invite,
    join,
    load_authority,
)
from crdt_merge_node.transport.certificates import CertificateAuthority
from crdt_merge_protocol.limits import MIB, UNAUTHENTICATED_MAX
from crdt_merge_protocol.messages.base import Message
from crdt_merge_protocol.messages.bulk import Chunk
from support.transport_world import member, today

FS = SystemFs()
Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Return a function that runs a coroutine on one kind of loop."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def runner(scenario: Coroutine[Any, Any, Any]) -> Any:
        async def limited() -> Any:
            async with asyncio.timeout(300):
                return await scenario

        with asyncio.Runner(loop_factory=factory) as asyncio_runner:
            return asyncio_runner.run(limited())

    return runner


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Two members, one node with a certificate of another CA, and the CA."""
    root = tmp_path_factory.mktemp("cluster")
    a = Identity.create(root / "a", "prod", fs=FS, rng=SeededRng(1), now=today())
    authority = load_authority(root / "a", FS)
    assert authority is not None
    other = CertificateAuthority.create("dev", bytes(32), now=today())
    odd = member(root / "odd", other, SeededRng(3))
    odd.ca_path.write_bytes(a.ca_path.read_bytes())
    return SimpleNamespace(
        a=a,
        b=member(root / "b", authority, SeededRng(2)),
        odd=dataclasses.replace(odd, cluster=a.cluster),
        authority=authority,
    )


class Node:
    """An endpoint on loopback and what it reported, as events to wait for."""

    def __init__(self, identity: Identity, **options: Any) -> None:
        self.accepted: asyncio.Queue[Connection] = asyncio.Queue()
        self.refused: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.endpoint = Endpoint(
            identity,
            EndpointConfig(port=0),
            net=TcpNet(),
            clock=SystemClock(),
            rng=SystemRng(),
            admit=lambda _: None,
            on_connection=self.accepted.put_nowait,
            on_refused=lambda remote, reason: self.refused.put_nowait((remote, reason)),
            **options,
        )

    async def __aenter__(self) -> Self:
        await self.endpoint.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.endpoint.close()
        assert not self.endpoint._pumps

    @property
    def address(self) -> str:
        return "{}:{}".format(*self.endpoint.address)


def test_chunks_cross_in_both_directions_and_the_end_has_a_reason(run: Run, cluster: SimpleNamespace) -> None:
    async def send(connection: Connection, count: int) -> None:
        for index in range(count):
            await connection.drain(Lane.BULK)
            assert connection.send(
                Chunk(blob=bytes(32), nbytes=count * MIB, index=index, data=bytes([index]) * MIB), Lane.BULK
            )

    def expect(connection: Connection, count: int) -> asyncio.Future[list[int]]:
        done: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        seen: list[int] = []

        def hear(_: Connection, message: Message) -> None:
            assert isinstance(message, Chunk)
            assert message.data == bytes([message.index]) * MIB
            seen.append(message.index)
            if len(seen) == count:
                done.set_result(seen)

        connection.on_message = hear
        return done

    async def scenario() -> None:
        async with Node(cluster.a) as a, Node(cluster.b) as b:
            here = await b.endpoint.dial(a.address, alpn=ALPN_BULK, expect=cluster.a.node)
            there = await a.accepted.get()
            arrivals = expect(here, 8), expect(there, 8)
            await asyncio.gather(send(here, 8), send(there, 8))

            assert await arrivals[0] == await arrivals[1] == list(range(8))
            assert here.bytes_out > 8 * MIB < here.bytes_in
            here.close("all is said")
            assert await there.closed == "the peer closed: all is said"

    run(scenario())


def test_a_wrong_certificate_is_refused_and_the_alert_arrives(run: Run, cluster: SimpleNamespace) -> None:
    """The stock TLS of either loop loses this reason on both sides."""

    async def scenario() -> None:
        async with Node(cluster.a) as a, Node(cluster.odd) as odd:
            with pytest.raises(PeerRefusedError) as caught:
                await odd.endpoint.dial(a.address)
            _, reason = await a.refused.get()

            assert "your certificate was not signed by this cluster's CA" in caught.value.message
            assert "its certificate was not signed by this cluster's CA" in reason

    run(scenario())


def test_a_browser_is_told_what_this_port_is_for(run: Run, cluster: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with Node(cluster.a) as a:
            reader, writer = await asyncio.open_connection(*a.endpoint.address)
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = await reader.read()
            writer.close()
            await writer.wait_closed()

            assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
            assert b"This port speaks TLS 1.3" in answer
            assert "plaintext HTTP" in (await a.refused.get())[1]

    run(scenario())


def test_a_node_joins_with_a_token_and_connects(run: Run, cluster: SimpleNamespace, tmp_path: Path) -> None:
    class Meta(dict[str, bytes]):
        async def put_meta(self, key: str, value: bytes) -> None:
            self[key] = value

        async def get_meta(self, key: str) -> bytes | None:
            return self.get(key)

    async def scenario() -> None:
        invites, clock, rng = StoredInvites(Meta()), SystemClock(), SystemRng()
        service = JoinService(
            cluster.authority, invites, cluster_name="prod", clock=clock, introducers=lambda: (a.address,)
        )
        async with Node(cluster.a, join_service=service) as a:
            token = await create_invite(
                invites,
                cluster=cluster.a.cluster,
                addresses=(a.address,),
                secret=rng.bytes(16),
                expires_at=int(clock.now() + 60),
            )
            identity = await join(token, tmp_path / "n", fs=FS, net=TcpNet(), clock=clock, rng=rng)
            async with Node(identity) as joined:
                connection = await joined.endpoint.dial(identity.introducers[0])

                assert connection.peer == cluster.a.node
                assert (await a.accepted.get()).peer == identity.node
            with pytest.raises(PeerRefusedError, match="already used by another node"):
                await join(token, tmp_path / "m", fs=FS, net=TcpNet(), clock=clock, rng=rng)
            assert "already used by another node" in (await a.refused.get())[1]

    run(scenario())


def test_honest_nodes_get_through_a_flood_of_stalled_connections(run: Run, cluster: SimpleNamespace) -> None:
    """320 sockets from eight addresses begin and never finish, others reset; sockets here stay bounded."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        async with Node(cluster.a) as a, Node(cluster.b) as b:
            sockets = []
            try:
                for number in range(320):
                    stalled = socket.socket()
                    stalled.setblocking(False)
                    stalled.bind((f"127.0.0.{2 + number % 8}", 0))
                    await loop.sock_connect(stalled, a.endpoint.address)
                    await loop.sock_sendall(stalled, b"\x16\x03\x01\x02\x00\x01")
                    if number % 4 == 3:
                        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        stalled.close()
                    else:
                        sockets.append(stalled)
                    if number % 80 == 79:
                        connection = await b.endpoint.dial(a.address)
                        assert connection.is_open
                assert len(a.endpoint._pumps) <= UNAUTHENTICATED_MAX + 16
            finally:
                for stalled in sockets:
                    stalled.close()

    run(scenario())


def test_an_address_that_nobody_listens_on_is_unreachable(run: Run, cluster: SimpleNamespace) -> None:
    async def scenario() -> None:
        async with Node(cluster.a) as a:
            with socket.socket() as taken:
                taken.bind(("127.0.0.1", 0))
                host, port = taken.getsockname()
                with pytest.raises(PeerUnreachableError, match="cannot be reached"):
                    await a.endpoint.dial(f"{host}:{port}")

    run(scenario())
