"""The figures of broadcast, repair and membership, measured on protocol engines in virtual time.

``python -m crdt_merge_simulations.engine_figures FIGURE... [--nodes N] [--seed S]`` prints a line for each.
Links take 10-50 ms, disks 1-8 ms; all but processor time is a function of the seed. Processor time and memory
are printed at the end, so that the reader knows what a larger number of nodes would cost.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from crdt_merge_protocol.limits import ACTIVE_MIN
from crdt_merge_protocol.operations import Add, Kind, SignedOperation
from rich.console import Console

from .engine_core import World
from .engine_faults import inflict
from .engine_node import SimulatedNode
from .engine_world import meet
from .meter import Meter
from .plan import Fault, Scenario, WorkloadSpec
from .planning import make_plan
from .sharing import no_collector, shared_work

SETTLE_S: Final = 60.0
"""Until the views have filled and whoever joined at the same time has crossed over. A hundred nodes still
cross over about once a second then; after ten minutes, every six seconds."""
WARM_OPERATIONS: Final = 20
"""Before the measurement, so that the tree has formed."""
LOSS_RATIO: Final = 0.02
PAUSE_S, PAUSED_RATIO, PAUSE_EVERY_S = 2.0, 0.05, 60.0
Figures = Iterator[tuple[str, str]]

console = Console(highlight=False, soft_wrap=True, markup=False)


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m crdt_merge_simulations.engine_figures")
    parser.add_argument("figures", nargs="+", choices=sorted(FIGURES))
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--operations", type=int, default=100, help="per measurement (default %(default)s)")
    parser.add_argument("--minutes", type=float, default=60.0, help="virtual, of pauses (default 60)")
    parser.add_argument("--settle", type=float, default=SETTLE_S, help="virtual seconds before (default 60)")
    arguments = parser.parse_args()
    for name in arguments.figures:
        began = time.process_time()
        with shared_work(), no_collector():
            world = new_world(arguments.nodes, arguments.seed, late_joiners=int(name == "newcomer"))
            for what, value in FIGURES[name](world, arguments):
                console.print(f"{name}, {arguments.nodes:,} nodes, {what}: {value}")
        cpu_s = time.process_time() - began
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        console.print(
            f"{name}: {world.events:,} events and {world.now:.0f} virtual s in {cpu_s:.1f} s of processor "
            f"time, {world.events / cpu_s:,.0f} events/s, {peak_mib:,.0f} MiB, "
            f"trace {world.trace.hexdigest()[:16]}"
        )


def new_world(nodes: int, seed: int, *, late_joiners: int = 0) -> World:
    """Return a world whose nodes are about to start; the last ones do not start by themselves."""
    workload = WorkloadSpec(operations=0, policy_changes=0, late_joiners=late_joiners)
    world = World(make_plan(Scenario(name="figures", nodes=nodes, workload=workload), seed))
    world.settle_honesty()
    return world


def _settle(world: World, arguments: argparse.Namespace) -> None:
    meet(world)
    world.run(world.now + arguments.settle)


def _add(world: World, node: SimulatedNode, number: int) -> SignedOperation:
    content = hashlib.sha256(f"figures/{number}".encode()).digest()
    add = Add(slot=f"s{number}", type="model", content=content, weight=1 << 32, payload=None)
    return node.author(world.groups[0], Kind.ADD, add.encode())


def _broadcast(world: World, senders: Iterable[SimulatedNode], *, gap_s: float = 1.0) -> Meter:
    """Let nodes contribute one after the other, and return what was counted meanwhile."""
    world.meter = Meter(world.plan.scenario.nodes)
    for node in senders:
        _add(world, node, world.events)
        world.run(world.now + gap_s)
    return world.meter


def _random_nodes(world: World, count: int, purpose: str) -> list[SimulatedNode]:
    return world.stream(purpose).choices([node for node in world.nodes if node.is_up], k=count)


def _quantile(values: Iterable[float], share: float) -> float:
    """Return a quantile by nearest rank: the least value that at least this share does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else float("nan")


def _told(meter: Meter, count: int) -> str:
    needed = meter.deliveries - meter.duplicates
    return (
        f"everywhere {len(meter.delivery_s)} of {count}, "
        f"p50 {1000 * _quantile(meter.delivery_s, 0.5):.0f} ms, "
        f"p99 {1000 * _quantile(meter.delivery_s, 0.99):.0f} ms, "
        f"redundant {meter.duplicates / max(1, needed):.4f}, last hop {max(meter.hops, default=0)}"
    )


# --- broadcast (A1-A5) ------------------------------------------------------------------------------------


def spread(world: World, arguments: argparse.Namespace) -> Figures:
    """Yield how operations of one sender spread, then those of random senders."""
    _settle(world, arguments)
    count = arguments.operations
    _broadcast(world, [world.nodes[0]] * WARM_OPERATIONS)
    yield "one sender", _told(_broadcast(world, [world.nodes[0]] * count), count)
    _broadcast(world, _random_nodes(world, WARM_OPERATIONS, "warm"))
    yield "random senders", _told(_broadcast(world, _random_nodes(world, count, "senders")), count)


def loss(world: World, arguments: argparse.Namespace) -> Figures:
    """Yield how operations spread while payloads are lost."""
    _settle(world, arguments)
    _broadcast(world, [world.nodes[0]] * WARM_OPERATIONS)
    world.network.loss_everywhere = LOSS_RATIO
    count = arguments.operations
    yield (
        f"{LOSS_RATIO:.0%} of payloads lost",
        _told(_broadcast(world, [world.nodes[0]] * count, gap_s=2.0), count),
    )


# --- membership (A6-A8, A17) ------------------------------------------------------------------------------


def crash(world: World, arguments: argparse.Namespace) -> Figures:
    """Yield when an operation reached all survivors after most nodes died at once."""
    share = 0.5 if arguments.nodes > 1000 else 0.8
    _settle(world, arguments)
    _broadcast(world, [world.nodes[0]] * 5)
    for is_silent in (False, True):
        dying = world.stream("crash").sample(range(1, arguments.nodes), int(share * arguments.nodes))
        for index in dying:
            world.nodes[index].kill(is_silent=is_silent)
        began = world.now
        survivors = [node for node in world.nodes if node.is_up]
        signed = _add(world, world.nodes[0], world.events)
        while world.now < began + 60.0:
            world.run(world.now + 0.25)
            reached = sum(signed.id in node.states()[world.groups[0]] for node in survivors)
            if reached == len(survivors):
                break
        what = "power cut" if is_silent else "killed"
        yield f"{share:.0%} {what} at once", f"{reached / len(survivors):.2%} after {world.now - began:.2f} s"
        for index in dying:
            world.nodes[index].start()
        world.run(world.now + SETTLE_S)


def pauses(world: World, arguments: argparse.Namespace) -> Figures:
    """Yield how many links ended while nodes stood still for a while, and when real deaths were noticed."""
    _settle(world, arguments)
    draw = world.stream("pauses")
    before = world.checker.sometimes["silence ended a connection"]
    until, count = world.now + 60 * arguments.minutes, 0
    while world.now < until:
        for index in draw.sample(range(arguments.nodes), max(1, int(PAUSED_RATIO * arguments.nodes))):
            fault = Fault(index=count, time=world.now, kind="freeze", args={"node": index, "for_s": PAUSE_S})
            inflict(world, fault, until=until)
            count += 1
        world.run(world.now + PAUSE_EVERY_S)
    ended = world.checker.sometimes["silence ended a connection"] - before
    yield f"{count} pauses of {PAUSE_S:.0f} s in {arguments.minutes:.0f} min", f"{ended} links ended"
    victim = world.nodes[-1]
    victim.kill(is_silent=True)
    began, noticed = world.now, []
    mourners = [node for node in world.nodes if victim.id in node.lines]
    while mourners and world.now < began + 30.0:
        world.run(world.now + 0.01)
        noticed += [world.now - began for node in mourners if victim.id not in node.lines]
        mourners = [node for node in mourners if victim.id in node.lines]
    yield "a power cut noticed by all neighbours", f"p99 {_quantile(noticed, 0.99):.2f} s"


def idle(world: World, arguments: argparse.Namespace) -> Figures:
    """Yield what nodes send that have nothing to do."""
    _settle(world, arguments)
    span_s = 60.0
    before = [node.bytes_sent for node in world.nodes]
    world.run(world.now + span_s)
    rates = [(node.bytes_sent - sent) / span_s for node, sent in zip(world.nodes, before, strict=True)]
    yield "bytes per node and second", f"{sum(rates) / arguments.nodes:.0f}, at most {max(rates):.0f}"


def join(world: World, arguments: argparse.Namespace) -> Figures:
    """Yield when nodes that all start at once know the group and have neighbours."""
    meet(world)
    yield "all know the group", f"{world.now:.2f} s"
    is_linked: Callable[[], bool] = lambda: all(  # noqa: E731  (a condition, said once)
        len(node.engine.overlay.neighbours) >= min(ACTIVE_MIN, arguments.nodes - 1) for node in world.nodes
    )
    while not is_linked() and world.now < 120.0:
        world.run(world.now + 0.25)
    yield f"all have {ACTIVE_MIN} neighbours", f"{world.now:.2f} s"


def newcomer(world: World, arguments: argparse.Namespace) -> Figures:
    """Yield how long a node takes that comes to a group of many operations."""
    late = world.nodes[-1]
    meet(world)
    for number in range(arguments.operations):
        _add(world, world.nodes[number % (arguments.nodes - 1)], number)
        if number % 100 == 99:
            world.run(world.now + 0.5)
    world.run(world.now + 20.0)
    began = world.now
    late.start()
    world.run(began + 60.0, stop=lambda: world.is_converged and late.root is not None)
    yield f"holds {arguments.operations:,} operations", f"{world.now - began:.2f} s after its start"


def heal(world: World, arguments: argparse.Namespace) -> Figures:
    """Yield how long two halves that worked apart take to agree, and what they sent for it."""
    _settle(world, arguments)
    half = arguments.nodes // 2
    sides = [list(range(half)), list(range(half, arguments.nodes))]
    apart_s = 30.0 + arguments.operations / 100
    fault = Fault(index=0, time=world.now, kind="partition", args={"sides": sides, "for_s": apart_s})
    inflict(world, fault, until=world.now + apart_s)
    began = world.now
    world.run(began + 10.0)
    for number in range(arguments.operations):
        for side in sides:
            _add(world, world.nodes[side[number % half]], 2 * number + (side is sides[1]))
        if number % 10 == 9:
            world.run(world.now + 0.1)
    world.run(began + apart_s)
    sent_before, needed_before = sum(node.bytes_sent for node in world.nodes), world.meter.bytes_needed
    healed = world.now
    is_one = world.run(healed + 120.0, stop=lambda: world.is_converged)
    sent = sum(node.bytes_sent for node in world.nodes) - sent_before
    needed = world.meter.bytes_needed - needed_before
    yield (
        f"2 x {half} nodes, {arguments.operations:,} operations a side",
        (
            f"{'agreed' if is_one else 'NOT agreed'} after {world.now - healed:.2f} s, "
            f"{sent / max(1, needed):.2f} times the necessary bytes"
        ),
    )


FIGURES: Final[Mapping[str, Callable[[World, argparse.Namespace], Figures]]] = {
    "spread": spread,
    "loss": loss,
    "crash": crash,
    "pauses": pauses,
    "idle": idle,
    "join": join,
    "newcomer": newcomer,
    "heal": heal,
}

if __name__ == "__main__":
    main()
