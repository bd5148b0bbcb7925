"""Whole daemons in virtual time: what breaks them, what must hold, and that a run repeats (SCENARIOS 4)."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
from crdt_merge_node.storage import OpRow, connecting
from crdt_merge_node.writer import StoreWriter
from crdt_merge_protocol import engine
from crdt_merge_protocol.events import OperationsStored, StoreOperations
from crdt_merge_protocol.operations import LOG_BYTES
from crdt_merge_protocol.replica import Replica
from crdt_merge_protocol.strategies import averages
from crdt_merge_protocol.strategies.kernels import combine
from crdt_merge_simulations import daemon_world
from crdt_merge_simulations.plan import Act, Fault, FaultSpec, Plan, Scenario, WorkloadSpec
from crdt_merge_simulations.planning import make_plan

FAULTS = {
    "kill": 3,
    "torn": 2,
    "crash_loop": 1,
    "freeze": 1,
    "slow": 1,
    "wipe": 1,
    "restore": 1,
    "partition": 2,
    "one_way": 1,
    "isolate": 1,
    "flap": 1,
    "reset": 3,
    "delay": 2,
    "loss": 2,
    "corrupt": 2,
    "full": 1,
    "io_error": 1,
    "rot": 1,
    "clock_jump": 1,
    "clone": 1,
}
LIES = ("flooder", "forker", "garbage", "liar", "withholder")


def scenario(*, nodes=3, operations=8, duration_s=4.0, faults=None, **workload):
    return Scenario(
        name="test",
        nodes=nodes,
        fidelity="daemon",
        duration_s=duration_s,
        workload=WorkloadSpec(operations=operations, **workload),
        faults=faults or FaultSpec(),
    )


def violations(result):
    return {id_: check.violations for id_, check in result.checks.items() if check.violations}


def add(index, node, time, **args):
    args = {"group": 0, "slot": f"s{index}", "content": index} | args
    return Act(index=index, time=time, node=node, kind="add", args=args)


def test_three_daemons_agree_on_operations_bytes_and_outputs():
    result = daemon_world.run(make_plan(scenario(), 1))

    assert violations(result) == {}
    assert result.is_success
    assert result.operations >= 8
    assert {result.checks[id_].verdict for id_ in ("I1", "I3", "I13", "I14")} == {"held"}


def test_a_daemon_killed_in_the_middle_of_an_import_comes_back_and_all_agree():
    plan = make_plan(scenario(operations=0, tensor_bytes=200_000, policy_changes=0), 5)
    acts = tuple(add(index, index % 3, 0.5 * index) for index in range(6))
    kills = tuple(
        Fault(index=index, time=0.5 * index - 0.001, kind=kind, args={"node": index % 3, "down_s": 0.3})
        for index, kind in ((1, "kill"), (2, "torn"), (4, "kill"), (5, "torn"))
    )
    plan = Plan(scenario=plan.scenario, seed=5, links=plan.links, sites=plan.sites, acts=acts, faults=kills)

    result = daemon_world.run(plan)

    assert violations(result) == {}
    assert result.is_success
    assert sum("dies" in line for line in result.log) == 4


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_ten_daemons_agree_after_whatever_a_seed_does_to_them(seed):
    swarm = FaultSpec(counts=FAULTS, is_swarm=True)

    result = daemon_world.run(make_plan(scenario(nodes=10, operations=12, faults=swarm), seed))

    assert violations(result) == {}
    assert result.is_success


@pytest.mark.parametrize("kind", sorted(FAULTS))
def test_three_daemons_survive_each_kind_of_fault(kind):
    faults = FaultSpec(counts={kind: 2})

    result = daemon_world.run(make_plan(scenario(operations=6, duration_s=3.0, faults=faults), 21))

    assert violations(result) == {}
    assert result.is_success
    assert result.sometimes[f"fault {kind}"] >= 1


@pytest.mark.parametrize("kind", LIES)
def test_honest_daemons_agree_whatever_one_of_them_tells_the_others(kind):
    faults = FaultSpec(counts={kind: 2})

    result = daemon_world.run(make_plan(scenario(nodes=4, operations=6, duration_s=3.0, faults=faults), 21))

    assert violations(result) == {}
    assert result.is_success
    assert result.unsupported == []
    assert result.checks["I6"].checked > 0


def test_whoever_forks_is_convicted_on_all_daemons():
    faults = FaultSpec(counts={"forker": 1})

    result = daemon_world.run(make_plan(scenario(nodes=4, operations=6, duration_s=3.0, faults=faults), 22))

    assert result.is_success
    assert result.sometimes["a fork was seen"] == 1


@pytest.mark.parametrize("strategy", ["weight_average", "ties"])
def test_outputs_are_those_of_a_merge_that_shares_no_code_with_the_node(strategy):
    plan = make_plan(replace(scenario(), strategy=strategy), 1)

    result = daemon_world.run(plan)

    assert result.is_success
    assert result.sometimes["output compared with the oracle"] == 1


def test_a_run_tells_how_far_operations_travelled_and_how_far_apart_the_weights_were():
    result = daemon_world.run(make_plan(scenario(), 1))

    assert result.hops[1] > 0
    assert len(result.delivery_s) == result.operations
    assert max(result.delivery_s) < 1.0
    distances = [sample.distance for sample in result.samples if sample.distance is not None]
    assert max(distances) > 0.0
    assert distances[-1] == 0.0


def test_tls_in_place_of_plaintext_changes_nothing_that_matters():
    result = daemon_world.run(make_plan(scenario(operations=4, duration_s=2.0), 3), tls=True)

    assert violations(result) == {}
    assert result.is_success


def test_late_joiners_and_leavers_get_everything():
    plan = make_plan(scenario(nodes=5, operations=10, late_joiners=1, churn=1), 7)

    result = daemon_world.run(plan)

    assert violations(result) == {}
    assert result.is_success


TRACE = """
from test_daemon_world import FAULTS, daemon_world, make_plan, scenario
from crdt_merge_simulations.plan import FaultSpec
plan = make_plan(scenario(nodes=4, operations=8, faults=FaultSpec(counts=FAULTS, is_swarm=True)), 9)
result = daemon_world.run(plan)
print(result.trace, result.events, result.is_success)
"""


def test_equal_seeds_have_equal_traces_under_any_hash_seed():
    def run(hash_seed):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", TRACE],
            env=environment,
            cwd=os.path.dirname(__file__),
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.split()

    assert run("1") == run("2")


def test_two_runs_in_one_process_have_one_trace():
    plan = make_plan(scenario(operations=6, duration_s=2.0, faults=FaultSpec(counts={"torn": 2})), 4)

    assert daemon_world.run(plan).trace == daemon_world.run(plan).trace


def test_other_seeds_have_other_traces():
    one, other = (daemon_world.run(make_plan(scenario(operations=2, duration_s=1.0), s)) for s in (1, 2))

    assert one.trace != other.trace


# --- planted bugs: the world must see what it is there to see ---------------------------------------------


async def acknowledge_first(self, batch):
    """Say that operations are durable, then make them so."""
    rows = []
    for waiting in [w for w in batch if isinstance(w.effect, StoreOperations)]:
        batch.remove(waiting)
        effect = waiting.effect
        self._report(OperationsStored(group=effect.group, ids=tuple(each.id for each in effect.operations)))
        waiting.settle(None)
        rows += [OpRow(effect.group, each.id, each.wire()) for each in effect.operations]
    await ORIGINAL_COMMIT(self, batch)
    await self._store.append(rows)


ORIGINAL_COMMIT = StoreWriter._commit
BUG_SEEDS = range(1, 8)


def caught(faults):
    """Return the first invariant that some seed finds violated."""
    for seed in BUG_SEEDS:
        plan = make_plan(scenario(operations=12, duration_s=3.0, faults=FaultSpec(counts=faults)), seed)
        if found := violations(daemon_world.run(plan)):
            return sorted(found)
    return []


def test_acknowledging_before_it_is_durable_is_caught(monkeypatch):
    monkeypatch.setattr(StoreWriter, "_commit", acknowledge_first)

    assert "I1" in caught({"kill": 4})


def test_a_database_that_is_not_synced_is_caught(monkeypatch):
    pragmas = [
        ("synchronous", "off", (0,)) if name == "synchronous" else (name, *rest)
        for name, *rest in connecting.PRAGMAS
    ]
    monkeypatch.setattr(connecting, "PRAGMAS", tuple(pragmas))

    assert "I1" in caught({"torn": 4})


def test_a_clone_that_goes_on_in_the_log_of_its_original_is_caught(monkeypatch):
    monkeypatch.setattr(engine, "Replica", lambda genesis, key, _log: Replica(genesis, key, bytes(LOG_BYTES)))
    faults = FaultSpec(counts={"clone": 2})
    plan = make_plan(scenario(nodes=4, operations=0, duration_s=3.0, faults=faults), 5)

    assert {"I6", "I10"} & violations(daemon_world.run(plan)).keys()


def test_a_merge_that_weighs_wrongly_is_caught(monkeypatch):
    monkeypatch.setattr(averages, "combine", lambda *arguments: 2.0 * combine(*arguments))

    assert sorted(violations(daemon_world.run(make_plan(scenario(), 1)))) == ["I14"]
