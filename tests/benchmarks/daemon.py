"""A daemon of its own: start-up, memory at rest, ``status``, control calls (TARGETS D1, D3)."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from crdt_merge_node.local_cluster import LocalCluster, Member

from .measure import MIB, Options, Row, best_s, ms, rss_bytes, times

CLI = Path(sys.executable).with_name("crdt-merge-node")
STARTS = 5
CALLS = 2_000


def measure(_options: Options) -> Iterator[Row]:
    """Yield the rows of one daemon."""
    python_s = best_s(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True), 5)
    yield from asyncio.run(_measure(python_s))


async def _measure(python_s: float) -> list[Row]:
    async with LocalCluster(1) as cluster:
        member = cluster.members[0]
        starts = []
        for _ in range(STARTS):
            await member.stop()
            starts.append(await _start_s(member))
        assert member.process is not None, "it was started"
        rss = rss_bytes(member.process.pid)
        command = [str(CLI), "--data-dir", str(member.data_dir), "status"]
        status_s = await asyncio.to_thread(
            best_s, lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL), 7
        )
        floor = f"python -c pass {ms(python_s)}"
        calls = await _call_s(member)
    return [
        Row(
            what="daemon, process start to node.ready",
            measured=f"{ms(min(starts))} best, {ms(statistics.median(starts))} median of {STARTS}",
            against=floor,
            ratio=times(min(starts) / python_s),
            target="<= 1 s (D1)",
        ),
        Row(what="daemon, RSS at rest", measured=f"{rss / MIB:.0f} MiB", target="<= 80 MiB (D1)"),
        Row(
            what="status, whole command",
            measured=ms(status_s),
            against=floor,
            ratio=times(status_s / python_s),
            target="< 0.3 s",
        ),
        Row(
            what=f"control call (status), {CALLS:,} one after the other",
            measured=f"p50 {ms(statistics.median(calls))}, p99 {ms(sorted(calls)[int(0.99 * CALLS)])}",
            target="p99 <= 5 ms (D3)",
        ),
    ]


async def _start_s(member: Member) -> float:
    """Start a daemon; return the seconds until it logged that it is ready."""
    offset = member.log_path.stat().st_size
    began = time.time()
    await member.start()
    for line in member.log_path.read_bytes()[offset:].splitlines():
        record = json.loads(line)
        if record["event"] == "node.ready":
            return _wall_time(record) - began
    raise RuntimeError(f"{member.log_path} does not say that the node is ready")


def _wall_time(record: dict[str, str]) -> float:
    from datetime import datetime

    return datetime.fromisoformat(record["timestamp"]).timestamp()


async def _call_s(member: Member) -> list[float]:
    durations = []
    for _ in range(CALLS):
        began = time.perf_counter()
        await member.client.status()
        durations.append(time.perf_counter() - began)
    return durations
