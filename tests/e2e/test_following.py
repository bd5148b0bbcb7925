"""A person follows a daemon: sees what happens as it happens, and is told when there is no more of it."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from crdt_merge_node.local_cluster import Member
from support.daemons import CLI, cli
from support.ports import free_port

TIMEOUT_S = 300.0


@pytest.fixture(scope="module")
def made() -> Iterator[tuple[Member, asyncio.Runner]]:
    """One node, alone, for all tests of the module."""
    with tempfile.TemporaryDirectory(prefix="cmn-") as directory, asyncio.Runner() as runner:
        member = Member("solo", Path(directory) / "solo", port=free_port())
        cli(member, "init")
        try:
            yield member, runner
        finally:
            if member.process is not None:
                runner.run(member.stop())


@pytest.fixture
def daemon(made: tuple[Member, asyncio.Runner]) -> tuple[Member, asyncio.Runner]:
    """Its daemon, started again if a test ended it."""
    member, runner = made
    if member.process is None:
        runner.run(member.start())
    return made


@contextmanager
def following(member: Member, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run ``events --follow`` as a person would; end it if the test did not."""
    command = [str(CLI), "--data-dir", str(member.data_dir), "events", "--follow", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def until(process: subprocess.Popen[str], event: str) -> dict[str, Any]:
    """Read lines up to an event; the test's own time limit is that of the whole run."""
    assert process.stdout is not None
    for line in process.stdout:
        found: dict[str, Any] = json.loads(line)
        if found.get("event") == event:
            return found
    raise AssertionError(f"it ended before {event}")


def test_an_interrupt_ends_it_without_noise(daemon: tuple[Member, asyncio.Runner]) -> None:
    member, _ = daemon
    with following(member, "--json") as process:
        until(process, "node.ready")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=TIMEOUT_S)

        assert process.returncode == 130
        assert errors.strip() == "interrupted"


def test_events_come_as_they_happen_and_end_with_the_daemon(daemon: tuple[Member, asyncio.Runner]) -> None:
    member, runner = daemon
    with following(member, "--json") as process:
        assert until(process, "node.ready")["level"] == "info"
        assert cli(member, "log", "level", "error").stdout.startswith("error until the next start")
        adjusted = until(process, "log.adjusted")
        assert adjusted["fields"] == {"old": "info", "new": "error"}

        runner.run(member.stop())
        rest, errors = process.communicate(timeout=TIMEOUT_S)

        assert process.returncode == 3
        assert json.loads(rest.splitlines()[-1])["schema"] == "error/1"
        assert "the daemon has stopped" in errors


def test_a_daemon_that_is_killed_ends_it_too(daemon: tuple[Member, asyncio.Runner]) -> None:
    member, runner = daemon
    with following(member, "--json") as process:
        until(process, "node.ready")
        runner.run(member.kill())
        _, errors = process.communicate(timeout=TIMEOUT_S)

        assert process.returncode == 3
        assert "Traceback" not in errors
