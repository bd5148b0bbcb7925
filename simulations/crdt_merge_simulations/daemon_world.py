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
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from random import Random
from typing import Any, Final
from unittest import mock

import structlog
from crdt_merge_node.errors import CorruptError
from crdt_merge_node.ports import SystemClock
from crdt_merge_node.transport import TlsContexts
from crdt_merge_node.transport.certificates import CertificateAuthority
from crdt_merge_protocol.errors import CrdtMergeError
from cryptography import x509

from .daemon_faults import CULPRITS, Faults
from .daemon_models import DaemonModels
from .daemon_sharing import shared_daemon_work
from .daemon_tap import Tap
from .daemon_users import Users
from .daemon_watch import Watcher
from .disk import SimulatedDisk
from .disk_sqlite import SimulatedVfs
from .invariants import Checker
from .link import Direction
from .loop import SimulatedLoop, simulated_loop
from .machine import DATA, Machine, StoppedError, Surroundings
from .network import PORT, Network, host_of
from .plaintext import PlaintextContexts, RealContexts
from .plan import Fault, Plan
from .planning import stream
from .result import Result
from .simulated_process import OUTSIDE

WALL_S: Final = 1_800_000_000.0
START_S_MAX: Final = 60.0
"""Virtual seconds in which a cluster must come up before the story."""
STARTS_PER_S: Final = 50.0
SEEDS_MAX: Final = 3
SAMPLES: Final = 80
COLLECT_EVERY: Final = 250_000
"""Callbacks. Collecting walks through all that lives; not collecting, a hundred daemons take gigabytes."""


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
        stack.enter_context(shared_daemon_work())
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
        machines = (*world.machines, *world.clones)
        return world.result(), [vfs for machine in machines for vfs in machine.vfses]
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
        self.models = DaemonModels(plan)
        self.tap = Tap(self.checker, plan.scenario.nodes, loop.time)
        self.users = Users(self)
        self.faults = Faults(self)
        self.watcher = Watcher(self)
        self.log: list[str] = []
        self.clones: list[Machine] = []
        """Machines that began with a copy of another's disk."""
        self.culprits = frozenset(fault.args["node"] for fault in plan.faults if fault.kind in CULPRITS)
        """Nodes that lie at some time; nothing is asked of them."""
        self.twins: list[tuple[bytes, bytes, bytes]] = []
        """(author, id, id) of forks."""
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
            self._surroundings = surroundings
            return [Machine(surroundings, number, self._seeds(number)) for number in range(count)]

    def add_clone(self, original: Machine) -> Machine:
        """Return a new machine, not started, with the disk of another and links like its."""
        number = len(self.machines) + len(self.clones)
        for (a, b), direction in list(self.network.directions.items()):
            if original.number in (a, b):
                ends = (number, b) if a == original.number else (a, number)
                self.network.directions[ends] = direction.like(stream(self.plan.seed, "link", *ends))
        clone = Machine(self._surroundings, number, original.seeds, original=original)
        self.clones.append(clone)
        return clone

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
        self.tap.attach(machine)
        states = machine.states()
        if self._disks_lost.get(machine.number, 0) != machine.disks_lost:
            self._disks_lost[machine.number] = machine.disks_lost
            self.tap.forget(machine.number)
            self.checker.disk_lost(
                machine.number,
                {group: [signed.id for signed in state.causal()] for group, state in states.items()},
            )
        for group, state in states.items():
            self.checker.stored(machine.number, group, list(state.trie))
        self.checker.kept(machine.number, states.values())

    def _ended(self, machine: Machine, error: BaseException) -> None:
        self.note(f"{machine.name} ended: {type(error).__name__}")
        self.sometimes[f"ended {type(error).__name__}"] += 1
        if isinstance(error, CorruptError):
            # Power cuts and full disks are no excuse: a store that only they have met must be whole.
            text = f"the store of {machine.name} is damaged, and no byte of it has rotted"
            self.checker.expect("I1", machine.disk.is_rotten, text)
        if not isinstance(error, CrdtMergeError | StoppedError):
            self.checker.expect("I9", False, f"{machine.name} ended: {error!r}")

    # --- the story ----------------------------------------------------------------------------------

    async def live(self) -> None:
        """Start, tell the story, make peace, look."""
        await self._start()
        self._origin = self.loop.time()
        self.is_in_story = True
        duration_s = self.plan.scenario.duration_s
        at = self._origin
        for act in self.plan.acts:
            self.loop.call_at(at + act.time, self.users.begin, self.machines[act.node], act, context=OUTSIDE)
        for fault in self.plan.faults:
            if fault.kind not in self._unsupported:
                self.loop.call_at(at + fault.time, self._begin_fault, fault, context=OUTSIDE)
            if fault.kind == "restore":
                moment = max(0.0, fault.time - fault.args["age_s"])
                self.loop.call_at(at + moment, self._back_up, fault, context=OUTSIDE)
        collect_at = self.loop.callbacks + COLLECT_EVERY
        for number in range(1, SAMPLES + 1):
            await self._until(at + number * duration_s / SAMPLES)
            self.watcher.sample(self._story_time())
            if self.loop.callbacks >= collect_at:
                collect_at = self.loop.callbacks + COLLECT_EVERY
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
        await self.on(self.machines[0], self.users.create_groups(self.machines[0], groups))
        if not await self._eventually(
            lambda: all(len(machine.states()) == groups for machine in first), START_S_MAX
        ):
            self.note("the cluster did not come together before the story")

    def _story_time(self) -> float:
        return round(self.loop.time() - self._origin, 6)

    async def _until(self, moment: float) -> None:
        await asyncio.sleep(max(0.0, moment - self.loop.time()))

    async def _eventually(self, condition: Callable[[], bool], within_s: float) -> bool:
        deadline = self.loop.time() + within_s
        while not condition():
            if self.loop.time() > deadline:
                return False
            await asyncio.sleep(0.1)
        return True

    async def on(self, machine: Machine, work: Any) -> Any:
        """Do something in the process of a machine; it must live that long."""
        assert machine.process is not None, "there is a process"
        return await self.loop.create_task(work, context=machine.process.context)

    # --- acts and faults ----------------------------------------------------------------------------

    def _begin_fault(self, fault: Fault) -> None:
        if self.is_in_story:
            self.faults.begin(fault)

    def _back_up(self, fault: Fault) -> None:
        self.backups[fault.index] = self.machines[fault.args["node"]].disk.copy()

    # --- peace --------------------------------------------------------------------------------------

    async def _make_peace(self) -> None:
        self.note("peace")
        self.faults.end_all()
        healed = self.loop.time()
        for machine in self.machines:
            machine.cut_in, machine.fails_next_write = None, False
            self.after_ack.clear()
            machine.start()
        if await self._eventually(self.watcher.is_converged, self.plan.scenario.peace_s):
            self._converged_after_s = round(self.loop.time() - healed, 6)
            self.note(f"all agree after {self._converged_after_s:.1f} s")
        else:
            self.note("they do not agree")
            self.watcher.explain()
        self.watcher.sample(self._story_time())
        await self.watcher.look_at_all()

    # --- the end ------------------------------------------------------------------------------------

    def end(self) -> None:
        """Pull all plugs."""
        for machine in (*self.machines, *self.clones):
            machine.is_wanted = False
            machine.kill(restart_s=None)

    def result(self) -> Result:
        """Return what was seen."""
        plan = self.plan
        states = next(each for each in self.machines if each.number not in self.culprits).states()
        operations = [signed for state in states.values() for signed in state.causal()]
        shown = [each for state in states.values() for each in state.view.visible]
        needed = sum(len(signed.wire()) for signed in operations) + self.models.nbytes_needed(shown)
        return Result(
            name=plan.scenario.name,
            seed=plan.seed,
            fidelity="daemon",
            nodes=len(self.machines),
            converged_after_s=self._converged_after_s,
            checks=self.checker.checks,
            sometimes=self.sometimes,
            log=self.log,
            samples=self.watcher.samples,
            links=[(link.a, link.b) for link in plan.links],
            sites=list(plan.sites),
            bytes_sent=[self.network.bytes_sent.get(number, 0) for number in range(len(self.machines))],
            bytes_needed=needed * (len(self.machines) - 1),
            hops=self.tap.hops,
            delivery_s=self.tap.delivery_s,
            duplicates=self.tap.duplicates,
            deliveries=self.tap.deliveries,
            operations=len(operations),
            visible=len(shown),
            events=self.loop.callbacks,
            virtual_s=round(self.loop.time(), 6),
            trace=self.loop.trace.hexdigest(),
            unsupported=self._unsupported,
        )


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
