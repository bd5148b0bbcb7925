"""``dev``: a live cluster on loopback to play with, until Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import TYPE_CHECKING

import click

from .options import Invocation, command
from .output import say, say_json, short, table

if TYPE_CHECKING:
    from crdt_merge_node.local_cluster import LocalCluster


@click.command()
@click.option(
    "--nodes", type=click.IntRange(1, 12), default=3, show_default=True, help="How many daemons to run."
)
@command
def dev(invocation: Invocation, *, nodes: int) -> None:
    """Run daemons on this machine, connected to each other, until interrupted; leave nothing behind."""
    asyncio.run(_dev(nodes, is_json=invocation.is_json))


async def _dev(nodes: int, *, is_json: bool) -> None:
    from crdt_merge_node.local_cluster import LocalCluster

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    cluster = LocalCluster(nodes, has_http=True)
    starting = asyncio.create_task(_start(cluster))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            seconds = starting.result()
            _show(cluster, seconds, is_json=is_json)
            await _watch(cluster, stopping)
    finally:
        starting.cancel()
        stopping.cancel()
        await asyncio.gather(starting, stopping, return_exceptions=True)
        await cluster.close()


async def _start(cluster: LocalCluster) -> float:
    began = asyncio.get_running_loop().time()
    await cluster.__aenter__()
    await cluster.connected()
    return asyncio.get_running_loop().time() - began


async def _watch(cluster: LocalCluster, stopping: asyncio.Task[bool]) -> None:
    """Return when asked to stop, or as soon as a daemon ends by itself."""
    ends = [asyncio.create_task(m.process.wait()) for m in cluster.members if m.process is not None]
    await asyncio.wait({stopping, *ends}, return_when=asyncio.FIRST_COMPLETED)
    for end in ends:
        end.cancel()


def _show(cluster: LocalCluster, seconds: float, *, is_json: bool) -> None:
    if is_json:
        members = [
            {
                "name": m.name,
                "node": m.id,
                "port": m.port,
                "data_dir": str(m.data_dir),
                "dashboard": m.dashboard,
            }
            for m in cluster.members
        ]
        say_json("dev/1", event="ready", seconds=round(seconds, 3), nodes=members)
        sys.stdout.flush()
        return
    rows = [
        (m.name, short(m.id), f"127.0.0.1:{m.port}", m.dashboard, str(m.data_dir)) for m in cluster.members
    ]
    say(f"{len(rows)} nodes, connected to each other after {seconds:.1f} s:")
    say(table(("name", "node", "listen", "dashboard", "data directory"), rows))
    say("\nTry, in another shell:")
    say(f"  crdt-merge-node --data-dir {cluster.members[0].data_dir} status")
    say("Ctrl-C ends all of them and removes their data.")
    sys.stdout.flush()
