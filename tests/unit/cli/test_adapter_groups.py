"""Groups of adapters on the command line: options become parameters of the policy, and are shown in words."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy
from crdt_merge_node.control.model import PolicyChanges
from crdt_merge_node.ports import SystemFs
from crdt_merge_node.report.verifying import compare_files
from support import nodes
from support.adapters import save_adapter
from support.nodes import FakeNode


def test_options_of_a_group_of_adapters_are_parameters_of_its_policy(
    run: Any, node: FakeNode, tmp_path: Path
) -> None:
    like = save_adapter(tmp_path / "a", 1)
    result = run(
        "group", "create", "tuned", "--like", str(like), "--rank", "energy:0.9", "--max-rank", "64",
        "--resolve-to", "delta", "--base-name", "org/base",
    )  # fmt: skip

    assert result.exit_code == 0, result.stderr
    assert node.last("group_create")["params"] == {
        "lora.rank": "energy:0.9",
        "lora.rank_max": "64",
        "lora.output": "delta",
        "lora.base": "org/base",
    }
    assert "ADAPTER" in result.stderr


def test_a_group_of_adapters_may_have_the_schema_of_a_model(run: Any, node: FakeNode, tmp_path: Path) -> None:
    safetensors.numpy.save_file({}, tmp_path / "base")
    assert run("group", "create", "tuned", "--adapters", "--base", str(tmp_path / "base")).exit_code == 0
    assert node.last("group_create")["params"] == {"lora.output": ""}


def test_a_policy_of_adapters_is_changed_and_shown_in_words(
    run: Any, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = {"lora.output": "adapter", "lora.rank": "8", "lora.base": "org/base"}
    monkeypatch.setattr(nodes, "POLICY", dataclasses.replace(nodes.POLICY, params=rules))

    shown = run("policy", "show", "tuned")
    run("policy", "set", "tuned", "--rank", "max", "--base-name", "")

    assert "LoRA adapters trained from org/base, of rank 256 at most" in shown.stdout
    assert "an adapter of rank 8" in shown.stdout
    assert "lora." not in shown.stdout
    assert node.last("policy_set")["changes"] == PolicyChanges(params={"lora.rank": "max", "lora.base": ""})


def test_what_is_no_rank_rule_is_bad_usage(run: Any, node: FakeNode) -> None:
    result = run("policy", "set", "tuned", "--rank", "several")

    assert result.exit_code == 2
    assert "energy:SHARE" in result.stderr
    assert node.requests == []


def test_a_changed_configuration_is_found_by_verify(tmp_path: Path) -> None:
    first, second = save_adapter(tmp_path / "a", 1), save_adapter(tmp_path / "b", 1)
    assert compare_files(first, second, fs=SystemFs()) == []
    (second / "adapter_config.json").write_text("{}")
    assert [each.tensor for each in compare_files(first, second, fs=SystemFs())] == ["adapter_config.json"]
    (second / "adapter_config.json").unlink()
    assert compare_files(first, second, fs=SystemFs())[0].what == "is missing"
