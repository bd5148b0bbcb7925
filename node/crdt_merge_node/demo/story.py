"""What ``demo`` does, step by step, with real daemons. Every number it shows was measured in this run."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors.numpy import load_file, save_file

from crdt_merge_node.control.model import ContributionAdded, GroupInfo, PolicyChanges, ResolveReport
from crdt_merge_node.errors import ControlError
from crdt_merge_node.local_cluster import LocalCluster, Member

from .digits import SHARDS, Parameters, Task, accuracy, fine_tune, load_task, train_base

GROUP: Final = "digits"
BALLAST: Final = "ballast"
NODES: Final = len(SHARDS)
SPLIT: Final = 3
"""The first three nodes are one side of the split, the last two the other."""
STRATEGIES: Final = ("weight_average", "ties")
BALLAST_BYTES: Final = 256 << 20
"""Large enough to catch a node in the middle of fetching it."""
KILL_RATIO: Final = 0.1
"""Of it that has come when the node is killed, at least."""
TIMEOUT_S: Final = 60.0

Tell = Callable[[str], None]


@dataclass(slots=True)
class Outcome:
    """What the demonstration found."""

    converged: bool = False
    """All nodes ended with one root, and every resolve of one strategy gave one file."""
    digests: dict[str, str] = field(default_factory=dict)
    """Strategy -> SHA-256 of its file, where all nodes have the same."""
    accuracy: dict[str, float] = field(default_factory=dict)
    """On held-out images: base, individual_mean, individual_best and each strategy."""
    bytes_on_wire: int = 0
    """Sent by all daemons, TLS included."""
    seconds: float = 0.0
    measured: dict[str, float] = field(default_factory=dict)
    """Durations in seconds and counts, by name."""
    problems: list[str] = field(default_factory=list)

    @property
    def is_success(self) -> bool:
        """Converged, digests agree, and averaging beats the base and the best individual."""
        if not self.converged or self.problems or set(self.digests) != set(STRATEGIES):
            return False
        best = max(self.accuracy["base"], self.accuracy["individual_best"])
        return self.accuracy["weight_average"] > best


class Story:
    """The demonstration in progress."""

    def __init__(self, *, seed: int, tell: Tell, directory: Path) -> None:
        self.seed = seed
        self.tell = tell
        self.directory = directory
        self.outcome = Outcome()
        self.task: Task = load_task(seed)
        self.base: Parameters = train_base(self.task, seed)
        self.individuals: list[Parameters] = []
        self._sent_before: int = 0

    async def run(self) -> Outcome:
        """Tell it."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        cluster = LocalCluster(NODES, directory=self.directory / "nodes")
        cluster.directory.mkdir()
        async with cluster:
            self.tell(f"{NODES} daemons, each its own process and directory, mutual TLS on loopback:")
            for member in cluster.members:
                self.tell(f"  {member.name}  {member.id[:12]}  127.0.0.1:{member.port}")
            await cluster.connected()
            self._measure("start_s", loop.time() - began, "started, joined by token and connected")
            await self._contribute_all(cluster.members)
            await self._split(cluster)
            await self._crash(cluster)
            await self._heal(cluster)
            await self._resolve_all(cluster.members)
            await self._count_bytes(cluster.members)
        self.outcome.seconds = round(loop.time() - began, 2)
        return self.outcome

    # --- steps --------------------------------------------------------------------------------------------

    async def _contribute_all(self, members: Sequence[Member]) -> None:
        base_path = self._save("base", self.base)
        async for event in members[0].client.group_create(
            name=GROUP,
            strategy="weight_average",
            params={},
            base_path=str(base_path),
            like_path=None,
            dtype="",
            weight_cap=0,
            holders=0,
        ):
            if isinstance(event, GroupInfo):
                self.tell(f'\ngroup "{GROUP}" {event.id[:12]}, strategy weight_average, one common base')
        await self._until(
            lambda: self._everywhere(members, lambda info: info.missing_blobs == 0), "the group everywhere"
        )
        seconds = await self._contribute(members, range(NODES), round_number=1)
        for number, member in enumerate(members):
            images = len(self.task.shard(number).classes)
            classes = ", ".join(str(digit) for digit in SHARDS[number])
            self.tell(f"  {member.name} trained on {images} images of digits {classes} and contributed")
        self._measure("first_convergence_s", seconds, "until all five hold all contributions")

    async def _split(self, cluster: LocalCluster) -> None:
        left, right = cluster.members[:SPLIT], cluster.members[SPLIT:]
        await self._block(left, right, blocked=True)
        self.tell(f"\nsplit {len(left)}|{len(right)}: every node of one side blocks every node of the other")
        await asyncio.gather(
            self._contribute(left, range(SPLIT), round_number=2),
            self._contribute(right, range(SPLIT, NODES), round_number=2),
        )
        digests = []
        for side in (left, right):
            reports = await self._resolve(side, "split")
            digests.append(self._one_digest("weight_average during the split", reports))
        if digests[0] == digests[1]:
            self.outcome.problems.append("both sides of the split resolved to the same file")
        self.tell(
            f"  both sides go on contributing and resolving: {digests[0][:12]} | {digests[1][:12]},"
            " one digest on each side"
        )

    async def _crash(self, cluster: LocalCluster) -> None:
        source, victim = cluster.members[0], cluster.members[1]
        path = self.directory / "ballast.safetensors"
        noise = np.random.default_rng(self.seed).standard_normal(BALLAST_BYTES // 4, dtype=np.float32)
        save_file({"noise": noise}, path)
        async for _ in source.client.group_create(
            name=BALLAST,
            strategy="weight_average",
            params={},
            base_path=None,
            like_path=str(path),
            dtype="",
            weight_cap=0,
            holders=0,
        ):
            pass
        await self._until(lambda: self._knows(victim, BALLAST), f"{BALLAST} on {victim.name}")
        adding = asyncio.create_task(self._add(source, BALLAST, path))
        remaining = await self._mid_transfer(victim)
        self._sent_before += (await victim.client.status()).bytes_out
        await victim.kill()
        done_ratio = 1 - remaining / BALLAST_BYTES
        transfer = f"{done_ratio:.0%} of a {BALLAST_BYTES >> 20} MiB transfer"
        self.tell(f"\n{victim.name} is killed with SIGKILL after {transfer}")
        await adding
        loop = asyncio.get_running_loop()
        began = loop.time()
        await victim.start()
        await self._until(lambda: self._has_all(victim, BALLAST), f"{BALLAST} whole on {victim.name}")
        self._measure("resume_s", loop.time() - began, "until it was back and had the rest")
        fetched = (await victim.client.status()).bytes_in
        self.outcome.measured["refetched_bytes"] = fetched
        self.outcome.measured["killed_at_ratio"] = round(done_ratio, 3)
        self.tell(f"  after the restart it received {fetched >> 20} MiB: what was on disk was kept")

    async def _heal(self, cluster: LocalCluster) -> None:
        left, right = cluster.members[:SPLIT], cluster.members[SPLIT:]
        loop = asyncio.get_running_loop()
        began = loop.time()
        await self._block(left, right, blocked=False)
        await self._until(lambda: self._is_agreed(cluster.members, NODES), "agreement after the heal")
        self.tell("\nthe split heals")
        self._measure("heal_s", loop.time() - began, "until all five have one root and one resolve key again")

    async def _resolve_all(self, members: Sequence[Member]) -> None:
        files: dict[str, Path] = {}
        self.tell("")
        for strategy in STRATEGIES:
            if strategy != STRATEGIES[0]:
                await self._set_strategy(members, strategy)
            reports = await self._resolve(members, strategy)
            digest = self._one_digest(strategy, reports)
            if digest:
                self.outcome.digests[strategy] = digest
            files[strategy] = Path(reports[0].path)
            self.tell(f"  {strategy:<15} SHA-256 {digest} on all {len(reports)} nodes")
        test = self.task.test
        alone = [accuracy(model, test) for model in self.individuals]
        found = {
            "base": accuracy(self.base, test),
            "individual_mean": float(np.mean(alone)),
            "individual_best": max(alone),
        }
        found |= {strategy: accuracy(load_file(path), test) for strategy, path in files.items()}
        self.outcome.accuracy = {name: round(value, 4) for name, value in found.items()}
        self.outcome.converged = not self.outcome.problems

    async def _set_strategy(self, members: Sequence[Member], strategy: str) -> None:
        async for _ in members[0].client.policy_set(GROUP, PolicyChanges(strategy=strategy)):
            pass
        await self._until(
            lambda: self._everywhere(members, lambda info: info.strategy == strategy and info.is_converged),
            f"strategy {strategy} everywhere",
        )

    # --- pieces -------------------------------------------------------------------------------------------

    async def _contribute(
        self, members: Sequence[Member], numbers: Iterable[int], *, round_number: int
    ) -> float:
        """Train and contribute on these nodes; return the seconds until they all hold everything."""
        chosen = list(numbers)
        models = [
            fine_tune(self.base, self.task, node=number, round_number=round_number, seed=self.seed)
            for number in chosen
        ]
        paths = [
            self._save(f"model-{number + 1}-{round_number}", model)
            for number, model in zip(chosen, models, strict=True)
        ]
        if round_number == 1:
            self.individuals = models
        else:
            for number, model in zip(chosen, models, strict=True):
                self.individuals[number] = model
        loop = asyncio.get_running_loop()
        began = loop.time()
        pairs = zip(members, paths, strict=True)
        await asyncio.gather(*(self._add(member, GROUP, path) for member, path in pairs))
        await self._until(lambda: self._is_agreed(members, NODES), f"round {round_number} everywhere")
        return loop.time() - began

    async def _add(self, member: Member, group: str, path: Path) -> None:
        async for event in member.client.contribution_add(
            group, path=str(path), slot="main", base_path=None, weight=1 << 32, meta={}, wait_holds=0
        ):
            if isinstance(event, ContributionAdded):
                return
        raise ControlError(f"{member.name} did not confirm its contribution.")

    async def _resolve(self, members: Sequence[Member], label: str) -> list[ResolveReport]:
        async def one(member: Member) -> ResolveReport:
            path = self.directory / f"{label}-{member.name}.safetensors"
            async for event in member.client.resolve(
                GROUP, output_path=str(path), wait_s=TIMEOUT_S, without=()
            ):
                if isinstance(event, ResolveReport):
                    return event
            raise ControlError(f"{member.name} did not finish its resolve.")

        return list(await asyncio.gather(*(one(member) for member in members)))

    def _one_digest(self, label: str, reports: Sequence[ResolveReport]) -> str:
        """Return the one SHA-256 of the files as they stand on disk; note a problem if there are several."""
        digests = {hashlib.sha256(Path(report.path).read_bytes()).hexdigest() for report in reports}
        if len(digests) == 1:
            return digests.pop()
        self.outcome.problems.append(f"{label}: {len(digests)} different files")
        return ""

    async def _block(self, left: Sequence[Member], right: Sequence[Member], *, blocked: bool) -> None:
        pairs = [(a, b) for a in left for b in right] + [(b, a) for a in left for b in right]
        await asyncio.gather(
            *(a.client.peer_block(b.id) if blocked else a.client.peer_unblock(b.id) for a, b in pairs)
        )

    async def _mid_transfer(self, victim: Member) -> int:
        """Return how many bytes are still missing as soon as a good part has come."""
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                info = await self._info(victim, BALLAST)
                if 0 < info.missing_bytes < (1 - KILL_RATIO) * BALLAST_BYTES:
                    return info.missing_bytes
                if info.used:
                    raise ControlError("the transfer was over before the kill; this host is too fast for it.")

    async def _info(self, member: Member, group: str) -> GroupInfo:
        for info in await member.client.group_list():
            if info.name == group:
                return info
        raise ControlError(f"{member.name} does not know {group}.")

    async def _knows(self, member: Member, group: str) -> bool:
        return any(
            info.name == group and info.missing_blobs == 0 for info in await member.client.group_list()
        )

    async def _has_all(self, member: Member, group: str) -> bool:
        infos = [info for info in await member.client.group_list() if info.name == group]
        return bool(infos) and infos[0].used == 1 and infos[0].missing_blobs == 0

    async def _everywhere(self, members: Sequence[Member], check: Callable[[GroupInfo], bool]) -> bool:
        for member in members:
            infos = [info for info in await member.client.group_list() if info.name == GROUP]
            if not infos or not check(infos[0]):
                return False
        return True

    async def _is_agreed(self, members: Sequence[Member], used: int) -> bool:
        infos = [info for m in members for info in await m.client.group_list() if info.name == GROUP]
        return (
            len(infos) == len(members)
            and len({(info.sync_root, info.resolve_key) for info in infos}) == 1
            and all(info.resolve_key and info.used == used and info.missing_blobs == 0 for info in infos)
        )

    async def _until(self, condition: Any, what: str) -> float:
        return await LocalCluster.until(condition, timeout_s=TIMEOUT_S, what=what)

    async def _count_bytes(self, members: Sequence[Member]) -> None:
        statuses = await asyncio.gather(*(member.client.status() for member in members))
        self.outcome.bytes_on_wire = self._sent_before + sum(status.bytes_out for status in statuses)

    def _measure(self, name: str, seconds: float, words: str) -> None:
        self.outcome.measured[name] = round(seconds, 3)
        self.tell(f"  {seconds:.2f} s {words}")

    def _save(self, name: str, model: Parameters) -> Path:
        path = self.directory / f"{name}.safetensors"
        save_file(model, path)
        return path
