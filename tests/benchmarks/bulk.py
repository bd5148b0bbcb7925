"""Blobs from one node to another over loopback TLS, and what else happens meanwhile (TARGETS C1, C3, C5, C6).

The rival of C1 is the same number of bytes through the same TLS pump between the same two processes, with
nothing above it: no frames, no requests, no hashing, no disk. CPU seconds of both processes stand beside the
rates, for on a busy host they say more.

A virtual machine that gives free memory back to its host pays anew for each page that the page cache takes:
3 CPU seconds per GB where it happens, which is more than all else. So C1 is measured twice, with the file's
pages given up as soon as they are on the disk, which is what a full page cache comes to, and as it comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import uvloop
from crdt_merge_node.allocator import keep_large_buffers
from crdt_merge_node.ports import SystemFs, TcpNet
from crdt_merge_node.transport.connection import Connection, Lane
from crdt_merge_node.transport.contexts import ALPN_BULK, ALPN_GOSSIP, client_context
from crdt_merge_node.transport.identity import Identity
from crdt_merge_node.transport.tls import PumpBuffers, TlsPump
from crdt_merge_protocol.messages.base import Message
from crdt_merge_protocol.messages.bulk import HaveQuery

from tests.support.bulk_link import gossip_beside_bulk

from .bulk_process import asked_chunks, make_members, open_fetcher, open_node, said, started, write_model
from .measure import MIB, Options, Row, ms, times

GIVE_UP_EVERY_S: Final = 0.02
PROBE_EVERY_S: Final = 0.002
PROBES_IDLE: Final = 500
LINK_BYTES_PER_S: Final = 125e6
LINK_LATENCY_S: Final = 0.010
TENSORS: Final = 40
TENSOR_BYTES: Final = 256 * 1024
TENSORS_CHANGED: Final = 4


def measure(options: Options) -> Iterator[Row]:
    """Yield the rows."""
    with tempfile.TemporaryDirectory(prefix="cmn-bench-") as name:
        directory = Path(name)
        make_members(directory)
        write_model(directory, options.blob_mib)
        keep_large_buffers()
        yield from uvloop.run(_measure(directory, options))
    yield _link_row()


@dataclass(frozen=True, slots=True)
class _Run:
    """One transfer."""

    nbytes: int
    wall_s: float
    source_cpu_s: float
    target_cpu_s: float

    def __str__(self) -> str:
        """Return rate and cost for people."""
        gb = self.nbytes / 1e9
        costs = f"{self.source_cpu_s / gb:.2f} + {self.target_cpu_s / gb:.2f}"
        return f"{gb / self.wall_s:.2f} GB/s, CPU {costs} s/GB"


async def _measure(directory: Path, options: Options) -> list[Row]:
    nbytes = options.blob_mib * MIB
    async with started("source", str(directory), str(options.blob_mib)) as source:
        facts = await said(source)
        world = _World(directory, facts, source.pid)
        bare, lean, plain = [], [], []
        for _ in range(options.repeats):
            bare.append(await world.timed(world.copy))
            with world.pages_given_up():
                lean.append(await world.timed(world.fetch))
            plain.append(await world.timed(world.fetch))
        rows = [
            _transfer_row(f"bulk transfer of {options.blob_mib} MiB, verified, durable", lean, bare),
            _transfer_row("the same, its pages left in the page cache", plain, bare),
            await _gossip_row(world),
            await _kill_row(world, source, nbytes),
        ]
        return [*rows, *await _tensor_rows(directory)]


def _transfer_row(what: str, runs: list[_Run], bare: list[_Run]) -> Row:
    fastest, rival = min(runs, key=_wall_s), min(bare, key=_wall_s)
    cpu_s = min(run.source_cpu_s + run.target_cpu_s for run in runs)
    rival_cpu_s = min(run.source_cpu_s + run.target_cpu_s for run in bare)
    return Row(
        what=what,
        measured=str(fastest),
        against=f"bare TLS copy {rival}",
        ratio=f"{times(rival.wall_s / fastest.wall_s)} its rate, {times(cpu_s / rival_cpu_s)} its CPU",
        target=">= 0.5 of the rate (C1)",
    )


def _wall_s(run: _Run) -> float:
    return run.wall_s


class _World:
    """The fetching side, in this process."""

    def __init__(self, directory: Path, facts: dict[str, Any], source_pid: int) -> None:
        self.directory = directory
        self.facts = facts
        self.nbytes: int = facts["nbytes"]
        self.store_dir = directory / "store"
        self._source_pid = source_pid
        self._identity = Identity.load(directory / "target", SystemFs())

    async def timed(self, work: Callable[[], Awaitable[float]]) -> _Run:
        """Return what some work, which tells its seconds, cost both processes."""
        source_s, own_s = _cpu_s(self._source_pid), _own_cpu_s()
        wall_s = await work()
        return _Run(self.nbytes, wall_s, _cpu_s(self._source_pid) - source_s, _own_cpu_s() - own_s)

    async def copy(self) -> float:
        """Take the bytes from a bare pump."""
        sink = _Sink(self.nbytes)
        context = client_context(self._identity, ALPN_BULK)
        pump = TlsPump(context, sink, is_server=False, buffers=PumpBuffers())
        began = time.perf_counter()
        await TcpNet().connect(lambda: pump, "127.0.0.1", self.facts["bare_port"])
        await sink.done
        seconds = time.perf_counter() - began
        pump.close()
        await pump.lost
        return seconds

    async def fetch(self, beside: Callable[[Connection], Awaitable[None]] | None = None) -> float:
        """Fetch the blob into an empty store; with ``beside``, while that talks to the source."""
        shutil.rmtree(self.store_dir, ignore_errors=True)
        async with open_node(self.directory / "target", self.store_dir) as (endpoint, store):
            fetcher = open_fetcher(endpoint, store, self._identity.node, self.facts)
            talking = None
            if beside is not None:
                talking = asyncio.ensure_future(
                    beside(await endpoint.dial(self.facts["address"], alpn=ALPN_GOSSIP))
                )
            began = time.perf_counter()
            fetcher.peers_changed()
            await fetcher.want_blob(bytes.fromhex(self.facts["blob"]), self.nbytes)
            seconds = time.perf_counter() - began
            if talking is not None:
                talking.cancel()
                await asyncio.gather(talking, return_exceptions=True)
            await fetcher.close()
        return seconds

    @contextmanager
    def pages_given_up(self) -> Iterator[None]:
        """Give up the pages of the file that is being fetched as soon as they are on the disk."""
        ended = threading.Event()
        path = self.store_dir / "partial" / self.facts["blob"]

        def give_up() -> None:
            while not ended.wait(GIVE_UP_EVERY_S):
                with contextlib.suppress(OSError):
                    descriptor = os.open(path, os.O_RDONLY)
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                    os.close(descriptor)

        thread = threading.Thread(target=give_up, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


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


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _own_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


# --- gossip beside bulk ---------------------------------------------------------------------------------


class _Probes:
    """Round trips of small messages over a gossip connection whose other end echoes them."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._sent: list[float] = []

    async def run(self, connection: Connection, count: int | None = None) -> None:
        """Send one every two milliseconds: so many, or until cancelled."""
        connection.on_message = self._arrived
        while count is None or len(self._sent) < count:
            self._sent.append(time.perf_counter())
            connection.send(HaveQuery(blob=len(self._sent).to_bytes(32, "big")), Lane.OPERATIONS)
            await asyncio.sleep(PROBE_EVERY_S)

    def _arrived(self, _connection: Connection, _message: Message) -> None:
        self.seconds.append(time.perf_counter() - self._sent[len(self.seconds)])

    @property
    def p99_s(self) -> float:
        """All but the slowest hundredth took at most so long."""
        return sorted(self.seconds)[int(0.99 * len(self.seconds))]


async def _gossip_row(world: _World) -> Row:
    idle, busy = _Probes(), _Probes()
    async with open_node(world.directory / "target", world.directory / "idle-store") as (endpoint, _store):
        await idle.run(await endpoint.dial(world.facts["address"], alpn=ALPN_GOSSIP), PROBES_IDLE)
    with world.pages_given_up():
        await world.fetch(beside=busy.run)
    return Row(
        what="gossip round trip, p99, beside bulk that takes both cores, no link between",
        measured=f"{ms(busy.p99_s)} of {len(busy.seconds)}",
        against=f"idle {ms(idle.p99_s)}",
        ratio=f"{times(busy.p99_s / idle.p99_s)}, {ms(busy.p99_s - idle.p99_s)} more",
    )


def _link_row() -> Row:
    with tempfile.TemporaryDirectory() as name:
        figures = gossip_beside_bulk(
            Path(name), bytes_per_s=LINK_BYTES_PER_S, latency_s=LINK_LATENCY_S, blob_mib=128
        )
    return Row(
        what="gossip one way, p99, beside bulk on one link of 1 Gbit/s and 10 ms (virtual time)",
        measured=f"{figures.busy_p99_s * 1000:.1f} ms, {figures.link_share:.0%} of the link used",
        against=f"idle {figures.idle_p99_s * 1000:.1f} ms",
        ratio=times(figures.busy_p99_s / figures.idle_p99_s),
        target="<= 2 (C6)",
    )


# --- after kill -9 --------------------------------------------------------------------------------------


async def _kill_row(world: _World, source: asyncio.subprocess.Process, nbytes: int) -> Row:
    shutil.rmtree(world.store_dir, ignore_errors=True)
    fetch = ("fetch", str(world.directory), str(world.store_dir), json.dumps(world.facts))
    asked = await asked_chunks(source)
    async with started(*fetch) as first:
        landed = 0
        while landed < 3 * nbytes // 4:
            landed = await said(first)
        first.kill()
        await first.wait()
    began = time.perf_counter()
    async with started(*fetch) as second:
        await said(second)
        resumed_s = time.perf_counter() - began
        while await said(second) is not None:
            pass
    again = await asked_chunks(source) - asked - nbytes // MIB
    return Row(
        what=f"kill -9 after {landed // MIB} of {nbytes // MIB} MiB, then a new process",
        measured=f"{again} MiB fetched again, new bytes after {ms(resumed_s)} (start of Python included)",
        target="<= 64 MiB, <= 2 s (C5)",
    )


# --- what is here already -------------------------------------------------------------------------------


async def _tensor_rows(directory: Path) -> list[Row]:
    """Fetch a model, one in which a tenth of the tensors differs, and the first one again."""
    models = [[os.urandom(TENSOR_BYTES) for _ in range(TENSORS)]]
    models.append([os.urandom(TENSOR_BYTES) for _ in range(TENSORS_CHANGED)] + models[0][TENSORS_CHANGED:])
    total = TENSORS * TENSOR_BYTES
    async with open_node(directory / "source", directory / "tensors") as (given, have):
        blobs = []
        for model in models:
            (directory / "tensors.bin").write_bytes(b"".join(model))
            blobs.append(
                [
                    have.blobs.import_tensor(directory / "tensors.bin", at, TENSOR_BYTES)[0]
                    for at in range(0, total, TENSOR_BYTES)
                ]
            )
        facts = {
            "node": Identity.load(directory / "source", SystemFs()).node.hex(),
            "address": "{}:{}".format(*given.address),
        }
        async with open_node(directory / "target", directory / "tensors-here") as (endpoint, store):
            node = Identity.load(directory / "target", SystemFs()).node
            fetcher = open_fetcher(endpoint, store, node, facts)
            moved = []
            for wanted in (blobs[0], blobs[1], blobs[0]):
                before = endpoint.bytes_in
                await asyncio.gather(*(fetcher.want_blob(blob, TENSOR_BYTES) for blob in wanted))
                moved.append((endpoint.bytes_in - before) / total)
            await fetcher.close()
    return [
        Row(
            what=f"a model of which {TENSORS_CHANGED} of {TENSORS} tensors changed, after the one before it",
            measured=f"{moved[1]:.2%} of its bytes received",
            target="<= 10.5 % (C3)",
        ),
        Row(what="the same model again", measured=f"{moved[2]:.2%} received", target="<= 0.1 % (C3)"),
    ]
