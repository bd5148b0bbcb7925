"""Command lines that no person would type (B75): every command, every argument, every option.

Whatever comes, a command ends with a status that it documents and a message of bounded length in which no
control character is left, never with a traceback, and it never turns to another node than the one named.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from crdt_merge_node.cli.app import COMMANDS, PROGRAM, root
from support.commands import leaves

BIN = Path(sys.executable).with_name(PROGRAM)
MEGABYTE = "x" * (1 << 20)
OUTPUT_CHARS_MAX = 64_000
HOSTILE = {
    "empty": "",
    "blank": " \t ",
    "dash": "-",
    "megabyte": MEGABYTE,
    "megabyte of a path": "/" + "a/" * (1 << 19),
    "binary": "\udc80\udcff\udcfe",
    "escape": "\x1b]0;owned\x07\x1b[2J",
    "lines": "a\nerror E0000: forged\r\n",
    "path out": "../../../../etc/passwd",
    "device": "/dev/zero",
    "number": "9" * 5000,
    "not a number": "nan",
    "exponent": "1e999999999",
    "format": "%s%n{0.__class__}",
    "shell": "$(touch pwned);`touch pwned`",
    "bidi": "\u202egpj.exe",
    "home": "~nobody-of-this-name/x",
}
DOCUMENTED = {0, 1, 2, 3, 4, 5, 6, 7, 73, 78}
LASTING = {"demo", "dev"}
"""Commands that begin long work as soon as their arguments are right."""


LEAVES = dict(leaves(root))
OPTIONS = [
    (path, parameter)
    for path, command in LEAVES.items()
    if path[0] not in LASTING
    for parameter in command.params
    if isinstance(parameter, click.Option) and not parameter.is_flag and parameter.name != "data_dir"
]


def _label(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(value)
    return value.opts[0] if isinstance(value, click.Parameter) else str(value)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory to run in, where no node is."""
    for name in [name for name in os.environ if name.startswith(("CRDT_MERGE_NODE", "_CRDT_MERGE"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CRDT_MERGE_NODE_DATA_DIR", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ")
    return tmp_path


def _run(*arguments: str) -> Result:
    result = CliRunner().invoke(root, arguments, prog_name=PROGRAM)
    _judge(result.exit_code, result.output)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def _judge(status: int, output: str) -> None:
    """Check what holds of every end of a command."""
    assert status in DOCUMENTED, output[:2000]
    assert "Traceback" not in output
    assert "error E1000" not in output, output[:2000]
    assert "This was not foreseen" not in output
    assert len(output) < OUTPUT_CHARS_MAX
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", output.replace("\r\n", "\n"))
    assert not Path("pwned").exists()


def _plausible(command: click.Command) -> list[str]:
    """Return arguments that a command takes for right at first sight."""
    return ["file" for parameter in command.params if isinstance(parameter, click.Argument)]


@pytest.mark.parametrize("path", LEAVES, ids=_label)
def test_arguments_that_are_none_end_a_command_and_nothing_else(place: Path, path: tuple[str, ...]) -> None:
    wanted = sum(isinstance(parameter, click.Argument) for parameter in LEAVES[path].params)
    for value in HOSTILE.values():
        if wanted:
            assert _run(*path, "--", *[value] * wanted).exit_code != 0 or path[0] == "completion"
        if all(parameter.nargs == 1 for parameter in LEAVES[path].params):
            surplus = _run(*path, "--", *[value] * (wanted + 1))
            assert surplus.exit_code == (3 if path == ("check",) else 2)


@pytest.mark.parametrize(("path", "option"), OPTIONS, ids=_label)
def test_options_with_values_that_are_none(place: Path, path: tuple[str, ...], option: click.Option) -> None:
    for value in HOSTILE.values():
        name = option.opts[-1]
        given = f"{name}={value}" if name.startswith("--") else name + value
        _run(*path, given, *_plausible(LEAVES[path]))


TRICKS = (
    ("--no-such-option",),
    ("--data-dir",),
    ("--json=2",),
    ("--debug=yes",),
    ("-Z",),
    ("--=x",),
    ("-",) * 50,
    ("@file",) * 20,
    ("--data-dir", "x", "--", "--json", "--data-dir", "y", "--", "--", "--", "--", "--"),
)


@pytest.mark.parametrize("path", LEAVES, ids=_label)
def test_tricks_with_dashes_are_bad_usage(place: Path, path: tuple[str, ...]) -> None:
    takes_many = any(parameter.nargs != 1 for parameter in LEAVES[path].params)
    expected = 3 if path == ("check",) else 2

    for tricks in TRICKS:
        status = _run(*path, *tricks).exit_code
        assert status == expected or (takes_many and status in DOCUMENTED - {0}), tricks


@pytest.mark.parametrize("path", [path for path in LEAVES if path[0] not in LASTING], ids=_label)
def test_a_data_directory_that_is_none_is_never_replaced_by_another(
    place: Path, path: tuple[str, ...]
) -> None:
    """A named target that does not exist is an error: nothing falls back to the default one."""
    for value in ("", MEGABYTE, "\udc80", "/dev/null", "file", "a\nb", "~nobody-of-this-name"):
        result = _run(*path, f"--data-dir={value}", *_plausible(LEAVES[path]))
        if value == "":
            assert result.exit_code == (3 if path == ("check",) else 2), result.output
        assert not (place / "none").exists()


ENVIRONMENT = {
    "CRDT_MERGE_NODE_NOSUCH": "1",
    "CRDT_MERGE_NODE_LISTEN__PORT": "$(touch pwned)",
    "CRDT_MERGE_NODE_LOG__LEVEL": "\x1b[2J",
    "CRDT_MERGE_NODE_CONFIG": "/dev/zero",
    "CRDT_MERGE_NODE_CONTROL__SOCKET": "x" * 5000,
    "CRDT_MERGE_NODE_PEERS__SEEDS": "," * 5000 + "a:b:c",
    "CRDT_MERGE_NODE_DATA_DIR": "\udcff\n",
    "CRDT_MERGE_NODE_NODE__DATA_DIR": "file",
    "CRDT_MERGE_NODE_STORAGE__RESERVE_BYTES": "9" * 400,
    "CRDT_MERGE_NODE_JSON": "1",
    "NO_COLOR": "\x1b[31m",
    "COLUMNS": "-1",
    "LC_ALL": "xx_YY.nonsense",
}


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_an_environment_that_is_none(place: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, ENVIRONMENT[name])
    for line in (
        ("status",), ("check",), ("config", "show"), ("config", "validate"), ("run",), ("version",),
        ("doctor", "--json"), ("errors", "lookup", "E1203"), ("cert", "show"), ("init", "--cluster", "/"),
    ):  # fmt: skip
        result = _run(*line)
        if line[0] in ("run", "config") and name.startswith("CRDT") and "DATA_DIR" not in name:
            accepted = name.endswith(("SOCKET", "RESERVE_BYTES"))
            assert result.exit_code in ((0, 4) if accepted else (78,)), (line, result.output)


@pytest.mark.parametrize(
    "arguments",
    [
        [b"status", b"\xff\xfe"],
        [b"--data-dir=\xff\xfe", b"status"],
        [b"--data-dir", b"\x80" * 300, b"init"],
        [b"group", b"show", b"\xed\xa0\x80"],
        [b"errors", b"lookup", b"\xff" * 100_000],
        [b"config", b"explain", b"\xff"],
        [b"merge", b"\xff", b"-o", b"\xfe"],
        [b"\xff"],
    ],
    ids=[f"line {number}" for number in range(8)],
)
def test_bytes_that_are_no_text_reach_no_traceback(place: Path, arguments: list[bytes]) -> None:
    """A real process: what a shell passes on is bytes, and stdout is strict about what it encodes."""
    done = subprocess.run([os.fsencode(BIN), *arguments], capture_output=True, timeout=300, check=False)

    _judge(done.returncode, (done.stdout + done.stderr).decode())
    assert done.returncode != 0


def test_names_of_commands_that_are_none(place: Path) -> None:
    for value in HOSTILE.values():
        assert _run(value).exit_code == 2
        assert _run("group", value).exit_code == 2
    assert _run(*COMMANDS).exit_code == 2


def test_what_a_shell_asks_for_to_complete_is_not_trusted_either(place: Path) -> None:
    for words, number in (
        ("", "1"),
        ("'", "0"),
        (MEGABYTE[:100_000], "1"),
        (f"{PROGRAM} group show '", "3"),
    ):
        asked = {"_CRDT_MERGE_NODE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": number}
        done = subprocess.run(
            [BIN], env={**os.environ, **asked}, capture_output=True, timeout=300, check=False
        )
        assert b"Traceback" not in done.stderr, done.stderr
