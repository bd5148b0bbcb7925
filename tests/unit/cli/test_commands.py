"""What the commands say to people, ask of the node, and end with."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from crdt_merge_node.cli.app import COMMANDS
from crdt_merge_node.cli.policy import policy_facts
from crdt_merge_node.control.model import ActRequest, PolicyChanges
from crdt_merge_node.errors import (
    ConfigError,
    CorruptError,
    DaemonNotRunningError,
    NotFoundError,
    PeerRefusedError,
    TimedOutError,
)
from crdt_merge_protocol.errors import MissingBlobError, ParameterError, ShapeMismatchError
from support import nodes
from support.nodes import FakeNode


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"")
    return path


def test_status_is_one_screen_with_health_first(run: Any) -> None:
    result = run("status")

    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert lines[0] == 'healthy  node a1a1a1a1a1a1 "alpha", up 1 h'
    assert len(lines) <= 24
    assert "peers: 1 alive" in result.stdout
    assert re.search(
        r"digits +c3c3c3c3c3c3 +ties +2 \(1 pending\) +2 blobs, 3.0 MiB +181818181818 +0 of 1 peer",
        result.stdout,
    )


def test_status_watches_until_it_is_interrupted(
    run: Any, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise KeyboardInterrupt
        node.status_answer = dataclasses.replace(nodes.STATUS, name=f"screen-{len(pauses)}")

    monkeypatch.setattr(importlib.import_module("crdt_merge_node.cli.status"), "pause", pause)

    result = run("status", "--watch", "--interval-s", "5")

    assert result.exit_code == 130
    assert pauses == [5.0, 5.0, 5.0]
    assert re.findall(r'node a1a1a1a1a1a1 "(.*)"', result.stdout) == ["alpha", "screen-1", "screen-2"]


def test_status_of_an_unhealthy_node_names_the_alarm_and_fails(run: Any, node: FakeNode) -> None:
    node.status_answer = dataclasses.replace(nodes.STATUS, is_healthy=False, alarms=(nodes.ALARM,))

    result = run("status")

    assert result.exit_code == 1
    assert result.stdout.startswith("UNHEALTHY")
    assert "error E1502: the disk is full, for 9 s\n  hint: make room" in result.stdout


def test_how_long_an_alarm_stands_ends_its_sentence(run: Any, node: FakeNode) -> None:
    alarm = dataclasses.replace(nodes.ALARM, message="eth0 is down, see ip. No peer is in reach.")
    node.status_answer = dataclasses.replace(nodes.STATUS, is_healthy=False, alarms=(alarm,))

    assert "see ip. No peer is in reach, for 9 s\n" in run("status").stdout


def test_two_outputs_for_one_key_are_damage(run: Any, node: FakeNode) -> None:
    alarm = dataclasses.replace(nodes.ALARM, severity="damage")
    node.status_answer = dataclasses.replace(nodes.STATUS, is_healthy=False, alarms=(alarm,))

    assert run("status").exit_code == 7


def test_status_of_a_new_node_says_what_comes_next(run: Any, node: FakeNode) -> None:
    node.status_answer = dataclasses.replace(nodes.STATUS, peers=(), groups=())

    result = run("status")

    assert "invite" in result.stdout
    assert "group create" in result.stdout


def test_why_says_who_lacks_what_since_when_what_waits_and_what_helps(run: Any, node: FakeNode) -> None:
    result = run("why", "digits")

    assert node.last("why") == {"group": "digits"}
    assert result.stdout == (
        "group digits (c3c3c3c3c3c3): not converged, 0 of 1 live peer at root 181818181818\n"
        "  1. beta (b2b2b2b2b2b2) lacks 3 operations for 12 s\n"
        "       missing  d4d4d4d4d4d4\n"
        "       waits    dialling 10.0.0.2:7946, attempt 14\n"
        "       remedy   crdt-merge-node peer unblock beta\n"
    )


def test_why_of_a_converged_group_without_peers_says_that_nobody_was_asked(run: Any, node: FakeNode) -> None:
    group = dataclasses.replace(nodes.WHY.groups[0], is_converged=True, live_peers=0, reasons=())
    node.why_answer = dataclasses.replace(nodes.WHY, groups=(group,))

    result = run("why")

    assert node.last("why") == {"group": None}
    assert "converged" in result.stdout
    assert "nobody else was asked" in result.stdout


def test_why_of_a_converged_group_says_what_cannot_be_merged(run: Any, node: FakeNode) -> None:
    group = dataclasses.replace(nodes.WHY.groups[0], is_converged=True, converged_peers=1)
    node.why_answer = dataclasses.replace(nodes.WHY, groups=(group,))

    lines = run("why").stdout.splitlines()

    assert lines[0].endswith("at root 181818181818; but not all is well:")
    assert lines[1].startswith("  1. beta")


def test_invite_prints_the_command_for_the_next_machine_and_nothing_else(run: Any, node: FakeNode) -> None:
    result = run("invite", "--expires-s", "60")

    assert result.stdout == "crdt-merge-node init --join cmn1-abc\n"
    assert "10.0.0.1:7946" in result.stderr
    assert node.last("invite") == {"expires_s": 60.0}


@pytest.mark.parametrize("verb", ["block", "unblock"])
def test_a_peer_is_blocked_and_unblocked(run: Any, node: FakeNode, verb: str) -> None:
    result = run("peer", verb, "beta")

    assert result.exit_code == 0
    assert node.last(f"peer_{verb}") == {"peer": "beta"}


def test_a_contribution_shows_its_plan_then_what_was_done(run: Any, node: FakeNode, file: Path) -> None:
    result = run(
        "contribution",
        "add",
        "digits",
        str(file),
        "--slot",
        "s",
        "--weight",
        "0.5",
        "--meta",
        "k=v=w",
        "--wait",
        "2",
    )

    assert result.exit_code == 0, result.stderr
    assert node.last("contribution_add") == {
        "group": "digits",
        "path": str(file),
        "slot": "s",
        "base_path": None,
        "weight": 1 << 31,
        "meta": {"k": "v=w"},
        "wait_holds": 2,
        "type": "model",
        "link": False,
    }
    assert result.stdout.index("fits group digits") < result.stdout.index(f"contributed {nodes.OWN_TAG}")


def test_a_relative_path_reaches_the_daemon_as_an_absolute_one(
    run: Any, node: FakeNode, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)

    run("contribution", "add", "digits", file.name)
    run("resolve", "digits", "-o", "out.safetensors")

    assert node.last("contribution_add")["path"] == str(file)
    assert node.last("resolve")["output_path"] == str(file.parent / "out.safetensors")


@pytest.mark.parametrize("weight", ["x", "1e99", "nan", "inf", "2147483649", "", "0", "-1"])
def test_a_weight_that_is_none_is_bad_usage(run: Any, node: FakeNode, file: Path, weight: str) -> None:
    assert run("contribution", "add", "digits", str(file), "--weight", weight).exit_code == 2
    assert node.requests == []


def test_a_file_that_is_not_there_is_bad_usage(run: Any, node: FakeNode) -> None:
    assert run("contribution", "add", "digits", "/no/such/file").exit_code == 2
    assert node.requests == []


def test_without_a_terminal_a_remove_names_what_it_touches_and_needs_yes(run: Any, node: FakeNode) -> None:
    result = run("contribution", "remove", "digits", "main")

    assert result.exit_code == 2
    assert nodes.OWN_TAG[:12] in result.stderr
    assert nodes.THEIR_TAG[:12] not in result.stderr
    assert [name for name, _, _ in node.requests] == ["contribution_list"]


def test_a_remove_with_yes_says_what_it_removed(run: Any, node: FakeNode) -> None:
    result = run("contribution", "remove", "digits", nodes.OWN_TAG[:6], "--yes")

    assert result.exit_code == 0
    assert nodes.OWN_TAG in result.stdout
    assert node.last("contribution_remove") == {"group": "digits", "target": nodes.OWN_TAG[:6]}


def test_what_another_node_contributed_is_removed_by_an_act(run: Any, node: FakeNode) -> None:
    result = run("contribution", "remove", "digits", nodes.THEIR_TAG, "--yes")

    assert result.exit_code == 0
    assert node.last("act_propose")["act"] == ActRequest(kind="remove", targets=(nodes.THEIR_TAG,))
    assert node.last("act_submit") == {"text": nodes.ACT.text}


def test_what_nobody_contributed_cannot_be_removed(run: Any) -> None:
    assert run("contribution", "remove", "digits", "beefbeef").exit_code == 4


def test_an_act_for_others_to_sign_is_written_and_nothing_happens(
    run: Any, node: FakeNode, tmp_path: Path
) -> None:
    path = tmp_path / "ban.act"
    result = run("contribution", "ban", "digits", "beef", "--reason", "x", "--act", str(path))

    assert result.exit_code == 0
    assert path.read_text() == nodes.ACT.text
    assert "act sign" in result.stderr
    assert [name for name, _, _ in node.requests] == ["act_propose"]


def test_signing_an_act_adds_to_its_file(run: Any, node: FakeNode, tmp_path: Path) -> None:
    path = tmp_path / "ban.act"
    path.write_text("[]")

    assert run("act", "sign", str(path)).exit_code == 2  # Nobody can be asked.
    assert path.read_text() == "[]"
    assert run("act", "sign", str(path), "--yes").exit_code == 0
    assert node.last("act_sign") == {"text": "[]"}
    assert path.read_text() == nodes.ACT.text


def test_a_policy_can_be_an_act_for_others_to_sign(run: Any, node: FakeNode, tmp_path: Path) -> None:
    path = tmp_path / "policy.act"
    result = run("policy", "set", "digits", "--holders", "1", "--act", str(path))

    assert result.exit_code == 0
    assert node.last("policy_set")["propose"] is True
    assert path.read_text() == nodes.ACT.text


def test_a_revocation_cannot_name_heads_and_nothing(run: Any, node: FakeNode) -> None:
    result = run("group", "revoke", "digits", "beta", "--reason", "x", "--nothing", "--head", "ab12")

    assert result.exit_code == 2
    assert node.requests == []


def test_a_group_needs_a_schema_from_somewhere(run: Any, node: FakeNode) -> None:
    result = run("group", "create", "digits")

    assert result.exit_code == 2
    assert "--like" in result.stderr
    assert node.requests == []


def test_a_group_is_created_with_all_that_was_given(run: Any, node: FakeNode, file: Path) -> None:
    result = run(
        "group", "create", "digits", "--strategy", "ties", "--param", "density=0.2", "--base", str(file),
        "--dtype", "bf16", "--weight-cap", "4", "--holders", "2", "--admin", "beta", "--admin", "gamma",
        "--quorum", "2", "--admitted",
    )  # fmt: skip

    assert result.exit_code == 0, result.stderr
    assert node.last("group_create") == {
        "name": "digits",
        "strategy": "ties",
        "params": {"density": "0.2"},
        "base_path": str(file),
        "like_path": None,
        "dtype": "BF16",
        "weight_cap": 4 << 32,
        "holders": 2,
        "admins": ("beta", "gamma"),
        "quorum": 2,
        "admitted": True,
    }


@pytest.mark.parametrize("pairs", [["novalue"], ["=1"], ["a=1", "a=2"]])
def test_parameters_that_are_no_pairs_are_bad_usage(
    run: Any, node: FakeNode, file: Path, pairs: list[str]
) -> None:
    options = [part for pair in pairs for part in ("--param", pair)]

    assert run("group", "create", "digits", "--base", str(file), *options).exit_code == 2
    assert node.requests == []


def test_following_a_group_can_be_switched_off(run: Any, node: FakeNode) -> None:
    run("group", "follow", "digits")
    assert node.last("group_follow")["follow"] is True

    run("group", "follow", "digits", "--off")
    assert node.last("group_follow")["follow"] is False


def test_a_changed_policy_shows_what_changed(run: Any, node: FakeNode) -> None:
    result = run("policy", "set", "digits", "--strategy", "linear", "--holders", "0")

    assert node.last("policy_set")["changes"] == PolicyChanges(strategy="linear", holders=0)
    assert result.stdout == (
        "policy of group digits is now version 1\n  version   0 -> 1\n  strategy  ties 1 -> linear 1\n"
    )


@pytest.mark.parametrize(
    ("typed", "dtype", "words"),
    [
        ("bf16", "BF16", "BF16"),
        ("ANY", "any", "that of the base, else the widest input; models may have any float types"),
        ("any:f32", "any:F32", "F32; models may have any float types"),
    ],
)
def test_element_types_of_a_policy_are_typed_and_shown(
    run: Any, node: FakeNode, typed: str, dtype: str, words: str
) -> None:
    changed = run("policy", "set", "digits", "--dtype", typed)
    shown = policy_facts(dataclasses.replace(nodes.POLICY, dtype=dtype))

    assert changed.exit_code == 0, changed.stderr
    assert node.last("policy_set")["changes"] == PolicyChanges(dtype=dtype)
    assert dict(shown)["output type"] == words


def test_a_policy_that_is_in_force_already_is_said_to_change_nothing(run: Any, node: FakeNode) -> None:
    node.policy_answer = nodes.POLICY

    assert run("policy", "set", "digits", "--strategy", "ties").stdout == (
        "nothing changes: version 0 of the policy of group digits says so already\n"
    )
    answer = json.loads(run("policy", "set", "digits", "--strategy", "ties", "--json").stdout)
    assert (answer["is_changed"], answer["policy"]["version"]) == (False, 0)


def test_a_policy_without_a_change_is_bad_usage(run: Any, node: FakeNode) -> None:
    assert run("policy", "set", "digits").exit_code == 2
    assert node.requests == []


def test_resolve_shows_strategy_inputs_and_digest(run: Any, node: FakeNode, tmp_path: Path) -> None:
    result = run(
        "resolve", "digits", "-o", str(tmp_path / "o"), "--wait", "--timeout", "5", "--without", "ab12"
    )

    assert result.exit_code == 0
    assert node.last("resolve")["wait_s"] == 5.0
    assert node.last("resolve")["without"] == ("ab12",)
    assert "ties of 1 contribution" in result.stdout
    assert "d4d4d4d4d4d4 by alpha" in result.stdout
    assert nodes.DIGEST in result.stdout
    assert "not used: e5e5e5e5e5e5 by b2b2b2b2b2b2, missing: 2 blobs are not here yet" in result.stderr


def test_resolve_does_not_wait_unless_told_to(run: Any, node: FakeNode, tmp_path: Path) -> None:
    run("resolve", "digits", "-o", str(tmp_path / "o"))

    assert node.last("resolve")["wait_s"] == 0.0


def test_another_output_for_the_same_key_is_an_alarm(run: Any, node: FakeNode, tmp_path: Path) -> None:
    node.report_answer = {"disagreeing": (nodes.PEER,)}

    result = run("resolve", "digits", "-o", str(tmp_path / "o"))

    assert result.exit_code == 7
    assert "DIFFERENT OUTPUT" in result.stderr


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ShapeMismatchError("no"), 1),
        (ParameterError("no"), 2),
        (DaemonNotRunningError("no"), 3),
        (NotFoundError("no"), 4),
        (PeerRefusedError("no"), 5),
        (MissingBlobError("no"), 6),
        (TimedOutError("no"), 6),
        (CorruptError("no"), 7),
        (ConfigError("no"), 78),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else type(value).__name__,
)
def test_the_exit_status_is_that_of_the_error(run: Any, node: FakeNode, error: Any, status: int) -> None:
    node.failure = error

    assert run("group", "show", "digits").exit_code == status


def test_an_error_has_code_text_and_remedy_and_no_traceback(run: Any, node: FakeNode) -> None:
    node.failure = nodes.absent("x")

    result = run("group", "show", "x")

    assert result.stderr == "error E1702: no group is called 'x'.\nhint: `group list` shows them.\n"
    assert result.stdout == ""


def test_without_a_daemon_every_command_says_so_at_once(run: Any, tmp_path: Path, file: Path) -> None:
    lines = [
        ("status",), ("why",), ("invite",), ("peer", "list"), ("peer", "block", "x"), ("group", "list"),
        ("group", "show", "g"), ("group", "follow", "g"), ("group", "create", "g", "--like", str(file)),
        ("policy", "show", "g"), ("policy", "set", "g", "--holders", "1"), ("contribution", "list", "g"),
        ("contribution", "add", "g", str(file)), ("contribution", "remove", "g", "main", "--yes"),
        ("resolve", "g", "-o", str(file)),
    ]  # fmt: skip
    for line in lines:
        result = run(*line, "--data-dir", str(tmp_path))

        assert result.exit_code == 3, line
        assert f"no daemon answers on {tmp_path}/control.sock" in result.stderr
        assert "crdt-merge-node run" in result.stderr


def test_version_works_without_a_daemon(run: Any, tmp_path: Path) -> None:
    result = run("version", "--data-dir", str(tmp_path))

    assert result.exit_code == 0
    assert "not running" in result.stdout


def test_the_data_directory_can_be_named_before_the_command(run: Any, tmp_path: Path) -> None:
    assert run("--data-dir", str(tmp_path), "status").exit_code == 3


def test_a_named_socket_is_used_and_nothing_is_fallen_back_to(
    run: Any, served: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.toml").write_text(f'[control]\nsocket = "{served.data_dir}/control.sock"\n')
    assert run("status", "--data-dir", str(tmp_path)).exit_code == 0

    monkeypatch.setenv("CRDT_MERGE_NODE_CONTROL__SOCKET", str(tmp_path / "none.sock"))
    assert run("status", "--data-dir", str(tmp_path)).exit_code == 3


def test_what_peers_say_cannot_control_the_terminal(run: Any, node: FakeNode) -> None:
    peer = dataclasses.replace(
        nodes.ALIVE, name="\x1b[2J\x1b]0;gotcha\x07", state="failed", last_error="a\nb\x9b"
    )
    node.status_answer = dataclasses.replace(nodes.STATUS, peers=(peer,))

    result = run("status", color=True)

    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", result.stdout)
    assert "\\x1b[2J" in result.stdout
    assert "a b\\x9b" in result.stdout


def test_a_misspelt_command_gets_a_suggestion(run: Any) -> None:
    assert 'Did you mean "status"?' in run("stauts").stderr
    assert 'Did you mean "list"?' in run("peer", "lst").stderr


def test_help_names_every_command_in_the_order_of_a_newcomer(run: Any) -> None:
    result = run("--help")

    assert result.exit_code == 0
    positions = [result.stdout.index(f"\n  {name} ") for name in COMMANDS]
    assert positions == sorted(positions)


def test_an_unforeseen_error_is_reported_as_one(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_client: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr("crdt_merge_node.control.client.Client.status", fail)

    result = run("status")
    assert result.exit_code == 1
    assert "error E1000: RuntimeError: boom." in result.stderr
    assert "--debug" in result.stderr
    assert isinstance(run("status", "--debug").exception, RuntimeError)


def test_an_interrupt_ends_with_130(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_client: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("crdt_merge_node.control.client.Client.status", interrupt)

    assert run("status").exit_code == 130


def test_an_artefact_is_contributed_under_its_type(run: Any, node: FakeNode, file: Path) -> None:
    assert run("contribution", "add", "digits", str(file), "--type", "fisher_diag").exit_code == 0
    assert node.last("contribution_add")["type"] == "fisher_diag"


def test_a_plan_is_shown_and_nothing_else_asked_for(run: Any, node: FakeNode) -> None:
    shown, told = run("resolve", "digits", "--plan"), run("resolve", "digits", "--plan", "--json")

    assert node.last("resolve")["plan_only"] is True
    assert "resolving group digits" in shown.stdout
    assert json.loads(told.stdout.splitlines()[0])["event"] == "plan"
    assert shown.exit_code == told.exit_code == 0


def test_a_task_is_passed_on_and_an_output_is_needed(run: Any, node: FakeNode, tmp_path: Path) -> None:
    assert run("resolve", "digits", "-o", str(tmp_path / "o"), "--task", "ab12").exit_code == 0
    assert node.last("resolve")["task"] == "ab12"
    assert run("resolve", "digits").exit_code == 2
