"""`check`: one line, the statuses of Nagios, and what makes each of them."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
from typing import Any

import pytest
from crdt_merge_node.cli import check as module
from crdt_merge_node.control.model import Alarm, Reason
from crdt_merge_node.errors import ControlError
from support import nodes
from support.nodes import FakeNode

DAY = 86_400.0
CERTIFIED = dataclasses.replace(nodes.STATUS, certificate_expires=nodes.NOW + 100 * DAY)


def _lacking(seconds: float, *, subject: str = nodes.NODE, missing: tuple[str, ...] = ("ab" * 32,)) -> Any:
    reason = Reason(subject=subject, lacks="2 blobs", since=nodes.NOW - seconds, missing=missing)
    group = dataclasses.replace(nodes.WHY.groups[0], reasons=(reason,))
    return dataclasses.replace(nodes.WHY, groups=(group,))


@pytest.fixture
def well(node: FakeNode) -> FakeNode:
    """A node about which there is nothing to say."""
    node.status_answer = CERTIFIED
    return node


def _check(run: Any, *options: str) -> tuple[int, str]:
    result = run("check", *options)
    assert result.stdout.count("\n") == 1, result.stdout
    return result.exit_code, result.stdout.rstrip("\n")


def test_a_well_node_is_ok_in_one_line_with_performance_data(run: Any, well: FakeNode) -> None:
    expected = (
        "CRDT-MERGE OK - 1 live peer; 1 group, nothing missing; 7.0 GiB free; certificate valid for 100 d 0 h"
        " | peers=1;;1:;0 missing_age=0s;300;3600;0 free=7516192768B;1073741824:;268435456:;0"
        " certificate=8640000s;2592000:;604800:;0"
    )

    assert _check(run) == (0, expected)


PERFORMANCE = re.compile(r"[a-z_]+=-?\d+(s|B)?;([\d.]+:?)?;([\d.]+:?)?;0")


@pytest.mark.parametrize("options", [(), ("--peers-min", "3"), ("--missing-warning-s", "0.5")])
def test_performance_data_are_what_the_guidelines_say(
    run: Any, well: FakeNode, options: tuple[str, ...]
) -> None:
    _, line = _check(run, *options)

    data = line.partition(" | ")[2].split(" ")
    assert len(data) == 4
    assert all(PERFORMANCE.fullmatch(item) for item in data), data


@pytest.mark.parametrize(
    ("severity", "status"), [("warning", 1), ("error", 2), ("damage", 2), ("of a later release", 2)]
)
def test_an_alarm_counts_as_much_as_it_says(run: Any, well: FakeNode, severity: str, status: int) -> None:
    alarm = Alarm(severity=severity, code="E1502", message="no | room\nat all")
    well.status_answer = dataclasses.replace(CERTIFIED, alarms=(alarm,))

    code, line = _check(run)

    assert code == status
    assert line.startswith(f"CRDT-MERGE {module.Level(status).name} - E1502: no / room at all; ")


@pytest.mark.parametrize(
    ("peers", "options", "status"),
    [
        ("none", (), 0),
        ("none", ("--peers-min", "1"), 2),
        ("failed", (), 2),
        ("failed", ("--peers-min", "0"), 0),
        ("left", (), 0),
        ("alive", ("--peers-min", "2"), 2),
        ("suspect", (), 0),
    ],
)
def test_who_knows_others_and_reaches_none_is_critical(
    run: Any, well: FakeNode, peers: str, options: tuple[str, ...], status: int
) -> None:
    known = () if peers == "none" else (dataclasses.replace(nodes.ALIVE, state=peers),)
    well.status_answer = dataclasses.replace(CERTIFIED, peers=known)

    assert _check(run, *options)[0] == status


@pytest.mark.parametrize(("seconds", "status"), [(299, 0), (301, 1), (3601, 2)])
def test_bytes_may_be_missing_for_a_while(run: Any, well: FakeNode, seconds: float, status: int) -> None:
    well.why_answer = _lacking(seconds)

    code, line = _check(run)

    assert code == status
    assert f"missing_age={seconds}s" in line


def test_what_another_node_lacks_is_for_its_own_check(run: Any, well: FakeNode) -> None:
    well.why_answer = _lacking(9999, subject=nodes.PEER)

    assert _check(run)[0] == 0


@pytest.mark.parametrize(("left", "status"), [(31 * DAY, 0), (29 * DAY, 1), (6 * DAY, 2), (-1.0, 2)])
def test_the_end_of_the_certificate_comes_near(run: Any, well: FakeNode, left: float, status: int) -> None:
    well.status_answer = dataclasses.replace(CERTIFIED, certificate_expires=nodes.NOW + left)

    code, line = _check(run)

    assert code == status
    assert ("EXPIRED" in line) == (left < 0)


@pytest.mark.parametrize(("free_mib", "status"), [(1025, 0), (1000, 1), (255, 2)])
def test_the_disk_fills(run: Any, well: FakeNode, free_mib: int, status: int) -> None:
    well.status_answer = dataclasses.replace(CERTIFIED, free_bytes=free_mib << 20)

    assert _check(run)[0] == status


def test_a_daemon_that_does_not_run_is_critical(run: Any, tmp_path: Any) -> None:
    code, line = _check(run, "--data-dir", str(tmp_path))

    assert code == 2
    assert line == f"CRDT-MERGE CRITICAL - no daemon answers on {tmp_path}/control.sock."


def test_a_daemon_that_does_not_answer_in_time_is_critical(
    run: Any, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never() -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(node, "status", never)

    code, line = _check(run, "--timeout-s", "0.1")

    assert code == 2
    assert "did not answer in time" in line


def test_what_the_plugin_cannot_judge_is_unknown(run: Any, node: FakeNode) -> None:
    node.failure = ControlError("of another release")

    assert _check(run) == (3, "CRDT-MERGE UNKNOWN - of another release")


@pytest.mark.parametrize("arguments", [("--nonsense",), ("--peers-min", "x"), ("surplus",)])
def test_wrong_arguments_are_unknown_and_not_critical(run: Any, arguments: tuple[str, ...]) -> None:
    code, line = _check(run, *arguments)

    assert code == 3
    assert line.startswith("CRDT-MERGE UNKNOWN - ")


def test_json_has_every_finding_with_its_ranges(run: Any, well: FakeNode) -> None:
    result = run("check", "--json", "--peers-min", "2")

    answer = json.loads(result.stdout)
    assert (answer["schema"], answer["status"], answer["exit"], result.exit_code) == (
        "check/1", "CRITICAL", 2, 2,
    )  # fmt: skip
    assert answer["findings"][0] == {
        "name": "peers",
        "status": "CRITICAL",
        "message": "1 live peer, at least 2 wanted",
        "value": 1,
        "unit": "",
        "warning": "",
        "critical": "2:",
    }
