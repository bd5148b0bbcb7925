"""Shrinking: what is left out does not matter, what is left cannot be left out."""

import pytest
from crdt_merge_simulations.plan import Plan
from crdt_merge_simulations.shrinking import ddmin, shrink, with_nodes
from hypothesis import given
from hypothesis import strategies as st
from support.profile import examples
from support.stories import World, make_plan


@examples(60)
@given(
    st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), max_size=4)))
)
def test_ddmin_finds_exactly_the_items_that_are_needed_together(case: tuple[int, set[int]]) -> None:
    count, needed = case

    kept = ddmin(range(count), lambda some: needed <= set(some))

    assert kept == sorted(needed)


def test_ddmin_asks_about_logarithmically_many_parts_for_a_single_culprit() -> None:
    asked = []

    def still_fails(some: object) -> bool:
        asked.append(some)
        return 700 in some

    assert ddmin(range(1000), still_fails) == [700]
    assert len(asked) < 60


def _needs(faults: set[int], acts: set[int], node: int) -> World:
    """Fails while certain faults and acts and one node are there."""

    def fails(plan: Plan) -> bool:
        return (
            faults <= {fault.index for fault in plan.faults}
            and acts <= {act.index for act in plan.acts}
            and plan.scenario.nodes > node
        )

    return World(fails)


def test_a_plan_shrinks_to_the_faults_nodes_and_acts_that_matter() -> None:
    plan = make_plan(nodes=6, faults=8, acts=12)

    shrunk = shrink(plan, _needs({2, 4}, {5}, 2).run)

    assert shrunk is not None
    assert [fault.index for fault in shrunk.plan.faults] == [2, 4]
    assert [act.index for act in shrunk.plan.acts] == [5]
    # Fault 2 is of node 2, fault 4 of node 4, act 5 of node 5, and node 0 founds the group.
    assert shrunk.plan.scenario.nodes == 4
    assert shrunk.invariant == "I1"
    assert shrunk.is_minimal
    assert shrunk.result.checks["I1"].violations


def test_another_failure_on_the_way_does_not_count() -> None:
    """Without fault 3 the run violates I4 instead: that would be another bug."""
    plan = make_plan(faults=6)
    world = World(lambda some: any(fault.index == 3 for fault in some.faults), otherwise="I4")

    shrunk = shrink(plan, world.run)

    assert shrunk is not None
    assert [fault.index for fault in shrunk.plan.faults] == [3]
    assert shrunk.invariant == "I1"


def test_a_plan_that_succeeds_is_not_shrunk() -> None:
    world = World(lambda _plan: False)

    assert shrink(make_plan(), world.run) is None
    assert world.runs == 1


def test_the_budget_ends_shrinking_with_the_best_so_far() -> None:
    world = _needs({2}, set(), 0)

    shrunk = shrink(make_plan(nodes=8, faults=40, acts=80), world.run, runs_max=5)

    assert shrunk is not None
    assert not shrunk.is_minimal
    assert world.runs == 6
    assert 2 in {fault.index for fault in shrunk.plan.faults}
    assert len(shrunk.plan.faults) < 40


def test_leaving_nodes_out_renames_the_others_everywhere() -> None:
    plan = make_plan(nodes=6, faults=8, acts=12)

    small = with_nodes(plan, [0, 3, 4])

    assert small.scenario.nodes == 3
    assert [(link.a, link.b) for link in small.links] == [(0, 1), (0, 2), (1, 2)]
    assert small.sites == (0, 0, 0)
    assert [(act.index, act.node) for act in small.acts] == [(0, 0), (3, 1), (4, 2), (6, 0), (9, 1), (10, 2)]
    kills = [fault.args["node"] for fault in small.faults if fault.kind == "kill"]
    assert kills == [0, 2, 0]
    assert [f.args["sides"] for f in small.faults if f.kind == "partition"] == [[[0], [1, 2]]] * 4


def test_a_partition_without_two_sides_goes_with_its_nodes() -> None:
    small = with_nodes(make_plan(nodes=6, faults=8), [0, 1])

    assert {fault.kind for fault in small.faults} == {"kill"}


@pytest.mark.parametrize("kept", [[0], [0, 1, 2, 3, 4, 5]])
def test_links_join_only_nodes_that_are_there(kept: list[int]) -> None:
    small = with_nodes(make_plan(nodes=6), kept)

    assert all(link.a < len(kept) and link.b < len(kept) for link in small.links)
    assert len(small.links) == len(kept) * (len(kept) - 1) // 2
