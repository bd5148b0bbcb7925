"""Runs that never took place: plans and results made by hand, and worlds that fail as a test wants."""

from collections import Counter
from collections.abc import Callable

from crdt_merge_simulations.plan import Act, Fault, Link, Plan, Scenario
from crdt_merge_simulations.result import Check, Result, Sample
from crdt_merge_simulations.sweeping import Outcome, outcome_of


def make_plan(*, nodes: int = 6, faults: int = 8, acts: int = 10, name: str = "handmade") -> Plan:
    """Return a complete topology; even faults kill a node, odd ones split off the first half."""
    half = nodes // 2
    sides = [list(range(half)), list(range(half, nodes))]
    return Plan(
        scenario=Scenario(name=name, description="Made by hand.", nodes=nodes),
        seed=7,
        links=tuple(Link(a=a, b=b, latency_s=0.02) for a in range(nodes) for b in range(a + 1, nodes)),
        sites=(0,) * nodes,
        acts=tuple(
            Act(index=i, time=float(i), node=i % nodes, kind="add", args={"slot": "s"}) for i in range(acts)
        ),
        faults=tuple(
            Fault(index=i, time=float(i), kind="kill", args={"node": i % nodes, "down_s": 1.0})
            if i % 2 == 0
            else Fault(index=i, time=float(i), kind="partition", args={"sides": sides, "for_s": 2.0})
            for i in range(faults)
        ),
    )


def make_result(plan: Plan, *, violations: dict[str, str] | None = None, is_converged: bool = True) -> Result:
    """Return a result in which I1 and I4 were looked at and ``violations`` (id -> line) were found."""
    nodes = plan.scenario.nodes
    checks = {id_: Check(id=id_, claim=f"Claim of {id_}", checked=10) for id_ in ("I1", "I4")}
    for id_, line in (violations or {}).items():
        checks.setdefault(id_, Check(id=id_, claim=f"Claim of {id_}")).violations.append(line)
    samples = [
        Sample(
            time=float(moment),
            distinct_roots=2 if moment == 1 else 1,
            distinct_keys=1,
            roots=[
                ("" if moment == 1 and node == 0 else "bb" if moment == 1 and node == 1 else "aa")
                for node in range(nodes)
            ],
            sides=[int(moment == 1 and node >= nodes // 2) for node in range(nodes)],
            operations=[moment] * nodes,
            tombstones=moment,
            distance=float(moment),
        )
        for moment in range(3)
    ]
    return Result(
        name=plan.scenario.name,
        seed=plan.seed,
        fidelity="engine",
        nodes=nodes,
        converged_after_s=1.5 if is_converged else None,
        checks=checks,
        sometimes=Counter({"fork seen": 0, "orphan buffered": 3}),
        log=["    0.100  n0 adds 00ff to s", "    1.000  n1 is killed"],
        samples=samples,
        links=[(link.a, link.b) for link in plan.links],
        sites=list(plan.sites),
        bytes_sent=[1000] * nodes,
        bytes_needed=500 * nodes,
        hops=Counter({1: 4, 2: 8}),
        delivery_s=[0.1, 0.2, 0.3, 0.4],
        duplicates=3,
        deliveries=12,
        operations=10,
        visible=6,
        events=1234,
        virtual_s=80.0,
        wall_s=0.5,
        trace="ab" * 32,
    )


class World:
    """Fails with I1 whenever ``fails`` says so of a plan; counts its runs."""

    def __init__(self, fails: Callable[[Plan], bool], *, otherwise: str | None = None) -> None:
        self.runs = 0
        self._fails = fails
        self._otherwise = otherwise

    def run(self, plan: Plan) -> Result:
        """Return a result that violates I1, or what was wanted otherwise."""
        self.runs += 1
        found = "I1" if self._fails(plan) else self._otherwise
        return make_result(plan, violations={found: f"{found} of n3"} if found else None)


def fail_every_third(scenario: Scenario, seed: int) -> Outcome:
    """Run nothing; seeds that three divides violate I1, each with other numbers in its words."""
    line = f"n{seed} lost {seed} acknowledged operations, first {seed:08x}"
    result = make_result(make_plan(name=scenario.name), violations=None if seed % 3 else {"I1": line})
    result.seed = seed
    return outcome_of(result)
