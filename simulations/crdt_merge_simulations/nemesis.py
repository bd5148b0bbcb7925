"""Carries out the faults of a plan on real processes.

Of :data:`~crdt_merge_simulations.plan.FAULT_KINDS` those that a process can suffer without its own help:
``kill crash_loop freeze slow wipe restore clone partition isolate flap``, with namespaces also ``one_way``
and ``full`` (the node's directory is a small tmpfs then). The others belong to simulated worlds and are left
out.

A node suffers one fault at a time: another one that concerns it waits for its turn. When :meth:`heal` is
called, every fault ends at once, and what is down comes up again.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from crdt_merge_node.errors import ControlError

from .history import DiskLoss, History
from .plan import Fault, Plan
from .planning import stream
from .process_cluster import Daemon, ProcessCluster
from .process_network import Cut, Network

ANYWHERE: Final = frozenset(
    {"kill", "crash_loop", "freeze", "slow", "wipe", "restore", "clone", "partition", "isolate", "flap"}
)
SLICE_S: Final = 0.1
"""A slow node runs for a part of each such slice and is stopped for the rest."""
FULL_BYTES: Final = 48 << 20
"""Size of the file system of a node whose disk shall be full."""
FILL_BYTES: Final = 1 << 20


class Nemesis:
    """Makes things go wrong, and right again."""

    def __init__(
        self,
        plan: Plan,
        cluster: ProcessCluster,
        network: Network,
        history: History,
        *,
        clock: Callable[[], float],
        note: Callable[[str], None],
    ) -> None:
        self.plan = plan
        self.done: Counter[str] = Counter()
        """Faults that were carried out, by kind."""
        self._cluster = cluster
        self._network = network
        self._history = history
        self._clock = clock
        self._note = note
        self._cuts: dict[int, frozenset[Cut]] = {}
        self._cutting = asyncio.Lock()
        self._peace = asyncio.Event()
        self._backups: dict[int, tuple[Path, float]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @staticmethod
    def supported(network: Network, *, has_mounts: bool) -> frozenset[str]:
        """Return the kinds that can be carried out here."""
        extra = {"one_way"} if network.is_one_way else set()
        return ANYWHERE | extra | ({"full"} if has_mounts else set())

    def begin(self, faults: list[Fault]) -> None:
        """Schedule faults at their times after now."""
        for fault in faults:
            self._spawn(self._strike(fault))
            if fault.kind == "restore":
                self._spawn(self._backup(fault))

    async def heal(self) -> None:
        """End all faults, and wait until they have ended and every node that they took down is up."""
        self._peace.set()
        await asyncio.gather(*self._tasks)
        self._cuts.clear()
        await self._apply_cuts()

    async def restart(self, daemon: Daemon) -> None:
        """Start a node that ended by itself, as a service manager would."""
        async with daemon.lock:
            await daemon.signal(signal.SIGKILL)
            await self._start(daemon)

    async def leave(self, daemon: Daemon, down_s: float) -> None:
        """Let a node stop, and come back with an empty disk and the same key."""
        async with daemon.lock:
            await daemon.signal(signal.SIGTERM)
            self._wipe_disk(daemon)
            await self._pause(down_s)
            await self._start(daemon)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)

    async def _strike(self, fault: Fault) -> None:
        await self._pause(fault.time - self._clock())
        if self._peace.is_set():
            return
        node = fault.args.get("node", -1)
        self._history.record(self._clock(), node, "invoke", fault.kind, fault.index)
        self._note(f"! {_describe(fault)}")
        strike = getattr(self, f"_do_{fault.kind}")
        if "node" in fault.args and fault.kind != "isolate":
            daemon = self._cluster[node]
            async with daemon.lock:
                if self._peace.is_set() or daemon.starts == 0:
                    self._history.record(
                        self._clock(),
                        node,
                        "fail",
                        fault.kind,
                        fault.index,
                        text="came too late or too early",
                    )
                    return
                await strike(fault, daemon)
        else:
            await strike(fault)
        self.done[fault.kind] += 1
        self._history.record(self._clock(), node, "ok", fault.kind, fault.index)

    async def _pause(self, seconds: float) -> None:
        """Wait, but not longer than until peace."""
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._peace.wait(), seconds)

    async def _start(self, daemon: Daemon) -> None:
        """Start a daemon; one that ends at once, say on a full disk, is started again as a manager would."""
        for attempt in range(5):
            try:
                await self._cluster.start(daemon)
                break
            except (ControlError, TimeoutError) as error:
                await daemon.signal(signal.SIGKILL)
                self._note(f"n{daemon.number} did not start: {error}")
                await asyncio.sleep(0.5 * (attempt + 1))
        await self._network.started(daemon.number, self._cluster)

    # --- processes and their disks ------------------------------------------------------------------------

    async def _do_kill(self, fault: Fault, daemon: Daemon) -> None:
        await daemon.signal(signal.SIGKILL)
        await self._pause(fault.args["down_s"])
        await self._start(daemon)

    async def _do_crash_loop(self, fault: Fault, daemon: Daemon) -> None:
        moments = stream(self.plan.seed, "crash", fault.index)
        await daemon.signal(signal.SIGKILL)
        for _ in range(fault.args["times"]):
            await daemon.spawn(self._cluster.nursery)
            await self._pause(moments.uniform(0.1, 2.0))
            await daemon.signal(signal.SIGKILL)
        await self._start(daemon)

    async def _do_freeze(self, fault: Fault, daemon: Daemon) -> None:
        daemon.freeze()
        await self._pause(fault.args["for_s"])
        daemon.thaw()

    async def _do_slow(self, fault: Fault, daemon: Daemon) -> None:
        running_s = SLICE_S / max(1.0, fault.args["factor"])
        until = self._clock() + fault.args["for_s"]
        while self._clock() < until and not self._peace.is_set():
            daemon.freeze(is_short=True)
            await asyncio.sleep(SLICE_S - running_s)
            daemon.thaw()
            await asyncio.sleep(running_s)

    async def _do_wipe(self, fault: Fault, daemon: Daemon) -> None:
        await daemon.signal(signal.SIGKILL)
        self._wipe_disk(daemon)
        await self._pause(fault.args["down_s"])
        await self._start(daemon)

    def _wipe_disk(self, daemon: Daemon) -> None:
        for path in daemon.data_dir.iterdir():
            if path.name not in {"identity", "ca"}:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._lost(daemon, since=float("-inf"))

    async def _backup(self, fault: Fault) -> None:
        """Copy the directory of a node that will be set back, while the node is stopped."""
        await self._pause(max(0.0, fault.time - fault.args["age_s"] - self._clock()))
        daemon = self._cluster[fault.args["node"]]
        async with daemon.lock:
            if self._peace.is_set() or daemon.starts == 0:
                return
            await daemon.signal(signal.SIGTERM)
            backup = daemon.data_dir.with_suffix(f".backup-{fault.index}")
            await asyncio.to_thread(_copy, daemon.data_dir, backup)
            self._backups[fault.index] = (backup, self._clock())
            await self._start(daemon)

    async def _do_restore(self, fault: Fault, daemon: Daemon) -> None:
        if (found := self._backups.pop(fault.index, None)) is None:
            return
        backup, taken = found
        await daemon.signal(signal.SIGKILL)
        for path in daemon.data_dir.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        await asyncio.to_thread(_copy, backup, daemon.data_dir)
        await asyncio.to_thread(shutil.rmtree, backup)
        self._lost(daemon, since=taken)
        await self._start(daemon)

    def _lost(self, daemon: Daemon, *, since: float) -> None:
        self._history.losses.append(DiskLoss(node=daemon.number, time=self._clock(), since=since))

    async def _do_clone(self, fault: Fault, daemon: Daemon) -> None:
        """Run a second node on a copy of the disk, keys included, at an address of its own."""
        number = len(self._cluster.daemons) + len(self._cluster.clones)
        clone = self._cluster.clone_of(
            daemon,
            number=number,
            address=self._network.address(number),
            namespace=self._network.namespace(number),
        )
        await daemon.signal(signal.SIGKILL)
        await asyncio.to_thread(_copy, daemon.data_dir, clone.data_dir)
        await self._start(daemon)
        try:
            await self._cluster.start(clone)
            await self._pause(fault.args["for_s"])
        except (ControlError, TimeoutError) as error:
            self._note(f"the clone of n{daemon.number} did not start: {error}")
        finally:
            await _end_clone(clone)

    async def _do_full(self, fault: Fault, daemon: Daemon) -> None:
        filler = daemon.data_dir / "filler"
        await asyncio.to_thread(_fill, filler)
        await self._pause(fault.args["for_s"])
        filler.unlink(missing_ok=True)

    # --- links --------------------------------------------------------------------------------------------

    async def _do_partition(self, fault: Fault) -> None:
        await self._cut(fault, _between(fault.args["sides"], both=True), fault.args["for_s"])

    async def _do_one_way(self, fault: Fault) -> None:
        await self._cut(fault, _between(fault.args["sides"], both=False), fault.args["for_s"])

    async def _do_isolate(self, fault: Fault) -> None:
        node = fault.args["node"]
        others = [number for number in range(self.plan.scenario.nodes) if number != node]
        await self._cut(fault, _between([[node], others], both=True), fault.args["for_s"])

    async def _do_flap(self, fault: Fault) -> None:
        cuts = _between([[fault.args["a"]], [fault.args["b"]]], both=True)
        until = self._clock() + fault.args["for_s"]
        while self._clock() < until and not self._peace.is_set():
            await self._cut(fault, cuts, fault.args["period_s"] / 2)
            await self._pause(fault.args["period_s"] / 2)

    async def _cut(self, fault: Fault, cuts: frozenset[Cut], for_s: float) -> None:
        self._cuts[fault.index] = cuts
        await self._apply_cuts()
        await self._pause(for_s)
        del self._cuts[fault.index]
        await self._apply_cuts()

    async def _apply_cuts(self) -> None:
        async with self._cutting:
            await self._network.set_cuts(frozenset().union(*self._cuts.values()), self._cluster)

    @property
    def cuts(self) -> frozenset[Cut]:
        """What is cut now."""
        return frozenset().union(*self._cuts.values())


async def _end_clone(daemon: Daemon) -> None:
    """Kill a daemon and remove its directory."""
    await daemon.signal(signal.SIGKILL)
    await asyncio.to_thread(shutil.rmtree, daemon.data_dir, ignore_errors=True)


def _between(sides: list[list[int]], *, both: bool) -> frozenset[Cut]:
    """Return the links from earlier sides to later ones, and back."""
    cuts = set()
    for number, side in enumerate(sides):
        for later in sides[number + 1 :]:
            for a in side:
                cuts |= {(a, b) for b in later}
                cuts |= {(b, a) for b in later} if both else set()
    return frozenset(cuts)


def _copy(source: Path, target: Path) -> None:
    """Copy a data directory. A socket is no data, and cannot be copied."""
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.sock"))


def _fill(path: Path) -> None:
    """Write until there is no room."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(FILL_BYTES)):
            pass


def _describe(fault: Fault) -> str:
    sides = fault.args.get("sides")
    if sides is None:
        return str(fault)
    counts = " | ".join(str(len(side)) for side in sides)
    return f"#{fault.index} {fault.kind} {counts} nodes for {fault.args['for_s']} s"
