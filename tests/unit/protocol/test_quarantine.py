"""Why contributions are set aside (PROTOCOL R14; SCENARIOS S10, B59, B60)."""

from __future__ import annotations

import pytest
from crdt_merge_protocol.blobs import Manifest, ManifestEntry, Schema, TensorSpec
from crdt_merge_protocol.errors import DTypeMismatchError, ShapeMismatchError, TensorMissingError
from crdt_merge_protocol.limits import WEIGHT_MAX, WEIGHT_ONE
from crdt_merge_protocol.quarantine import PROBLEMS_MAX, judge, require_schema, schema_problems

W = TensorSpec(name="w", dtype="F32", shape=(2, 3))
B = TensorSpec(name="b", dtype="F32", shape=(3,))
SCHEMA = Schema.of([W, B])


def manifest(*specs: TensorSpec) -> Manifest:
    return Manifest.of(ManifestEntry(spec=spec, blob=bytes(32)) for spec in specs)


def test_what_fits_is_used():
    assert judge(SCHEMA, WEIGHT_ONE, manifest(W, B), WEIGHT_ONE, True) is None


def test_bytes_that_are_not_here_yet_condemn_nothing():
    assert judge(SCHEMA, WEIGHT_ONE, manifest(W, B), WEIGHT_ONE, None) is None


@pytest.mark.parametrize("weight", [0, -1, -WEIGHT_MAX])
def test_a_weight_that_is_not_positive_is_quarantined(weight: int):
    """B59."""
    assert "not positive" in str(judge(SCHEMA, 0, manifest(W, B), weight, True))


@pytest.mark.parametrize(("cap", "weight"), [(WEIGHT_ONE, WEIGHT_ONE + 1), (1, 2), (WEIGHT_ONE, WEIGHT_MAX)])
def test_a_weight_over_the_cap_is_quarantined(cap: int, weight: int):
    assert "over the group's cap" in str(judge(SCHEMA, cap, manifest(W, B), weight, True))


@pytest.mark.parametrize(
    ("specs", "reason", "error"),
    [
        ((W,), "tensor b is missing", TensorMissingError),
        ((W, B, TensorSpec(name="x", dtype="F32", shape=())), "x is not in the schema", TensorMissingError),
        ((TensorSpec(name="w", dtype="F32", shape=(3, 2)), B), "[3, 2], expected [2, 3]", ShapeMismatchError),
        ((TensorSpec(name="w", dtype="F16", shape=(2, 3)), B), "type F16, expected F32", DTypeMismatchError),
        ((TensorSpec(name="W", dtype="F32", shape=(2, 3)), B), "W is not in the schema", TensorMissingError),
    ],
)  # fmt: skip
def test_another_schema_is_quarantined_with_the_reason(specs, reason, error):
    """S8, S10: (2, 3) is not (3, 2) and F16 is not F32."""
    assert reason in str(judge(SCHEMA, 0, manifest(*specs), WEIGHT_ONE, True))
    with pytest.raises(error, match="the file does not fit the schema"):
        require_schema(SCHEMA, specs, who="the file")


def test_what_is_not_finite_is_quarantined():
    assert "NaN" in str(judge(SCHEMA, 0, manifest(W, B), WEIGHT_ONE, False))


def test_a_file_of_another_model_gives_few_lines():
    others = [TensorSpec(name=f"t{i:03}", dtype="F32", shape=()) for i in range(100)]

    problems = schema_problems(SCHEMA, others)

    assert len(problems) == PROBLEMS_MAX + 1
    assert problems[0] == "tensor b is missing"
    assert problems[-1] == f"and {102 - PROBLEMS_MAX} more tensors"


@pytest.mark.parametrize(
    ("dtype", "is_taken"), [("F64", True), ("F16", True), ("BF16", True), ("I32", False), ("BOOL", False)]
)
def test_where_the_policy_says_so_one_float_type_is_as_good_as_another(dtype: str, is_taken: bool):
    found = [TensorSpec(name="w", dtype=dtype, shape=(2, 3)), B]

    assert (judge(SCHEMA, 0, manifest(*found), WEIGHT_ONE, True, any_float=True) is None) is is_taken
    assert judge(SCHEMA, 0, manifest(*found), WEIGHT_ONE, True) is not None


@pytest.mark.parametrize("dtype", ["F32", "BF16", "I32"])
def test_no_policy_takes_floats_for_integers(dtype: str):
    ids = TensorSpec(name="ids", dtype="I64", shape=(9,))

    assert schema_problems(
        Schema.of([ids]), [TensorSpec(name="ids", dtype=dtype, shape=(9,))], any_float=True
    )
