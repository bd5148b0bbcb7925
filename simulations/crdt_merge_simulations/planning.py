"""From a scenario and a seed to everything that will happen (SCENARIOS 4.2).

Each act and each fault is drawn from a random stream of its own, named by its purpose and number, so that
with one fault or act more or less all the others are drawn as they were. Faults are numbered in the order of
their times; a subset of them replays with :meth:`Plan.reduced`.

What acts say (``Act.kind`` and ``Act.args``):

* ``add``: ``group`` (number), ``slot`` (name), ``content`` (number; equal numbers are equal tensors);
* ``remove``: ``group``, ``slot``: whatever the node has visible in that slot;
* ``policy``: ``group``, ``weight_cap`` (over 2^32); always by node 0, which administers all groups;
* ``administer``: ``group``, ``what`` (of :data:`ADMINISTRATION`): sent by anybody, signed by administrators;
* ``unknown``: ``group``: an operation of a kind that this release does not know;
* ``start``: a late joiner starts for the first time;
* ``leave``: ``down_s``: a node says goodbye and comes back later with an empty disk and the same key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Any, Final

from crdt_merge_protocol.policy import DEFAULT_WEIGHT_CAP

from .plan import FAULT_KINDS, Act, Fault, Plan, Scenario
from .topology import make_links

SAME_CONTENT_RATIO: Final = 0.1
"""How often somebody contributes what was contributed before."""
FAULT_WINDOW: Final = 0.85
"""Part of the duration in which faults begin."""
SWARM_KIND_RATIO: Final = 0.5
ADMINISTRATION: Final = ("ban", "erase", "revoke", "revoke", "removal", "receipt", "again", "unsigned")
"""What may be done with signatures of administrators, or without enough of them."""


def make_plan(scenario: Scenario, seed: int) -> Plan:
    """Return what happens in the run of a scenario with this seed.

    Raises:
        ConfigError: The topology does not exist for this number of nodes.
    """
    links, sites = make_links(scenario, seed)
    return Plan(
        scenario=scenario,
        seed=seed,
        links=links,
        sites=sites,
        acts=_acts(scenario, seed),
        faults=_faults(scenario, seed, sites),
    )


def stream(seed: int, *purpose: object) -> Random:
    """Return a new random stream for a purpose; streams do not influence each other."""
    return Random("/".join(map(str, (seed, *purpose))))  # noqa: S311  Reproducible on purpose.


# --- the workload -----------------------------------------------------------------------------------------


def _acts(scenario: Scenario, seed: int) -> tuple[Act, ...]:
    workload, duration_s = scenario.workload, scenario.duration_s
    starts = {
        node: stream(seed, "late", node).uniform(0.5, 0.9) * duration_s
        for node in range(scenario.nodes - workload.late_joiners, scenario.nodes)
    }
    drawn: list[tuple[float, int, str, dict[str, Any]]] = []
    drawn += [(time, node, "start", {}) for node, time in starts.items()]
    for number in range(workload.churn if scenario.nodes > 1 else 0):
        rng = stream(seed, "churn", number)
        time = rng.uniform(0.05, 0.8) * duration_s
        drawn.append((time, rng.randrange(1, scenario.nodes), "leave", {"down_s": _span(rng, 0.5, 4.0)}))
    for number in range(workload.policy_changes):
        rng = stream(seed, "policy", number)
        cap = DEFAULT_WEIGHT_CAP - number - 1
        args = {"group": rng.randrange(workload.groups), "weight_cap": cap}
        drawn.append((rng.uniform(0, duration_s), 0, "policy", args))
    for number in range(workload.administration):
        rng = stream(seed, "administer", number)
        deed = {"group": rng.randrange(workload.groups), "what": rng.choice(ADMINISTRATION)}
        drawn.append((rng.uniform(0, duration_s), rng.randrange(scenario.nodes), "administer", deed))
    slots: dict[tuple[int, int], list[str]] = {}
    for time, number, node, rng in _occasions(scenario, seed, starts):
        group = rng.randrange(workload.groups)
        kind, args = _deed(scenario, rng, number, slots.setdefault((node, group), []))
        drawn.append((time, node, kind, {"group": group, **args}))
    drawn.sort(key=lambda each: each[:3])
    return tuple(
        Act(index=index, time=round(time, 6), node=node, kind=kind, args=args)
        for index, (time, node, kind, args) in enumerate(drawn)
    )


def _occasions(
    scenario: Scenario, seed: int, starts: Mapping[int, float]
) -> list[tuple[float, int, int, Random]]:
    """Return (time, number, node, stream) of each act, in the order of time."""
    occasions = []
    span_s = scenario.workload.within_s or scenario.duration_s
    for number in range(scenario.workload.operations):
        rng = stream(seed, "act", number)
        time = rng.uniform(0, span_s)
        node = 0 if scenario.workload.is_one_sender else rng.randrange(scenario.nodes)
        while time < starts.get(node, 0.0) + 1.0 and node in starts:
            node = rng.randrange(scenario.nodes)
        occasions.append((time, number, node, rng))
    return sorted(occasions, key=lambda occasion: occasion[:2])


def _deed(scenario: Scenario, rng: Random, number: int, slots: list[str]) -> tuple[str, dict[str, Any]]:
    """Return what one act does, given the slots that its node has used so far."""
    workload = scenario.workload
    choice, is_old_slot, is_old_content = rng.random(), rng.random(), rng.random()
    pick = rng.random()
    if choice < workload.remove_ratio and slots:
        return "remove", {"slot": slots[int(pick * len(slots))]}
    if choice > 1 - workload.unknown_ratio:
        return "unknown", {}
    if slots and is_old_slot < workload.supersede_ratio:
        slot = slots[int(pick * len(slots))]
    else:
        slot = f"s{len(slots)}"
        slots.append(slot)
    is_repeat = number > 0 and is_old_content < SAME_CONTENT_RATIO
    return "add", {"slot": slot, "content": int(pick * number) if is_repeat else number}


# --- the faults -------------------------------------------------------------------------------------------


def _faults(scenario: Scenario, seed: int, sites: tuple[int, ...]) -> tuple[Fault, ...]:
    drawn: list[tuple[float, str, int, dict[str, Any]]] = []
    if scenario.faults.sites_apart_s:
        sides = [[node for node, of in enumerate(sites) if of == site] for site in sorted(set(sites))]
        drawn.append((0.0, "partition", -1, {"sides": sides, "for_s": scenario.faults.sites_apart_s}))
    for kind in FAULT_KINDS:
        for number in range(_count(scenario, seed, kind)):
            rng = stream(seed, "fault", kind, number)
            time = round(rng.uniform(0, FAULT_WINDOW) * scenario.duration_s, 6)
            args = _ARGS[kind](rng, scenario.nodes)
            if args is not None:
                drawn.append((time, kind, number, args))
    drawn.sort(key=lambda each: each[:3])
    return tuple(
        Fault(index=index, time=time, kind=kind, args=args)
        for index, (time, kind, _, args) in enumerate(drawn)
    )


def _count(scenario: Scenario, seed: int, kind: str) -> int:
    count = scenario.faults.counts.get(kind, 0)
    if not scenario.faults.is_swarm or not count:
        return count
    rng = stream(seed, "swarm", kind)
    return rng.randint(1, count) if rng.random() < SWARM_KIND_RATIO else 0


def _span(rng: Random, low: float, high: float) -> float:
    return round(rng.uniform(low, high), 3)


def _pair(rng: Random, nodes: int) -> dict[str, Any] | None:
    if nodes < 2:
        return None
    a, b = rng.sample(range(nodes), 2)
    return {"a": a, "b": b}


def _node(**spans: tuple[float, float]) -> Callable[[Random, int], dict[str, Any] | None]:
    """Return a drawer of arguments: a node and these spans of seconds (or factors)."""

    def draw(rng: Random, nodes: int) -> dict[str, Any] | None:
        return {"node": rng.randrange(nodes), **{key: _span(rng, *span) for key, span in spans.items()}}

    return draw


def _link(**spans: tuple[float, float]) -> Callable[[Random, int], dict[str, Any] | None]:
    def draw(rng: Random, nodes: int) -> dict[str, Any] | None:
        pair = _pair(rng, nodes)
        return pair and {**pair, **{key: _span(rng, *span) for key, span in spans.items()}}

    return draw


def _split(rng: Random, nodes: int) -> dict[str, Any] | None:
    if nodes < 2:
        return None
    order = rng.sample(range(nodes), nodes)
    middle = rng.randrange(1, nodes)
    sides = [sorted(order[:middle]), sorted(order[middle:])]
    return {"sides": sides, "for_s": _span(rng, 1.0, 6.0)}


def _culprit(**spans: tuple[float, float]) -> Callable[[Random, int], dict[str, Any] | None]:
    """Return a drawer of a peer that lies: never node 0, which administers, and from the last third only."""

    def draw(rng: Random, nodes: int) -> dict[str, Any] | None:
        if nodes < 4:
            return None
        node = rng.randrange(nodes - nodes // 3, nodes)
        return {"node": node, **{key: _span(rng, *span) for key, span in spans.items()}}

    return draw


_ARGS: Final[Mapping[str, Callable[[Random, int], dict[str, Any] | None]]] = {
    "kill": _node(down_s=(0.2, 3.0)),
    "crash_loop": lambda rng, nodes: {"node": rng.randrange(nodes), "times": rng.randint(2, 6)},
    "freeze": _node(for_s=(0.5, 8.0)),
    "slow": _node(factor=(5.0, 100.0), for_s=(1.0, 6.0)),
    "wipe": _node(down_s=(0.2, 3.0)),
    "restore": _node(age_s=(0.5, 6.0)),
    "clone": _node(for_s=(1.0, 5.0)),
    "partition": _split,
    "one_way": _split,
    "isolate": _node(for_s=(1.0, 6.0)),
    "flap": _link(period_s=(0.1, 5.0), for_s=(2.0, 8.0)),
    "reset": _link(),
    "delay": _link(extra_ms=(100.0, 2000.0), for_s=(1.0, 6.0)),
    "loss": _link(ratio=(0.05, 0.9), for_s=(1.0, 8.0)),
    "corrupt": _link(),
    "torn": _node(down_s=(0.2, 3.0)),
    "full": _node(for_s=(0.5, 5.0)),
    "io_error": _node(),
    "rot": _node(),
    "clock_jump": _node(by_s=(-400 * 86400.0, 400 * 86400.0)),
    "forker": _culprit(),
    "liar": _culprit(for_s=(1.0, 6.0)),
    "withholder": _culprit(for_s=(1.0, 6.0)),
    "garbage": _culprit(),
    "collider": _culprit(),
    "flooder": lambda rng, nodes: (
        {"node": rng.randrange(nodes - nodes // 3, nodes), "count": rng.randint(50, 400)}
        if nodes >= 4
        else None
    ),
}
