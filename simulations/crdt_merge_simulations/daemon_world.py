"""Whole daemons in virtual time: the unmodified runtime of every node, in one process, from one seed.

    run(plan) -> Result

Machines start, node 0 creates the groups, then the story begins: acts go through ``LocalNode`` as commands
would, faults happen at their times. When the story is over everything is healed, and within the peace all
nodes must hold the same operations and all bytes, know the same resolve keys, and produce the same outputs.
Nothing is drawn from anywhere but the plan's seed, and nothing waits: 20 virtual seconds of 10 daemons take
about one (SCENARIOS 3 and 4).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from pathlib import Path
from random import Random
from typing import Any, Final, TypeVar
from unittest import mock

import numpy as np
import structlog
from crdt_merge_node.contents import GroupContents
from crdt_merge_node.control.model import (
    ContributionAdded,
    GroupInfo,
    PolicyChanges,
    PolicyInfo,
    ResolveReport,
)
from crdt_merge_node.ports import SystemClock
from crdt_merge_node.transport import TlsContexts
from crdt_merge_node.transport.certificates import CertificateAuthority
from crdt_merge_protocol.blobs import TensorSpec
from crdt_merge_protocol.errors import CrdtMergeError
from crdt_merge_protocol.limits import WEIGHT_ONE
from crdt_merge_protocol.policy import DEFAULT_WEIGHT_CAP
from crdt_merge_protocol.state import CRDTMergeState
from crdt_merge_protocol.tensorfile import layout
from cryptography import x509

from .daemon_faults import Faults
from .disk import SimulatedDisk
from .disk_sqlite import SimulatedVfs
from .invariants import Checker
from .loop import OUTSIDE, SimulatedLoop, simulated_loop
from .machine import DATA, USER, Machine, StoppedError, Surroundings
from .network import PORT, Direction, Network, host_of
from .plaintext import PlaintextContexts, RealContexts
from .plan import Act, Plan
from .planning import stream
from .result import Result, Sample

T = TypeVar("T")

WALL_S: Final = 1_800_000_000.0
START_S_MAX: Final = 60.0
"""Virtual seconds in which a cluster must come up before the story."""
STARTS_PER_S: Final = 50.0
SEEDS_MAX: Final = 3
SAMPLES: Final = 80
COLLECT_EVERY_SAMPLES: Final = 16
UNKNOWN_KIND: Final = 200


def run(plan: Plan, *, tls: bool = False) -> Result:
    """Carry out a plan with whole daemons.

    Args:
        tls: Let OpenSSL encrypt and authenticate every connection. Slower; then the trace holds times and
            sizes, not contents.
    """
    began = time.perf_counter()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory())) if tls else None
        logged = stack.enter_context(_listening())
        loop = stack.enter_context(simulated_loop())
        # In a function of its own, so that nothing but the loop's graveyard keeps the world at the end.
        result, vfses = _live(plan, loop, directory)
    for vfs in vfses:
        vfs.unregister()
    result.sometimes += logged
    result.wall_s = time.perf_counter() - began
    return result


def _live(plan: Plan, loop: SimulatedLoop, directory: Path | None) -> tuple[Result, list[SimulatedVfs]]:
    """Return the result and what may be given back once no database is open any more."""
    world = DaemonWorld(plan, loop, directory)
    try:
        loop.run_until_complete(world.live())
        return world.result(), [vfs for machine in world.machines for vfs in machine.vfses]
    finally:
        world.end()


class DaemonWorld:
    """The machines, the network and the story of one run."""

    def __init__(self, plan: Plan, loop: SimulatedLoop, directory: Path | None) -> None:
        self.plan = plan
        self.loop = loop
        self.network = Network(loop)
        self.network.is_content_traced = directory is None
        self.checker = Checker()
        self.sometimes: Counter[str] = self.checker.sometimes
        self.faults = Faults(self)
        self.log: list[str] = []
        self.samples: list[Sample] = []
        self.after_ack: dict[int, Callable[[], None]] = {}
        """Called at the next acknowledgement of a node."""
        self.backups: dict[int, SimulatedDisk] = {}
        """Copies of disks, by the fault that will bring them back."""
        self.is_in_story = False
        self._directory = directory
        self._origin = 0.0
        self._converged_after_s: float | None = None
        self._disks_lost: dict[int, int] = {}
        """How often the checker was told that a node's disk was lost."""
        self._counts: dict[tuple[int, bytes], int] = {}
        """Operations that a node held in a group when last looked at."""
        scenario = plan.scenario
        self._late = {act.node for act in plan.acts if act.kind == "start"}
        self._unsupported = sorted({fault.kind for fault in plan.faults} - self.faults.kinds())
        for link in plan.links:
            for a, b in ((link.a, link.b), (link.b, link.a)):
                self.network.directions[a, b] = Direction(
                    link.latency_s,
                    scenario.topology.bandwidth_bytes_per_s,
                    stream(plan.seed, "link", a, b),
                )
        self.machines = self._make_machines()

    def _make_machines(self) -> list[Machine]:
        seed, count = self.plan.seed, self.plan.scenario.nodes
        random_bytes = Random(f"{seed}/certificates").randbytes  # noqa: S311
        wall = WALL_S if self._directory is None else SystemClock().now()
        with mock.patch.object(os, "urandom", random_bytes):  # Serial numbers: cryptography asks for no port.
            surroundings = Surroundings(
                seed=seed,
                loop=self.loop,
                network=self.network,
                authority=CertificateAuthority.create("simulated", random_bytes(32), now=wall),
                wall=wall,
                contexts=self._contexts,
                ready=self._ready,
                ended=self._ended,
            )
            return [Machine(surroundings, number, self._seeds(number)) for number in range(count)]

    def _seeds(self, number: int) -> tuple[str, ...]:
        lower = sorted(
            {link.a + link.b - number for link in self.plan.links if number in (link.a, link.b)}
            & set(range(number))
        )
        if len(lower) > SEEDS_MAX:
            lower = sorted({lower[0], *stream(self.plan.seed, "seeds", number).sample(lower, SEEDS_MAX - 1)})
        return tuple(f"{host_of(other)}:{PORT}" for other in lower)

    def _contexts(self, certificate: x509.Certificate, disk: SimulatedDisk) -> TlsContexts:
        if self._directory is None:
            return PlaintextContexts(certificate)
        directory = Path(tempfile.mkdtemp(dir=self._directory))
        for name in ("tls.key", "tls.crt", "ca.crt"):
            with disk.open_read(DATA / "identity" / name) as file:
                (directory / name).write_bytes(file.read_at(0, file.size()))
        return RealContexts(directory)

    # --- telling ------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Write a line of the story."""
        line = f"{self.loop.time() - self._origin:9.3f}  {text}"
        self.log.append(line)
        self.loop.trace.update(line.encode())

    def _ready(self, machine: Machine) -> None:
        node = machine.node
        assert node is not None, "it says so when it is"
        recovery = node.services.store.recovery
        self.note(f"{machine.name} is ready" + ("" if recovery.is_clean else ", after repairs"))
        if not recovery.is_clean:
            self.sometimes["recovery repaired"] += 1
        states = self.states(machine)
        if self._disks_lost.get(machine.number, 0) != machine.disks_lost:
            self._disks_lost[machine.number] = machine.disks_lost
            self.checker.disk_lost(
                machine.number,
                {group: [signed.id for signed in state.causal()] for group, state in states.items()},
            )
        self.checker.kept(machine.number, states.values())

    @property
    def _has_lost_disk(self) -> bool:
        return any(machine.disks_lost for machine in self.machines)

    def _ended(self, machine: Machine, error: BaseException) -> None:
        self.note(f"{machine.name} ended: {type(error).__name__}")
        self.sometimes[f"ended {type(error).__name__}"] += 1
        if not isinstance(error, CrdtMergeError | StoppedError):
            self.checker.expect("I9", False, f"{machine.name} ended: {error!r}")

    def states(self, machine: Machine) -> dict[bytes, CRDTMergeState]:
        """Return group -> state of a machine that is ready; nothing of one that is not."""
        if machine.node is None:
            return {}
        replicas = machine.node.services.engine.replicas
        return {group: replicas[group].state for group in sorted(replicas)}

    # --- the story ----------------------------------------------------------------------------------

    async def live(self) -> None:
        """Start, tell the story, make peace, look."""
        await self._start()
        self._origin = self.loop.time()
        self.is_in_story = True
        duration_s = self.plan.scenario.duration_s
        at = self._origin
        for act in self.plan.acts:
            self.loop.call_at(at + act.time, self._begin_act, act, context=OUTSIDE)
        for fault in self.plan.faults:
            if fault.kind not in self._unsupported:
                self.loop.call_at(at + fault.time, self._begin_fault, fault, context=OUTSIDE)
            if fault.kind == "restore":
                moment = max(0.0, fault.time - fault.args["age_s"])
                self.loop.call_at(at + moment, self._back_up, fault, context=OUTSIDE)
        for number in range(1, SAMPLES + 1):
            await self._until(at + number * duration_s / SAMPLES)
            self._sample()
            if number % COLLECT_EVERY_SAMPLES == 0:
                gc.collect()
        self.is_in_story = False
        await self._make_peace()

    async def _start(self) -> None:
        first = [machine for machine in self.machines if machine.number not in self._late]
        for machine in first:
            machine.start()
            await asyncio.sleep(1 / STARTS_PER_S)
        await self._eventually(lambda: all(machine.node for machine in first), START_S_MAX)
        groups = self.plan.scenario.workload.groups
        await self._on(self.machines[0], self._create_groups(groups))
        if not await self._eventually(
            lambda: all(len(self.states(machine)) == groups for machine in first), START_S_MAX
        ):
            self.note("the cluster did not come together before the story")

    async def _create_groups(self, count: int) -> None:
        machine, scenario = self.machines[0], self.plan.scenario
        assert machine.node is not None, "it is ready"
        machine.put_file(USER / "like", self._model(0))
        for number in range(count):
            await _last(
                machine.node.api.group_create(
                    name=f"g{number}",
                    strategy=scenario.strategy,
                    params=scenario.params,
                    base_path=None,
                    like_path=str(USER / "like"),
                    dtype="",
                    weight_cap=DEFAULT_WEIGHT_CAP,
                    holders=scenario.holders,
                ),
                GroupInfo,
            )

    def _model(self, content: int) -> bytes:
        """Return a file with one tensor of a contribution; equal numbers are equal files."""
        elements = max(1, self.plan.scenario.workload.tensor_bytes // 4)
        spec = TensorSpec(name="weights", dtype="F32", shape=(elements,))
        generator = np.random.default_rng([self.plan.seed & 0xFFFFFFFF, content])
        return layout([spec])[0] + generator.standard_normal(elements, dtype=np.float32).tobytes()

    async def _until(self, moment: float) -> None:
        await asyncio.sleep(max(0.0, moment - self.loop.time()))

    async def _eventually(self, condition: Callable[[], bool], within_s: float) -> bool:
        deadline = self.loop.time() + within_s
        while not condition():
            if self.loop.time() > deadline:
                return False
            await asyncio.sleep(0.1)
        return True

    async def _on(self, machine: Machine, work: Any) -> Any:
        """Do something in the process of a machine; it must live that long."""
        assert machine.process is not None, "there is a process"
        return await self.loop.create_task(work, context=machine.process.context)

    # --- acts and faults ----------------------------------------------------------------------------

    def _begin_fault(self, fault: Any) -> None:
        if self.is_in_story:
            self.faults.begin(fault)

    def _back_up(self, fault: Any) -> None:
        self.backups[fault.index] = self.machines[fault.args["node"]].disk.copy()

    def _begin_act(self, act: Act) -> None:
        machine = self.machines[act.node]
        if act.kind == "start":
            machine.start()
        elif act.kind == "leave":
            self._leave(machine, act.args["down_s"])
        elif machine.process is None or machine.node is None:
            self.sometimes["act on a node that is down"] += 1
        else:
            self.loop.create_task(self._act(machine, act), context=machine.process.context)

    def _leave(self, machine: Machine, down_s: float) -> None:
        if not machine.is_wanted or machine.node is None:
            return
        machine.say_goodbye()

        def come_back() -> None:
            machine.kill(restart_s=None)
            machine.lose_disk()
            machine.start()

        self.note(f"{machine.name} leaves")
        self.loop.call_later(down_s, come_back, context=OUTSIDE)

    async def _act(self, machine: Machine, act: Act) -> None:
        """Carry out an act within the process of the node."""
        try:
            operation = await self._deed(machine, act)
        except (CrdtMergeError, OSError) as error:
            self.sometimes[f"act refused: {type(error).__name__}"] += 1
            self.note(f"{machine.name} {act.kind} refused: {type(error).__name__}")
            return
        group = bytes.fromhex(self._group(machine, act))
        self.note(f"{machine.name} {act.kind} {operation.hex()[:8]}")
        self.checker.acknowledged(machine.number, self.states(machine)[group], operation)
        if (then := self.after_ack.pop(machine.number, None)) is not None:
            then()

    def _group(self, machine: Machine, act: Act) -> str:
        for group, state in self.states(machine).items():
            if state.genesis.name == f"g{act.args['group']}":
                return group.hex()
        raise CrdtMergeError("the group is not known here yet.")

    async def _deed(self, machine: Machine, act: Act) -> bytes:
        node = machine.node
        assert node is not None, "looked at a moment ago, in the same callback"
        group, args = self._group(machine, act), act.args
        match act.kind:
            case "add":
                path = USER / f"{act.index}.safetensors"
                machine.put_file(path, self._model(args["content"]))
                added = await _last(
                    node.api.contribution_add(
                        group,
                        path=str(path),
                        slot=args["slot"],
                        base_path=None,
                        weight=WEIGHT_ONE,
                        meta={},
                        wait_holds=0,
                    ),
                    ContributionAdded,
                )
                machine.disk.unlink(path)
                return bytes.fromhex(added.contribution.tag)
            case "remove":
                removed = await node.api.contribution_remove(group, args["slot"])
                return bytes.fromhex(removed.operation)
            case "policy":
                changes = PolicyChanges(weight_cap=args["weight_cap"])
                policy = await _last(node.api.policy_set(group, changes), PolicyInfo)
                return bytes.fromhex(policy.id)
            case "unknown":
                body = b"\x01" + stream(self.plan.seed, "unknown", act.index).randbytes(16)
                signed = await node.services.driver.author(bytes.fromhex(group), UNKNOWN_KIND, body)
                return signed.id
        raise AssertionError(f"no such act: {act.kind}")

    # --- looking ------------------------------------------------------------------------------------

    def _sample(self) -> None:
        roots, operations, keys, tombstones = [], [], set(), 0
        honest = [machine.key.node_id for machine in self.machines]
        for machine in self.machines:
            states = self.states(machine)
            roots.append("".join(state.sync_root.hex()[:8] for state in states.values()))
            operations.append(sum(len(state) for state in states.values()))
            tombstones = max(tombstones, sum(len(state.removes) for state in states.values()))
            if machine.node is None:
                continue
            replicas = machine.node.services.engine.replicas
            for group in sorted(replicas):
                state = replicas[group].state
                if self._counts.get((machine.number, group)) != len(state):
                    self._counts[machine.number, group] = len(state)
                    self.checker.stored(machine.number, group, list(state.trie))
                self.checker.look(machine.number, replicas[group], honest, thoroughly=False)
                contents = machine.node.services.keeper.contents(group)
                if contents is not None and contents.is_complete:
                    keys.add(contents.keys()[1])
        self.samples.append(
            Sample(
                time=round(self.loop.time() - self._origin, 6),
                distinct_roots=len({root for root in roots if root}),
                distinct_keys=len(keys),
                roots=roots,
                sides=[self.faults.side_of(number) for number in range(len(self.machines))],
                operations=operations,
                tombstones=tombstones,
            )
        )

    def _is_converged(self) -> bool:
        first = self.states(self.machines[0])
        groups = self.plan.scenario.workload.groups
        if len(first) != groups:
            return False
        for machine in self.machines:
            states = self.states(machine)
            if len(states) != groups or any(
                states[group].sync_root != first[group].sync_root for group in first if group in states
            ):
                return False
        return all(self._is_complete(machine, group) for machine in self.machines for group in first)

    def _is_complete(self, machine: Machine, group: bytes) -> bool:
        """Whether all bytes that still exist are here, judged from the newest view."""
        node = machine.node
        if node is None or (contents := node.services.keeper.contents(group)) is None:
            return False
        if contents.view != node.services.engine.replicas[group].state.view:
            return False
        lost = self._lost_bytes()
        return contents.is_ready(frozenset(self._without(contents, lost)))

    def _lost_bytes(self) -> frozenset[bytes]:
        """Return what is wanted and on no disk: possible only where a disk was lost before it was fetched."""
        if not self._has_lost_disk:
            return frozenset()
        wanted: set[bytes] = set()
        stores = []
        for machine in self.machines:
            if machine.node is not None:
                stores.append(machine.node.services.store.blobs)
                for group in self.states(machine):
                    if (contents := machine.node.services.keeper.contents(group)) is not None:
                        wanted.update(contents.missing)
        return frozenset(
            id_
            for id_ in wanted
            if not any(store.has(id_) or store.get_object(id_) is not None for store in stores)
        )

    @staticmethod
    def _without(contents: GroupContents, lost: frozenset[bytes]) -> list[bytes]:
        """Return the contributions that nobody will ever see the bytes of."""
        return sorted(item.visible.tag for item in contents.awaited() if lost & item.missing.keys())

    # --- peace --------------------------------------------------------------------------------------

    async def _make_peace(self) -> None:
        self.note("peace")
        self.faults.end_all()
        healed = self.loop.time()
        for machine in self.machines:
            machine.cut_in, machine.fails_next_write = None, False
            self.after_ack.clear()
            machine.start()
        if await self._eventually(self._is_converged, self.plan.scenario.peace_s):
            self._converged_after_s = round(self.loop.time() - healed, 6)
            self.note(f"all agree after {self._converged_after_s:.1f} s")
        else:
            self.note("they do not agree")
            self._explain()
        self._sample()
        await self._look_at_all()

    def _explain(self) -> None:
        """Write down who differs."""
        for machine in self.machines:
            states = self.states(machine)
            roots = " ".join(f"{len(state)}:{state.sync_root.hex()[:8]}" for state in states.values())
            complete = [self._is_complete(machine, group) for group in states]
            peers = len(machine.node.services.driver.connections) if machine.node else 0
            self.note(f"{machine.name} has {roots or 'nothing'}, complete {complete}, {peers} peers")

    async def _look_at_all(self) -> None:
        honest = [machine.key.node_id for machine in self.machines]
        states = {machine.number: self.states(machine) for machine in self.machines}
        for machine in self.machines:
            self.checker.kept(machine.number, states[machine.number].values())
            if machine.node is None:
                continue
            replicas = machine.node.services.engine.replicas
            for group in sorted(replicas):
                self.checker.look(machine.number, replicas[group], honest, thoroughly=True)
                waiting = replicas[group].orphan_count
                self.checker.expect("I17", not waiting, f"{machine.name} still has {waiting} orphans")
        authors = {machine.key.node_id: machine.number for machine in self.machines}
        for state in states[0].values():
            for signed in state.causal():
                self.checker.authored(authors[signed.operation.author], signed)
        is_converged = self._converged_after_s is not None
        self.checker.agreed(states, is_converged=is_converged, twins=())
        if is_converged:
            for group in states[0]:
                await self._compare_outputs(group)
        self.checker.expect("I9", not self.loop.problems, "; ".join(self.loop.problems[:5]))

    async def _compare_outputs(self, group: bytes) -> None:
        """Resolve on two nodes and compare (I14)."""
        lost = self._lost_bytes()
        used: set[tuple[bytes, ...]] = set()
        keys, without = set(), []
        for machine in self.machines:
            assert machine.node is not None, "all are ready, for they agree"
            contents = machine.node.services.keeper.contents(group)
            assert contents is not None, "all have compared, for they agree"
            without = self._without(contents, lost)
            keys.add(contents.keys(frozenset(without))[1])
            used.add(tuple(item.visible.tag for item in contents.used))
        self.checker.expect("I14", len(keys) == 1, f"{len(keys)} resolve keys with all bytes there")
        if used == {()}:
            self.sometimes["nothing to resolve"] += 1
            return
        chosen = stream(self.plan.seed, "resolve", group.hex()).sample(
            range(len(self.machines)), min(2, len(self.machines))
        )
        self.sometimes["bytes lost with a disk"] += len(without)
        digests = [
            await self._on(self.machines[number], self._resolve(number, group, without)) for number in chosen
        ]
        self.note(f"outputs {' '.join(digest[:8] for digest in digests)}")
        self.checker.expect("I14", len(set(digests)) == 1, f"nodes {chosen} wrote different outputs")

    async def _resolve(self, number: int, group: bytes, without: list[bytes]) -> str:
        node = self.machines[number].node
        assert node is not None, "all are ready, for they agree"
        output = str(USER / "merged.safetensors")
        report = await _last(
            node.api.resolve(
                group.hex(), output_path=output, wait_s=5.0, without=tuple(tag.hex() for tag in without)
            ),
            ResolveReport,
        )
        return report.output_digest

    # --- the end ------------------------------------------------------------------------------------

    def end(self) -> None:
        """Pull all plugs."""
        for machine in self.machines:
            machine.is_wanted = False
            machine.kill(restart_s=None)

    def result(self) -> Result:
        """Return what was seen."""
        plan, states = self.plan, self.states(self.machines[0])
        operations = [signed for state in states.values() for signed in state.causal()]
        needed = sum(len(signed.wire()) for signed in operations) * (len(self.machines) - 1)
        return Result(
            name=plan.scenario.name,
            seed=plan.seed,
            fidelity="daemon",
            nodes=len(self.machines),
            converged_after_s=self._converged_after_s,
            checks=self.checker.checks,
            sometimes=self.sometimes,
            log=self.log,
            samples=self.samples,
            links=[(link.a, link.b) for link in plan.links],
            sites=list(plan.sites),
            bytes_sent=[self.network.bytes_sent.get(number, 0) for number in range(len(self.machines))],
            bytes_needed=needed,
            operations=len(operations),
            visible=sum(len(state.view.visible) for state in states.values()),
            events=self.loop.callbacks,
            virtual_s=round(self.loop.time(), 6),
            trace=self.loop.trace.hexdigest(),
            unsupported=self._unsupported,
        )


async def _last(steps: AsyncIterator[Any], kind: type[T]) -> T:
    """Return the result at the end of a stream of progress."""
    found: T | None = None
    async for step in steps:
        if isinstance(step, kind):
            found = step
    assert found is not None, f"the stream ends with a {kind.__name__} or raises"
    return found


@contextlib.contextmanager
def _listening() -> Iterator[Counter[str]]:
    """Count what daemons log instead of printing it."""
    before = structlog.get_config()
    counts: Counter[str] = Counter()

    def count(_logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if method in ("warning", "error"):
            counts[f"log {event['event']}"] += 1
        raise structlog.DropEvent

    structlog.configure(processors=[count])
    try:
        yield counts
    finally:
        structlog.configure(**before)
