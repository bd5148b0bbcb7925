"""What goes wrong for whole daemons: each kind of fault that this world can do, as a method of its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final

from crdt_merge_node.transport.connection import Connection, Lane
from crdt_merge_protocol.messages.gossip import Gossip

from .daemon_models import clone_content
from .link import Direction
from .machine import DATA, Machine
from .mischief import Mischief, fork, garbage, orphans
from .plan import Act, Fault
from .planning import stream
from .simulated_process import OUTSIDE

if TYPE_CHECKING:
    from .daemon_world import DaemonWorld

MOMENT_S: Final = 0.5
"""A fault that waits for its moment waits so long at most."""
CALLS_MAX: Final = 40
"""Of a disk, before a machine dies in the middle of one."""
CLONE_ACT_S: Final = 0.8
"""After which somebody works on a clone and on its original."""
CULPRITS: Final = frozenset({"forker", "liar", "withholder", "garbage", "flooder"})
"""Faults after which nothing can be asked of their node."""


class Faults:
    """Carries out the faults of a plan and, at the end, undoes those that last."""

    def __init__(self, world: DaemonWorld) -> None:
        self._world = world
        self._undo: dict[int, Callable[[], None]] = {}
        self._sides: dict[int, list[list[int]]] = {}
        """Partitions that stand, by fault."""

    def kinds(self) -> frozenset[str]:
        """Return the kinds that this world can do."""
        return frozenset(name.removeprefix("do_") for name in dir(self) if name.startswith("do_"))

    def begin(self, fault: Fault) -> None:
        """Let it go wrong."""
        self._world.note(str(fault))
        self._world.sometimes[f"fault {fault.kind}"] += 1
        getattr(self, f"do_{fault.kind}")(fault)

    def end_all(self) -> None:
        """Undo whatever still lasts."""
        for undo in list(self._undo.values()):
            undo()

    def side_of(self, node: int) -> int:
        """Return on which side of the newest partition a node is; 0 if there is none."""
        for sides in reversed(self._sides.values()):
            for number, side in enumerate(sides):
                if node in side:
                    return number
        return 0

    def _for(self, fault: Fault, undo: Callable[[], None]) -> None:
        """Undo something after the time that the fault lasts, or at the end of all."""

        def once() -> None:
            if self._undo.pop(fault.index, None) is not None:
                self._world.note(f"#{fault.index} {fault.kind} is over")
                undo()

        self._undo[fault.index] = once
        self._world.loop.call_later(fault.args["for_s"], once, context=OUTSIDE)

    def _node(self, fault: Fault) -> Machine:
        number: int = fault.args["node"]
        return self._world.machines[number]

    def _rng(self, fault: Fault) -> Random:
        return stream(self._world.plan.seed, "moment", fault.kind, fault.index)

    # --- the end of a process -----------------------------------------------------------------------

    def do_kill(self, fault: Fault) -> None:
        """SIGKILL: at once, in the middle of a disk call, or right after the next acknowledgement."""
        self._die(fault, is_power_cut=False)

    def do_torn(self, fault: Fault) -> None:
        """Power cut, at the same moments."""
        self._die(fault, is_power_cut=True)

    def _die(self, fault: Fault, *, is_power_cut: bool) -> None:
        machine, rng = self._node(fault), self._rng(fault)
        process = machine.process
        if process is None:
            return
        is_over: list[bool] = []

        def die() -> None:
            if is_over or machine.process is not process:
                return
            is_over.append(True)
            self._world.after_ack.pop(machine.number, None)
            self._world.note(f"{machine.name} dies")
            machine.kill(restart_s=fault.args["down_s"], is_power_cut=is_power_cut)

        moment = rng.choice(("now", "disk call", "acknowledgement"))
        if moment == "now":
            die()
            return
        if moment == "disk call":
            machine.cut_in = (rng.randrange(CALLS_MAX), die)
        else:
            self._world.after_ack[machine.number] = die
        self._world.loop.call_later(MOMENT_S, die, context=OUTSIDE)

    def do_crash_loop(self, fault: Fault) -> None:
        """Kill it again and again while it starts."""
        machine, rng = self._node(fault), self._rng(fault)
        times = fault.args["times"]

        def again() -> None:
            nonlocal times
            if times > 0 and machine.is_wanted and self._world.is_in_story:
                times -= 1
                machine.kill(restart_s=None)
                machine.start()
                machine.cut_in = (rng.randrange(CALLS_MAX), lambda: machine.kill(restart_s=None))
                self._world.loop.call_later(0.2, again, context=OUTSIDE)
            elif machine.is_wanted:
                machine.cut_in = None
                machine.start()

        if machine.is_wanted:
            again()

    def do_wipe(self, fault: Fault) -> None:
        """Lose the disk."""
        machine = self._node(fault)
        if machine.is_wanted:
            machine.kill(restart_s=fault.args["down_s"])
            machine.lose_disk()

    def do_restore(self, fault: Fault) -> None:
        """Bring back an old copy of the disk."""
        machine = self._node(fault)
        if machine.is_wanted and (copy := self._world.backups.pop(fault.index, None)):
            machine.kill(restart_s=0.2)
            machine.disks_lost += 1
            machine.use_disk(copy)

    def do_clone(self, fault: Fault) -> None:
        """Start a second daemon on a copy of the disk, keys included; both are worked on."""
        world, original = self._world, self._node(fault)
        clone = world.add_clone(original)
        world.note(f"{clone.name} starts")
        clone.start()
        for number, machine in enumerate((clone, original)):
            act = Act(
                index=10_000 + 2 * fault.index + number,
                time=fault.time + CLONE_ACT_S,
                node=machine.number,
                kind="add",
                args={"group": 0, "slot": "clone", "content": clone_content(fault.index)},
            )
            world.loop.call_later(CLONE_ACT_S, world.users.begin, machine, act, context=OUTSIDE)

        def vanish() -> None:
            clone.is_wanted = False
            clone.kill(restart_s=None)
            world.checker.disk_lost(clone.number, {})

        self._for(fault, vanish)

    def do_freeze(self, fault: Fault) -> None:
        """SIGSTOP and SIGCONT."""
        process = self._node(fault).process
        if process is not None:
            process.is_frozen = True
            self._for(fault, lambda: self._world.loop.thaw(process))

    def do_slow(self, fault: Fault) -> None:
        """Let disks and threads take longer."""
        process = self._node(fault).process
        if process is not None:
            process.slowness = fault.args["factor"]
            self._for(fault, lambda: setattr(process, "slowness", 1.0))

    def do_clock_jump(self, fault: Fault) -> None:
        """Step the wall clock."""
        self._node(fault).clock.wall += fault.args["by_s"]

    # --- links --------------------------------------------------------------------------------------

    def do_partition(self, fault: Fault) -> None:
        """Cut between sides."""
        sides = [list(side) for side in fault.args["sides"]]
        self._cut(fault, [*self._across(sides), *self._across(sides[::-1])], sides)

    def do_one_way(self, fault: Fault) -> None:
        """Cut from the first side to the others."""
        sides = [list(side) for side in fault.args["sides"]]
        self._cut(fault, self._across(sides), sides)

    def do_isolate(self, fault: Fault) -> None:
        """Cut one node off."""
        node = fault.args["node"]
        sides = [[other for other in range(len(self._world.machines)) if other != node], [node]]
        self._cut(fault, [*self._across(sides), *self._across(sides[::-1])], sides)

    def _across(self, sides: list[list[int]]) -> Iterable[Direction]:
        directions = self._world.network.directions
        for number, side in enumerate(sides):
            for other_side in sides[number + 1 :]:
                yield from (directions[a, b] for a in side for b in other_side if (a, b) in directions)

    def _cut(self, fault: Fault, directions: Iterable[Direction], sides: list[list[int]]) -> None:
        cut = list(directions)
        for direction in cut:
            direction.cut()
        self._sides[fault.index] = sides

        def mend() -> None:
            del self._sides[fault.index]
            for direction in cut:
                direction.mend()

        self._for(fault, mend)

    def do_flap(self, fault: Fault) -> None:
        """Let a link go and come."""
        is_cut = is_over = False

        def set_cut(value: bool) -> None:
            nonlocal is_cut
            if is_cut is not value:
                is_cut = value
                for direction in self._both(fault):
                    direction.cut() if value else direction.mend()

        def flip() -> None:
            if not is_over:
                set_cut(not is_cut)
                self._world.loop.call_later(fault.args["period_s"], flip, context=OUTSIDE)

        def stop() -> None:
            nonlocal is_over
            is_over = True
            set_cut(False)

        flip()
        self._for(fault, stop)

    def _both(self, fault: Fault) -> list[Direction]:
        a, b = fault.args["a"], fault.args["b"]
        directions = self._world.network.directions
        return [directions[pair] for pair in ((a, b), (b, a)) if pair in directions]

    def do_reset(self, fault: Fault) -> None:
        """Reset the connections of a link, whatever is under way."""
        a, b = fault.args["a"], fault.args["b"]
        for end in self._world.network.between(a, b):
            end.abort()

    def do_delay(self, fault: Fault) -> None:
        """Make a link slow."""
        self._adjust(fault, "extra_s", fault.args["extra_ms"] / 1000)

    def do_loss(self, fault: Fault) -> None:
        """Lose packets, which makes them late."""
        self._adjust(fault, "loss", fault.args["ratio"])

    def _adjust(self, fault: Fault, name: str, value: float) -> None:
        def set_all(value: float) -> None:
            for direction in self._both(fault):
                setattr(direction, name, value)

        set_all(value)
        self._for(fault, lambda: set_all(0.0))

    def do_corrupt(self, fault: Fault) -> None:
        """Change a byte of the next segment."""
        for direction in self._both(fault)[:1]:
            direction.is_corrupting = True

    # --- peers that lie -----------------------------------------------------------------------------

    def do_forker(self, fault: Fault) -> None:
        """Sign two operations for one place of a log, and show each to half of the peers (R6)."""
        machine, world = self._node(fault), self._world
        states = list(machine.states().values())
        connections = self._connections(machine)
        if not states or not connections:
            return
        twins = fork(machine.key, states[0], self._rng(fault))
        for number, connection in enumerate(connections):
            message = Gossip(group=states[0].group, operations=(twins[number % 2].wire(),))
            connection.send(message, Lane.OPERATIONS)
        world.twins.append((machine.key.node_id, twins[0].id, twins[1].id))

    def do_liar(self, fault: Fault) -> None:
        """Announce roots that it does not have."""
        self._be(fault, "liar")

    def do_withholder(self, fault: Fault) -> None:
        """Send no operations, whoever wants them."""
        self._be(fault, "withholder")

    def _be(self, fault: Fault, kind: str) -> None:
        machine = self._node(fault)
        machine.mischief = Mischief(kind, self._rng(fault))
        self._for(fault, lambda: setattr(machine, "mischief", None))

    def do_garbage(self, fault: Fault) -> None:
        """Send bytes that are no frames, over connections that are authenticated."""
        rng = self._rng(fault)
        for connection in self._connections(self._node(fault)):
            connection._pump.write(garbage(rng))  # noqa: SLF001  (no honest code sends what is no message)

    def do_flooder(self, fault: Fault) -> None:
        """Send operations whose past does not exist."""
        machine = self._node(fault)
        for group in list(machine.states())[:1]:
            messages = orphans(machine.key, group, fault.args["count"], self._rng(fault))
            for connection in self._connections(machine):
                for message in messages:
                    connection.send(message, Lane.OPERATIONS)

    @staticmethod
    def _connections(machine: Machine) -> list[Connection]:
        if machine.node is None:
            return []
        connections = machine.node.services.driver.connections
        return [connections[peer] for peer in sorted(connections)]

    # --- disks --------------------------------------------------------------------------------------

    def do_full(self, fault: Fault) -> None:
        """Leave no room."""
        machine = self._node(fault)
        machine.set_full(is_full=True)
        self._for(fault, lambda: machine.set_full(is_full=False))

    def do_io_error(self, fault: Fault) -> None:
        """Let the next write or sync fail."""
        self._node(fault).fails_next_write = True

    def do_rot(self, fault: Fault) -> None:
        """Change a stored byte of a blob; of the database if there is no blob file."""
        machine, rng = self._node(fault), self._rng(fault)
        paths = machine.disk.paths(DATA / "blobs") or [DATA / "ops.db"]
        path: Path = rng.choice(paths)
        nbytes = machine.disk.nbytes(path)
        if nbytes:
            machine.disk.rot(path, rng.randrange(nbytes))
