"""Real processes: a seeded nemesis, nothing acknowledged lost, nothing left running (SCENARIOS 5)."""

import json
import os
import select
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from crdt_merge_simulations import process_world
from crdt_merge_simulations.plan import Plan
from crdt_merge_simulations.planning import make_plan
from crdt_merge_simulations.process_network import isolation
from crdt_merge_simulations.result import Result
from crdt_merge_simulations.scenario_file import find

SEED = 3
DYING_S_MAX = 50.0
"""A handle of a process (pidfd) becomes readable when it ends; a survivor would run for a minute."""

LONG_RUN = """
from crdt_merge_simulations import process_world
from crdt_merge_simulations.planning import make_plan
from crdt_merge_simulations.scenario_file import find
plan = make_plan(process_world.scaled(find("processes-5"), nodes=3, duration_s=60.0), 1)
process_world.run(plan, is_quiet=False)
"""


def _plan() -> Plan:
    return make_plan(find("processes-5"), SEED)


def _daemons(directory: Path) -> set[int]:
    """Return daemons, and their nurseries, that a run with this place for its files has started."""
    found, mark = set(), f"TMPDIR={directory}".encode()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            environment = (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"crdt_merge_simulations.process_nursery" in words and mark in environment:
            found.add(int(path.name))
    return found


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    history = tmp_path_factory.mktemp("history") / "history.jsonl"
    return process_world.run(_plan(), history=history), history


def test_daemons_agree_after_faults_of_every_kind(outcome: tuple[Result, Path]) -> None:
    result, _ = outcome

    assert {id_: check.violations for id_, check in result.checks.items()} == {
        id_: [] for id_ in process_world.CLAIMS
    }
    assert result.is_success


def test_the_verdict_rests_on_something(outcome: tuple[Result, Path]) -> None:
    result, _ = outcome

    assert result.checks["I1"].checked >= 5
    assert result.checks["I14"].checked == 2
    assert sum(count for name, count in result.sometimes.items() if name.startswith("fault ")) >= 7


def test_the_history_has_an_end_for_every_beginning(outcome: tuple[Result, Path]) -> None:
    lines = [json.loads(line) for line in outcome[1].read_text().splitlines()]
    invoked = {(line["what"], line["index"]) for line in lines if line["phase"] == "invoke"}
    ended = {(line["what"], line["index"]) for line in lines if line["phase"] != "invoke"}

    assert ended == invoked


def test_faults_that_processes_cannot_suffer_are_named() -> None:
    plan = _plan()
    supported = set(plan.scenario.faults.counts)
    world = process_world.ProcessWorld(plan, Path("/nowhere"), has_namespaces=False, is_quiet=True)

    assert {text.split()[1] for text in world.result.unsupported} == supported & {"one_way", "full"}


def test_a_run_without_namespaces_cuts_by_blocking() -> None:
    scenario = replace(find("processes-5"), nodes=3, duration_s=3.0)
    plan = make_plan(scenario, SEED)
    cuts = frozenset(fault.index for fault in plan.faults if fault.kind in {"partition", "isolate"})
    short = plan.reduced(faults=cuts)

    result = process_world.run(short, network="loopback")

    assert result.is_success


def test_nothing_survives_a_command_that_is_killed(tmp_path: Path) -> None:
    """SIGKILL leaves it no chance to clean up; the kernel does."""
    command = subprocess.Popen(
        [sys.executable, "-c", LONG_RUN],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},  # The directory is all that it cannot take along.
    )
    assert command.stderr is not None
    for line in command.stderr:
        if "know" in line:
            break
    running = sorted(_daemons(tmp_path))
    handles = [os.pidfd_open(pid) for pid in running]

    command.kill()
    command.wait()
    command.stderr.close()
    ended = [bool(select.select([handle], [], [], DYING_S_MAX)[0]) for handle in handles]
    for handle in handles:
        os.close(handle)

    assert len(running) >= 4
    assert ended == [True] * len(running)
    assert not os.path.exists("/run/netns/n0")


def test_the_probe_of_namespaces_leaves_nothing() -> None:
    isolation()

    assert not os.path.exists("/run/netns/n0")
