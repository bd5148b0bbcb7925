"""What a real bash completes, and what the other shells are given."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.shell_completion import get_completion_class
from crdt_merge_node.cli import completing
from crdt_merge_node.cli.app import COMMANDS, PROGRAM, root
from crdt_merge_node.cli.completion import SHELLS, VARIABLE
from support import nodes
from support.nodes import FakeNode

BIN = Path(sys.executable).parent
BASH = shutil.which("bash")
needs_bash = pytest.mark.skipif(BASH is None, reason="bash is not installed here")

ASK = """\
set -u
source "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
_crdt_merge_node_completion crdt-merge-node
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script, as the installed program prints it."""
    path = tmp_path_factory.mktemp("completion") / "crdt-merge-node"
    done = subprocess.run(
        [BIN / PROGRAM, "completion", "bash"], capture_output=True, text=True, check=True, timeout=60
    )
    path.write_text(done.stdout)
    return path


PATIENT = """\
from crdt_merge_node.cli import completing
completing.TIMEOUT_S = 300.0
"""


@pytest.fixture
def patience(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the program wait for a daemon that is as busy as the machine."""
    (tmp_path / "sitecustomize.py").write_text(PATIENT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(completing, "TIMEOUT_S", 300.0)


def complete(script: Path, *words: str, data_dir: Path | None = None) -> list[str]:
    """Return what bash offers for the last word."""
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    environment["CRDT_MERGE_NODE_DATA_DIR"] = str(data_dir or script.parent)
    done = subprocess.run(
        [str(BASH), "--norc", "-c", ASK, "bash", str(script), PROGRAM, *words],
        capture_output=True, text=True, check=True, timeout=60, env=environment,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.split()


@needs_bash
def test_bash_completes_commands_options_and_choices(script: Path) -> None:
    assert complete(script, "st") == ["status", "strategy"]
    assert complete(script, "config", "ex") == ["explain", "example"]
    assert complete(script, "status", "--wa") == ["--watch"]
    assert complete(script, "completion", "") == list(SHELLS)
    assert complete(script, "config", "explain", "storage.") == ["storage.reserve_bytes"]
    assert complete(script, "errors", "lookup", "E130") == [f"E130{n}" for n in range(10)]


@needs_bash
@pytest.mark.usefixtures("patience")
def test_bash_completes_groups_and_peers_of_the_running_daemon(
    script: Path, served: Any, node: FakeNode
) -> None:
    assert complete(script, "group", "show", "", data_dir=served.data_dir) == ["digits"]
    assert complete(script, "peer", "block", "be", data_dir=served.data_dir) == ["beta"]
    assert complete(script, "why", "x", data_dir=served.data_dir) == []


@needs_bash
def test_without_a_daemon_nothing_is_offered_and_nothing_said(script: Path) -> None:
    assert complete(script, "group", "show", "") == []


@needs_bash
def test_every_command_is_offered(script: Path) -> None:
    assert complete(script, "") == list(COMMANDS)


def _known(kind: completing._Known, data_dir: Path, incomplete: str) -> list[str]:
    context = root.make_context(PROGRAM, ["--data-dir", str(data_dir)], resilient_parsing=True)
    return [item.value for item in kind.shell_complete(context, root.params[0], incomplete)]


def test_a_daemon_that_does_not_answer_is_not_waited_for(
    served: Any, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never() -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(node, "group_list", never)
    began = time.monotonic()

    assert _known(completing.GROUP, served.data_dir, "") == []
    assert time.monotonic() - began < 60


@pytest.mark.usefixtures("patience")
def test_a_name_that_could_move_the_cursor_is_not_offered(
    served: Any, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def peers() -> Any:
        return (dataclasses.replace(nodes.ALIVE, name="\x1b[2J"), nodes.ALIVE)

    monkeypatch.setattr(node, "peer_list", peers)

    assert _known(completing.PEER, served.data_dir, "") == ["beta"]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_of_each_shell_calls_this_program(run: Any, shell: str) -> None:
    result = run("completion", shell)

    assert result.exit_code == 0
    assert VARIABLE in result.stdout
    assert f"{shell}_complete" in result.stdout
    assert get_completion_class(shell) is not None


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_scripts_of_other_shells_parse_where_these_are_installed(
    run: Any, shell: str, tmp_path: Path
) -> None:
    if (program := shutil.which(shell)) is None:
        pytest.skip(f"{shell} is not installed here")
    path = tmp_path / "script"
    path.write_text(run("completion", shell).stdout)

    subprocess.run([program, "-n", str(path)], check=True, timeout=60)
