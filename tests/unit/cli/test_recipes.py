"""``policy import`` and ``strategy``: recipes read and explained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from crdt_merge_node.cli.app import root
from crdt_merge_protocol.strategies.registry import get, names
from support.nodes import OWN, FakeNode

RECIPE = Path(__file__).with_name("recipe.yaml")


def test_an_imported_policy_names_contributions_by_digest(run: Any, node: FakeNode) -> None:
    result = run("policy", "import", "digits", str(RECIPE))

    changes = node.last("policy_set")["changes"]
    assert result.exit_code == 0
    assert (changes.strategy, changes.dtype) == ("linear", "F32")
    assert changes.params["weight"] == "0.75"
    assert "int8_mask was ignored" in result.stderr


def test_a_model_can_be_matched_to_a_contribution(run: Any, node: FakeNode, tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"
    file.write_text(
        "merge_method: linear\nmodels:\n- {model: org/a, parameters: {weight: 0.25}}\n- {model: main}\n"
    )
    assert run("policy", "import", "digits", str(file), "--model", "org/a=ab12").exit_code == 0

    assert [request["contribution"] for name, _, request in node.requests if name == "contribution_show"] == [
        "ab12",
        "main",
    ]
    assert node.last("policy_set")["changes"].params["weight"] == f"*#{OWN.digest[:12]}=0.25;1"


def test_a_dry_run_changes_nothing(run: Any, node: FakeNode) -> None:
    result = run("policy", "import", "digits", str(RECIPE), "--dry-run")

    assert "linear" in result.stdout
    assert all(name != "policy_set" for name, _, _ in node.requests)


def test_what_is_not_supported_is_named(run: Any, node: FakeNode, tmp_path: Path) -> None:
    file = tmp_path / "slices.yaml"
    file.write_text("merge_method: passthrough\nslices: []\n")
    result = run("policy", "import", "digits", str(file))

    assert result.exit_code == 2
    assert "slices is not supported" in result.stderr
    assert node.requests == []


def test_values_by_layer_need_the_tensors(run: Any, node: FakeNode, tmp_path: Path) -> None:
    file = tmp_path / "gradient.yaml"
    file.write_text("merge_method: linear\nmodels: [{model: main, parameters: {weight: [0, 1]}}]\n")

    assert "--like" in run("policy", "import", "digits", str(file)).stderr


def test_a_base_that_differences_are_from_needs_its_file(run: Any, node: FakeNode, tmp_path: Path) -> None:
    file = tmp_path / "ties.yaml"
    file.write_text("merge_method: ties\nbase_model: org/base\nmodels: [{model: main}]\n")

    assert "--base" in run("policy", "import", "digits", str(file)).stderr
    assert node.requests == []


@pytest.mark.parametrize("name", names())
def test_every_strategy_explains_itself(name: str) -> None:
    text = CliRunner().invoke(root, ["strategy", "explain", name])

    assert text.exit_code == 0, text.stderr
    assert get(name).paper in text.stdout
    assert all(parameter.doc in text.stdout for parameter in get(name).parameters)


def test_the_list_has_every_strategy_and_json_has_every_parameter() -> None:
    answer = json.loads(CliRunner().invoke(root, ["strategy", "list", "--json"]).stdout)

    assert [each["id"] for each in answer["strategies"]] == list(names())
    assert all(
        {"name", "values", "default", "doc"} <= set(p)
        for each in answer["strategies"]
        for p in each["parameters"]
    )


def test_an_unknown_strategy_is_bad_usage_with_a_suggestion() -> None:
    result = CliRunner().invoke(root, ["strategy", "explain", "tyes"])

    assert result.exit_code == 2
    assert "Did you mean ties?" in result.stderr
