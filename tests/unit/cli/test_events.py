"""``events`` and ``log level``: what they ask, how they say it, and how they end."""

from __future__ import annotations

import json
from typing import Any

import pytest
from crdt_merge_node.control.model import LogEvent
from support import nodes
from support.nodes import FakeNode


def test_events_are_lines_with_short_ids_and_no_control_characters(run: Any) -> None:
    result = run("events")

    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert lines[0] == "2027-01-15 07:59:00Z  info     peer.joined             peer=b2b2b2b2b2b2"
    assert lines[1].startswith("2027-01-15 07:59:55Z  warning  peer.refused            peer=b2b2b2b2b2b2")
    assert "count=2 duration_s=0.25" in lines[1]
    assert "\x1b" not in result.stdout
    assert "3 events had to make way" in result.stderr


def test_events_as_json_are_one_object_a_line(run: Any) -> None:
    lines = [json.loads(line) for line in run("events", "--json").stdout.splitlines()]

    assert lines[0] == {
        "schema": "events/1",
        "seq": 7,
        "time": nodes.NOW - 60,
        "level": "info",
        "event": "peer.joined",
        "fields": {"peer": nodes.PEER},
        "numbers": {},
    }
    assert lines[1] == {"schema": "events/1", "missed": 3}
    assert lines[2]["numbers"] == {"count": 2, "duration_s": 0.25}


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ([], {}),
        (["--since", "12"], {"after": 12}),
        (["--since", "90s"], {"age_s": 90.0}),
        (["--since", "1.5h", "--level", "debug"], {"age_s": 5400.0, "level": "debug"}),
        (["--since", "2d"], {"age_s": 172800.0}),
    ],
)
def test_since_is_the_number_of_an_event_or_a_duration(
    run: Any, node: FakeNode, arguments: list[str], asked: dict[str, Any]
) -> None:
    run("events", *arguments)

    assert node.last("events") == {
        "after": None,
        "age_s": None,
        "last": 0,
        "level": "info",
        "follow": False,
        **asked,
    }


@pytest.mark.parametrize("text", ["soon", "10", "-3", "3x", "1e3s", "9" * 30])
def test_what_is_neither_is_refused(run: Any, node: FakeNode, text: str) -> None:
    result = run("events", f"--since={text}")

    assert (result.exit_code == 2) == (text != "10")
    assert bool(node.requests) == (text == "10")


def test_following_begins_with_the_newest_and_ends_with_the_daemon(run: Any, node: FakeNode) -> None:
    result = run("events", "--follow")

    assert node.last("events") | {"follow": True, "last": 10} == node.last("events")
    assert result.exit_code == 3
    assert len(result.stdout.splitlines()) == 2
    assert "error E1701: the daemon has stopped." in result.stderr


def test_following_from_somewhere_leaves_nothing_out(run: Any, node: FakeNode) -> None:
    run("events", "--follow", "--since", "5m")

    assert node.last("events")["last"] == 0


def test_interrupted_it_says_so_and_no_more(run: Any, node: FakeNode, monkeypatch: Any) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("crdt_merge_node.cli.events.say_event", interrupt)

    result = run("events", "-f")

    assert result.exit_code == 130
    assert (result.stdout, result.stderr.strip()) == ("", "interrupted")


def test_an_event_of_a_peer_cannot_look_like_several_fields(run: Any, node: FakeNode) -> None:
    reason = 'bye" level=error\nnode.failed'
    node.events_answer = (
        LogEvent(seq=1, time=0.0, level="info", event="peer.left", fields={"reason": reason}),
    )

    assert run("events").stdout.endswith(r'reason="bye\" level=error\nnode.failed"' + "\n")


def test_a_level_of_a_running_daemon_is_shown_and_set(run: Any, node: FakeNode) -> None:
    assert run("log", "level").stdout == "info, as configured\n"
    assert node.last("log_level") == {"level": None}
    assert (
        run("log", "level", "debug").stdout == "debug until the next start; then info again, as configured\n"
    )
    assert node.last("log_level") == {"level": "debug"}
    assert run("log", "level", "loud").exit_code == 2


def test_whoever_follows_as_json_is_told_of_the_end_as_an_object(run: Any) -> None:
    lines = run("events", "--follow", "--json").stdout.splitlines()

    assert [json.loads(line)["schema"] for line in lines] == ["events/1"] * 3 + ["error/1"]
