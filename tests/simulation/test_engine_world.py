"""Engines in virtual time: whatever is killed, split, lost and told, the nodes agree once there is peace."""

import dataclasses
import subprocess
import sys

import pytest
from crdt_merge_simulations import scenario_file
from crdt_merge_simulations.engine_world import run
from crdt_merge_simulations.plan import FAULT_KINDS, FaultSpec, Scenario, TopologySpec, WorkloadSpec
from crdt_merge_simulations.planning import make_plan
from crdt_merge_simulations.result import Result


def violations(result: Result) -> list[str]:
    return [f"{check.id}: {text}" for check in result.checks.values() for text in check.violations]


def assert_success(result: Result) -> None:
    assert violations(result) == []
    assert result.converged_after_s is not None


@pytest.mark.parametrize("seed", range(1, 61))
def test_ten_nodes_agree_after_any_swarm_of_faults(seed: int) -> None:
    result = run(make_plan(scenario_file.find("swarm-10"), seed))

    assert_success(result)
    assert result.visible > 0


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    "name", ["calm-10", "kills-10", "partitions-10", "byzantine-10", "churn-10", "late-joiners", "lossy"]
)
def test_every_small_scenario_ends_in_agreement(name: str, seed: int) -> None:
    assert_success(run(make_plan(scenario_file.find(name), seed)))


@pytest.mark.parametrize("seed", range(1, 13))
def test_acts_of_administrators_end_in_agreement_whoever_is_cut_off_killed_or_lies(seed: int) -> None:
    """Equal roots and views, and no disk holds what a REVOKE dropped (T32)."""
    assert_success(run(make_plan(scenario_file.find("acts-10"), seed)))


def test_a_node_that_knows_nobody_is_found_by_those_who_looked_for_it_too_early() -> None:
    """Of its site it is the first to be looked for and the last to start, and no other site can reach it."""
    assert_success(run(make_plan(scenario_file.find("wan-sites"), 1)))


@pytest.mark.parametrize("name", ["hundred", "partition-10x10"])
def test_a_hundred_nodes_end_in_agreement(name: str) -> None:
    result = run(make_plan(scenario_file.find(name), 1))

    assert_success(result)
    assert result.converged_after_s is not None
    assert result.converged_after_s <= 5.0  # TARGETS A14


def test_a_thousand_nodes_end_in_agreement() -> None:
    result = run(make_plan(scenario_file.find("thousand"), 1))

    assert_success(result)
    assert result.converged_after_s is not None
    assert result.converged_after_s <= 5.0


@pytest.mark.parametrize("kind", sorted(FAULT_KINDS))
def test_each_kind_of_fault_is_survived_alone(kind: str) -> None:
    """And it happens: a world that leaves a fault out says so."""
    scenario = Scenario(
        name="one-kind",
        nodes=6,
        duration_s=8.0,
        workload=WorkloadSpec(operations=16),
        faults=FaultSpec(counts={kind: 3}),
    )

    result = run(make_plan(scenario, 11))

    assert_success(result)
    assert (result.sometimes[f"fault {kind}"] == 3) != (kind in result.unsupported)


def test_the_swarm_is_not_blind() -> None:
    """Over some seeds everything that is rare has happened (SCENARIOS 4.6)."""
    seen: set[str] = set()
    for seed in range(1, 13):
        result = run(make_plan(scenario_file.find("swarm-10"), seed))
        seen |= {name for name, count in result.sometimes.items() if count}

    assert {
        "a full disk",
        "a fork was seen",
        "a frame was refused",
        "a payload was lost",
        "a peer was disconnected for what it sent",
        "a peer was refused",
        "a sync session ended equal",
        "a sync session ended failed",
        "silence ended a connection",
    } <= seen


@pytest.mark.parametrize("kind", ["ring", "line", "star", "tree", "random_regular"])
def test_operations_cross_a_network_in_which_few_may_talk(kind: str) -> None:
    topology = TopologySpec(kind=kind, params={"degree": 4} if kind == "random_regular" else {})
    scenario = Scenario(
        name=kind, nodes=12, topology=topology, duration_s=10.0, workload=WorkloadSpec(operations=12)
    )

    assert_success(run(make_plan(scenario, 2)))


def test_a_cut_is_seen_while_it_lasts_and_both_sides_go_on() -> None:
    scenario = dataclasses.replace(scenario_file.find("partitions-10"), duration_s=10.0)
    plan = make_plan(scenario, 4)

    result = run(plan)

    during = [sample for sample in result.samples if len(set(sample.sides)) > 1]
    assert during
    assert max(sample.distinct_roots for sample in during) > 1
    assert_success(result)


def test_a_quiet_cluster_sends_little() -> None:
    """Without work and faults only announcements and their repair cross the wire."""
    scenario = Scenario(
        name="quiet", nodes=5, duration_s=100.0, workload=WorkloadSpec(operations=1, policy_changes=0)
    )

    result = run(make_plan(scenario, 3))

    assert_success(result)
    assert sum(result.bytes_sent) / 5 / 100 < 512  # TARGETS A8


def test_faults_left_out_of_a_plan_do_not_happen() -> None:
    plan = make_plan(scenario_file.find("kills-10"), 5)

    result = run(plan.reduced(faults=frozenset({2})))

    assert [line for line in result.log if "#" in line] == [
        line for line in result.log if f"{plan.faults[2]}" in line
    ]
    assert_success(result)


def test_equal_seeds_give_equal_traces_under_any_hash_seed() -> None:
    """No iteration order of a set reaches a message, a hash or a draw (SCENARIOS 3)."""
    script = (
        "from crdt_merge_simulations import engine_world, planning, scenario_file\n"
        "for name, seed in (('swarm-10', 9), ('swarm-10', 21), ('byzantine-10', 2)):\n"
        "    print(engine_world.run(planning.make_plan(scenario_file.find(name), seed)).trace)"
    )
    traces = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": hash_seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "777")
    }

    assert len(traces) == 1
