"""Real daemons as real processes, asked through the installed command line."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from crdt_merge_node.control.model import GroupInfo
from crdt_merge_node.local_cluster import LocalCluster, Member
from safetensors.numpy import save_file

from .ports import free_port

T = TypeVar("T")
TIMEOUT_S = 300.0
"""Nothing takes a hundredth of it, but on a machine that does other things."""
CLI = Path(sys.executable).with_name("crdt-merge-node")


def cli(member: Member | Path, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command on a node, or on a data directory, and check its exit status."""
    data_dir = member.data_dir if isinstance(member, Member) else member
    done = subprocess.run(
        [CLI, "--data-dir", str(data_dir), *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == status, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def ask(member: Member, *arguments: str) -> dict[str, Any]:
    """Run a command with ``--json``; return the last object it printed."""
    lines = cli(member, *arguments, "--json").stdout.strip().splitlines()
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer


def save_model(path: Path, seed: int, *, elements: int = 600) -> Path:
    """Write a small random model with two tensors."""
    rng = np.random.default_rng(seed)
    save_file(
        {
            "layer.weight": rng.standard_normal((elements // 20, 20)).astype(np.float32),
            "layer.bias": rng.standard_normal(20).astype(np.float32),
        },
        path,
    )
    return path


def with_ports(cluster: LocalCluster) -> LocalCluster:
    """Give each daemon a port that is still free when it comes back after a kill."""
    for member in cluster.members:
        member.port = free_port()
    return cluster


class Harness:
    """A running cluster and the loop that its clients live on."""

    def __init__(self, runner: asyncio.Runner, cluster: LocalCluster) -> None:
        self._runner = runner
        self.cluster = cluster
        self.members = cluster.members
        self.files = cluster.directory

    def run(self, work: Awaitable[T]) -> T:
        """Run a coroutine to its end."""

        async def main() -> T:
            return await work

        return self._runner.run(main())

    def until(self, condition: Callable[[], Awaitable[bool]], what: str) -> None:
        """Poll until a condition holds."""
        self.run(LocalCluster.until(condition, timeout_s=TIMEOUT_S, what=what))

    def until_groups(self, group: str, check: Callable[[GroupInfo], bool]) -> None:
        """Wait until a condition holds of the group on every node."""

        async def holds() -> bool:
            infos = await self._group_infos(group)
            return len(infos) == len(self.members) and all(check(info) for info in infos)

        self.until(holds, f"what was expected of {group} on every node")

    def group_infos(self, group: str) -> list[GroupInfo]:
        """Return what every node says of a group, leaving out nodes that do not know it."""
        return self.run(self._group_infos(group))

    async def _group_infos(self, group: str) -> list[GroupInfo]:
        running = [member for member in self.members if member.process is not None]
        listings = await asyncio.gather(*(member.client.group_list() for member in running))
        return [info for listing in listings for info in listing if info.name == group]

    def until_agreed(self, group: str, *, used: int) -> None:
        """Wait until all nodes use ``used`` contributions under one resolve key."""

        async def is_agreed() -> bool:
            infos = await self._group_infos(group)
            return (
                len(infos) == len(self.members)
                and {info.used for info in infos} == {used}
                and len({info.sync_root for info in infos}) == 1
                and len({info.resolve_key for info in infos} | {""}) == 2
            )

        what = f"agreement on {used} contributions to {group}"
        self.run(LocalCluster.until(is_agreed, timeout_s=TIMEOUT_S, what=what))
