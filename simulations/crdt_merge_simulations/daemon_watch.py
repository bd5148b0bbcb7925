"""Who looks at the daemons: samples for the report, convergence, and what must hold once there is peace."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from crdt_merge_node.contents import GroupContents
from crdt_merge_node.control.model import ResolveReport
from crdt_merge_node.errors import CorruptError
from crdt_merge_protocol.view import Visible

from .daemon_users import last
from .machine import USER, Machine
from .oracle import Array, mean_distance
from .planning import stream
from .result import Sample

if TYPE_CHECKING:
    from .daemon_world import DaemonWorld

REPAIRS_MAX: Final = 8
"""Rotten blobs that one merge may find, one after the other."""
REPAIR_S: Final = 2.0


class Watcher:
    """Looks at all machines of a world, and changes nothing."""

    def __init__(self, world: DaemonWorld) -> None:
        self._world = world
        self.samples: list[Sample] = []

    @property
    def _honest(self) -> list[Machine]:
        world = self._world
        return [machine for machine in world.machines if machine.number not in world.culprits]

    def sample(self, time: float) -> None:
        """Look at everybody at one moment of the story."""
        world = self._world
        roots, operations, keys, tombstones = [], [], set(), 0
        honest = [machine.key.node_id for machine in self._honest]
        for machine in world.machines:
            states = machine.states()
            roots.append("".join(state.sync_root.hex()[:8] for state in states.values()))
            operations.append(sum(len(state) for state in states.values()))
            tombstones = max(tombstones, sum(len(state.removes) for state in states.values()))
            if machine.node is None:
                continue
            replicas = machine.node.services.engine.replicas
            for group in sorted(replicas):
                world.checker.look(machine.number, replicas[group], honest, thoroughly=False)
                contents = machine.node.services.keeper.contents(group)
                if contents is not None and contents.is_complete:
                    keys.add(contents.keys()[1])
        self.samples.append(
            Sample(
                time=time,
                distinct_roots=len({root for root in roots if root}),
                distinct_keys=len(keys),
                roots=roots,
                sides=[world.faults.side_of(number) for number in range(len(world.machines))],
                operations=operations,
                tombstones=tombstones,
                distance=self._distance(),
            )
        )

    def _distance(self) -> float | None:
        """Return how far apart the weights are that nodes would resolve from what they have, on average."""
        counts: dict[int, int] = {}
        models: dict[int, Array] = {}
        for machine in self._world.machines:
            if machine.node is None:
                continue
            for group in machine.states():
                contents = machine.node.services.keeper.contents(group)
                used = [item.visible for item in contents.used] if contents is not None else []
                # One group stands for all: of several, the first that has a model.
                if (merged := self._world.models.merged(used)) is not None:
                    models[id(merged)] = merged
                    counts[id(merged)] = counts.get(id(merged), 0) + 1
                    break
        return mean_distance(list(models.values()), list(counts.values())) if models else None

    # --- convergence --------------------------------------------------------------------------------

    def is_converged(self) -> bool:
        """Whether all honest nodes have the same operations and all bytes that still exist."""
        honest = self._honest
        first = honest[0].states()
        groups = self._world.plan.scenario.workload.groups
        if len(first) != groups:
            return False
        for machine in honest:
            states = machine.states()
            if len(states) != groups or any(
                states[group].sync_root != first[group].sync_root for group in first if group in states
            ):
                return False
        lost = self._lost_bytes()
        return all(self._is_complete(machine, group, lost) for machine in honest for group in first)

    @staticmethod
    def _is_complete(machine: Machine, group: bytes, lost: frozenset[bytes]) -> bool:
        """Whether all bytes that still exist are here, judged from the newest view."""
        node = machine.node
        if node is None or (contents := node.services.keeper.contents(group)) is None:
            return False
        if contents.view != node.services.engine.replicas[group].state.view:
            return False
        return contents.is_ready(frozenset(_without(contents, lost)))

    def _lost_bytes(self) -> frozenset[bytes]:
        """Return what is wanted and on no disk: only where a disk was lost before it was fetched."""
        world = self._world
        if not world.clones and not any(machine.disks_lost for machine in world.machines):
            return frozenset()
        wanted: set[bytes] = set()
        stores = []
        for machine in world.machines:
            if machine.node is not None:
                stores.append(machine.node.services.store.blobs)
                for group in machine.states():
                    if (contents := machine.node.services.keeper.contents(group)) is not None:
                        wanted.update(contents.missing)
        return frozenset(
            id_
            for id_ in wanted
            if not any(store.has(id_) or store.get_object(id_) is not None for store in stores)
        )

    def explain(self) -> None:
        """Write down who differs."""
        lost = self._lost_bytes()
        for machine in self._world.machines:
            states = machine.states()
            roots = " ".join(f"{len(state)}:{state.sync_root.hex()[:8]}" for state in states.values())
            complete = [self._is_complete(machine, group, lost) for group in states]
            peers = len(machine.node.services.driver.connections) if machine.node else 0
            self._world.note(f"{machine.name} has {roots or 'nothing'}, complete {complete}, {peers} peers")

    # --- verdicts -----------------------------------------------------------------------------------

    async def look_at_all(self) -> None:
        """Check what must hold once there is peace."""
        world = self._world
        checker, machines = world.checker, self._honest
        honest = [machine.key.node_id for machine in machines]
        states = {machine.number: machine.states() for machine in machines}
        for machine in machines:
            checker.kept(machine.number, states[machine.number].values())
            if machine.node is None:
                continue
            replicas = machine.node.services.engine.replicas
            for group in sorted(replicas):
                checker.look(machine.number, replicas[group], honest, thoroughly=True)
                waiting = replicas[group].orphan_count
                text = f"{waiting} operations wait at {machine.name}"
                checker.expect("I17", not waiting or bool(world.culprits), text)
            count, most = len(machine.node.services.driver.connections), len(world.machines) - 1
            checker.expect("I17", count <= most, f"{machine.name} has {count} connections for {most} peers")
        is_converged = self.is_converged()
        checker.agreed(states, is_converged=is_converged, twins=world.twins)
        if is_converged:
            for group in machines[0].states():
                await self._compare_outputs(group)
        problems = world.loop.problems
        checker.expect("I9", not problems, "; ".join(problems[:5]))

    async def _compare_outputs(self, group: bytes) -> None:
        """Resolve on two nodes, and compare with each other and with the oracle (I14)."""
        world, machines, lost = self._world, self._honest, self._lost_bytes()
        used: set[tuple[Visible, ...]] = set()
        keys, without = set(), []
        for machine in machines:
            assert machine.node is not None, "all are ready, for they agree"
            contents = machine.node.services.keeper.contents(group)
            assert contents is not None, "all have compared, for they agree"
            without = _without(contents, lost)
            keys.add(contents.keys(frozenset(without))[1])
            shown = machine.states()[group].view.visible
            used.add(tuple(each for each in shown if each.tag not in without))
        world.checker.expect("I14", len(keys) == 1, f"{len(keys)} resolve keys with all bytes there")
        if used == {()}:
            world.sometimes["nothing to resolve"] += 1
            return
        chosen = stream(world.plan.seed, "resolve", group.hex()).sample(machines, min(2, len(machines)))
        world.sometimes["bytes lost with a disk"] += len(without)
        digests = [await world.on(machine, _resolve(machine, group, without)) for machine in chosen]
        world.note(f"outputs {' '.join(digest[:8] for digest in digests)}")
        names = " and ".join(machine.name for machine in chosen)
        world.checker.expect("I14", len(set(digests)) == 1, f"{names} wrote different outputs")
        self._ask_oracle(used, digests)

    def _ask_oracle(self, used: set[tuple[Visible, ...]], digests: list[str]) -> None:
        """Compare outputs with a merge that shares no code with the node's, where there is one."""
        models = self._world.models
        merged = models.merged(next(iter(used))) if len(used) == 1 else None
        if merged is None:
            self._world.sometimes["no oracle for an output"] += 1
            return
        self._world.sometimes["output compared with the oracle"] += 1
        right = models.output_digest(merged)
        self._world.checker.expect(
            "I14", set(digests) == {right}, f"outputs {digests[0][:8]} where the oracle has {right[:8]}"
        )


def _without(contents: GroupContents, lost: frozenset[bytes]) -> list[bytes]:
    """Return the contributions that nobody will ever see the bytes of."""
    return sorted(item.visible.tag for item in contents.awaited() if lost & item.missing.keys())


async def _resolve(machine: Machine, group: bytes, without: list[bytes]) -> str:
    """Return the digest of what a node writes; what has rotted unread is found then, and fetched again."""
    for _ in range(REPAIRS_MAX):
        try:
            return await _resolve_once(machine, group, without)
        except CorruptError:
            await asyncio.sleep(REPAIR_S)
    return await _resolve_once(machine, group, without)


async def _resolve_once(machine: Machine, group: bytes, without: list[bytes]) -> str:
    assert machine.node is not None, "all are ready, for they agree"
    output = str(USER / "merged.safetensors")
    report = await last(
        machine.node.api.resolve(
            group.hex(), output_path=output, wait_s=5.0, without=tuple(tag.hex() for tag in without)
        ),
        ResolveReport,
    )
    return report.output_digest
