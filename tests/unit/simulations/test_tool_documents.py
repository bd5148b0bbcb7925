"""Plans and results survive being written to a file, and nothing else is taken for one."""

import json
from pathlib import Path

import pytest
from crdt_merge_node.errors import ConfigError
from crdt_merge_simulations.documents import (
    load,
    plan_document,
    plan_in,
    read_plan,
    read_result,
    result_document,
)
from support.stories import make_plan, make_result


def _through_json(document: dict[str, object]) -> dict[str, object]:
    return json.loads(json.dumps(document))


def test_a_plan_comes_back_from_json_as_it_was() -> None:
    plan = make_plan()

    assert read_plan(_through_json(plan_document(plan))) == plan


def test_a_result_comes_back_from_json_as_it_was() -> None:
    result = make_result(make_plan(), violations={"I9": "something"})

    assert read_result(_through_json(result_document(result))) == result


def test_a_result_document_says_verdicts_and_carries_its_plan() -> None:
    plan = make_plan()
    document = _through_json(
        result_document(make_result(plan, violations={"I1": "lost"}), plan, "say it again")
    )

    assert document["schema"] == "sim-result/1"
    assert document["is_success"] is False
    assert document["command"] == "say it again"
    assert document["checks"]["I1"]["verdict"] == "violated"
    assert plan_in(document) == plan


def test_a_newer_field_of_a_result_is_passed_over() -> None:
    result = make_result(make_plan())

    assert read_result(_through_json(result_document(result)) | {"mood": "good"}) == result


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"schema": "sim-plan/2"},
        {"schema": "sim-plan/1"},
        {
            "schema": "sim-plan/1",
            "seed": 1,
            "scenario": {},
            "links": [],
            "sites": [],
            "acts": [],
            "faults": [],
        },
        {"plan": 7},
    ],
)
def test_what_is_no_plan_is_refused(document: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        plan_in(document)


@pytest.mark.parametrize("change", [{"checks": [1]}, {"samples": [{}]}, {"hops": {"x": 1}}, {"schema": "x"}])
def test_what_is_no_result_is_refused(change: dict[str, object]) -> None:
    document = _through_json(result_document(make_result(make_plan()))) | change

    with pytest.raises(ConfigError):
        read_result(document)


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_a_file_without_an_object_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "some.json"
    path.write_text(text)

    with pytest.raises(ConfigError, match="some"):
        load(path)
