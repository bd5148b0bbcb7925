"""A world in memory: the loop of the simulations, a network of byte pipes, nodes of two clusters.

Its pipes are not those of the simulations, which have latency and fail: here tests decide over every segment.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from crdt_merge_node.ports import SeededRng, SystemClock, SystemFs
from crdt_merge_node.transport.certificates import key_to_pem
from crdt_merge_node.transport.connection import Connection
from crdt_merge_node.transport.contexts import ALPN_GOSSIP
from crdt_merge_node.transport.endpoint import Endpoint, EndpointConfig
from crdt_merge_node.transport.identity import Identity, load_authority, prepare_keys, write_membership
from crdt_merge_node.transport.refusals import explain
from crdt_merge_node.transport.tls import PumpBuffers, TlsPump
from crdt_merge_protocol.identity import NodeKey
from crdt_merge_protocol.messages.base import Message
from crdt_merge_protocol.messages.membership import Goodbye, Refuse
from crdt_merge_protocol.wire import FrameDecoder, encode_frame
from crdt_merge_simulations.loop import SimulatedLoop
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding


class VirtualLoop(SimulatedLoop):
    """The loop of the simulations, of which all is one process here."""

    def freeze(self, seconds: float) -> None:
        """Let time pass as if this process had been stopped."""
        self._now += seconds


class MemoryTransport(asyncio.Transport):
    """One end of a pipe. Bytes arrive in a later turn of the loop, in segments of ``segment`` bytes."""

    def __init__(self, local: tuple[str, int], remote: tuple[str, int]) -> None:
        super().__init__({"sockname": local, "peername": remote})
        self.loop = asyncio.get_running_loop()
        self.protocol: asyncio.BufferedProtocol
        self.other: MemoryTransport
        self.segment = 1 << 30
        self.is_stalled = False
        """What is written stays here: the network, or the peer's kernel, takes nothing."""
        self.sent = bytearray()
        """Everything that was written, in clear where TLS had not begun."""
        self._queue = bytearray()
        self._high = 1 << 16
        self._is_reading = True
        self._is_full = self._is_eof = self._is_eof_told = self._is_closing = self._is_lost = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        raise NotImplementedError

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = high or self._high

    def get_write_buffer_size(self) -> int:
        return len(self._queue)

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return self._is_closing

    def write(self, data: Any) -> None:
        assert not self._is_eof, "written after the end"
        if self._is_closing:
            return
        self.sent += data
        self._queue += data
        if len(self._queue) > self._high and not self._is_full:
            self._is_full = True
            self.protocol.pause_writing()
        self.loop.call_soon(self.deliver)

    def write_eof(self) -> None:
        self._is_eof = True
        self.loop.call_soon(self.deliver)

    def close(self) -> None:
        self._is_closing = True
        self.loop.call_soon(self.deliver)

    def abort(self) -> None:
        self._is_closing = True
        self._queue.clear()
        self.loop.call_soon(self._lose, None)
        self.loop.call_soon(self.other._lose, ConnectionResetError("reset"))

    def pause_reading(self) -> None:
        self._is_reading = False

    def resume_reading(self) -> None:
        self._is_reading = True
        self.loop.call_soon(self.other.deliver)

    def deliver(self) -> None:
        if self.is_stalled or self._is_lost or not self.other._is_reading:
            return
        if self._queue and not self.other._is_lost:
            buffer = self.other.protocol.get_buffer(-1)
            piece = self._queue[: min(self.segment, len(buffer))]
            del self._queue[: len(piece)]
            buffer[: len(piece)] = piece
            self.other.protocol.buffer_updated(len(piece))
        if self._is_full and len(self._queue) <= self._high // 4:
            self._is_full = False
            self.protocol.resume_writing()
        if self._queue and not self.other._is_lost:
            self.loop.call_soon(self.deliver)
            return
        if (self._is_eof or self._is_closing) and not self._is_eof_told and not self.other._is_lost:
            self._is_eof_told = True
            if not self.other.protocol.eof_received():
                self.other.close()
        if self._is_closing:
            self._lose(None)

    def _lose(self, error: Exception | None) -> None:
        if not self._is_lost:
            self._is_lost = self._is_closing = True
            self.protocol.connection_lost(error)


class MemoryNet:
    """The network port over pipes."""

    def __init__(self) -> None:
        self.factories: dict[tuple[str, int], Callable[[], asyncio.BaseProtocol]] = {}
        self.pipes: list[tuple[MemoryTransport, MemoryTransport]] = []
        """(dialler's end, acceptor's end) of every connection made."""
        self.segment = 1 << 30
        self._ports = iter(range(40_000, 60_000))

    async def listen(self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> Any:
        address = (host, port or next(self._ports))
        self.factories[address] = factory
        return SimpleNamespace(address=address, close=lambda: self.factories.pop(address, None))

    async def connect(
        self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int, *, source: str = "127.0.0.1"
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        if (host, port) not in self.factories:
            raise ConnectionRefusedError(111, "Connection refused")
        local = (source, next(self._ports))
        ends = MemoryTransport(local, (host, port)), MemoryTransport((host, port), local)
        self.pipes.append(ends)
        for mine, other in (ends, ends[::-1]):
            mine.other, mine.segment = other, self.segment
        ends[0].protocol = factory()  # type: ignore[assignment]
        ends[1].protocol = self.factories[host, port]()  # type: ignore[assignment]
        ends[1].protocol.connection_made(ends[1])
        ends[0].protocol.connection_made(ends[0])
        return ends[0], ends[0].protocol


class RawProtocol(asyncio.BufferedProtocol):
    """The other end of a pipe in the hands of a test."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.is_ended = False
        self._buffer = bytearray(1 << 16)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.received += self._buffer[:nbytes]

    def eof_received(self) -> bool:
        self.is_ended = True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_ended = True


class Node:
    """An endpoint and everything it reported."""

    def __init__(self, identity: Identity, world: World, **options: Any) -> None:
        self.identity = identity
        self.accepted: list[Connection] = []
        self.refused: list[tuple[str, str]] = []
        self.blocked: dict[bytes, str] = {}
        self.endpoint = Endpoint(
            identity,
            options.pop("config", EndpointConfig(port=0)),
            net=world.net,
            clock=world,
            rng=SeededRng(identity.node),
            admit=self.blocked.get,
            on_connection=self.accepted.append,
            on_refused=lambda remote, reason: self.refused.append((remote, reason)),
            **options,
        )

    def hear(self, connection: Connection) -> None:
        """Accept a connection and listen, to nobody's use."""
        self.accepted.append(connection)
        connection.on_message = lambda *_: None

    @property
    def address(self) -> str:
        return "{}:{}".format(*self.endpoint.address)

    @property
    def reasons(self) -> list[str]:
        return [reason for _, reason in self.refused]


class World:
    """Virtual time, a network in memory, and the nodes of one test. Satisfies the clock port."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.started = today()
        self.net = MemoryNet()
        self.nodes: list[Node] = []

    def now(self) -> float:
        return self.started + self.loop.time()

    def monotonic(self) -> float:
        return self.loop.time()

    async def node(self, identity: Identity, **options: Any) -> Node:
        node = Node(identity, self, **options)
        self.nodes.append(node)
        await node.endpoint.start()
        return node

    async def pair(
        self, one: Identity, two: Identity, *, alpn: str = ALPN_GOSSIP
    ) -> tuple[Connection, Connection]:
        """Return both ends of a connection from ``one`` to ``two``."""
        dialler, acceptor = await self.node(one), await self.node(two)
        connection = await dialler.endpoint.dial(acceptor.address, alpn=alpn)
        return connection, acceptor.accepted[0]

    async def settle(self) -> None:
        """Let everything happen that needs no time."""
        for _ in range(200):
            await asyncio.sleep(0)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let things happen until ``condition`` holds; it must come true without time passing."""
        for _ in range(100_000):
            if condition():
                return
            await asyncio.sleep(0)
        raise AssertionError("it never came true")

    def run(self, test: Any) -> Any:
        async def body() -> Any:
            try:
                return await asyncio.wait_for(test, 600)
            finally:
                for node in self.nodes:
                    await node.endpoint.close()
                await self.settle()
                assert [ends for ends in self.net.pipes if not all(end._is_lost for end in ends)] == []

        return self.loop.run_until_complete(body())


@contextmanager
def quiet_world() -> Iterator[World]:
    """Make a world, and check at its end that nothing in it went wrong unheard."""
    loop = VirtualLoop()  # type: ignore[abstract]  # What it lacks, nodes do not use.
    yield World(loop)
    loop.close()
    assert loop.problems == []


def member(data_dir: Path, authority: Any, rng: SeededRng, *, now: float | None = None) -> Identity:
    """Return a new member, certified directly by the CA."""
    fs = SystemFs()
    node_key, tls_key = prepare_keys(data_dir, fs=fs, rng=rng)
    certificate = authority.issue(tls_key.public_key(), node_key.node_id, now=today() if now is None else now)
    write_membership(data_dir, certificate, authority.certificate, name="prod", introducers=(), fs=fs)
    return Identity.load(data_dir, fs)


def make_members(root: Path) -> SimpleNamespace:
    """Make three members of a cluster (``a`` holds the CA) and one of another."""
    fs, rng = SystemFs(), SeededRng(7)
    a = Identity.create(root / "a", "prod", fs=fs, rng=rng, now=today())
    authority = load_authority(root / "a", fs)
    assert authority is not None
    others = {name: member(root / name, authority, rng) for name in "bc"}
    stranger = Identity.create(root / "x", "dev", fs=fs, rng=rng, now=today())
    return SimpleNamespace(a=a, **others, stranger=stranger, authority=authority, root=root)


def today() -> float:
    """Return the time. OpenSSL judges certificates by the machine's clock, so these must be valid by it."""
    return SystemClock().now()


class RawTls:
    """A TLS client in the hands of a test: any context, no manners. A ``TlsApp``."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.messages: list[Message] = []
        self.error: Exception | None = None
        self.is_ready = self.is_closed = False
        self._decoder = FrameDecoder()
        self.pump = TlsPump(context, self, is_server=False, buffers=PumpBuffers())

    async def connect(self, world: World, node: Node) -> RawTls:
        await world.net.connect(lambda: self.pump, *node.endpoint.address)
        await world.settle()
        return self

    def send(self, *messages: Message) -> None:
        for message in messages:
            self.pump.write(encode_frame(message))

    @property
    def told(self) -> str:
        """What the other side said about the end: in band, else by an alert."""
        said = [message.reason for message in self.messages if isinstance(message, Refuse | Goodbye)]
        return said[-1] if said else explain(self.error).reason

    def tls_connecting(self) -> None: ...

    def tls_ready(self) -> None:
        self.is_ready = True

    def tls_data(self, data: memoryview) -> None:
        self.messages += self._decoder.feed(data)

    def tls_writable(self) -> None: ...

    def tls_closed(self, error: Exception | None) -> None:
        self.is_closed, self.error = True, error


def odd_member(
    directory: Path, members: SimpleNamespace, *, uris: list[str], purposes: Any, authority: Any = None
) -> Identity:
    """Return a member whose certificate the CA should never have signed like that."""
    authority = authority or members.authority
    key, node_key = Ed25519PrivateKey.generate(), NodeKey(bytes([len(uris)]) * 32)
    uris = [uri.format(cluster=members.a.cluster.hex(), node=node_key.node_id.hex()) for uri in uris]
    proper = authority.issue(key.public_key(), node_key.node_id, now=today())
    builder = (
        x509.CertificateBuilder()
        .subject_name(proper.subject)
        .issuer_name(proper.issuer)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(proper.not_valid_before_utc)
        .not_valid_after(proper.not_valid_after_utc)
    )
    for extension in proper.extensions:
        match extension.value:
            case x509.SubjectAlternativeName():
                if uris:
                    names = [x509.UniformResourceIdentifier(uri) for uri in uris]
                    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
            case x509.ExtendedKeyUsage():
                if purposes:
                    builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            case value:
                builder = builder.add_extension(value, critical=extension.critical)
    directory.mkdir()
    (directory / "tls.key").write_bytes(key_to_pem(key))
    (directory / "tls.crt").write_bytes(builder.sign(authority.key, None).public_bytes(Encoding.PEM))
    (directory / "ca.crt").write_bytes(members.a.ca_path.read_bytes())
    return Identity(directory, node_key, members.a.cluster, "prod", (), 0.0)
