"""Carries a plan out on real daemons: own processes, disks, sockets and clocks.

``run`` starts the work in a process of its own, in namespaces of its own where root makes that possible: of
process ids, mounts and network. When that process ends, however it ends, the kernel kills what runs in them
and takes mounts and networks away. Without root the daemons die with the process that started them.

What happens is drawn by the plan and timed by the machine: the same seed makes the same acts and faults at
the same times, and what comes of it may differ. So there is no trace to compare, and a verdict counts for
the run that gave it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from crdt_merge_node.errors import ConfigError, ControlError

from .nemesis import FULL_BYTES, Nemesis
from .plan import Plan, Scenario
from .planning import stream
from .process_cluster import SEEDS_PER_NODE, Daemon, ProcessCluster
from .process_network import LoopbackNetwork, NamespaceNetwork, Network, isolation
from .process_workload import Workload
from .result import Check, Result, Sample

HEAL_TARGET_S: Final = 30.0
"""Within which all must agree after the last heal, as TARGETS ask of real processes."""
SETTLE_TIMEOUT_S: Final = 120.0
SAMPLE_S: Final = 5.0
POLL_S: Final = 0.5
NETWORKS: Final = ("auto", "namespaces", "loopback")
CLAIMS: Final = {
    "I1": "No acknowledged contribution is lost.",
    "I11": "No node hides what it acknowledged itself; calm nodes show the same.",
    "I13": f"All nodes have equal roots within {HEAL_TARGET_S:g} s of the last heal.",
    "I14": "Equal resolve keys give equal output digests.",
    "P1": "No removed contribution is visible again.",
    "P2": "No daemon ends by itself.",
}


def scaled(scenario: Scenario, *, nodes: int | None, duration_s: float | None) -> Scenario:
    """Return a scenario for more nodes or a longer time, with as much work and trouble per second."""
    ratio = 1.0 if duration_s is None else duration_s / scenario.duration_s
    workload = replace(
        scenario.workload,
        operations=max(1, round(scenario.workload.operations * ratio)),
        churn=round(scenario.workload.churn * ratio),
    )
    counts = {kind: max(1, round(count * ratio)) for kind, count in scenario.faults.counts.items() if count}
    return replace(
        scenario,
        nodes=nodes or scenario.nodes,
        fidelity="process",
        duration_s=duration_s or scenario.duration_s,
        workload=workload,
        faults=replace(scenario.faults, counts=counts),
    )


def run(plan: Plan, *, network: str = "auto", history: Path | None = None, is_quiet: bool = True) -> Result:
    """Carry out a plan on real daemons; nothing of it is left when this returns or is interrupted.

    Args:
        network: One of :data:`NETWORKS`; ``auto`` takes namespaces where they work.
        history: File for what was asked and answered, one JSON object per line.
        is_quiet: Do not print the story to standard error as it happens.

    Raises:
        ConfigError: Namespaces are asked for and do not work here.
        ControlError: The run itself failed, not the nodes.
    """
    prefix = isolation() if network != "loopback" else ()
    if network == "namespaces" and not prefix:
        raise ConfigError("There are no namespaces here.", hint="Run as root, with iproute2 and util-linux.")
    directory = Path(tempfile.mkdtemp(prefix="cmn-"))
    job, answer = directory / "job", directory / "answer"
    job.write_bytes(pickle.dumps((plan, bool(prefix), history and history.absolute(), is_quiet)))
    me = [sys.executable, "-m"]
    launch = [*me, "crdt_merge_simulations.process_launch", str(os.getpid())]
    child = subprocess.Popen(  # noqa: S603  Our own program.
        [*launch, *prefix, *me, "crdt_merge_simulations.process_world", str(directory)],
        start_new_session=True,
    )
    try:
        with _ending_on_sigterm():
            status = child.wait()
        if status:
            raise ControlError(f"the process that runs the daemons ended with {status}.")
        result: Result = pickle.loads(answer.read_bytes())  # noqa: S301  Written by our own child.
        return result
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def _ending_on_sigterm() -> Any:
    """Let SIGTERM unwind this process, so that it cleans up."""

    def end(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # Not the main thread: somebody else minds signals.
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> None:
    """Carry out the job in the directory that is named, inside the namespaces if there are any."""
    directory = Path(sys.argv[1])
    plan, has_namespaces, history, is_quiet = pickle.loads((directory / "job").read_bytes())  # noqa: S301
    world = ProcessWorld(plan, directory / "nodes", has_namespaces=has_namespaces, is_quiet=is_quiet)
    result = asyncio.run(world.run())
    if history is not None:
        world.history.write(history)
    (directory / "answer").write_bytes(pickle.dumps(result))


class ProcessWorld:
    """One run."""

    def __init__(self, plan: Plan, directory: Path, *, has_namespaces: bool, is_quiet: bool) -> None:
        scenario = plan.scenario
        self.network: Network = NamespaceNetwork() if has_namespaces else LoopbackNetwork()
        supported = Nemesis.supported(self.network, has_mounts=has_namespaces)
        self.plan = plan
        self.faults = [fault for fault in plan.faults if fault.kind in supported]
        self.result = Result(
            name=scenario.name,
            seed=plan.seed,
            fidelity="process",
            nodes=scenario.nodes,
            links=[(link.a, link.b) for link in plan.links],
            sites=list(plan.sites),
            checks={id_: Check(id=id_, claim=claim) for id_, claim in CLAIMS.items()},
            unsupported=[str(fault) for fault in plan.faults if fault.kind not in supported],
        )
        self._directory = directory
        self._is_quiet = is_quiet
        self._began = 0.0
        self._small_disks = frozenset(fault.args["node"] for fault in self.faults if fault.kind == "full")
        self.cluster = ProcessCluster(
            [self._daemon(number) for number in range(scenario.nodes)], on_death=self._died
        )
        self.workload = Workload(plan, self.cluster, directory, clock=self.clock, note=self.note)
        self.history = self.workload.history
        self.nemesis = Nemesis(
            plan, self.cluster, self.network, self.history, clock=self.clock, note=self.note
        )
        self._restarts: set[asyncio.Task[None]] = set()

    def _daemon(self, number: int) -> Daemon:
        others = [other for other in range(self.plan.scenario.nodes) if other != number]
        seeds = stream(self.plan.seed, "seeds", number).sample(others, min(SEEDS_PER_NODE, len(others)))
        return Daemon(
            number=number,
            data_dir=self._directory / f"n{number}",
            address=self.network.address(number),
            namespace=self.network.namespace(number),
            seeds=tuple(self.network.address(seed) for seed in seeds),
        )

    def clock(self) -> float:
        """Return seconds since the start of the work."""
        return time.monotonic() - self._began

    def note(self, text: str) -> None:
        """Write a line of the story."""
        line = f"{self.clock():9.3f}  {text}"
        self.result.log.append(line)
        if not self._is_quiet:
            print(line, file=sys.stderr, flush=True)  # noqa: T201  The story, as it happens.

    async def run(self) -> Result:
        """Start the daemons, let the plan happen, heal, judge."""
        self._began = began = time.monotonic()
        self._directory.mkdir()
        try:
            await self._prepare()
            self._began = time.monotonic()
            await self._live()
            await self._settle()
        finally:
            await self.cluster.close()
            self._unmount()
        self.result.wall_s = round(time.monotonic() - began, 3)
        return self.result

    # --- before -------------------------------------------------------------------------------------------

    async def _prepare(self) -> None:
        clones = sum(fault.kind == "clone" for fault in self.faults)
        await self.network.open(self.plan.scenario.nodes + clones)
        for number in sorted(self._small_disks):
            path = self.cluster[number].data_dir
            path.mkdir(mode=0o700)
            _call("mount", "-t", "tmpfs", "-o", f"size={FULL_BYTES},mode=0700", "tmpfs", str(path))
        await self.cluster.nursery.open()
        self.cluster.make_identities()
        late = {act.node for act in self.plan.acts if act.kind == "start"}
        first = [daemon for daemon in self.cluster.daemons if daemon.number not in late]
        self.result.ready_s = round(await self.cluster.start_all(first), 3)
        self.note(f"{len(first)} daemons are ready after {self.result.ready_s:.1f} s")
        await self.workload.create_groups()
        took = await self._until(self._knows_groups, SETTLE_TIMEOUT_S)
        if took is None:
            raise ControlError("not every daemon learnt of the groups: nothing to test.")
        self.note(f"everybody knows the groups after {took:.1f} s more")

    def _unmount(self) -> None:
        for number in self._small_disks:
            _call("umount", "--lazy", str(self.cluster[number].data_dir), is_needed=False)

    async def _knows_groups(self) -> bool:
        listings = await self.workload.listings()
        return all(len(listing) == self.plan.scenario.workload.groups for listing in listings.values())

    # --- during -------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        self.nemesis.begin(self.faults)
        async with asyncio.TaskGroup() as group:
            reader = group.create_task(self.workload.read_now_and_then())
            sampler = group.create_task(self._sample_now_and_then())
            group.create_task(self.workload.carry_out(self.nemesis))
            await asyncio.sleep(self.plan.scenario.duration_s)
            reader.cancel()
            sampler.cancel()
        await self.nemesis.heal()
        await asyncio.gather(*self._restarts)
        await self.cluster.start_all(self.cluster.daemons)

    async def _sample_now_and_then(self) -> None:
        while True:
            await self._sample()
            await asyncio.sleep(SAMPLE_S)

    async def _sample(self) -> bool:
        """Look at all nodes; tell whether they agree and lack nothing."""
        listings = await self.workload.listings()
        roots = ["" for _ in self.cluster.daemons]
        operations = [0 for _ in self.cluster.daemons]
        for number, listing in listings.items():
            roots[number] = "/".join(info.sync_root[:12] for info in listing)
            operations[number] = sum(info.operations for info in listing)
        keys = {tuple(info.resolve_key for info in listing) for listing in listings.values()}
        known = {root for root in roots if root}
        isolated = {source for source, _ in self.nemesis.cuts}
        self.result.samples.append(
            Sample(
                time=round(self.clock(), 3),
                distinct_roots=len(known),
                distinct_keys=len(keys),
                roots=roots,
                sides=[int(number in isolated) for number in range(len(roots))],
                operations=operations,
                tombstones=len(self.history.removed),
            )
        )
        return (
            len(listings) == len(self.cluster.daemons)
            and len(known) == len(keys) == 1
            and not any(info.missing_blobs for listing in listings.values() for info in listing)
        )

    def _died(self, daemon: Daemon, status: int) -> None:
        """A daemon ended by itself: remember it, and start it again as a service manager would."""
        check = self.result.checks["P2"]
        check.violations.append(
            f"n{daemon.number} exited with {status} at {self.clock():.3f}: {daemon.log_tail()[-400:]}"
        )
        self.note(f"n{daemon.number} exited by itself with {status}")
        task = asyncio.create_task(self.nemesis.restart(daemon))
        self._restarts.add(task)
        task.add_done_callback(self._restarts.discard)

    # --- after --------------------------------------------------------------------------------------------

    async def _settle(self) -> None:
        self.note("peace: all faults have ended, all nodes are up")
        agreed = await self._until(self._sample, SETTLE_TIMEOUT_S)
        result = self.result
        result.converged_after_s = None if agreed is None else round(agreed, 3)
        self.note("the nodes do not agree" if agreed is None else f"all nodes agree after {agreed:.1f} s")
        result.checks["I13"].checked = len(self.cluster.daemons)
        if agreed is None or agreed > HEAL_TARGET_S:
            shown = "never" if agreed is None else f"after {agreed:.1f} s"
            result.checks["I13"].violations.append(f"{shown}; the target is {HEAL_TARGET_S:g} s")
        result.rss_bytes = [daemon.rss_bytes() for daemon in self.cluster.daemons]
        result.checks["P2"].checked = sum(daemon.starts for daemon in self.cluster.daemons)
        await self._judge_outputs()
        await self._judge_history()
        statuses = await asyncio.gather(*(daemon.client.status() for daemon in self.cluster.daemons))
        result.bytes_sent = [status.bytes_out for status in statuses]
        result.operations = sum(info.operations for info in statuses[0].groups)
        result.visible = sum(info.contributions for info in statuses[0].groups)
        result.events = len(self.history.entries)
        result.sometimes.update({f"fault {kind}": count for kind, count in self.nemesis.done.items()})
        result.virtual_s = round(self.clock(), 3)
        result.sometimes.update(self.workload.outcomes)

    async def _judge_outputs(self) -> None:
        """Resolve every distinct key on two nodes and compare the digests."""
        check = self.result.checks["I14"]
        for key, digests in sorted((await self.workload.resolve_on_two()).items()):
            check.checked += len(digests)
            if len(set(digests.values())) > 1 or any("error" in digest for digest in digests.values()):
                check.violations.append(f"key {key[:12]}: {digests}")

    async def _judge_history(self) -> None:
        verdicts = self.history.judge(await self.workload.final_reads())
        for id_, found in (("I1", verdicts.lost), ("P1", verdicts.resurrected), ("I11", verdicts.stale)):
            self.result.checks[id_].violations += found
        self.result.checks["I1"].checked = len(self.history.added)
        self.result.checks["P1"].checked = sum(len(removed.tags) for removed in self.history.removed)
        self.result.checks["I11"].checked = verdicts.checked
        self.result.sometimes["forgiven: lost with the only disk"] = verdicts.forgiven

    async def _until(self, condition: Any, timeout_s: float) -> float | None:
        began = time.monotonic()
        while not await condition():
            if time.monotonic() - began > timeout_s:
                return None
            await asyncio.sleep(POLL_S)
        return time.monotonic() - began


def _call(*command: str, is_needed: bool = True) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if is_needed and done.returncode:
        raise ControlError(f"{' '.join(command)}: {done.stderr.strip()}")


if __name__ == "__main__":
    main()
