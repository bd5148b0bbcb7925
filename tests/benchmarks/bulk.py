"""One blob from one node to another over loopback TLS: asked for, sent, verified, durable (TARGETS C1).

The floor is the same number of bytes through the same TLS pump between the same two processes, with nothing
above it: no frames, no requests, no hashing, no disk. Both sides run on uvloop and keep large
buffers, as daemons do.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop
from crdt_merge_node.allocator import keep_large_buffers
from crdt_merge_node.bulk import BulkServer, Fetcher
from crdt_merge_node.ports import SystemClock, SystemFs, SystemRng, TcpNet
from crdt_merge_node.storage import DataDir, Store
from crdt_merge_node.telemetry.logging import configure_logging
from crdt_merge_node.transport.contexts import ALPN_BULK, client_context, server_context
from crdt_merge_node.transport.endpoint import Endpoint, EndpointConfig
from crdt_merge_node.transport.identity import Identity, load_authority, prepare_keys, write_membership
from crdt_merge_node.transport.tls import PumpBuffers, TlsPump

from .measure import MIB, Options, Row, times

PIECE = bytes(MIB)


def measure(options: Options) -> Iterator[Row]:
    """Yield one row."""
    with tempfile.TemporaryDirectory(prefix="cmn-bench-") as name:
        directory = Path(name)
        _make_members(directory)
        with (directory / "model").open("wb") as file:
            for _ in range(options.blob_mib):
                file.write(os.urandom(MIB))
        keep_large_buffers()
        bare_s, fetch_s = uvloop.run(_measure(directory, options))
    nbytes = options.blob_mib * MIB
    yield Row(
        what=f"bulk transfer of {options.blob_mib} MiB, one source, verified and durable",
        measured=f"{nbytes / fetch_s / 1e9:.2f} GB/s",
        against=f"bare TLS copy {nbytes / bare_s / 1e9:.2f} GB/s",
        ratio=f"{times(bare_s / fetch_s)} the bare copy",
        target=">= 0.5 (C1)",
    )


def _make_members(directory: Path) -> None:
    fs, rng, now = SystemFs(), SystemRng(), SystemClock().now()
    Identity.create(directory / "source", "bench", fs=fs, rng=rng, now=now)
    authority = load_authority(directory / "source", fs)
    assert authority is not None, "whoever makes the cluster holds its CA"
    node_key, tls_key = prepare_keys(directory / "target", fs=fs, rng=rng)
    certificate = authority.issue(tls_key.public_key(), node_key.node_id, now=now)
    write_membership(
        directory / "target", certificate, authority.certificate, name="bench", introducers=(), fs=fs
    )


async def _measure(directory: Path, options: Options) -> tuple[float, float]:
    """Return the best seconds of the bare copy and of the transfer."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.benchmarks.bulk", str(directory), str(options.blob_mib)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None, "asked for"
    assert process.stdout is not None, "asked for"
    try:
        facts = json.loads(await process.stdout.readline())
        bare, fetched = [], []
        for number in range(options.repeats):
            bare.append(await _copy(directory, facts["bare_port"], options.blob_mib * MIB))
            fetched.append(await _fetch(directory, f"store-{number}", facts))
        return min(bare), min(fetched)
    finally:
        process.stdin.close()
        await process.wait()


class _Sink:
    """Counts plaintext."""

    def __init__(self, nbytes: int) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._left = nbytes

    def tls_connecting(self) -> None: ...

    def tls_ready(self) -> None: ...

    def tls_data(self, data: memoryview) -> None:
        self._left -= len(data)
        if self._left <= 0 and not self.done.done():
            self.done.set_result(None)

    def tls_writable(self) -> None: ...

    def tls_closed(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or EOFError("the source ended early"))


class _Source:
    """Sends so many bytes as fast as the pump takes them."""

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


async def _copy(directory: Path, port: int, nbytes: int) -> float:
    identity = Identity.load(directory / "target", SystemFs())
    sink = _Sink(nbytes)
    context = client_context(identity, ALPN_BULK)
    pump = TlsPump(context, sink, is_server=False, buffers=PumpBuffers())
    began = time.perf_counter()
    await TcpNet().connect(lambda: pump, "127.0.0.1", port)
    await sink.done
    seconds = time.perf_counter() - began
    pump.close()
    await pump.lost
    return seconds


async def _fetch(directory: Path, name: str, facts: dict[str, Any]) -> float:
    source = bytes.fromhex(facts["node"])
    async with _node(directory / "target", directory / name) as (endpoint, store):
        fetcher = Fetcher(
            store.blobs,
            node=Identity.load(directory / "target", SystemFs()).node,
            peers=lambda: [source],
            open=lambda peer: endpoint.dial(facts["address"], alpn=ALPN_BULK, expect=peer),
            clock=SystemClock(),
            rng=SystemRng(),
        )
        began = time.perf_counter()
        fetcher.peers_changed()
        await fetcher.want_blob(bytes.fromhex(facts["blob"]), facts["nbytes"])
        seconds = time.perf_counter() - began
        await fetcher.close()
    return seconds


@asynccontextmanager
async def _node(identity_dir: Path, store_dir: Path) -> AsyncIterator[tuple[Endpoint, Store]]:
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
            on_connection=server.serve,
        )
        await endpoint.start()
        stack.push_async_callback(endpoint.close)
        yield endpoint, store


async def _serve(directory: Path, mib: int) -> None:
    """Be the other process: until its standard input ends."""
    identity = Identity.load(directory / "source", SystemFs())
    context, buffers = server_context(identity, hears_joiners=False), PumpBuffers()

    def accept() -> TlsPump:
        source = _Source(mib * MIB)
        source.pump = TlsPump(context, source, is_server=True, buffers=buffers)
        return source.pump

    async with _node(directory / "source", directory / "source-store") as (endpoint, store):
        blob, _ = await asyncio.to_thread(store.blobs.import_tensor, directory / "model", 0, mib * MIB)
        listener = await TcpNet().listen(accept, "127.0.0.1", 0)
        facts = {
            "node": identity.node.hex(),
            "address": "{}:{}".format(*endpoint.address),
            "bare_port": listener.address[1],
            "blob": blob.hex(),
            "nbytes": mib * MIB,
        }
        os.write(1, json.dumps(facts).encode() + b"\n")
        with contextlib.suppress(EOFError):
            await asyncio.to_thread(sys.stdin.buffer.read)
        listener.close()


if __name__ == "__main__":
    configure_logging(level="error", form="console")
    keep_large_buffers()
    uvloop.run(_serve(Path(sys.argv[1]), int(sys.argv[2])))
