"""The README's five minutes, run as written: commands are taken from the file and given to a shell.

Two data directories stand for two machines. The environment alone says which: it names directory, address and
a free port, so that not a word of a command has to be changed.
"""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crdt_merge_node.control.client import AsyncClient
from crdt_merge_node.control.socket_path import control_socket
from crdt_merge_node.local_cluster import LocalCluster
from support.daemons import TIMEOUT_S, save_model
from support.ports import free_port

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
INSTALLED = Path(sys.executable).parent


class Machine:
    """A directory, a port, and a shell in which the README's commands run."""

    def __init__(self, home: Path) -> None:
        home.mkdir()
        self.home = home
        self.data_dir = home / "data"
        self._daemon: subprocess.Popen[str] | None = None
        self._environment = os.environ | {
            "PATH": f"{INSTALLED}:{os.environ['PATH']}",
            "CRDT_MERGE_NODE_DATA_DIR": str(self.data_dir),
            "CRDT_MERGE_NODE_LISTEN__HOST": "127.0.0.1",
            "CRDT_MERGE_NODE_LISTEN__PORT": str(free_port()),
            "CRDT_MERGE_NODE_HTTP__PORT": "0",
        }

    def type(self, line: str) -> str:
        """Run a line to its end; return what it printed."""
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.home,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, f"{line}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, line: str) -> None:
        """Run a line in the background; return once its banner is there."""
        with (self.home / "log").open("w") as log:
            self._daemon = subprocess.Popen(
                ["bash", "-c", f"exec {line}"],
                cwd=self.home,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._daemon.stdout is not None
        assert self._daemon.stdout.readline().startswith("crdt-merge-node"), (self.home / "log").read_text()

    def stop(self) -> int:
        """End the daemon as a service manager would; return its exit status."""
        if self._daemon is None:
            return 0
        self._daemon.terminate()
        self._daemon.communicate(timeout=TIMEOUT_S)
        return self._daemon.returncode


@contextmanager
def machines(directory: Path) -> Iterator[tuple[Machine, Machine]]:
    pair = Machine(directory / "one"), Machine(directory / "two")
    try:
        yield pair
    finally:
        statuses = [machine.stop() for machine in pair]
    assert statuses == [0, 0]


def blocks() -> list[list[str]]:
    """Return the commands of every console block, without prompts and comments."""
    return [
        [line.removeprefix("$ ").partition("  #")[0].strip() for line in block.splitlines()]
        for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    ]


def inline(start: str) -> str:
    """Return the one command between backquotes that begins so."""
    found = re.findall(rf"`({re.escape(start)}[^`]*)`", README)
    assert len(found) == 1
    return str(found[0])


def daemons(parent: int) -> list[int]:
    """Return the processes that a process started."""
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def agree(pair: tuple[Machine, Machine], used: int) -> None:
    """Wait until both machines would merge the same contributions, that many."""

    async def wait() -> None:
        clients = [AsyncClient(control_socket(machine.data_dir)) for machine in pair]

        async def is_so() -> bool:
            found = [await client.group_list() for client in clients]
            infos = [info for groups in found for info in groups]
            return (
                [info.used for info in infos] == [used, used]
                and len({info.resolve_key for info in infos}) == 1
                and all(info.is_converged for info in infos)
            )

        try:
            await LocalCluster.until(is_so, timeout_s=TIMEOUT_S, what=f"agreement on {used} contributions")
        finally:
            for client in clients:
                await client.close()

    asyncio.run(wait())


def test_the_readmes_five_minutes_work_as_they_are_written(tmp_path: Path) -> None:
    install, init, run = blocks()[1]
    create, add, status, why, resolve = blocks()[2]
    assert install == "pip install ."
    assert run.endswith(" &")

    with machines(tmp_path) as (one, two):
        save_model(one.home / "base.safetensors", seed=0)
        save_model(one.home / "mine.safetensors", seed=1)
        save_model(two.home / "mine.safetensors", seed=2)
        made = one.type(init)
        one.start(run.removesuffix(" &"))
        join = re.search(r"crdt-merge-node init --join \S+", made)
        assert join is not None
        two.type(join.group())
        two.start("crdt-merge-node run")

        one.type(create)
        agree((one, two), used=0)
        one.type(add)
        two.type(add)
        agree((one, two), used=2)
        seen = one.type(status)
        assert "healthy" in seen
        assert "1 alive" in seen
        assert "converged, 1 of 1 live peer" in one.type(why)
        one.type(resolve)
        two.type(resolve)

        outputs = {(machine.home / "merged.safetensors").read_bytes() for machine in (one, two)}
        assert len(outputs) == 1


def test_the_readmes_merge_needs_no_daemon(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one")
    save_model(machine.home / "a.safetensors", seed=1)
    save_model(machine.home / "b.safetensors", seed=2)

    machine.type(inline("crdt-merge-node merge"))

    assert (machine.home / "out.safetensors").stat().st_size > 0
    assert not machine.data_dir.exists()


def test_the_readmes_dev_cluster_leaves_nothing_behind(tmp_path: Path) -> None:
    """Neither a file, nor a daemon, nor a socket, once it is told to stop as Ctrl-C tells it."""
    process = subprocess.Popen(
        [INSTALLED / "crdt-merge-node", *inline("crdt-merge-node dev").split()[1:], "--json"],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    processes = daemons(process.pid)
    assert (ready["event"], len(ready["nodes"]), len(processes)) == ("ready", 3, 3)
    assert all(control_socket(Path(node["data_dir"])).exists() for node in ready["nodes"])

    process.send_signal(signal.SIGINT)
    process.communicate(timeout=TIMEOUT_S)

    assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []
    assert [pid for pid in processes if Path(f"/proc/{pid}").exists()] == []
    assert [node for node in ready["nodes"] if control_socket(Path(node["data_dir"])).exists()] == []


def test_the_readmes_line_for_completion_completes(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one")

    assert "crdt-merge-node" in machine.type(f"{inline('eval')}; complete -p crdt-merge-node")


def test_the_readmes_make_targets_exist() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)

    assert {"demo", "test"} <= set(targets)
    assert [line for line in blocks()[0] if line.startswith("make")] == ["make demo", "make test"]
