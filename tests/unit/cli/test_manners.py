"""What all commands have in common: JSON, quiet, colour, exit statuses, and how long they take to begin."""

from __future__ import annotations

import ast
import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import crdt_merge_node.cli
import pytest
from crdt_merge_node.cli import output
from crdt_merge_node.cli.app import COMMANDS, root
from crdt_merge_node.cli.options import Invocation
from support import nodes
from support.commands import leaves
from support.nodes import FakeNode

CLI = Path(crdt_merge_node.cli.__file__).parent
DOCUMENT = (CLI / "JSON.md").read_text()
COMMON = {"--data-dir", "--json", "--quiet", "--no-input", "--debug"}


LEAVES = dict(leaves(root))


def _schemas() -> set[str]:
    """Return every schema that a command may print, as it is written in the sources."""
    texts = {
        node.value
        for path in CLI.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    return {text for text in texts if re.fullmatch(r"[a-z]+(-[a-z]+)*/\d+", text)}


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_command_takes_the_common_options_and_explains_itself(path: tuple[str, ...]) -> None:
    command = LEAVES[path]
    options = {option for parameter in command.params for option in parameter.opts}

    assert options >= COMMON
    assert command.help
    assert command.get_short_help_str(200).endswith(".")
    assert all(parameter.help for parameter in command.params if isinstance(parameter, click.Option) and (
        parameter.opts[-1] in COMMON or not parameter.show_default
    ) and parameter.opts[-1] not in ("--log-level", "--log-format"))  # fmt: skip


@pytest.mark.parametrize("schema", sorted(_schemas()))
def test_every_schema_that_a_command_prints_is_documented(schema: str) -> None:
    assert f"| `{schema}` |" in DOCUMENT


def test_every_documented_command_exists() -> None:
    commands, _, _ = DOCUMENT.partition("HTTP")  # What follows is answered to browsers alone.
    rows = re.findall(r"^\| `[a-z-]+/\d` \| `([a-z -]+)`", commands, re.MULTILINE)

    assert {row.split()[0] for row in rows} <= set(COMMANDS)
    assert len(rows) > 40


def test_quiet_leaves_out_notes_and_keeps_the_answer(run: Any) -> None:
    loud, quiet = run("invite"), run("invite", "--quiet")

    assert loud.stdout == quiet.stdout
    assert "Run this on the next machine" in loud.stderr
    assert quiet.stderr == ""


def test_quiet_keeps_errors_and_their_remedies(run: Any, node: FakeNode) -> None:
    node.failure = nodes.absent("x")

    result = run("group", "show", "x", "-q")

    assert result.stderr == "error E1702: no group is called 'x'.\nhint: `group list` shows them.\n"


def test_quiet_leaves_out_progress_from_json_too(run: Any, tmp_path: Path) -> None:
    line = ("resolve", "digits", "-o", str(tmp_path / "o"), "--json")

    loud = [json.loads(text)["event"] for text in run(*line).stdout.splitlines()]
    quiet = [json.loads(text)["event"] for text in run(*line, "--quiet").stdout.splitlines()]

    assert loud == ["plan", "progress", "result"]
    assert quiet == ["plan", "result"]


def test_a_warning_is_no_note(run: Any, node: FakeNode, tmp_path: Path) -> None:
    node.report_answer = {"warnings": ("something is odd",)}

    assert run("resolve", "digits", "-o", str(tmp_path / "o"), "-q").stderr == "warning: something is odd\n"


@pytest.mark.parametrize(("no_color", "is_coloured"), [("", True), ("1", False), ("0", False)])
def test_colour_is_for_terminals_that_want_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], no_color: str, is_coloured: bool
) -> None:
    """no-color.org: set to anything but nothing, whatever its value."""
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    seen: list[str] = []
    monkeypatch.setattr(output.click, "echo", lambda text, **_: seen.append(text))

    output.say("well", colour="green")

    assert ("\x1b[" in seen[0]) == is_coloured
    assert "well" in seen[0]


def test_no_command_writes_colour_or_anything_else_of_a_terminal_into_a_pipe(
    run: Any, node: FakeNode
) -> None:
    for line in (
        ("status",),
        ("why",),
        ("doctor",),
        ("check",),
        ("peer", "list"),
        ("group", "show", "digits"),
    ):
        assert "\x1b" not in run(*line).output, line


def test_commands_that_ask_a_daemon_leave_the_asyncio_half_of_grpc_alone(served: Any, node: FakeNode) -> None:
    """It takes as long to import as all the rest of gRPC, and a command has no use for it."""
    code = (
        "import sys\n"
        "from crdt_merge_node.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    status = end.code\n"
        "slow = {'grpc.aio', 'numpy', 'pydantic', 'rich', 'structlog', 'cryptography', 'apsw', 'decimal'}\n"
        "print(status, sorted(slow & set(sys.modules)), 'grpc' in sys.modules, file=sys.stderr)\n"
        "import grpc.aio\n"
        "assert grpc.aio.insecure_channel\n"
    )
    for command in ("status", "why", "check"):
        done = subprocess.run(
            [sys.executable, "-c", code, command],
            capture_output=True, text=True, timeout=60, check=False,
            env={**os.environ, "CRDT_MERGE_NODE_DATA_DIR": str(served.data_dir)},
        )  # fmt: skip

        assert done.returncode == 0, done.stderr
        assert done.stderr.splitlines()[-1].endswith("[] True"), done.stderr


def test_version_1_of_the_documents_can_be_asked_for_and_no_other(run: Any) -> None:
    assert run("status", "--json=1").stdout == run("status", "--json").stdout
    assert run("status", "--json=2").exit_code == 2
    assert run("why", "--", "--json=1").stdout == run("why", "--", "--json=1").stdout
    assert not run("why", "--", "--json=1").stdout.startswith("{")


def test_nobody_is_asked_with_no_input(run: Any, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output.sys, "stdin", type("Terminal", (), {"isatty": lambda _self: True})())
    monkeypatch.setattr(click, "confirm", lambda *_a, **_k: pytest.fail("somebody was asked"))

    result = run("contribution", "remove", "digits", "main", "--no-input")

    assert result.exit_code == 2
    assert "--yes" in result.stderr


STRANGE = ("", " ", "\udc80\udcff", "\x1b[2J", "a\nb", "x" * (1 << 20), "\u202egpj", "%s%n", "-")


@pytest.mark.parametrize(
    "line",
    [("group", "show"), ("why",), ("peer", "show"), ("peer", "block"), ("policy", "show"),
     ("group", "follow"), ("contribution", "list"), ("contribution", "show", "digits"),
     ("contribution", "remove", "--yes", "digits"), ("resolve", "-o", "/tmp/never-written"),
     ("log", "level"), ("policy", "set", "--strategy", "ties")],
    ids=" ".join,
)  # fmt: skip
def test_names_that_are_none_reach_the_daemon_or_end_in_a_line(run: Any, line: tuple[str, ...]) -> None:
    for name in STRANGE:
        result = run(*line, "--", name)

        assert result.exit_code in (0, 2, 3, 4, 6, 7), (name[:20], result.output[:500])
        assert "error E1000" not in result.output, (name[:20], result.output[:500])
        assert len(result.output) < 64_000
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", result.stderr)


@pytest.mark.parametrize("group", [(), ("peer",), ("contribution",), ("config",)], ids=" ".join)
def test_lists_of_commands_cut_no_sentence_off(run: Any, group: tuple[str, ...]) -> None:
    result = run(*group, "--help")

    assert result.exit_code == 0
    assert not re.search(r"\.\.\.$", result.stdout.partition("Commands:")[2], re.MULTILINE)


def test_interrupted_while_a_command_is_imported_it_ends_as_at_any_other_time(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("crdt_merge_node.cli.app.importlib.import_module", interrupt)

    result = run("version")

    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize(
    ("number", "code", "remedy"),
    [
        (errno.ENOSPC, "E1502", "Make room"),
        (errno.EROFS, "E1500", "This user is not allowed to"),
        (errno.EFBIG, "E1500", "The file system there"),
    ],
)
def test_what_the_system_refuses_comes_with_a_remedy(
    run: Any, monkeypatch: pytest.MonkeyPatch, number: int, code: str, remedy: str
) -> None:
    def refuse(_self: object) -> None:
        raise OSError(number, os.strerror(number), "/some/place")

    monkeypatch.setattr(Invocation, "client", refuse)

    result = run("status")

    assert result.exit_code == 1
    assert f"error {code}: /some/place: {os.strerror(number)}." in result.stderr
    assert f"hint: {remedy}" in result.stderr
