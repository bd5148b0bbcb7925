"""``python -m tests.nightly.soak [SECONDS [SEED]]``: five daemons that live for half an hour.

People add, supersede and remove contributions from a fixed shelf of models, and resolve. Two daemons run all
the while and are the ones watched; of the others, two are restarted and one is killed, over and over. What a
process holds (memory, file descriptors, threads) must be as flat as its work is; what is on disk may grow by
the operations and by nothing else.

Flat: between the second and the last third of the run, the median grows by less than ``SLACK``.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, Final

import numpy as np
from crdt_merge_node.errors import ControlError
from crdt_merge_node.local_cluster import LocalCluster, Member
from crdt_merge_protocol.errors import CrdtMergeError
from rich.console import Console
from safetensors.numpy import save_file

SECONDS_DEFAULT: Final = 1_680.0
NODES: Final = 5
WATCHED: Final = 2
"""The first two run from beginning to end."""
GROUP: Final = "soak"
SHELF: Final = 24
"""Different models that anybody ever contributes: blobs are kept once, so the disk has an end."""
ELEMENTS: Final = 256 * 1024
SLOTS: Final = ("a", "b", "c")
PAUSE_S: Final = (0.5, 2.5)
RESTART_EVERY_S: Final = 45.0
SAMPLE_EVERY_S: Final = 5.0
AGREE_S_MAX: Final = 120.0
SLACK: Final = {"memory_mib": 16.0, "descriptors": 8.0, "threads": 4.0, "bytes_per_operation": 16_384.0}
"""Of memory: what an allocator keeps in its pools; of the disk: rows, indices, the write-ahead log's due."""

console = Console(highlight=False, soft_wrap=True, markup=False)


@dataclass(frozen=True, slots=True)
class Sample:
    """What one process held at a moment."""

    at_s: float
    memory_mib: float
    """Anonymous and resident."""
    descriptors: int
    threads: int
    disk_bytes: int
    operations: int


@dataclass(slots=True)
class Soak:
    """The run in progress."""

    cluster: LocalCluster
    directory: Path
    rng: Random
    seconds: float
    began: float = field(default_factory=time.monotonic)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    operations: int = 0
    away: set[str] = field(default_factory=set)
    """Names of daemons that are being restarted."""

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self.began + self.seconds

    def present(self) -> Member:
        """Return a daemon that is there, as far as one can know."""
        return self.rng.choice([one for one in self.cluster.members if one.name not in self.away])

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    async def prepare(self) -> None:
        """Make the shelf of models and a group."""
        numbers = np.random.default_rng(self.rng.getrandbits(32))
        for number in range(SHELF):
            weights = numbers.standard_normal(ELEMENTS).astype(np.float32)
            save_file({"weight": weights.reshape(-1, 1024)}, self.directory / f"{number}.safetensors")
        await last(
            self.cluster.members[0].client.group_create(
                name=GROUP,
                strategy="weight_average",
                params={},
                base_path=None,
                like_path=str(self.directory / "0.safetensors"),
                dtype="",
                weight_cap=0,
                holders=0,
            )
        )
        await self.cluster.until(self._is_known, timeout_s=AGREE_S_MAX, what="a group that all know")

    async def _is_known(self) -> bool:
        lists = [await member.client.group_list() for member in self.cluster.members]
        return all(len(groups) == 1 for groups in lists)

    async def work(self) -> None:
        """Do what people do, one thing after the other."""
        acts = (self._add, self._add, self._add, self._remove, self._resolve, self._look)
        while not self.is_over:
            member, act = self.present(), self.rng.choice(acts)
            try:
                await act(member)
            except CrdtMergeError as error:
                # A daemon that is being restarted, or a slot that is empty: people meet that.
                self.count(f"{act.__name__[1:]}: {error.code}")
            else:
                self.count(act.__name__[1:])
            await asyncio.sleep(self.rng.uniform(*PAUSE_S))

    async def _add(self, member: Member) -> None:
        await last(
            member.client.contribution_add(
                GROUP,
                path=str(self.directory / f"{self.rng.randrange(SHELF)}.safetensors"),
                slot=self.rng.choice(SLOTS),
                base_path=None,
                weight=1 << 32,
                meta={},
                wait_holds=0,
            )
        )
        self.operations += 1

    async def _remove(self, member: Member) -> None:
        await member.client.contribution_remove(GROUP, self.rng.choice(SLOTS))
        self.operations += 1

    async def _resolve(self, member: Member) -> None:
        output = self.directory / f"{member.name}.out.safetensors"
        await last(member.client.resolve(GROUP, output_path=str(output), wait_s=30.0, without=()))

    async def _look(self, member: Member) -> None:
        await member.client.status()
        await member.client.why(None)
        await member.client.contribution_list(GROUP)

    async def restart(self) -> None:
        """Stop or kill the daemons that are not watched, one at a time."""
        while not self.is_over:
            await asyncio.sleep(RESTART_EVERY_S)
            member = self.rng.choice(self.cluster.members[WATCHED:])
            is_killed = member is self.cluster.members[-1]
            self.away.add(member.name)
            await (member.kill() if is_killed else member.stop())
            await member.start()
            self.away.discard(member.name)
            self.count("killed" if is_killed else "restarted")

    async def watch(self) -> None:
        """Take samples of the watched daemons."""
        while not self.is_over:
            for member in self.cluster.members[:WATCHED]:
                assert member.process is not None
                held = measure(member.process.pid)
                sample = Sample(
                    time.monotonic() - self.began, *held, disk_bytes(member.data_dir), self.operations
                )
                self.samples.setdefault(member.name, []).append(sample)
            await asyncio.sleep(SAMPLE_EVERY_S)

    async def agree(self) -> set[str]:
        """Wait until all hold the same; return the digests of what each resolves to."""
        await self.cluster.until(self._is_agreed, timeout_s=AGREE_S_MAX, what="agreement at the end")
        digests = set()
        for member in self.cluster.members:
            output = self.directory / f"{member.name}.out.safetensors"
            report = await last(
                member.client.resolve(GROUP, output_path=str(output), wait_s=60.0, without=())
            )
            digests.add(str(report.output_digest))
        return digests

    async def _is_agreed(self) -> bool:
        groups = [(await member.client.group_list())[0] for member in self.cluster.members]
        return len({group.resolve_key for group in groups}) == 1 and all(one.is_converged for one in groups)


async def last(events: AsyncIterator[Any]) -> Any:
    """Return the final value of a call that tells its progress."""
    found = None
    async for event in events:
        found = event
    return found


def measure(pid: int) -> tuple[float, int, int]:
    """Return anonymous resident MiB, open file descriptors and threads of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines)
    memory_mib = int(values["RssAnon"].split()[0]) / 1024
    return memory_mib, len(os.listdir(f"/proc/{pid}/fd")), int(values["Threads"])


def disk_bytes(folder: Path) -> int:
    """Return what a directory takes on disk; files may come and go meanwhile."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(root, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def judge(samples: list[Sample]) -> dict[str, tuple[float, float, float]]:
    """Return for each thing held: its median in the second third, in the last, and the growth that counts."""
    third = max(len(samples) // 3, 1)
    middle, end = samples[third : 2 * third] or samples, samples[-third:]

    def pair(read: Callable[[Sample], float]) -> tuple[float, float]:
        return median(map(read, middle)), median(map(read, end))

    found = {}
    for name in ("memory_mib", "descriptors", "threads"):
        before, after = pair(lambda sample, name=name: float(getattr(sample, name)))  # type: ignore[misc]
        found[name] = (before, after, after - before)
    before, after = pair(lambda sample: sample.disk_bytes)
    done_before, done_after = pair(lambda sample: sample.operations)
    found["bytes_per_operation"] = (before, after, (after - before) / max(done_after - done_before, 1.0))
    return found


async def soak(seconds: float, seed: int, directory: Path) -> list[str]:
    """Run it; return what was not as it should be."""
    async with LocalCluster(NODES, directory=directory / "nodes", prefix="soak") as cluster:
        run = Soak(cluster, directory, Random(seed), seconds)
        await run.prepare()
        run.began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(run.work())
            tasks.create_task(run.restart())
            tasks.create_task(run.watch())
        problems = []
        digests = await run.agree()
    if len(digests) != 1:
        problems.append(f"{len(digests)} different outputs")
    console.print(f"did: {', '.join(f'{count} x {what}' for what, count in sorted(run.counts.items()))}")
    for name, samples in run.samples.items():
        for what, (before, after, growth) in judge(samples).items():
            console.print(f"{name} {what}: {before:,.1f} in the second third, {after:,.1f} in the last")
            if growth > SLACK[what]:
                problems.append(f"{name}: {what} grew by {growth:,.1f}, more than {SLACK[what]:,.0f}")
    return problems


def main(seconds: float = SECONDS_DEFAULT, seed: int = 1) -> int:
    """Return 1 if something grew that should be flat, or the daemons disagree."""
    with tempfile.TemporaryDirectory(prefix="cmn-soak-") as name:
        directory = Path(name)
        (directory / "nodes").mkdir()
        try:
            problems = asyncio.run(soak(seconds, seed, directory))
        except ControlError as error:
            problems = [str(error)]
    for problem in problems:
        console.print(f"not flat: {problem}" if "grew" in problem else problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(*(convert(text) for convert, text in zip((float, int), sys.argv[1:], strict=False))))
