"""A real daemon under signals, without descriptors, and with nobody to log to (SCENARIOS 6.2: B70)."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
from support.daemons import CLI, TIMEOUT_S
from support.whole_nodes import Site

SOCKETS = 96
DESCRIPTORS = 64


def _environment() -> dict[str, str]:
    """Return ours, without what would have Python keep nothing in its buffers."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return kept | {"CRDT_MERGE_NODE_HTTP__PORT": "", "CRDT_MERGE_NODE_LOG__LEVEL": "debug"}


def _after(prepare: str) -> list[str]:
    """Return what runs a command after a statement: a fork of this process, which has threads, cannot."""
    become = "import os, resource, signal, sys; {}; os.execv(sys.argv[1], sys.argv[1:])"
    return [sys.executable, "-c", become.format(prepare)] if prepare else []


class Daemon:
    """A process that was told to run a node, and said that it is ready."""

    def __init__(self, home: Path, prepare: str = "") -> None:
        self.home = home
        command = [CLI, "--data-dir", str(home), "run", "--host", "127.0.0.1", "--port", "0", "--json"]
        self.process = subprocess.Popen(
            [*_after(prepare), *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(),
        )
        assert self.process.stdout is not None
        self.facts: dict[str, Any] = json.loads(self.process.stdout.readline())

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.facts["listen"].rpartition(":")
        return host, int(port)

    def status(self) -> dict[str, Any]:
        """Ask it how it is, as a person would."""
        done = subprocess.run(
            [CLI, "--data-dir", str(self.home), "status", "--json"],
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode in (0, 1), done.stderr.decode()
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def ends(self) -> tuple[int, str]:
        """Return its exit status and its log, once it has ended."""
        _, log = self.process.communicate(timeout=TIMEOUT_S)
        return self.process.returncode, log.decode()


@contextmanager
def daemon(home: Path, prepare: str = "") -> Iterator[Daemon]:
    running = Daemon(home, prepare)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.communicate()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return Site(tmp_path).make()


HARMLESS = [signal.SIGPIPE, signal.SIGWINCH, signal.SIGCONT, signal.SIGURG, signal.SIGCHLD]
STOPPING = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


@pytest.mark.parametrize("number", STOPPING, ids=lambda number: number.name)
def test_b70_each_signal_that_ends_ends_in_good_order(home: Path, number: signal.Signals):
    with daemon(home) as running:
        running.process.send_signal(number)
        status, log = running.ends()

    assert status == 0, log
    assert "node.stopped" in log
    assert "Traceback" not in log


def test_b70_a_storm_of_signals_ends_the_node_once_and_in_good_order(home: Path):
    rng = Random(70)
    with daemon(home) as running:
        for _ in range(200):
            running.process.send_signal(rng.choice(HARMLESS))
        assert running.status()["node"] == running.facts["node"]
        for _ in range(200):
            if running.process.poll() is not None:
                break
            running.process.send_signal(rng.choice([*HARMLESS, *STOPPING]))
        status, log = running.ends()

    assert status == 0, log
    assert "Traceback" not in log
    with daemon(home) as again:  # Whatever was under way, the directory is as good as ever.
        assert again.facts["node"] == running.facts["node"]


def test_b70_who_tells_it_again_until_it_has_ended_kills_nothing_that_ended_in_good_order(home: Path):
    """Between its last line and its exit it once had no handlers any more, and died of the second signal."""
    rng = Random(71)
    with daemon(home) as running:
        while running.process.returncode is None:
            running.process.send_signal(rng.choice(STOPPING))
            with suppress(subprocess.TimeoutExpired):
                running.process.wait(0.001)
        status, log = running.ends()

    assert status == 0, log
    assert "node.stopped" in log


def test_b70_a_daemon_that_was_told_to_ignore_hangups_ignores_them(home: Path):
    """As ``nohup`` does."""
    with daemon(home, "signal.signal(signal.SIGHUP, signal.SIG_IGN)") as running:
        for _ in range(20):
            running.process.send_signal(signal.SIGHUP)

        assert running.status()["node"] == running.facts["node"]


def test_b70_a_daemon_runs_on_when_nobody_reads_its_log_any_more(home: Path):
    """SIGPIPE, or EPIPE at every line: ``run 2>&1 | head`` must not be how a node ends."""
    with daemon(home) as running:
        assert running.process.stderr is not None
        assert running.process.stdout is not None
        running.process.stderr.close()
        running.process.stdout.close()
        for _ in range(5):  # Each leaves a line in the log.
            with socket.create_connection(running.address) as caller:
                caller.sendall(b"GET / HTTP/1.1\r\n\r\n")
                caller.recv(4096)

        assert running.status()["node"] == running.facts["node"]
        running.process.terminate()
        assert running.process.wait(TIMEOUT_S) == 0


def test_b70_a_daemon_without_descriptors_left_recovers_when_there_are_some(home: Path):
    """EMFILE at accept: callers wait or are dropped, commands are answered again as soon as they can be."""
    few = f"resource.setrlimit(resource.RLIMIT_NOFILE, ({DESCRIPTORS}, {DESCRIPTORS}))"
    with daemon(home, few) as running:
        callers = []
        try:
            for number in range(SOCKETS):
                caller = socket.socket()
                caller.bind((f"127.0.2.{1 + number % 50}", 0))
                caller.settimeout(TIMEOUT_S)
                caller.connect(running.address)
                callers.append(caller)
            assert running.process.poll() is None
        finally:
            for caller in callers:
                caller.close()
        assert running.status()["node"] == running.facts["node"]
        running.process.terminate()
        status, log = running.ends()

    assert status == 0, log


def test_b70_a_daemon_that_may_not_write_a_byte_more_ends_with_74_or_says_full(home: Path):
    """EFBIG is what a limit on file sizes gives; the signal that comes with it (SIGXFSZ) must not kill."""
    with daemon(home, "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))") as running:
        path = home.parent / "model.safetensors"
        code = (
            "import numpy as np, sys; from safetensors.numpy import save_file;"
            "save_file({'w': np.zeros(1 << 20, np.float32)}, sys.argv[1])"
        )
        subprocess.run([sys.executable, "-c", code, str(path)], check=True)
        done = subprocess.run(
            [CLI, "--data-dir", str(home), "group", "create", "g", "--base", str(path), "--json"],
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        status = running.process.poll()

    assert done.returncode != 0
    assert "E15" in done.stderr.decode() + done.stdout.decode()
    assert status in (None, 74)
