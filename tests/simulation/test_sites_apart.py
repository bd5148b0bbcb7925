"""Ten sites of ten nodes, cut from each other: each converges for itself, then all together (TARGETS A14)."""

from crdt_merge_simulations import engine_world, scenario_file
from crdt_merge_simulations.planning import make_plan

HEAL_S_MAX = 5.0


def test_ten_sites_converge_apart_and_within_seconds_of_the_heal_together():
    plan = make_plan(scenario_file.find("partition-10x10"), 1)
    [cut] = plan.faults

    result = engine_world.run(plan)

    apart = max((s for s in result.samples if s.time < cut.args["for_s"]), key=lambda s: s.time)
    roots = {
        site: {root for root, at in zip(apart.roots, plan.sites, strict=True) if at == site}
        for site in range(10)
    }
    assert [len(of_site) for of_site in roots.values()] == [1] * 10
    assert apart.distinct_roots == 10
    assert result.is_success
    assert result.converged_after_s <= HEAL_S_MAX


def test_operations_come_within_the_span_that_a_scenario_gives_them():
    plan = make_plan(scenario_file.find("partition-10x10"), 1)

    assert max(act.time for act in plan.acts) <= plan.scenario.workload.within_s < plan.scenario.duration_s
