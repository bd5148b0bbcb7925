"""What people do with real nodes while things go wrong: contribute, remove, change policy, read, resolve.

Everything goes through the control sockets, as the command line does, and into the history.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

from crdt_merge_node.control.client import AsyncClient
from crdt_merge_node.control.model import (
    WEIGHT_ONE,
    ContributionAdded,
    GroupInfo,
    PolicyChanges,
    ResolveReport,
)
from crdt_merge_node.errors import DaemonNotRunningError
from crdt_merge_protocol.errors import CrdtMergeError

from .history import Added, History, Read, Removed
from .nemesis import Nemesis
from .plan import Act, Plan
from .planning import stream
from .process_cluster import Daemon, ProcessCluster

CALL_TIMEOUT_S: Final = 60.0
LISTING_TIMEOUT_S: Final = 10.0
PATIENCE_S: Final = 10.0
READ_S: Final = 1.0
RESOLVE_WAIT_S: Final = 30.0
_DTYPE: Final = "<f4"


class Workload:
    """Acts of a plan on a cluster of processes."""

    def __init__(
        self,
        plan: Plan,
        cluster: ProcessCluster,
        directory: Path,
        *,
        clock: Callable[[], float],
        note: Callable[[str], None],
    ) -> None:
        self.history = History()
        self.outcomes: Counter[str] = Counter()
        self._plan = plan
        self._cluster = cluster
        self._directory = directory
        self._clock = clock
        self._note = note

    def groups(self) -> list[str]:
        """Return the names of the groups."""
        return [f"g{number}" for number in range(self._plan.scenario.workload.groups)]

    async def create_groups(self) -> None:
        """Let node 0 make all groups."""
        scenario = self._plan.scenario
        path = await asyncio.to_thread(self._model, 0)
        for name in self.groups():
            await _last(
                self._cluster[0].client.group_create(
                    name=name,
                    strategy=scenario.strategy,
                    params=scenario.params,
                    like_path=str(path),
                    holders=scenario.holders,
                )
            )

    async def carry_out(self, nemesis: Nemesis) -> None:
        """Do every act at its time; return when all have ended."""

        async def do(act: Act) -> None:
            await asyncio.sleep(max(0.0, act.time - self._clock()))
            await self._do(act, nemesis)

        async with asyncio.TaskGroup() as group:
            for act in self._plan.acts:
                group.create_task(do(act))

    async def _do(self, act: Act, nemesis: Nemesis) -> None:
        daemon = self._cluster[act.node]
        if act.kind in {"add", "remove", "policy"}:
            await self._wait_up(daemon)
        self._record(act, "invoke")
        try:
            match act.kind:
                case "start":
                    await self._cluster.start_all([daemon])
                    text = "for the first time"
                case "leave":
                    await nemesis.leave(daemon, act.args["down_s"])
                    text = "and comes back with an empty disk"
                case "add" | "remove" | "policy":
                    async with daemon.asking(CALL_TIMEOUT_S) as client:
                        text = await self._ask(act, client)
                case _:
                    self._record(act, "fail", "real nodes cannot be asked for it")
                    return
        except DaemonNotRunningError as error:
            self._record(act, "info", error.message)
        except (CrdtMergeError, TimeoutError) as error:
            self._record(act, "info" if isinstance(error, TimeoutError) else "fail", str(error))
        else:
            self._record(act, "ok", text)
            self._note(f"n{act.node} {act.kind} {text}")

    async def _ask(self, act: Act, client: AsyncClient) -> str:
        match act.kind:
            case "add":
                return await self._add(act, client)
            case "remove":
                return await self._remove(act, client)
        return await self._change_policy(act, client)

    async def _wait_up(self, daemon: Daemon) -> None:
        """Wait a little for a node that is down, as a person would."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(daemon.up.wait(), PATIENCE_S)

    def _record(self, act: Act, phase: Any, text: str = "") -> None:
        self.history.record(self._clock(), act.node, phase, act.kind, act.index, text=text)
        if phase != "invoke":
            self.outcomes[f"{act.kind} {phase}"] += 1

    async def _add(self, act: Act, client: AsyncClient) -> str:
        path = await asyncio.to_thread(self._model, act.args["content"])
        group, slot, invoked = f"g{act.args['group']}", act.args["slot"], self._clock()
        added = await _last(
            client.contribution_add(group, path=str(path), slot=slot, base_path=None, weight=WEIGHT_ONE)
        )
        assert isinstance(added, ContributionAdded), "the last value says what was added"
        tag = added.contribution.tag
        self.history.added.append(
            Added(node=act.node, group=group, slot=slot, tag=tag, invoked=invoked, acked=self._clock())
        )
        return f"{tag[:12]} to {group}/{slot}"

    async def _remove(self, act: Act, client: AsyncClient) -> str:
        group, slot = f"g{act.args['group']}", act.args["slot"]
        removed = await client.contribution_remove(group, slot)
        self.history.removed.append(
            Removed(node=act.node, group=group, tags=removed.tags, acked=self._clock())
        )
        return f"{', '.join(tag[:12] for tag in removed.tags)} from {group}/{slot}"

    async def _change_policy(self, act: Act, client: AsyncClient) -> str:
        cap = act.args["weight_cap"]
        await _last(client.policy_set(f"g{act.args['group']}", PolicyChanges(weight_cap=cap)))
        return f"weight_cap {cap}"

    # --- looking ------------------------------------------------------------------------------------------

    async def read_now_and_then(self) -> None:
        """Ask random nodes what they hold, and remember the answers for the verdict."""
        choices = stream(self._plan.seed, "reads")
        while True:
            await asyncio.sleep(READ_S)
            if living := self._cluster.living:
                group = choices.choice(self.groups())
                pair = choices.sample(living, min(2, len(living)))
                for read in await asyncio.gather(*(self._read(daemon, group) for daemon in pair)):
                    if read is not None:
                        self.history.reads.append(read)

    async def final_reads(self) -> list[Read]:
        """Ask all nodes what they hold."""
        reads = await asyncio.gather(
            *(self._read(daemon, group) for daemon in self._cluster.living for group in self.groups())
        )
        return [read for read in reads if read is not None]

    async def _read(self, daemon: Daemon, group: str) -> Read | None:
        invoked = self._clock()
        try:
            async with daemon.asking(LISTING_TIMEOUT_S) as client:
                infos = await client.contribution_list(group)
        except (CrdtMergeError, TimeoutError):
            return None
        return Read(
            node=daemon.number,
            group=group,
            invoked=invoked,
            completed=self._clock(),
            states={info.tag: info.state for info in infos},
        )

    async def listings(self) -> dict[int, tuple[GroupInfo, ...]]:
        """Return what every node that answers says of its groups, by node."""

        async def listing(daemon: Daemon) -> tuple[GroupInfo, ...] | None:
            try:
                async with daemon.asking(LISTING_TIMEOUT_S) as client:
                    return await client.group_list()
            except (CrdtMergeError, TimeoutError):
                return None

        living = self._cluster.living
        found = await asyncio.gather(*(listing(daemon) for daemon in living))
        return {
            daemon.number: groups for daemon, groups in zip(living, found, strict=True) if groups is not None
        }

    async def resolve_on_two(self) -> dict[str, dict[str, str]]:
        """Resolve each distinct key on two random nodes that have it: key -> node -> output digest.

        What a node says instead of resolving stands in the place of the digest.
        """
        holders: dict[tuple[str, str], list[int]] = defaultdict(list)
        for number, infos in sorted((await self.listings()).items()):
            for info in infos:
                if info.used:
                    holders[info.resolve_key, info.name].append(number)
        digests: dict[str, dict[str, str]] = {}
        choices = stream(self._plan.seed, "resolve")
        for (key, group), numbers in sorted(holders.items()):
            for number in choices.sample(numbers, min(2, len(numbers))):
                digest = await self._resolve(self._cluster[number], group)
                digests.setdefault(key, {})[f"n{number}"] = digest
                self._note(f"n{number} resolves {group} {key[:12]} to {digest[:12]}")
        return digests

    async def _resolve(self, daemon: Daemon, group: str) -> str:
        output = self._directory / f"{daemon.name}-{group}.safetensors"
        try:
            report = await _last(daemon.client.resolve(group, output_path=str(output), wait_s=RESOLVE_WAIT_S))
        except CrdtMergeError as error:
            return f"error on {daemon.name}: {error}"
        assert isinstance(report, ResolveReport), "the last value is the report"
        return report.output_digest

    def _model(self, content: int) -> Path:
        """Write the model number ``content``, if it is not there yet; equal numbers are equal bytes."""
        import numpy as np
        from safetensors.numpy import save_file

        path = self._directory / f"model-{content}.safetensors"
        if not path.exists():
            count = max(1, self._plan.scenario.workload.tensor_bytes // 4)
            values = np.random.default_rng([self._plan.seed, content]).standard_normal(count)
            partial = path.with_suffix(".partial")
            save_file({"weight": values.astype(_DTYPE)}, partial)
            partial.replace(path)
        return path


async def _last(events: AsyncIterator[Any]) -> Any:
    last = None
    async for event in events:
        last = event
    return last
