"""``init --ca``: nodes made by machines, which share a file instead of passing tokens around."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from crdt_merge_node.cli.app import root
from crdt_merge_node.ports import SystemFs
from crdt_merge_node.transport.identity import Identity, load_authority

PASSPHRASE = "correct horse battery"


def _run(data_dir: Path, *arguments: str) -> Result:
    return CliRunner().invoke(root, ["--data-dir", str(data_dir), *arguments], input=f"{PASSPHRASE}\n")


def _answer(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    return dict(json.loads(result.stdout))


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    """The exported CA of a cluster that somebody made."""
    _answer(_run(tmp_path / "first", "init", "--cluster", "prod", "--advertise", "first:7946", "--json"))
    _answer(
        _run(tmp_path / "first", "ca", "export", str(tmp_path / "ca.pem"), "--passphrase-file", "-", "--json")
    )
    return tmp_path / "ca.pem"


def _init(ca: Path, data_dir: Path, *arguments: str) -> Result:
    return _run(data_dir, "init", "--ca", str(ca), "--passphrase-file", "-", *arguments)


def test_a_node_made_with_the_ca_is_a_member_of_its_cluster_and_can_admit(ca: Path, tmp_path: Path) -> None:
    made = _answer(_init(ca, tmp_path / "pod-0", "--json", "--name", "pod-0", "--advertise", "pod-0:7946"))
    first = Identity.load(tmp_path / "first", SystemFs())
    second = Identity.load(tmp_path / "pod-0", SystemFs())

    assert (second.cluster, second.cluster_name) == (first.cluster, "prod")
    assert second.node != first.node
    assert (made["node"], made["has_ca"]) == (second.node.hex(), True)
    assert load_authority(tmp_path / "pod-0", SystemFs()) is not None
    assert 'name = "pod-0"' in (tmp_path / "pod-0" / "config.toml").read_text()


def test_made_again_it_is_the_same_node(ca: Path, tmp_path: Path) -> None:
    """As when a pod is restarted on its volume."""
    arguments = ("--json", "--name", "pod-0")
    made = _answer(_init(ca, tmp_path / "pod-0", *arguments))
    again = _answer(_init(ca, tmp_path / "pod-0", *arguments))

    assert again["node"] == made["node"]
    assert again["written"] == []


def test_a_node_of_another_cluster_is_not_taken_over(ca: Path, tmp_path: Path) -> None:
    before = _answer(_run(tmp_path / "other", "init", "--json"))
    result = _init(ca, tmp_path / "other")

    assert result.exit_code == 5
    assert before["cluster"][:12] in result.stderr
    assert Identity.load(tmp_path / "other", SystemFs()).cluster.hex() == before["cluster"]


def test_a_wrong_passphrase_makes_nothing(ca: Path, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text("incorrect donkey\n")
    result = _run(tmp_path / "pod", "init", "--ca", str(ca), "--passphrase-file", str(tmp_path / "wrong"))

    assert result.exit_code == 5
    assert not (tmp_path / "pod" / "identity").exists()


def test_a_token_and_a_ca_contradict_each_other(ca: Path, tmp_path: Path) -> None:
    assert _init(ca, tmp_path / "pod", "--join", "token").exit_code == 2
