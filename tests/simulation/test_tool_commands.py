"""The commands, from typing them to what they leave behind."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from crdt_merge_simulations import process_world, scenario_file, worlds
from crdt_merge_simulations.cli.app import COMMANDS, root
from crdt_merge_simulations.documents import plan_document, plan_in, read_plan
from crdt_merge_simulations.plan import Plan
from crdt_merge_simulations.planning import make_plan
from support.stories import World, make_result


def _type(*words: str) -> Result:
    return CliRunner().invoke(root, words, catch_exceptions=False)


SMALL = """
name = "small"
nodes = 4
duration_s = 3.0
[workload]
operations = 6
[faults.counts]
kill = 2
"""


@pytest.fixture
def small(tmp_path: Path) -> str:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return str(path)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> World:
    """A world that loses something whenever anybody is killed."""
    world = World(lambda plan: any(fault.kind == "kill" for fault in plan.faults))
    monkeypatch.setattr(worlds, "run", world.run)
    return world


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    outcome = _type(name, "--help")

    assert outcome.exit_code == 0
    assert "--json" in outcome.output


def test_list_names_every_shipped_scenario_and_every_fault() -> None:
    outcome = _type("list", "--json")
    answer = json.loads(outcome.output)

    assert answer["schema"] == "sim-list/1"
    assert [scenario["name"] for scenario in answer["scenarios"]] == scenario_file.names()
    assert "partition" in answer["faults"]
    assert all(name in _type("list").output for name in scenario_file.names())


def test_run_tells_the_story_and_how_to_see_it_again(small: str) -> None:
    outcome = _type("run", small, "--seed", "3")

    assert outcome.exit_code == 0
    assert "PASSED" in outcome.output
    assert f"replay  crdt-merge-sim run {small} --seed 3" in outcome.output


def test_the_command_that_run_prints_does_the_same_again(small: str) -> None:
    first = json.loads(_type("run", small, "--seed", "3", "--nodes", "5", "--only", "1", "--json").stdout)
    again = json.loads(_type(*first["command"].split()[1:], "--json").stdout)

    assert first["schema"] == "sim-result/1"
    assert first["nodes"] == 5
    assert [fault["index"] for fault in first["plan"]["faults"]] == [1]
    assert again["trace"] == first["trace"]


def test_run_leaves_a_page_and_a_file_that_replays(small: str, tmp_path: Path) -> None:
    page, saved = tmp_path / "report.html", tmp_path / "result.json"
    ran = _type("run", small, "--html", str(page), "--save", str(saved))
    replayed = _type("replay", str(saved))

    assert (ran.exit_code, replayed.exit_code) == (0, 0)
    assert page.read_text().startswith("<!doctype html>")
    assert "the trace is the same" in replayed.stderr


def test_the_same_scenario_runs_on_whole_daemons(small: str) -> None:
    outcome = _type("run", small, "--fidelity", "daemon", "--nodes", "3", "--json")
    answer = json.loads(outcome.stdout)

    assert outcome.exit_code == 0
    assert answer["fidelity"] == "daemon"
    assert answer["checks"]["I1"]["verdict"] == "held"


def test_cluster_takes_scenarios_to_real_processes(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the processes do is tested where they are; here, that the command hands the right plan on."""
    asked: list[tuple[Plan, str]] = []

    def run(plan: Plan, *, network: str, history: Path | None, is_quiet: bool) -> object:
        asked.append((plan, network))
        return make_result(plan)

    monkeypatch.setattr(process_world, "run", run)
    outcome = _type("cluster", small, "--nodes", "5", "--duration", "6", "--network", "loopback")
    [(plan, network)] = asked

    assert outcome.exit_code == 0
    assert (plan.scenario.fidelity, plan.scenario.nodes, plan.scenario.duration_s) == ("process", 5, 6.0)
    assert len(plan.faults) == 4
    assert network == "loopback"
    assert f"crdt-merge-sim cluster {small} --seed 1 --nodes 5 --duration 6" in outcome.output


def test_no_faults_at_all_can_be_asked_for(small: str) -> None:
    assert json.loads(_type("run", small, "--only", "none", "--json").stdout)["plan"]["faults"] == []


@pytest.mark.parametrize(
    ("words", "exit_code", "said"),
    [
        (("run", "kills-11"), 78, "kills-10"),
        (("rnu", "kills-10"), 2, "run"),
        (("run", "kills-10", "--only", "a"), 2, "3,7,9"),
        (("run", "kills-10", "--events", "some"), 2, "neither a number"),
        (("replay", "no-such-file.json"), 2, "does not exist"),
        (("sweep", "kills-11"), 78, "kills-10"),
        (("run", "processes-5"), 78, "crdt-merge-sim cluster"),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_reason(
    words: tuple[str, ...], exit_code: int, said: str
) -> None:
    outcome = _type(*words)

    assert outcome.exit_code == exit_code
    assert said in outcome.stderr


def test_a_violated_invariant_ends_with_its_own_status(small: str, failing: World) -> None:
    outcome = _type("run", small)

    assert outcome.exit_code == 7
    assert "✗ I1 of n3" in outcome.output


def test_a_run_that_does_not_converge_ends_with_another(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worlds, "run", lambda plan: make_result(plan, is_converged=False))

    assert _type("run", small).exit_code == 6


def test_shrink_writes_a_small_plan_that_still_fails(small: str, failing: World, tmp_path: Path) -> None:
    output = tmp_path / "shrunk.json"
    outcome = _type("shrink", small, "--seed", "1", "-o", str(output))
    plan = plan_in(json.loads(output.read_text()))

    assert outcome.exit_code == 0
    assert f"replay: crdt-merge-sim replay {output}" in outcome.output
    assert [fault.kind for fault in plan.faults] == ["kill"]
    assert plan.acts == ()
    assert plan.scenario.nodes == 2
    assert _type("replay", str(output)).exit_code == 7


def test_shrink_says_so_if_nothing_fails(small: str) -> None:
    outcome = _type("shrink", small)

    assert outcome.exit_code == 1
    assert "nothing to shrink" in outcome.stderr


def test_sweep_tells_each_kind_of_failure_once_and_saves_it(
    small: str, failing: World, tmp_path: Path
) -> None:
    outcome = _type("sweep", small, "--seeds", "4", "--jobs", "1", "--save", str(tmp_path / "failed"))
    saved = tmp_path / "failed" / "small-1.json"

    assert outcome.exit_code == 1
    assert "4 seeds, 4 failed" in outcome.output
    assert outcome.output.count("✗") == 1
    assert f"crdt-merge-sim run {small} --seed 1" in outcome.output
    assert _type("shrink", str(saved), "-o", str(tmp_path / "small.json")).exit_code == 0


def test_sweep_with_json_prints_a_line_per_seed_and_the_sum(small: str) -> None:
    outcome = _type("sweep", small, "--seeds", "2", "--jobs", "1", "--json")
    lines = [json.loads(line) for line in outcome.stdout.splitlines()]

    assert [line["event"] for line in lines] == ["seed", "seed", "sum"]
    assert lines[-1]["runs"] == 2
    assert lines[-1]["failed"] == 0


def test_compare_with_the_same_code_finds_nothing(small: str, tmp_path: Path) -> None:
    saved = tmp_path / "result.json"
    _type("run", small, "--save", str(saved))
    outcome = _type("compare", str(saved))

    assert outcome.exit_code == 0
    assert "nothing changed at all" in outcome.output


def test_compare_says_what_got_worse_by_how_much(small: str, tmp_path: Path) -> None:
    saved, other = tmp_path / "before.json", tmp_path / "after.json"
    _type("run", small, "--save", str(saved))
    document = json.loads(saved.read_text())
    document["bytes_sent"] = [2 * sent for sent in document["bytes_sent"]]
    other.write_text(json.dumps(document))
    outcome = _type("compare", str(saved), str(other), "--json")
    answer = json.loads(outcome.stdout)

    assert outcome.exit_code == 1
    assert "bytes sent" in answer["worse"]
    assert answer["changes"]["bytes sent"] == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["kills-10", "swarm-10", "byzantine-10", "partitions-10", "churn-10"])
def test_shipped_plans_survive_their_file_unchanged(name: str) -> None:
    """Arguments of faults and acts are what JSON knows, so a replay does just what the run did."""
    plan: Plan = make_plan(scenario_file.find(name), 5)

    assert read_plan(json.loads(json.dumps(plan_document(plan)))) == plan
