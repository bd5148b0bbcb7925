"""The wheel, as a stranger's machine gets it: installed read-only, an empty home, the unit's sandbox.

Dependencies come from the environment of the tests, unless `CRDT_MERGE_TEST_INSTALL=registries` says to fetch
them anew, as `make nightly STAGE=install` does.
"""

import json
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.daemons import TIMEOUT_S, save_model
from support.sandbox import reason_to_skip

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy" / "systemd" / "crdt-merge-node.service"
SANDBOX = ROOT / "tests" / "support" / "sandbox.py"


def _run(*command: str | Path, **options: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of a fresh environment that holds the wheel and borrows the rest."""
    directory = tmp_path_factory.mktemp("installed")
    _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", directory, cwd=ROOT)
    (wheel,) = directory.glob("*.whl")
    _run(sys.executable, "-m", "venv", "--without-pip", directory / "venv")
    python = directory / "venv" / "bin" / "python"
    (site,) = (directory / "venv" / "lib").glob("python*/site-packages")
    is_borrowed = os.environ.get("CRDT_MERGE_TEST_INSTALL") != "registries"
    _run(
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python),
        *("install", "--quiet", *(("--no-deps", "--no-index") if is_borrowed else ()), wheel),
    )
    if is_borrowed:
        (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for path in site.rglob("*"):
        path.chmod(path.stat().st_mode & ~0o222)
    # Isolated: nothing that the tests' own environment says about where modules are.
    found = _run(python, "-I", "-c", "import crdt_merge_node; print(crdt_merge_node.__file__)").strip()
    assert Path(found).is_relative_to(site), "the wheel is what is tested"
    return directory / "venv" / "bin" / "crdt-merge-node"


@pytest.fixture
def state() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cmn-state-") as name:
        yield Path(name)


def _environment(state: Path) -> dict[str, str]:
    home = state / "home"
    home.mkdir(exist_ok=True)
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "TMPDIR": str(state),
        "CRDT_MERGE_NODE_DATA_DIR": str(state / "data"),
        "CRDT_MERGE_NODE_LISTEN__HOST": "127.0.0.1",
        "CRDT_MERGE_NODE_LISTEN__PORT": "0",
        "CRDT_MERGE_NODE_HTTP__PORT": "0",
    }


def _live(command: Path, state: Path, *confined: str | Path) -> None:
    """Make a node, run it, use it, stop it."""
    environment = _environment(state)
    _run(*confined, command, "init", env=environment)
    daemon = subprocess.Popen(
        [*confined, command, "run"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert daemon.stdout is not None
    try:
        first = daemon.stdout.readline()
        assert first.startswith("crdt-merge-node"), daemon.communicate()[1]
        for seed in (1, 2):
            save_model(state / f"{seed}.safetensors", seed)
        _run(command, "group", "create", "digits", "--like", state / "1.safetensors", env=environment)
        for seed in (1, 2):
            path = state / f"{seed}.safetensors"
            _run(command, "contribution", "add", "digits", path, "--slot", str(seed), env=environment)
        output = state / "merged.safetensors"
        report = _run(command, "resolve", "digits", "-o", output, "--json", env=environment)
        status = json.loads(_run(command, "status", "--json", env=environment))
    finally:
        daemon.send_signal(signal.SIGTERM)
        _, errors = daemon.communicate(timeout=TIMEOUT_S)

    assert daemon.returncode == 0, errors
    assert output.stat().st_size > 0
    assert len(json.loads(report.splitlines()[-1])["inputs"]) == 2
    assert status["is_healthy"]
    assert list((state / "home").iterdir()) == []


def test_a_read_only_package_and_an_empty_home_are_enough(installed: Path, state: Path) -> None:
    _live(installed, state)


@pytest.mark.skipif(bool(reason_to_skip()), reason=reason_to_skip())
def test_a_node_lives_in_the_units_sandbox(installed: Path, state: Path) -> None:
    _live(installed, state, sys.executable, SANDBOX, UNIT, state, "--")


@pytest.mark.skipif(bool(reason_to_skip()), reason=reason_to_skip())
@pytest.mark.parametrize(
    ("what", "attempt"),
    [
        ("writes elsewhere", "open('/var/tmp/escaped', 'w')"),
        ("mounts", "assert not ctypes.CDLL(None).mount(b'none', b'/mnt', b'tmpfs', 0, None)"),
        ("speaks to the kernel", "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)"),
        ("makes code of data", "mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)"),
        ("becomes somebody", "os.setuid(12345)"),
    ],
)
def test_the_sandbox_refuses_what_the_unit_refuses(state: Path, what: str, attempt: str) -> None:
    """Or the test above would show nothing."""
    code = f"import ctypes, mmap, os, socket\n{attempt}"
    free = subprocess.run(
        [sys.executable, SANDBOX, UNIT, state, "--", sys.executable, "-c", "pass"], check=False
    )
    done = subprocess.run(
        [sys.executable, SANDBOX, UNIT, state, "--", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )

    assert free.returncode == 0
    assert done.returncode == 1, f"it {what}"
