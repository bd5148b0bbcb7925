"""Two processes of a bulk transfer: one that has a blob, and one that fetches it and may be killed.

    python -m tests.benchmarks.bulk_process source DIRECTORY MIB
    python -m tests.benchmarks.bulk_process fetch DIRECTORY STORE FACTS [STOP_AT]

``source`` prints its facts as JSON, then answers each line on its standard input with the number of chunks
that it was asked for, until the input ends. ``fetch`` prints how many bytes it has landed whenever there are
more, the first time after at most a millisecond, and ends when the blob is durable. Once STOP_AT bytes have
landed it stops itself (SIGSTOP), so that whoever kills it finds it in the middle, however late. Both run on
uvloop and keep large buffers, as daemons do.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop
from crdt_merge_node.allocator import keep_large_buffers
from crdt_merge_node.bulk import BulkServer, Fetcher
from crdt_merge_node.ports import SystemClock, SystemFs, SystemRng, TcpNet
from crdt_merge_node.storage import DataDir, Store
from crdt_merge_node.telemetry.logging import configure_logging
from crdt_merge_node.transport.connection import Connection, Lane
from crdt_merge_node.transport.contexts import ALPN_BULK, server_context
from crdt_merge_node.transport.endpoint import Endpoint, EndpointConfig
from crdt_merge_node.transport.identity import Identity, load_authority, prepare_keys, write_membership
from crdt_merge_node.transport.tls import PumpBuffers, TlsPump
from crdt_merge_protocol.limits import MIB
from crdt_merge_protocol.messages.base import Message
from crdt_merge_protocol.messages.bulk import WantChunks

PIECE = bytes(MIB)
POLL_S = 0.001


def make_members(directory: Path) -> None:
    """Write the identities of two members of a cluster, ``source`` and ``target``."""
    fs, rng, now = SystemFs(), SystemRng(), SystemClock().now()
    Identity.create(directory / "source", "bench", fs=fs, rng=rng, now=now)
    authority = load_authority(directory / "source", fs)
    assert authority is not None, "whoever makes the cluster holds its CA"
    node_key, tls_key = prepare_keys(directory / "target", fs=fs, rng=rng)
    certificate = authority.issue(tls_key.public_key(), node_key.node_id, now=now)
    write_membership(
        directory / "target", certificate, authority.certificate, name="bench", introducers=(), fs=fs
    )


def write_model(directory: Path, mib: int) -> None:
    """Write the file of which the source makes a blob."""
    with (directory / "model").open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(MIB))


@asynccontextmanager
async def started(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start one of the two processes; end it if it has not ended."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.benchmarks.bulk_process", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    try:
        yield process
    finally:
        if process.stdin is not None:
            process.stdin.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), 10)
        if process.returncode is None:
            process.kill()
            await process.wait()


async def said(process: asyncio.subprocess.Process) -> Any:
    """Return the next thing that a process printed; None once it has ended."""
    assert process.stdout is not None, "asked for"
    line = await process.stdout.readline()
    return json.loads(line) if line else None


async def asked_chunks(source: asyncio.subprocess.Process) -> int:
    """Return how many chunks the source was asked for."""
    assert source.stdin is not None, "asked for"
    source.stdin.write(b"\n")
    return int(await said(source))


@asynccontextmanager
async def open_node(
    identity_dir: Path, store_dir: Path, accept: Callable[[Connection], None] | None = None
) -> AsyncIterator[tuple[Endpoint, Store]]:
    """Open a store and an endpoint; by default incoming connections are served blobs."""
    clock, rng = SystemClock(), SystemRng()
    async with AsyncExitStack() as stack:
        data = DataDir.open(store_dir)
        stack.callback(data.close)
        store = await Store.open(data, clock=clock, rng=rng, reserve_bytes=0)
        stack.push_async_callback(store.close)
        server = BulkServer(store.blobs)
        stack.push_async_callback(server.close)
        endpoint = Endpoint(
            Identity.load(identity_dir, SystemFs()),
            EndpointConfig(port=0),
            net=TcpNet(),
            clock=clock,
            rng=rng,
            admit=lambda _: None,
            on_connection=accept or server.serve,
        )
        await endpoint.start()
        stack.push_async_callback(endpoint.close)
        yield endpoint, store


def open_fetcher(endpoint: Endpoint, store: Store, node: bytes, facts: dict[str, Any]) -> Fetcher:
    """Return a fetcher that asks the source."""
    source = bytes.fromhex(facts["node"])
    return Fetcher(
        store.blobs,
        node=node,
        peers=lambda: [source],
        open=lambda peer: endpoint.dial(facts["address"], alpn=ALPN_BULK, expect=peer),
        clock=SystemClock(),
        rng=SystemRng(),
    )


class Firehose:
    """The bare copy's sender: so many bytes through a pump, as fast as it takes them."""

    pump: TlsPump

    def __init__(self, nbytes: int) -> None:
        self._left = nbytes

    def tls_connecting(self) -> None: ...

    def tls_ready(self) -> None:
        self.tls_writable()

    def tls_data(self, data: memoryview) -> None: ...

    def tls_writable(self) -> None:
        while self._left and self.pump.is_writable:
            self.pump.write(PIECE)
            self._left -= len(PIECE)

    def tls_closed(self, error: Exception | None) -> None: ...


class _Source:
    """The process that has the blob. It echoes what comes on gossip connections."""

    def __init__(self, directory: Path, mib: int) -> None:
        self._directory = directory
        self._nbytes = mib * MIB
        self._server: BulkServer
        self._asked = 0

    def _accept(self, connection: Connection) -> None:
        if connection.alpn != ALPN_BULK:
            connection.on_message = lambda at, message: void(at.send(message, Lane.OPERATIONS))
            return
        self._server.serve(connection)
        answer = connection.on_message
        assert answer is not None, "it is served"

        def note(at: Connection, message: Message) -> None:
            self._asked += len(message.indices) if isinstance(message, WantChunks) else 0
            answer(at, message)

        connection.on_message = note

    async def run(self) -> None:
        """Serve until the standard input ends."""
        directory, nbytes = self._directory, self._nbytes
        identity = Identity.load(directory / "source", SystemFs())
        context, buffers = server_context(identity, hears_joiners=False), PumpBuffers()

        def accept_bare() -> TlsPump:
            hose = Firehose(nbytes)
            hose.pump = TlsPump(context, hose, is_server=True, buffers=buffers)
            return hose.pump

        async with open_node(directory / "source", directory / "source-store", self._accept) as (node, store):
            self._server = BulkServer(store.blobs)
            blob, _ = await asyncio.to_thread(store.blobs.import_tensor, directory / "model", 0, nbytes)
            listener = await TcpNet().listen(accept_bare, "127.0.0.1", 0)
            tell(
                {
                    "node": identity.node.hex(),
                    "address": "{}:{}".format(*node.address),
                    "bare_port": listener.address[1],
                    "blob": blob.hex(),
                    "nbytes": nbytes,
                }
            )
            while await asyncio.to_thread(sys.stdin.buffer.readline):
                tell(self._asked)
            listener.close()
            await self._server.close()


async def _fetch(directory: Path, store_dir: Path, facts: dict[str, Any], stop_at: int) -> None:
    async with open_node(directory / "target", store_dir) as (endpoint, store):
        node = Identity.load(directory / "target", SystemFs()).node
        fetcher = open_fetcher(endpoint, store, node, facts)
        fetch = asyncio.ensure_future(fetcher.want_blob(bytes.fromhex(facts["blob"]), facts["nbytes"]))
        landed = 0
        while not fetch.done():
            await asyncio.sleep(POLL_S)
            if (now := fetcher.progress().fetched_bytes) > landed:
                landed = now
                tell(landed)
                if landed >= stop_at:
                    os.kill(os.getpid(), signal.SIGSTOP)
        await fetch
        await fetcher.close()


def void(_value: object) -> None:
    """Return nothing."""


def tell(fact: object) -> None:
    """Print a line at once."""
    os.write(1, json.dumps(fact).encode() + b"\n")


def main(role: str, directory: str, *rest: str) -> None:
    """Be one of the processes."""
    configure_logging(level="error", form="console")
    keep_large_buffers()
    if role == "source":
        uvloop.run(_Source(Path(directory), int(rest[0])).run())
    else:
        stop_at = int(rest[2]) if len(rest) > 2 else sys.maxsize
        uvloop.run(_fetch(Path(directory), Path(rest[0]), json.loads(rest[1]), stop_at))


if __name__ == "__main__":
    main(*sys.argv[1:])
