"""Small requests from one peer to another, 64 in flight, over loopback TLS (TARGETS D4).

A request is a message of the overlay with a body of some 70 bytes, the answer the same; framing, both TLS
ends, lanes and deadlines are the daemon's own. The rival is gRPC's asyncio server and client with empty
messages of the health service, without TLS, which is what the control API is made of.
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
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import grpc
import uvloop
from crdt_merge_node.ports import SystemClock, SystemFs, SystemRng, TcpNet
from crdt_merge_node.telemetry.logging import configure_logging
from crdt_merge_node.transport import Connection, Endpoint, EndpointConfig, Identity
from crdt_merge_node.transport.connection import Lane
from crdt_merge_protocol.messages.base import Message
from crdt_merge_protocol.messages.overlay import Graft
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from .bulk_process import make_members
from .measure import Options, Row, times

IN_FLIGHT: Final = 64
REQUESTS: Final = 60_000
RIVALS: Final = 10_000


def measure(options: Options) -> Iterator[Row]:
    """Yield one row."""
    with tempfile.TemporaryDirectory(prefix="cmn-bench-") as name:
        directory = Path(name)
        make_members(directory)
        own, rival = uvloop.run(_measure(directory, options.repeats))
    yield Row(
        what=f"requests to a peer, {IN_FLIGHT} in flight, TLS",
        measured=f"{own:,.0f}/s",
        against=f"grpc.aio without TLS {rival:,.0f}/s",
        ratio=f"{times(own / rival)} gRPC",
        target=">= 20 k/s (D4)",
    )


async def _measure(directory: Path, repeats: int) -> tuple[float, float]:
    """Return the best rates of both, requests per second."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.benchmarks.requests", str(directory)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None, "asked for"
    assert process.stdout is not None, "asked for"
    try:
        facts = json.loads(await process.stdout.readline())
        own = [await _ask_peer(directory, facts["address"], facts["node"]) for _ in range(repeats)]
        rival = [await _ask_rival(facts["rival"]) for _ in range(repeats)]
        return max(own), max(rival)
    finally:
        process.stdin.close()
        await process.wait()


async def _ask_peer(directory: Path, address: str, node: str) -> float:
    async with _endpoint(directory / "target") as endpoint:
        connection = await endpoint.dial(address, expect=bytes.fromhex(node))
        done = asyncio.get_running_loop().create_future()
        left = [REQUESTS, REQUESTS]  # To be asked, to be answered.

        def ask() -> None:
            left[0] -= 1
            connection.send(request(left[0]), Lane.MEMBERSHIP)

        def answered(_connection: Connection, _message: Message) -> None:
            left[1] -= 1
            if left[0]:
                ask()
            elif not left[1]:
                done.set_result(None)

        connection.on_message = answered
        began = time.perf_counter()
        for _ in range(IN_FLIGHT):
            ask()
        await done
        return REQUESTS / (time.perf_counter() - began)


def request(number: int) -> Graft:
    """Return a small message that differs from the others."""
    return Graft(group=bytes(32), ids=(number.to_bytes(32, "big"),))


async def _ask_rival(target: str) -> float:
    async with grpc.aio.insecure_channel(target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def ask() -> None:
            for _ in range(RIVALS // IN_FLIGHT):
                await stub.Check(health_pb2.HealthCheckRequest())

        await stub.Check(health_pb2.HealthCheckRequest())
        began = time.perf_counter()
        await asyncio.gather(*(ask() for _ in range(IN_FLIGHT)))
        return RIVALS // IN_FLIGHT * IN_FLIGHT / (time.perf_counter() - began)


def _send_back(connection: Connection, message: Message) -> None:
    connection.send(message, Lane.MEMBERSHIP)


@asynccontextmanager
async def _endpoint(identity_dir: Path) -> AsyncIterator[Endpoint]:
    def echo(connection: Connection) -> None:
        connection.on_message = _send_back

    endpoint = Endpoint(
        Identity.load(identity_dir, SystemFs()),
        EndpointConfig(port=0),
        net=TcpNet(),
        clock=SystemClock(),
        rng=SystemRng(),
        admit=lambda _: None,
        on_connection=echo,
    )
    await endpoint.start()
    try:
        yield endpoint
    finally:
        await endpoint.close()


async def _serve(directory: Path) -> None:
    """Be the other process: until its standard input ends."""
    rival = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(), rival)
    port = rival.add_insecure_port("127.0.0.1:0")
    await rival.start()
    async with _endpoint(directory / "source") as endpoint:
        facts = {
            "node": Identity.load(directory / "source", SystemFs()).node.hex(),
            "address": "{}:{}".format(*endpoint.address),
            "rival": f"127.0.0.1:{port}",
        }
        os.write(1, json.dumps(facts).encode() + b"\n")
        with contextlib.suppress(EOFError):
            await asyncio.to_thread(sys.stdin.buffer.read)
    await rival.stop(None)


if __name__ == "__main__":
    configure_logging(level="error", form="console")
    uvloop.run(_serve(Path(sys.argv[1])))
