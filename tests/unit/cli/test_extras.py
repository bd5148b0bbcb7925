"""What goes with an output: reports, cards, verification, and configurations of another tool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner, Result
from crdt_merge_node.cli.app import root
from support.nodes import FakeNode


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    rng = np.random.default_rng(3)
    paths = []
    for name in ("base", "a", "b"):
        tensors = {
            f"model.layers.{i}.up.weight": rng.standard_normal((6, 5)).astype(np.float32) for i in range(3)
        }
        paths.append(str(tmp_path / f"{name}.safetensors"))
        safetensors.numpy.save_file(tensors, paths[-1])
    return paths


def merge(*arguments: str) -> Result:
    return CliRunner().invoke(root, ["merge", *arguments])


def test_a_merge_writes_its_report_and_its_card(files: list[str], tmp_path: Path) -> None:
    page, data, card = (tmp_path / name for name in ("r.html", "r.json", "README.md"))
    result = merge(
        *files[1:], "--base", files[0], "--strategy", "ties", "-o", str(tmp_path / "o.safetensors"),
        "--report", str(page), "--report", str(data), "--card", str(card),
    )  # fmt: skip

    assert result.exit_code == 0, result.stderr
    assert json.loads(data.read_text())["schema"] == "layers/1"
    assert "model.layers.1.up.weight" in page.read_text()
    assert "`ties`" in card.read_text()


def test_an_output_verifies_and_a_changed_one_does_not(files: list[str], tmp_path: Path) -> None:
    output = tmp_path / "o.safetensors"
    assert merge(*files, "-o", str(output)).exit_code == 0
    good = merge(*files, "--verify", str(output))
    assert good.exit_code == 0
    assert "bit for bit" in good.stdout

    data = bytearray(output.read_bytes())
    data[-1] ^= 1
    output.write_bytes(data)
    bad = merge(*files, "--verify", str(output))
    assert bad.exit_code == 7
    assert "model.layers.2.up.weight: 1 of 30 elements differ" in bad.stderr
    answer = json.loads(merge(*files, "--verify", str(output), "--json").stdout.splitlines()[-1])
    assert (answer["event"], answer["is_equal"]) == ("verified", False)
    assert not list(tmp_path.glob(".verify-*"))


def test_a_model_of_another_shape_is_told_apart_by_name(files: list[str], tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    safetensors.numpy.save_file({"model.layers.0.up.weight": np.zeros((2, 2), np.float32)}, other)
    result = merge(*files, "--verify", str(other))

    assert result.exit_code == 7
    assert "model.layers.0.up.weight: is F32 [2, 2], should be F32 [6, 5]" in result.stderr
    assert "model.layers.1.up.weight: is missing" in result.stderr


def test_a_configuration_merges_the_files_it_names(files: list[str], tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        f"merge_method: slerp\nbase_model: {files[1]}\n"
        f"models: [{{model: {files[1]}}}, {{model: {files[2]}}}]\nparameters: {{t: [0, 0.5, 1]}}\n"
    )
    output = tmp_path / "o.safetensors"
    result = merge("--config", str(config), "-o", str(output))

    assert result.exit_code == 0, result.stderr
    merged, first, last = (safetensors.numpy.load_file(path) for path in (output, files[1], files[2]))
    assert np.allclose(merged["model.layers.0.up.weight"], first["model.layers.0.up.weight"], atol=1e-6)
    assert np.allclose(merged["model.layers.2.up.weight"], last["model.layers.2.up.weight"], atol=1e-6)


def test_a_configuration_takes_the_place_of_files(files: list[str], tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("merge_method: linear\nmodels: [{model: org/absent}]\n")

    assert merge(*files, "--config", str(config), "-o", str(tmp_path / "o")).exit_code == 2
    absent = merge("--config", str(config), "-o", str(tmp_path / "o"))
    assert absent.exit_code == 2
    assert "org/absent" in absent.stderr


def test_resolve_asks_the_daemon_for_reports(run: Any, node: FakeNode, tmp_path: Path) -> None:
    run(
        "resolve", "digits", "-o", str(tmp_path / "o"), "--report", str(tmp_path / "r.html"), "--card", "c.md"
    )
    asked = node.last("resolve")

    assert asked["report_paths"] == (str(tmp_path / "r.html"),)
    assert asked["card_path"] == str(Path("c.md").absolute())


def test_a_peer_that_announced_nothing_is_not_agreement(run: Any, node: FakeNode, tmp_path: Path) -> None:
    result = run("resolve", "digits", "-o", str(tmp_path / "o"), "--verify-with", "beta")

    assert result.exit_code == 6
    assert "announced no output" in result.stderr


def test_a_peer_that_announced_the_same_output_is(run: Any, node: FakeNode, tmp_path: Path) -> None:
    peer = json.loads(run("peer", "list", "--json").stdout)["peers"][0]
    node.report_answer = {"agreeing": (peer["id"],)}

    assert (
        run("resolve", "digits", "-o", str(tmp_path / "o"), "--verify-with", peer["id"][:12]).exit_code == 0
    )


def test_an_unknown_peer_is_not_found(run: Any, node: FakeNode, tmp_path: Path) -> None:
    result = run("resolve", "digits", "-o", str(tmp_path / "o"), "--verify-with", "nobody")

    assert result.exit_code == 4
    assert "nobody" in result.stderr
