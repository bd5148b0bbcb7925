"""SIGKILL at random moments under load: what was acknowledged is there, and what is served is whole.

A daemon is killed twenty times while it imports contributions, receives others and computes merges. The
moments come from a fixed seed; what the machine makes of them does not, so every run tries others.
``CRDT_MERGE_TEST_KILLS`` and ``CRDT_MERGE_TEST_SEED`` choose more of them, or others.
"""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

from crdt_merge_node.control.model import ContributionAdded, ResolveReport
from crdt_merge_node.local_cluster import LocalCluster, Member
from crdt_merge_protocol.errors import CrdtMergeError
from support.daemons import TIMEOUT_S, save_model, with_ports

KILLS = int(os.environ.get("CRDT_MERGE_TEST_KILLS", "20"))
SEED = int(os.environ.get("CRDT_MERGE_TEST_SEED", "20"))
GROUP = "loaded"
SECONDS_MAX = 0.6
ONE = 1 << 32


async def _last(events: AsyncIterator[object]) -> object:
    last: object = None
    async for event in events:
        last = event
    return last


class Load:
    """Contributes to a node until it is told to stop; remembers what was acknowledged."""

    def __init__(self, member: Member, files: list[Path], directory: Path, prefix: str) -> None:
        self.member = member
        self.acknowledged: set[str] = set()
        self.has_acknowledged = asyncio.Event()
        self._files = files
        self._directory = directory
        self._prefix = prefix
        self._number = 0

    async def run(self) -> None:
        """Contribute, and resolve now and then, until the node goes away."""
        while True:
            self._number += 1
            path = self._files[self._number % len(self._files)]
            slot = f"{self._prefix}-{self._number}"
            try:
                added = await _last(
                    self.member.client.contribution_add(
                        GROUP,
                        path=str(path),
                        slot=slot,
                        base_path=None,
                        weight=1 << 32,
                        meta={},
                        wait_holds=0,
                    )
                )
                assert isinstance(added, ContributionAdded)
                self.acknowledged.add(added.contribution.tag)
                self.has_acknowledged.set()
                if self._number % 3 == 0:
                    await self._resolve()
            except CrdtMergeError:
                return

    async def _resolve(self) -> None:
        output = self._directory / f"{self._prefix}.safetensors"
        await _last(self.member.client.resolve(GROUP, output_path=str(output), wait_s=0.0, without=()))


async def _scenario(directory: Path) -> None:
    rng = Random(SEED)
    files = [
        save_model(directory / "small.safetensors", 1),
        save_model(directory / "other.safetensors", 2),
        save_model(directory / "third.safetensors", 3),
    ]
    async with with_ports(LocalCluster(2, directory=directory / "nodes")) as cluster:
        steady, victim = cluster.members
        await cluster.connected()
        await _last(
            victim.client.group_create(
                name=GROUP,
                strategy="weight_average",
                params={},
                base_path=None,
                like_path=str(files[0]),
                dtype="",
                weight_cap=0,
                holders=0,
            )
        )
        await LocalCluster.until(lambda: _knows(steady), timeout_s=TIMEOUT_S, what="the group on both")
        acknowledged: set[str] = set()
        for kill in range(KILLS):
            loads = [
                Load(victim, files, directory, f"v{kill}"),
                Load(steady, files[::-1], directory, f"s{kill}"),
            ]
            tasks = [asyncio.create_task(load.run()) for load in loads]
            if len(acknowledged) <= kill:  # So slow is this machine that there would be nothing to lose.
                first = asyncio.create_task(loads[1].has_acknowledged.wait())
                await asyncio.wait((first, tasks[1]), return_when=asyncio.FIRST_COMPLETED)
                first.cancel()
            await asyncio.wait(tasks, timeout=rng.uniform(0.05, SECONDS_MAX))
            await victim.kill()
            tasks[1].cancel()
            for ended in await asyncio.gather(*tasks, return_exceptions=True):
                assert ended is None or isinstance(ended, asyncio.CancelledError), ended
            acknowledged |= loads[0].acknowledged | loads[1].acknowledged
            await victim.start()  # Comes back by itself: no repair, no flag.
            tags = {info.tag for info in await victim.client.contribution_list(GROUP)}
            lost = loads[0].acknowledged - tags
            assert not lost, f"kill {kill}: {len(lost)} acknowledged contributions are gone"
        await _judge(cluster, directory, acknowledged)


async def _judge(cluster: LocalCluster, directory: Path, acknowledged: set[str]) -> None:
    await LocalCluster.until(lambda: _agree(cluster), timeout_s=TIMEOUT_S, what="agreement after the kills")
    digests = set()
    for member in cluster.members:
        infos = await member.client.contribution_list(GROUP)
        used = {info.tag for info in infos if info.state == "used"}
        assert acknowledged <= used
        report = await _last(
            member.client.resolve(
                GROUP, output_path=str(directory / f"{member.name}.out"), wait_s=TIMEOUT_S, without=()
            )
        )
        assert isinstance(report, ResolveReport)
        digests.add(report.file_sha256)
        assert (await member.client.status()).is_healthy
    assert len(digests) == 1
    assert len(acknowledged) >= KILLS


async def _knows(member: Member) -> bool:
    return any(info.missing_blobs == 0 for info in await member.client.group_list())


async def _agree(cluster: LocalCluster) -> bool:
    infos = [info for member in cluster.members for info in await member.client.group_list()]
    return len({(info.sync_root, info.resolve_key) for info in infos}) == 1 and bool(infos[0].resolve_key)


def test_twenty_kills_under_load_lose_nothing_acknowledged() -> None:
    with tempfile.TemporaryDirectory(prefix="cmn-") as directory:
        (Path(directory) / "nodes").mkdir()
        asyncio.run(_scenario(Path(directory)))
