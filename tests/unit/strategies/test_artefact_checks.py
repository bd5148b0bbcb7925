"""The formats of artefacts: what fits is accepted, and every way not to fit is a sentence."""

import re
from pathlib import Path

import numpy as np
import pytest
from crdt_merge_protocol.blobs import Schema, TensorSpec
from crdt_merge_protocol.errors import ArtefactInvalidError
from crdt_merge_protocol.strategies import artefact_checks
from crdt_merge_protocol.strategies.artefact_checks import check_artefact, check_values
from crdt_merge_protocol.strategies.artefact_fields import row_of, triangle_side, unmatched
from crdt_merge_protocol.strategies.artefacts import SCOPES, encode_header, read_header
from support.artefacts import bond_of

SUBJECT = {"subject": "ab" * 32}
DIGESTS = [bytes([i]) * 32 for i in (1, 2)]
SCHEMA = Schema.of(
    [
        TensorSpec(name="bias", dtype="F32", shape=(3,)),
        TensorSpec(name="ids", dtype="I64", shape=(9,)),
        TensorSpec(name="proj", dtype="BF16", shape=(3, 4)),
    ]
)
ROWS = [{"match": "*", "lambda": ["0.3", "-1"]}]
GOOD = {
    "fisher_diag": ({"n_samples": 9, "label_mode": "sampled"}, {"proj": (3, 4)}),
    "gram": ({"n_tokens": 9, "inputs": {"proj": "in"}}, {"in": (10,)}),
    "snip_score": ({"n_samples": 9}, {"base/proj": (3, 4), "self/proj": (3, 4)}),
    "role": ({"role": "forget"}, {}),
    "lora_meta": (
        {
            "r": 8, "alpha": "16", "use_rslora": False, "fan_in_fan_out": False, "target_modules": ["q"],
            "rank_pattern": {"q": 4}, "alpha_pattern": {"q": "2.5"},
        },
        {},
    ),
    "weight_scope": ({"scopes": {"bias": {"mean": "-0.5", "variance": "0", "count": 3}}}, {}),
    "lambda_table": ({"rows": ROWS}, {}),
    "rank_masks": ({"rows": ROWS, "origin": "cart"}, {"0/proj": (3,), "1/proj": (3,)}),
    "dam_coeff": ({}, {"0/proj": (4,), "1/proj": (3, 4), "0/bias": (1,), "1/bias": (3,)}),
    "surgery_adapter": ({"inner": "linear", "params": {}}, {"1/down": (2, 8), "1/up": (8, 2)}),
    "genome": (
        {
            "inner": "ties", "params": {"lambda": "1"}, "search": {"algo": "ga"},
            "layer_groups": [{"match": "p*", "values": {"weight": ["1", "0.5"], "density": "0.3"}}],
        },
        {},
    ),
}  # fmt: skip


def header_of(type_, fields):
    bond = SUBJECT if SCOPES[type_] == "contribution" else bond_of(DIGESTS)
    return {"artefact": f"{type_}/1", **bond, **fields}


def problems(type_, fields, tensors, dtype="F32"):
    specs = [TensorSpec(name=name, dtype=dtype, shape=shape) for name, shape in tensors.items()]
    return check_artefact(type_, header_of(type_, fields), specs, SCHEMA)


@pytest.mark.parametrize("type_", SCOPES)
def test_a_good_one_of_every_type_has_no_problems(type_):
    fields, tensors = GOOD[type_]

    assert problems(type_, fields, tensors) == []
    assert read_header(type_, encode_header(header_of(type_, fields))) == header_of(type_, fields)


@pytest.mark.parametrize("type_", SCOPES)
def test_unknown_fields_tensors_and_element_types_are_problems(type_):
    fields, tensors = GOOD[type_]

    assert any(
        "unknown fields: 'colour'" in text for text in problems(type_, {**fields, "colour": 1}, tensors)
    )
    assert problems(type_, fields, {**tensors, "stray": (2,)})
    assert any("is F64" in text for text in problems(type_, fields, {**tensors, "stray": (2,)}, "F64"))


@pytest.mark.parametrize(("type_", "name"), [(t, n) for t, (fields, _) in GOOD.items() for n in fields])
def test_fields_of_a_wrong_kind_are_problems(type_, name):
    fields, tensors = GOOD[type_]

    for wrong in (None, -1, 3.5, "", [], [[]], {"a": []}, [{"match": 1}], "x" * 300, True):
        assert isinstance(problems(type_, {**fields, name: wrong}, tensors), list)
    assert problems(type_, {**fields, name: [[]]}, tensors)


@pytest.mark.parametrize(("type_", "name"), [(t, n) for t, (_, tensors) in GOOD.items() for n in tensors])
def test_tensors_of_a_wrong_shape_are_problems(type_, name):
    fields, tensors = GOOD[type_]

    assert problems(type_, fields, {**tensors, name: (7, 7, 7)})


@pytest.mark.parametrize(
    ("type_", "fields", "tensors", "problem"),
    [
        ("fisher_diag", {"label_mode": "sampled"}, {}, "no 'n_samples'"),
        ("fisher_diag", {"n_samples": 0, "label_mode": "guessed"}, {}, "n_samples is a whole number from 1"),
        ("fisher_diag", GOOD["fisher_diag"][0], {"ids": (9,)}, "ids belongs to nothing"),
        ("gram", {"n_tokens": 9, "inputs": {"bias": "in"}}, {"in": (10,)}, "no weight of two axes"),
        ("gram", {"n_tokens": 9, "inputs": {"proj": "out"}}, {}, "no triangle for proj"),
        (
            "gram",
            {"n_tokens": 9, "inputs": {"proj": "in"}, "transposed": ["proj"]},
            {"in": (10,)},
            "expected [6]",
        ),
        ("snip_score", {"n_samples": 9}, {"base/proj": (3, 4)}, "has no partner"),
        ("role", {"role": "king"}, {}, "role is one of finetuned"),
        ("lambda_table", {"rows": [{"match": "p*", "lambda": ["1", "1"]}]}, {}, "no row fits tensor bias"),
        ("lambda_table", {"rows": [{"match": "*", "lambda": ["1"]}]}, {}, "2 numbers `lambda`"),
        ("lambda_table", {"rows": [{"match": "*", "lambda": ["1", "nan"]}]}, {}, "no number as text"),
        ("rank_masks", GOOD["rank_masks"][0], {"0/proj": (3,)}, "1 of 2 contributions have a mask"),
        ("dam_coeff", {}, {"0/proj": (4,), "1/proj": (4,)}, "0 of 2 contributions have coefficients"),
        ("surgery_adapter", GOOD["surgery_adapter"][0], {"0/up": (8, 2)}, "needs both down and up"),
        ("surgery_adapter", GOOD["surgery_adapter"][0], {}, "no adapter in it"),
        (
            "genome",
            {"inner": "ties", "params": {}, "layer_groups": [{"match": "*", "values": {"w": ["1"]}}]},
            {},
            "one text, or 2",
        ),
    ],
)
def test_every_rule_has_its_sentence(type_, fields, tensors, problem):
    assert any(problem in text for text in problems(type_, fields, tensors))


def test_a_root_must_be_that_of_the_listed_contributions():
    fields, tensors = GOOD["lambda_table"]

    for names in (["01" * 32], ["02" * 32, "01" * 32], ["01" * 32, "01" * 32], ["x"], "01" * 32):
        assert problems("lambda_table", {**fields, "contributions": names}, tensors)
    assert not problems("lambda_table", fields, tensors)


def test_a_header_has_one_bond():
    both = {**header_of("role", GOOD["role"][0]), "set_root": "00" * 32}

    with pytest.raises(ArtefactInvalidError, match="both a subject and a set_root"):
        read_header("role", encode_header(both))


@pytest.mark.parametrize(
    ("type_", "values", "problem"),
    [
        ("gram", [1.0, np.nan], "NaN"),
        ("fisher_diag", [1.0, -1e-9], "negative"),
        ("snip_score", [-1.0], "negative"),
        ("rank_masks", [0.0, 0.5], "0 and 1"),
        ("dam_coeff", [4.0, -4.5], "over 4"),
        ("gram", [1.0, -5.0, -1.0], "negative values on the diagonal"),
    ],
)
def test_values_are_checked(type_, values, problem):
    assert problem in (check_values(type_, "t", np.array(values)) or "")


def test_the_diagonal_is_found_in_every_range_of_a_triangle():
    side = 9
    places = {i * (i + 3) // 2 for i in range(side)}
    size = side * (side + 1) // 2
    for start in range(size):
        for stop in range(start + 1, size + 1):
            for at in (start, stop - 1):
                values = np.ones(stop - start)
                values[at - start] = -1.0
                assert (check_values("gram", "t", values, start) is not None) == (at in places)


def test_the_side_of_a_triangle_follows_from_its_size():
    assert [triangle_side(n) for n in (0, 1, 2, 3, 6, 10, 11)] == [0, 1, None, 2, 3, 4, None]
    assert triangle_side(11008 * 11009 // 2) == 11008
    assert triangle_side(1 << 60) is None


def test_the_first_row_that_fits_counts():
    rows = [{"match": "a.*", "n": 1}, {"match": "a.b", "n": 2}, {"match": "[cd]", "n": 3}]

    assert [(row_of(rows, name) or {}).get("n") for name in ("a.b", "c", "[cd]", "e")] == [1, 3, 3, None]
    assert unmatched(rows, ["a.b", "c", "e"]) == ["e"]


def test_the_document_for_users_and_the_specification_name_the_same_types_and_fields():
    text = (Path(__file__).parents[3] / "protocol" / "artefacts.md").read_text()
    specified = artefact_checks.__doc__ or ""

    assert re.findall(r"^### `(\w+)`$", text, re.MULTILINE) == list(SCOPES)
    assert re.findall(r"^``(\w+)`` \(", specified, re.MULTILINE) == list(SCOPES)
    for fields, _ in GOOD.values():
        assert all(f"`{name}`" in text and f"``{name}``" in specified for name in fields)


def test_a_pattern_of_many_wildcards_is_no_pattern():
    """One of a hundred costs what a hundred do, on every tensor of every node."""
    at_most = [{"match": "*?" * 8, "lambda": ["1", "1"]}, *ROWS]
    beyond = [{"match": "*?" * 8 + "[a-z]", "lambda": ["1", "1"]}, *ROWS]

    assert problems("lambda_table", {"rows": at_most}, {}) == []
    assert "at most 16 wildcards" in problems("lambda_table", {"rows": beyond}, {})[0]


def test_half_a_character_is_refused():
    """JSON can escape it; no file, screen or message can hold it."""
    header = {"artefact": "role/1", **SUBJECT, "role": "forget", "attribute": "\ud800"}
    with pytest.raises(ArtefactInvalidError, match="not JSON"):
        read_header("role", encode_header(header))
