"""``--json``: every command's shape is pinned, so that a change of it is made on purpose and documented."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import crdt_merge_node.cli
import pytest
from support import nodes
from support.nodes import FakeNode

SCHEMAS = Path(__file__).with_name("schemas.json")
DOCUMENT = Path(crdt_merge_node.cli.__file__).with_name("JSON.md")

LINES: dict[str, tuple[str, ...]] = {
    "status/1": ("status",),
    "why/1": ("why",),
    "invite/1": ("invite",),
    "events/1": ("events",),
    "log-level/1": ("log", "level", "debug"),
    "peer-list/1": ("peer", "list"),
    "peer-show/1": ("peer", "show", "beta"),
    "peer-block/1": ("peer", "block", "beta"),
    "peer-unblock/1": ("peer", "unblock", "beta"),
    "peer-forget/1": ("peer", "forget", "beta"),
    "cert-show/1": ("cert", "show"),
    "cert-renew/1": ("cert", "renew"),
    "leave/1": ("leave", "--yes"),
    "backup/1": ("backup", "/tmp/never-written"),
    "group-create/1": ("group", "create", "digits", "--like", str(SCHEMAS)),
    "group-list/1": ("group", "list"),
    "group-show/1": ("group", "show", "digits"),
    "group-follow/1": ("group", "follow", "digits"),
    "policy-show/1": ("policy", "show", "digits"),
    "policy-set/1": ("policy", "set", "digits", "--holders", "1"),
    "policy-import/1": ("policy", "import", "digits", str(Path(__file__).with_name("recipe.yaml"))),
    "contribution-add/1": ("contribution", "add", "digits", str(SCHEMAS)),
    "contribution-get/1": ("contribution", "get", "digits", "main", "-o", "/tmp/model"),
    "contribution-list/1": ("contribution", "list", "digits"),
    "contribution-show/1": ("contribution", "show", "digits", "main"),
    "contribution-remove/1": ("contribution", "remove", "digits", "main", "--yes"),
    "contribution-ban/1": ("contribution", "ban", "digits", "beef", "--reason", "x", "--yes"),
    "contribution-erase/1": ("contribution", "erase", "digits", "beef", "--reason", "x", "--yes"),
    "group-admit/1": ("group", "admit", "digits", "beta", "--yes"),
    "group-revoke/1": ("group", "revoke", "digits", "beta", "--reason", "x", "--yes"),
    "group-erasures/1": ("group", "erasures", "digits"),
    "act-show/1": ("act", "show", str(SCHEMAS)),
    "act-submit/1": ("act", "submit", str(SCHEMAS)),
    "resolve/1": ("resolve", "digits", "-o", "/tmp/never-written"),
    "version/1": ("version",),
}


def _paths(value: Any, prefix: str = "") -> set[str]:
    """Return the paths of all leaves with their JSON types; ``[]`` is any element, ``*`` any key of a map."""
    if isinstance(value, dict):
        is_map = prefix.endswith((".params", ".meta", ".fields", ".numbers"))
        parts = [_paths(item, f"{prefix}.{'*' if is_map else key}") for key, item in value.items()]
        return set().union(*parts) if parts else {f"{prefix}: object"}
    if isinstance(value, list):
        return (
            set().union(*(_paths(item, f"{prefix}[]") for item in value)) if value else {f"{prefix}: array"}
        )
    kind = {bool: "boolean", int: "number", float: "number", str: "string", type(None): "null"}[type(value)]
    return {f"{prefix}: {kind}"}


def _shape(stdout: str) -> dict[str, list[str]]:
    """Return the leaf paths of each kind of line."""
    shape: dict[str, set[str]] = {}
    for line in stdout.splitlines():
        document = json.loads(line)
        shape.setdefault(document.get("event", "answer"), set()).update(_paths(document))
    return {event: sorted(paths) for event, paths in shape.items()}


@pytest.mark.parametrize("schema", LINES)
def test_the_shape_of_every_answer_is_pinned(run: Any, schema: str) -> None:
    result = run(*LINES[schema], "--json")

    assert result.exit_code == 0, result.stderr
    assert all(json.loads(line)["schema"] == schema for line in result.stdout.splitlines())
    assert json.loads(SCHEMAS.read_text())[schema] == _shape(result.stdout)


@pytest.mark.parametrize("schema", LINES)
def test_every_schema_and_every_field_is_documented(schema: str) -> None:
    document = DOCUMENT.read_text()

    assert f"`{schema}`" in document
    for paths in json.loads(SCHEMAS.read_text())[schema].values():
        for path in paths:
            name = path.partition(":")[0].split(".")[-1].removesuffix("[]")
            assert name in ("", "*") or f"`{name}`" in document, path


def test_an_error_is_one_object_too_and_still_a_line_for_people(run: Any, node: FakeNode) -> None:
    node.failure = nodes.absent("x")

    result = run("group", "show", "x", "--json")

    assert json.loads(result.stdout) == {
        "schema": "error/1",
        "code": "E1702",
        "message": "no group is called 'x'.",
        "hint": "`group list` shows them.",
        "exit": 4,
        "problems": [],
    }
    assert result.stderr.startswith("error E1702")
    assert result.exit_code == 4


def test_weights_are_decimal_numbers(run: Any) -> None:
    answer = json.loads(run("contribution", "show", "digits", "main", "--json").stdout)

    assert answer["contribution"]["weight"] == 1.5


def test_long_work_is_a_plan_then_progress_then_one_result(run: Any) -> None:
    lines = [json.loads(line) for line in run(*LINES["resolve/1"], "--json").stdout.splitlines()]

    assert [line["event"] for line in lines] == ["plan", "progress", "result"]
    assert lines[-1]["output_digest"] == nodes.DIGEST
