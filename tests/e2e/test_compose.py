"""What the containers of the compose file do, done without containers: its commands, in its order.

Only what an engine would provide is replaced: volumes by directories, names of hosts by this one, the port.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml
from support.ports import free_port

COMPOSE = Path(__file__).parents[2] / "deploy" / "docker" / "compose.yaml"
INSTALLED = Path(sys.executable).parent
READY_S_MAX = 300.0


def _here(text: str, volume: Path, port: int) -> str:
    owner = f"{os.getuid()}:{os.getgid()}"
    return (
        text.replace("$$", "$")
        .replace("/cluster", str(volume))
        .replace("10001:10001", owner)
        .replace(":7946", f":{port}")
    )


def _environment(data_dir: Path, port: int) -> dict[str, str]:
    return {
        "PATH": f"{INSTALLED}:{os.environ['PATH']}",
        "HOSTNAME": "127.0.0.1",
        "CRDT_MERGE_NODE_DATA_DIR": str(data_dir),
        "CRDT_MERGE_NODE_LISTEN__HOST": "127.0.0.1",
        "CRDT_MERGE_NODE_LISTEN__PORT": str(port),
        "CRDT_MERGE_NODE_HTTP__PORT": "0",
    }


@contextmanager
def _container(
    service: dict[str, Any], volume: Path, environment: dict[str, str], port: int
) -> Iterator[None]:
    """Run a service's command until the block ends."""
    assert service["entrypoint"] == ["/bin/sh", "-c"]
    (text,) = service["command"]
    command = ["/bin/sh", "-c", _here(text, volume, port)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()
            status = process.wait(timeout=READY_S_MAX)
    assert status == 0


def _alive(environment: dict[str, str]) -> int:
    done = subprocess.run(
        shlex.split("crdt-merge-node peer list --json"), env=environment, capture_output=True, check=False
    )
    return (
        0 if done.returncode else sum(peer["state"] == "alive" for peer in json.loads(done.stdout)["peers"])
    )


def test_the_services_become_a_cluster(tmp_path: Path) -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    volume = tmp_path / "volume"
    volume.mkdir()
    nodes = {name: service for name, service in services.items() if name in {"node1", "node2"}}
    ports = {name: free_port() for name in nodes}
    environments = {name: _environment(tmp_path / name, port) for name, port in ports.items()}
    for environment in environments.values():
        environment["CRDT_MERGE_NODE_PEERS__SEEDS"] = ",".join(f"127.0.0.1:{port}" for port in ports.values())

    (once,) = services["cluster"]["command"]
    for _ in range(2):  # As `up` does the second time.
        subprocess.run(
            ["/bin/sh", "-c", _here(once, volume, 7946)],
            env=_environment(volume / "authority", 7946),
            check=True,
            stdout=subprocess.DEVNULL,
        )
    with ExitStack() as stack:
        for name, service in nodes.items():
            stack.enter_context(_container(service, volume, environments[name], ports[name]))
        give_up = time.monotonic() + READY_S_MAX
        while {_alive(one) for one in environments.values()} != {1}:
            assert time.monotonic() < give_up, "the nodes do not find each other"
            time.sleep(0.2)  # What they do is not ours to hear.

    assert (volume / "ca.pem").stat().st_mode & 0o777 == 0o600
