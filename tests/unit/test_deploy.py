"""What `deploy/` ships says nothing that its reader does not understand, and names what exists."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from crdt_merge_node.cli.app import root
from crdt_merge_node.config import load_config
from crdt_merge_node.config.model import PORT_DEFAULT

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT = DEPLOY / "systemd" / "crdt-merge-node.service"
DOCKERFILE = DEPLOY / "docker" / "Dockerfile"
COMPOSE = DEPLOY / "docker" / "compose.yaml"
KUBERNETES = DEPLOY / "kubernetes"
INSTALLED = Path(sys.executable).parent


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _options(name: str) -> set[str]:
    command = root.get_command(click.Context(root), name)
    assert command is not None
    return {option for parameter in command.params for option in parameter.opts}


@pytest.fixture(scope="module")
def resources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file with what Kubernetes is given; without `kubectl`, the files that it is built from."""
    if shutil.which("kubectl"):
        done = _run("kubectl", "kustomize", KUBERNETES)
        assert done.returncode == 0, done.stderr
        text = done.stdout
    else:
        base = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
        text = "\n---\n".join((KUBERNETES / name).read_text() for name in base["resources"])
    path = tmp_path_factory.mktemp("kubernetes") / "resources.yaml"
    path.write_text(text)
    return path


def _of_kind(resources: Path, kind: str) -> dict[str, Any]:
    found = [one for one in yaml.safe_load_all(resources.read_text()) if one["kind"] == kind]
    assert len(found) == 1
    return dict(found[0])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")
def test_the_unit_passes_systemd_analyze_without_a_word(tmp_path: Path) -> None:
    """Misspelt keys are only warned about, with status 0: so any output fails."""
    copy = tmp_path / UNIT.name
    copy.write_text(
        UNIT.read_text().replace("/usr/local/bin/crdt-merge-node", f"{INSTALLED}/crdt-merge-node")
    )
    done = _run("systemd-analyze", "verify", "--man=no", str(copy))

    assert done.stdout + done.stderr == ""
    assert done.returncode == 0


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")
def test_the_units_sandbox_leaves_little_exposed(tmp_path: Path) -> None:
    """A threshold of 15 of 100: what remains is that it speaks to the network and keeps state."""
    copy = tmp_path / UNIT.name
    copy.write_text(
        UNIT.read_text().replace("/usr/local/bin/crdt-merge-node", f"{INSTALLED}/crdt-merge-node")
    )
    done = _run("systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager", str(copy))

    assert done.returncode == 0, done.stdout


def test_a_wrong_configuration_is_not_restarted() -> None:
    assert "RestartPreventExitStatus=78" in UNIT.read_text()


def test_the_dockerfile_has_no_known_fault() -> None:
    done = _run(INSTALLED / "hadolint", "--no-color", DOCKERFILE)

    assert done.stdout + done.stderr == ""
    assert done.returncode == 0


def test_the_image_gets_every_package_and_no_more() -> None:
    project = (DEPLOY.parent / "pyproject.toml").read_text()
    packages = re.findall(r'"([a-z]+)/crdt_merge_[a-z]+"', project)
    lines = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}

    assert len(packages) == 4
    assert {*packages, "pyproject.toml", "README.md", "LICENSE"} == allowed
    assert all(f"COPY {package}/ {package}/" in DOCKERFILE.read_text() for package in packages)


def test_the_image_opens_the_ports_that_the_node_listens_on() -> None:
    assert f"EXPOSE {PORT_DEFAULT} {PORT_DEFAULT + 1}" in DOCKERFILE.read_text()


def test_the_compose_file_is_one() -> None:
    done = _run(INSTALLED / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE)

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_service_of_the_compose_file_has_its_volumes() -> None:
    compose = yaml.safe_load(COMPOSE.read_text())
    used = {
        mount.partition(":")[0] for service in compose["services"].values() for mount in service["volumes"]
    }

    assert len(compose["services"]) == 6
    assert used == set(compose["volumes"])


def test_kubernetes_knows_every_field(resources: Path) -> None:
    done = _run(INSTALLED / "kubernetes-validate", "--strict", "--quiet", resources)

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_pods_settings_are_valid(tmp_path: Path) -> None:
    config = load_config(KUBERNETES / "config.toml", {"node.data_dir": str(tmp_path)}, {})

    assert len(config.peers.seeds) == 3
    assert {seed.split(":")[1] for seed in config.peers.seeds} == {str(PORT_DEFAULT)}


def test_pods_dial_names_that_the_service_gives(resources: Path, tmp_path: Path) -> None:
    stateful = _of_kind(resources, "StatefulSet")
    config = load_config(KUBERNETES / "config.toml", {"node.data_dir": str(tmp_path)}, {})
    name = stateful["metadata"]["name"]
    pods = {f"{name}-{n}.{stateful['spec']['serviceName']}" for n in range(stateful["spec"]["replicas"])}

    assert _of_kind(resources, "Service")["metadata"]["name"] == stateful["spec"]["serviceName"]
    assert {seed.split(":")[0] for seed in config.peers.seeds} <= pods


def test_containers_are_given_options_that_exist(resources: Path) -> None:
    template = _of_kind(resources, "StatefulSet")["spec"]["template"]["spec"]
    arguments = [one["args"] for one in (*template["initContainers"], *template["containers"])]

    assert [command for command, *_ in arguments] == ["init", "run"]
    for command, *options in arguments:
        assert {option.partition("=")[0] for option in options} <= _options(command)


def test_the_compose_file_gives_options_that_exist() -> None:
    text = COMPOSE.read_text()

    for command in ("init", "run"):
        lines = re.findall(rf"crdt-merge-node {command} (.*)", text)
        used = {option for line in lines for option in re.findall(r"(--[a-z-]+)", line)}
        assert used
        assert used <= _options(command)


def _metrics() -> set[str]:
    """Return the names that a node exposes, with those that Prometheus and its client add."""
    table = (DEPLOY.parent / "node" / "README.md").read_text()
    names = set(re.findall(r"^\| `(crdt_merge_\w+)`", table, re.MULTILINE))
    assert len(names) > 20, "the table of metrics is where it was"
    histograms = {name for name in names if name.endswith("_seconds")}
    return names | {f"{name}_{end}" for name in histograms for end in ("bucket", "count", "sum")}


OF_OTHERS = {"up", "process_resident_memory_bytes", "process_cpu_seconds_total"}


def _named(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:crdt_merge|process)_\w+", expression))


def test_alerts_name_metrics_that_exist() -> None:
    groups = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]

    assert len(rules) == 11
    for rule in rules:
        assert _named(rule["expr"]) <= _metrics(), rule["alert"]
        assert set(rule["annotations"]) == {"summary", "remedy"}


def test_the_board_names_metrics_that_exist() -> None:
    board = json.loads((DEPLOY / "grafana" / "crdt-merge-node.json").read_text())
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]

    assert len(panels) == 24
    for panel in panels:
        for target in panel["targets"]:
            assert _named(target["expr"]) <= _metrics() | OF_OTHERS, panel["title"]


def test_the_boards_panels_do_not_overlap() -> None:
    board = json.loads((DEPLOY / "grafana" / "crdt-merge-node.json").read_text())
    taken = [
        (at["x"] + dx, at["y"] + dy)
        for at in (panel["gridPos"] for panel in board["panels"])
        for dx in range(at["w"])
        for dy in range(at["h"])
    ]

    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Prometheus is not installed here")
def test_alerts_fire_when_they_should() -> None:
    done = _run("promtool", "test", "rules", DEPLOY / "prometheus" / "alerts_test.yaml")

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_example_of_a_configuration_is_the_one_that_is_generated() -> None:
    """From the typed model; after a change: `crdt-merge-node config example > deploy/config.example.toml`."""
    done = _run(INSTALLED / "crdt-merge-node", "config", "example")

    assert (DEPLOY / "config.example.toml").read_text() == done.stdout
    assert done.returncode == 0
