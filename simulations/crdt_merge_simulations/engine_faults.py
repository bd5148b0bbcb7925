"""Faults of a plan, done to the engine world. Each ends by itself, at the latest when the work ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from .engine_links import Cut, Line
from .engine_node import Disk, SimulatedNode
from .mischief import LIARS, Mischief, colliding, fork, garbage, orphans
from .plan import Fault

if TYPE_CHECKING:
    from .engine_core import World

from crdt_merge_protocol.messages.gossip import Gossip
from crdt_merge_protocol.plumtree import gossip_messages

UNSUPPORTED: Final = frozenset({"clock_jump", "rot"})
"""Engines have no wall clock, and stored bytes are judged by the store: the daemon world has both."""
CULPRITS: Final = frozenset({"forker", "liar", "withholder", "garbage", "flooder", "collider"})
CRASH_LOOP_S: Final = 0.3


def inflict(world: World, fault: Fault, *, until: float) -> None:
    """Begin a fault now; it ends at ``until`` at the latest."""
    world.note(str(fault))
    world.checker.sometimes[f"fault {fault.kind}"] += 1
    _FAULTS[fault.kind](world, dict(fault.args), until)


def _end(world: World, args: Mapping[str, Any], key: str, until: float) -> float:
    return min(world.now + float(args[key]), until)


def _down(
    world: World, node: SimulatedNode, args: Mapping[str, Any], until: float, *, is_silent: bool = False
) -> bool:
    """Kill a node and start it again later; False if it is down already."""
    if not node.is_up:
        return False
    node.kill(is_silent=is_silent)
    world.at(_end(world, args, "down_s", until), None, world.start, node)
    return True


# --- nodes ------------------------------------------------------------------------------------------------


def _kill(world: World, args: dict[str, Any], until: float) -> None:
    _down(world, world.nodes[args["node"]], args, until)


def _torn(world: World, args: dict[str, Any], until: float) -> None:
    _down(world, world.nodes[args["node"]], args, until, is_silent=True)


def _crash_loop(world: World, args: dict[str, Any], until: float) -> None:
    node = world.nodes[args["node"]]
    if node.is_up:
        node.kill()
    time = world.now
    for _ in range(args["times"]):
        time += CRASH_LOOP_S
        world.at(min(time, until), None, world.start, node)
        world.at(min(time + CRASH_LOOP_S / 10, until), None, lambda: node.is_up and node.kill())
    world.at(min(time + CRASH_LOOP_S, until), None, world.start, node)


def _freeze(world: World, args: dict[str, Any], until: float) -> None:
    node = world.nodes[args["node"]]
    node.frozen_until = _end(world, args, "for_s", until)
    for line in node.lines.values():
        world.listen_for(line.back)


def _slow(world: World, args: dict[str, Any], until: float) -> None:
    node = world.nodes[args["node"]]
    node.slowness = float(args["factor"])

    def recover() -> None:
        node.slowness = 1.0

    world.at(_end(world, args, "for_s", until), None, recover)


def _wipe(world: World, args: dict[str, Any], until: float) -> None:
    node = world.nodes[args["node"]]
    if _down(world, node, args, until):
        replace_disk(world, node, Disk())


def _restore(world: World, args: dict[str, Any], until: float) -> None:  # noqa: ARG001
    node = world.nodes[args["node"]]
    if node.is_up:
        node.kill()
    replace_disk(world, node, node.disk.as_of(world.now - float(args["age_s"])))
    world.start(node)


def replace_disk(world: World, node: SimulatedNode, disk: Disk) -> None:
    """Give a node that is down another disk; what it acknowledged since is excused."""
    node.disk = disk
    world.checker.disk_lost(node.index, disk.ids())


def _clone(world: World, args: dict[str, Any], until: float) -> None:
    node = world.nodes[args["node"]]
    index = len(world.by_address)  # Several clones of a node may run at once: each has a name.
    clone = SimulatedNode(world, index, node.place, node.key, f"{node.name}-clone-{index}")
    clone.seeds = [*node.seeds, *(line.target.address for line in node.lines.values())]
    clone.disk = node.disk.as_of(world.now)
    for group, ids in clone.disk.ids().items():
        world.checker.stored(clone.index, group, ids)
    world.by_address[clone.address] = clone
    clone.start()

    def vanish() -> None:
        clone.kill()
        world.checker.disk_lost(clone.index, {})

    world.at(_end(world, args, "for_s", until), None, vanish)


def _full(world: World, args: dict[str, Any], until: float) -> None:
    node = world.nodes[args["node"]]
    node.is_full = True

    def make_room() -> None:
        node.is_full = False

    world.at(_end(world, args, "for_s", until), None, make_room)


def _io_error(world: World, args: dict[str, Any], until: float) -> None:
    node = world.nodes[args["node"]]
    node.is_disk_failing = True

    def mend() -> None:
        node.is_disk_failing = False

    world.at(until, None, mend)


# --- links ------------------------------------------------------------------------------------------------


def _cut(world: World, cut: Cut, end: float) -> None:
    world.network.cuts.append(cut)
    for node in world.nodes:
        for line in list(node.lines.values()):
            if cut.blocks(node.place, line.target.place):
                world.listen_for(line)
                world.listen_for(line.back)

    def mend() -> None:
        world.network.cuts.remove(cut)
        for node in world.nodes:
            for line in list(node.lines.values()):
                world.release(line)

    world.at(end, None, mend)


def _partition(world: World, args: dict[str, Any], until: float, *, is_one_way: bool = False) -> None:
    sides = {node: side for side, nodes in enumerate(args["sides"]) for node in nodes}
    _cut(world, Cut(sides, is_one_way), _end(world, args, "for_s", until))


def _one_way(world: World, args: dict[str, Any], until: float) -> None:
    _partition(world, args, until, is_one_way=True)


def _isolate(world: World, args: dict[str, Any], until: float) -> None:
    sides = {node.index: int(node.index == args["node"]) for node in world.nodes}
    _cut(world, Cut(sides), _end(world, args, "for_s", until))


def _flap(world: World, args: dict[str, Any], until: float) -> None:
    end, half_s = _end(world, args, "for_s", until), float(args["period_s"]) / 2
    cut = {args["a"]: 0, args["b"]: 1}

    def go() -> None:
        if world.now < end:
            _cut(world, Cut(cut), min(world.now + half_s, end))
            world.at(world.now + 2 * half_s, None, go)

    go()


def _line(world: World, args: Mapping[str, Any]) -> Line | None:
    a, b = world.nodes[args["a"]], world.nodes[args["b"]]
    line: Line | None = a.lines.get(b.id)
    return line


def _reset(world: World, args: dict[str, Any], until: float) -> None:  # noqa: ARG001
    if line := _line(world, args):
        line.tamper = 2


def _corrupt(world: World, args: dict[str, Any], until: float) -> None:  # noqa: ARG001
    if line := _line(world, args):
        line.tamper = 1


def _delay(world: World, args: dict[str, Any], until: float) -> None:
    _condition(world, world.network.extra_s, args, float(args["extra_ms"]) / 1000, until)


def _loss(world: World, args: dict[str, Any], until: float) -> None:
    _condition(world, world.network.loss, args, float(args["ratio"]), until)


def _condition(
    world: World, table: dict[tuple[int, int], float], args: dict[str, Any], value: float, until: float
) -> None:
    pairs = ((args["a"], args["b"]), (args["b"], args["a"]))
    for pair in pairs:
        table[pair] = value

    def mend() -> None:
        for pair in pairs:
            table.pop(pair, None)

    world.at(_end(world, args, "for_s", until), None, mend)


# --- peers that lie ---------------------------------------------------------------------------------------


def _forker(world: World, args: dict[str, Any], until: float) -> None:  # noqa: ARG001
    node = world.nodes[args["node"]]
    state = node.engine.state(world.groups[0]) if node.is_up else None
    if state is None or not node.lines:
        return
    twins = fork(node.key, state, world.stream("fork", node.index, world.now))
    for number, line in enumerate(list(node.lines.values())):
        signed = twins[number % 2]
        world.send(line, Gossip(group=state.group, operations=(signed.wire(),)))
    world.twins.append((node.id, *(signed.id for signed in twins)))


def _mischief(kind: str) -> Callable[[World, dict[str, Any], float], None]:
    def begin(world: World, args: dict[str, Any], until: float) -> None:
        node = world.nodes[args["node"]]
        node.mischief = Mischief(kind, world.stream("mischief", node.index, world.now))

        def repent() -> None:
            node.mischief = None

        world.at(_end(world, args, "for_s", until), None, repent)

    return begin


def _garbage(world: World, args: dict[str, Any], until: float) -> None:  # noqa: ARG001
    node = world.nodes[args["node"]]
    rng = world.stream("garbage", node.index, world.now)
    for line in list(node.lines.values()):
        world.send_frame(line, garbage(rng))


def _flooder(world: World, args: dict[str, Any], until: float) -> None:  # noqa: ARG001
    node = world.nodes[args["node"]]
    if not node.is_up:
        return
    messages = orphans(node.key, world.groups[0], args["count"], world.stream("flood", node.index, world.now))
    for line in list(node.lines.values()):
        for message in messages:
            world.send(line, message)


def _collider(world: World, args: dict[str, Any], until: float) -> None:  # noqa: ARG001
    node = world.nodes[args["node"]]
    state = node.engine.state(world.groups[0]) if node.is_up else None
    honest = [line for line in node.lines.values() if line.target.index not in world.culprits]
    if state is None or not honest:
        return
    rng = world.stream("collide", node.index, world.now)
    for message in gossip_messages(state.group, colliding(node.key, state, rng)):
        world.send(honest[0], message)


_FAULTS: Final[Mapping[str, Callable[[World, dict[str, Any], float], None]]] = {
    "kill": _kill,
    "torn": _torn,
    "crash_loop": _crash_loop,
    "freeze": _freeze,
    "slow": _slow,
    "wipe": _wipe,
    "restore": _restore,
    "clone": _clone,
    "full": _full,
    "io_error": _io_error,
    "partition": _partition,
    "one_way": _one_way,
    "isolate": _isolate,
    "flap": _flap,
    "reset": _reset,
    "corrupt": _corrupt,
    "delay": _delay,
    "loss": _loss,
    "forker": _forker,
    **{kind: _mischief(kind) for kind in sorted(LIARS)},
    "garbage": _garbage,
    "flooder": _flooder,
    "collider": _collider,
}
