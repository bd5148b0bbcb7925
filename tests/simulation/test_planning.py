"""Scenario files and the plans that seeds make of them: the same forever, each draw for itself."""

import dataclasses
from pathlib import Path

import pytest
from crdt_merge_node.errors import ConfigError
from crdt_merge_simulations import scenario_file
from crdt_merge_simulations.plan import FAULT_KINDS, FaultSpec, Scenario, TopologySpec, WorkloadSpec
from crdt_merge_simulations.planning import make_plan
from crdt_merge_simulations.topology import PARAMETERS, LinkTable


@pytest.mark.parametrize("name", scenario_file.names())
def test_every_shipped_scenario_reads_and_says_what_it_is(name: str) -> None:
    scenario = scenario_file.find(name)

    assert scenario.name == name
    assert scenario.description


def test_equal_seeds_make_equal_plans_and_others_do_not() -> None:
    scenario = scenario_file.find("swarm-10")

    assert make_plan(scenario, 7) == make_plan(scenario, 7)
    assert make_plan(scenario, 7) != make_plan(scenario, 8)


def test_one_kill_less_leaves_all_other_draws_as_they_were() -> None:
    """Shrinking works only if what is left happens as before (SCENARIOS 4.2)."""
    many = Scenario(name="x", faults=FaultSpec(counts={"kill": 5, "partition": 3}))
    fewer = dataclasses.replace(many, faults=FaultSpec(counts={"kill": 4, "partition": 3}))

    before, after = make_plan(many, 3), make_plan(fewer, 3)

    remaining = [(fault.time, fault.kind, fault.args) for fault in after.faults]
    assert all(
        each in [(fault.time, fault.kind, fault.args) for fault in before.faults] for each in remaining
    )
    assert len(after.faults) == len(before.faults) - 1
    assert after.acts == before.acts
    assert after.links == before.links


def test_a_subset_of_the_faults_replays_under_its_numbers() -> None:
    plan = make_plan(Scenario(name="x", faults=FaultSpec(counts={"kill": 5})), 3)

    assert [fault.index for fault in plan.reduced(faults=frozenset({1, 3})).faults] == [1, 3]


def test_a_swarm_enables_other_kinds_for_other_seeds() -> None:
    scenario = Scenario(name="x", faults=FaultSpec(counts=dict.fromkeys(FAULT_KINDS, 2), is_swarm=True))

    kinds = [frozenset(fault.kind for fault in make_plan(scenario, seed).faults) for seed in range(20)]

    assert len(set(kinds)) > 15
    assert frozenset().union(*kinds) == FAULT_KINDS.keys()


def test_late_joiners_do_nothing_before_they_start() -> None:
    plan = make_plan(Scenario(name="x", workload=WorkloadSpec(operations=200, late_joiners=3)), 5)
    starts = {act.node: act.time for act in plan.acts if act.kind == "start"}

    assert sorted(starts) == [7, 8, 9]
    assert all(act.time > starts[act.node] for act in plan.acts if act.node in starts and act.kind != "start")


@pytest.mark.parametrize("kind", [kind for kind in PARAMETERS if kind != "file"])
@pytest.mark.parametrize("nodes", [1, 2, 5, 30])
def test_every_topology_is_in_one_piece_at_every_size(kind: str, nodes: int) -> None:
    params = {"degree": 4} if kind == "random_regular" else {}
    plan = make_plan(Scenario(name="x", nodes=nodes, topology=TopologySpec(kind=kind, params=params)), 1)

    table, reached = LinkTable(plan), {0}
    border = [0]
    while border:
        fresh = [other for other in table.neighbours(border.pop()) if other not in reached]
        reached.update(fresh)
        border += fresh
    assert reached == set(range(nodes))


def test_a_link_between_sites_is_slower_than_one_within() -> None:
    spec = TopologySpec(
        kind="clustered", params={"sites": 3}, latency_ms=(1.0, 5.0), wan_latency_ms=(50.0, 90.0)
    )
    plan = make_plan(Scenario(name="x", nodes=12, topology=spec), 1)

    assert {link.is_wan for link in plan.links} == {False, True}
    assert all((link.latency_s >= 0.05) == link.is_wan for link in plan.links)


def test_a_large_complete_graph_has_delays_without_a_list() -> None:
    plan = make_plan(Scenario(name="x", nodes=5000), 1)
    table = LinkTable(plan)

    assert plan.links == ()
    assert table.latency_s(17, 4999) == table.latency_s(4999, 17) is not None
    assert table.latency_s(17, 17) is None


def test_a_topology_comes_from_a_file_beside_the_scenario(tmp_path: Path) -> None:
    (tmp_path / "links.txt").write_text("0 1\n1 2  # the bridge\n\n2 3\n")
    (tmp_path / "mine.toml").write_text(
        'nodes = 4\n[topology]\nkind = "file"\n[topology.params]\npath = "links.txt"\n'
    )

    plan = make_plan(scenario_file.find(str(tmp_path / "mine.toml")), 1)

    assert [(link.a, link.b) for link in plan.links] == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("node = 3", 'node is unknown. Did you mean "nodes"?'),
        ("nodes = true", "nodes cannot be True"),
        ("nodes = 0", "nodes must be 1..100000"),
        ('fidelity = "engin"', 'Did you mean "engine"?'),
        ("workload = 3", "workload must be a table"),
        ("[workload]\nremove_ratio = 2.0", "must be 0..1"),
        ("[faults.counts]\nkil = 3", 'Did you mean "kill"?'),
        ("[faults.counts]\nkill = -3", "cannot be negative"),
        ('[topology]\nkind = "rings"', 'Did you mean "ring"?'),
        ("[topology.params]\ndegree = 3", "'degree' is unknown"),
        ("[topology]\nlatency_ms = [50, 10]", "the smaller first"),
        ("nodes = ", "is not TOML"),
    ],
)
def test_what_no_scenario_can_say_is_refused_with_a_hint(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=r".") as caught:
        scenario_file.parse(text, name="mine")

    assert complaint in str(caught.value)


def test_all_problems_of_a_file_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        scenario_file.parse("nodes = 0\nnode = 3\n[faults.counts]\nkil = 1\n", name="mine")

    assert len(caught.value.problems) == 3


def test_an_unknown_scenario_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="swarm-10"):
        scenario_file.find("swam-10")
