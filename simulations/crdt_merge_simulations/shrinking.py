"""From a plan that fails to a small one that fails alike: fewer faults, then nodes, then acts.

Delta debugging (Zeller and Hildebrandt 2002, "Simplifying and isolating failure-inducing input", ddmin). A
smaller plan counts only if it violates the same invariant; another failure on the way is another bug. What
remains is 1-minimal as long as the budget of runs lasted: nothing more can be left out on its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from .failures import first_failure
from .plan import Act, Fault, Link, Plan
from .result import Result

T = TypeVar("T", bound=Hashable)
NODES_MIN: Final = 2
RUNS_MAX: Final = 400
_NODE_ARGS: Final = ("node", "a", "b")
"""Arguments of faults and acts that are the number of one node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrunk:
    """A smaller plan with the same failure."""

    plan: Plan
    result: Result
    """Of the last run of :attr:`plan`."""
    invariant: str
    """The one that is still violated."""
    runs: int
    is_minimal: bool
    """Whether nothing more can be left out; False: the budget ended first."""


class _Budget:
    """Runs plans and counts; remembers the last one that failed as wanted."""

    def __init__(self, run: Callable[[Plan], Result], invariant: str, runs_max: int) -> None:
        self.runs = 0
        self.is_exhausted = False
        self.best: tuple[Plan, Result] | None = None
        self._run = run
        self._invariant = invariant
        self._runs_max = runs_max

    def still_fails(self, plan: Plan) -> bool:
        """Whether a plan fails alike."""
        if self.runs >= self._runs_max:
            self.is_exhausted = True
            return False
        self.runs += 1
        result = self._run(plan)
        if not _violates(result, self._invariant):
            return False
        self.best = (plan, result)
        return True


def ddmin(items: Sequence[T], still_fails: Callable[[Sequence[T]], bool]) -> list[T]:
    """Return a part of ``items`` that still fails and of which no single item can be left out.

    The order of the items is kept. ``still_fails`` is taken to hold for ``items`` themselves.
    """
    kept = list(items)
    if kept and still_fails([]):
        return []
    parts = 2
    while len(kept) >= 2:
        size = max(1, len(kept) // parts)
        chunks = [kept[start : start + size] for start in range(0, len(kept), size)]
        for number, chunk in enumerate(chunks):
            rest = [item for other, part in enumerate(chunks) if other != number for item in part]
            if len(chunks) > 2 and still_fails(chunk):
                kept, parts = chunk, 2
                break
            if still_fails(rest):
                kept, parts = rest, max(parts - 1, 2)
                break
        else:
            if size == 1:
                break
            parts = min(parts * 2, len(kept))
    return kept


def shrink(
    plan: Plan,
    run: Callable[[Plan], Result],
    *,
    runs_max: int = RUNS_MAX,
    progress: Callable[[str], None] = lambda _line: None,
) -> Shrunk | None:
    """Return the smallest plan found that violates what ``plan`` violates first; None if it succeeds."""
    result = run(plan)
    if (invariant := first_failure(result)) is None:
        return None
    budget = _Budget(run, invariant, runs_max)
    budget.best = (plan, result)
    for step in (_fewer_faults, _fewer_nodes, _fewer_acts, _fewer_faults):
        assert budget.best is not None
        step(budget.best[0], budget)
        smaller = budget.best[0]
        progress(
            f"{invariant} after {budget.runs} runs: {len(smaller.faults)} faults,"
            f" {smaller.scenario.nodes} nodes, {len(smaller.acts)} acts"
        )
    best_plan, best_result = budget.best
    return Shrunk(
        plan=best_plan,
        result=best_result,
        invariant=invariant,
        runs=budget.runs + 1,
        is_minimal=not budget.is_exhausted,
    )


def _violates(result: Result, invariant: str) -> bool:
    check = result.checks.get(invariant)
    return bool(check.violations) if check is not None else first_failure(result) == invariant


def _fewer_faults(plan: Plan, budget: _Budget) -> None:
    indices = [fault.index for fault in plan.faults]
    ddmin(indices, lambda some: budget.still_fails(plan.reduced(faults=frozenset(some))))


def _fewer_acts(plan: Plan, budget: _Budget) -> None:
    indices = [act.index for act in plan.acts]
    ddmin(indices, lambda some: budget.still_fails(plan.reduced(acts=frozenset(some))))


def _fewer_nodes(plan: Plan, budget: _Budget) -> None:
    # Node 0 stays: it creates the group.
    others = range(1, plan.scenario.nodes)

    def still_fails(some: Sequence[int]) -> bool:
        kept = [0, *some]
        return len(kept) >= NODES_MIN and budget.still_fails(with_nodes(plan, kept))

    ddmin(others, still_fails)


def with_nodes(plan: Plan, kept: Sequence[int]) -> Plan:
    """Return the plan with only these nodes, numbered anew in ascending order.

    Acts of the others go, and faults of which nothing is left: one whose node is gone, a partition with
    fewer than two sides. Indices of acts and faults stay.
    """
    numbers = {old: new for new, old in enumerate(sorted(kept))}
    return Plan(
        scenario=dataclasses.replace(plan.scenario, nodes=len(numbers)),
        seed=plan.seed,
        links=tuple(_links(plan, numbers)),
        sites=tuple(site for node, site in enumerate(plan.sites) if node in numbers),
        acts=tuple(act for act in (_act(act, numbers) for act in plan.acts) if act is not None),
        faults=tuple(
            fault for fault in (_fault(fault, numbers) for fault in plan.faults) if fault is not None
        ),
    )


def _links(plan: Plan, numbers: Mapping[int, int]) -> list[Link]:
    return [
        dataclasses.replace(link, a=numbers[link.a], b=numbers[link.b])
        for link in plan.links
        if link.a in numbers and link.b in numbers
    ]


def _act(act: Act, numbers: Mapping[int, int]) -> Act | None:
    if act.node not in numbers or (args := _args(act.args, numbers)) is None:
        return None
    return dataclasses.replace(act, node=numbers[act.node], args=args)


def _fault(fault: Fault, numbers: Mapping[int, int]) -> Fault | None:
    args = _args(fault.args, numbers)
    return None if args is None else dataclasses.replace(fault, args=args)


def _args(args: Mapping[str, Any], numbers: Mapping[int, int]) -> dict[str, Any] | None:
    """Return arguments with the new numbers of nodes; None if what they speak of is gone."""
    renamed = dict(args)
    for name in _NODE_ARGS:
        if name in renamed:
            if renamed[name] not in numbers:
                return None
            renamed[name] = numbers[renamed[name]]
    if "sides" in renamed:
        sides = [[numbers[node] for node in side if node in numbers] for side in renamed["sides"]]
        renamed["sides"] = [side for side in sides if side]
        if len(renamed["sides"]) < 2:
            return None
    return renamed
