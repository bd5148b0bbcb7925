"""Adapters from strangers: whatever their header or their tensors are, a sentence comes of it."""

from __future__ import annotations

import json

import pytest
from crdt_merge_protocol.adapter_rules import AdapterRules, adapter_rules, parse_rank, write_rules
from crdt_merge_protocol.adapters import (
    PREFIX,
    AdapterHeader,
    canonical_name,
    judge_header,
    judge_specs,
    read_adapter_header,
    read_layout,
    saved_name,
    schema_specs,
)
from crdt_merge_protocol.blobs import Schema, TensorSpec
from crdt_merge_protocol.errors import ParameterError, ResolveError
from crdt_merge_protocol.limits import WEIGHT_ONE
from hypothesis import given
from hypothesis import strategies as st
from support.profile import examples

RULES = AdapterRules()
SCHEMA = Schema.of([TensorSpec(name="m.weight", dtype="BF16", shape=(6, 4))])


def pair(
    rank: int = 2, *, rows: int = 6, columns: int = 4, dtype: str = "F32", module: str = "m"
) -> list[TensorSpec]:
    return [
        TensorSpec(name=f"{PREFIX}{module}.lora_A.weight", dtype=dtype, shape=(rank, columns)),
        TensorSpec(name=f"{PREFIX}{module}.lora_B.weight", dtype=dtype, shape=(rows, rank)),
    ]


def test_a_header_reads_back_as_itself() -> None:
    header = AdapterHeader(
        alpha="12.5",
        alpha_pattern={"m": "3"},
        use_rslora=True,
        fan_in_fan_out=True,
        base_model="org/base",
        bias="all",
        modules_to_save=("a", "b"),
        task_type="CAUSAL_LM",
    )
    assert read_adapter_header(header.encode()) == header
    assert header.scale("m", 9) == 1.0
    assert header.scale("n", 4) == 6.25


@given(st.binary(max_size=64) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
@examples(100)
def test_a_header_is_read_or_refused_and_nothing_else(data: bytes) -> None:
    with pytest.raises(ParameterError):
        read_adapter_header(data)


@given(
    st.dictionaries(
        st.sampled_from(
            ["alpha", "alpha_pattern", "bias", "use_rslora", "modules_to_save", "base_model", "x"]
        ),
        st.none()
        | st.booleans()
        | st.integers()
        | st.text(max_size=300)
        | st.lists(st.integers(), max_size=2),
    )
)
@examples(100)
def test_a_changed_header_is_refused_or_equal(changes: dict[str, object]) -> None:
    fields = json.loads(AdapterHeader(alpha="8").encode()) | changes
    data = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    try:
        found = read_adapter_header(data)
    except ParameterError:
        return
    assert found.encode() == data


def test_names_have_one_spelling() -> None:
    for name in (f"{PREFIX}m.lora_A.weight", "m.lora_A.weight", f"{PREFIX}m.lora_A", "m.lora_A"):
        assert canonical_name(name) == f"{PREFIX}m.lora_A.weight"
    assert canonical_name("e.lora_embedding_B") == f"{PREFIX}e.lora_embedding_B"
    assert canonical_name("head.weight") == f"{PREFIX}head.weight"


def test_what_fits_is_judged_sound() -> None:
    assert judge_specs(RULES, SCHEMA, 0, pair(), WEIGHT_ONE) == ""
    assert judge_header(RULES, SCHEMA, pair(), AdapterHeader(alpha="1")) == ""
    turned = pair(rows=4, columns=6)
    assert judge_header(RULES, SCHEMA, turned, AdapterHeader(alpha="1", fan_in_fan_out=True)) == ""


@pytest.mark.parametrize(
    ("specs", "weight", "reason"),
    [
        (pair(), 0, "not positive"),
        (pair(), 1 << 60, "over the group's cap"),
        ([], WEIGHT_ONE, "no factors"),
        (pair(dtype="I32"), WEIGHT_ONE, "element type I32"),
        (pair(dtype="F64"), WEIGHT_ONE, "element type F64"),
        (pair(300), WEIGHT_ONE, "over the group's cap 256"),
        (pair(0), WEIGHT_ONE, "factors of m"),
        (pair(module="n"), WEIGHT_ONE, "n.weight"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_by_a_sentence(specs: list[TensorSpec], weight: int, reason: str) -> None:
    assert reason in judge_specs(RULES, SCHEMA, 1 << 40, specs, weight)


shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
ENDS = ("m.lora_A.weight", "m.lora_B.weight", "m.lora_embedding_A", "m.lora_embedding_B", "m.weight")
names = st.sampled_from(
    [f"{PREFIX}{end}" for end in (*ENDS, ".lora_A.weight", "m.lora_magnitude_vector", "")]
)


@given(st.dictionaries(names, shapes), st.booleans())
@examples(100)
def test_any_tensors_are_judged_without_an_error(found: dict[str, tuple[int, ...]], turned: bool) -> None:
    specs = [TensorSpec(name=name, dtype="F32", shape=shape) for name, shape in found.items()]
    problem = judge_specs(RULES, SCHEMA, 0, specs, WEIGHT_ONE)
    if problem:
        return
    header = AdapterHeader(alpha="1", fan_in_fan_out=turned)
    if not judge_header(RULES, SCHEMA, specs, header):
        layout = read_layout(specs)
        assert {spec.name: spec.shape for spec in schema_specs(layout, turned)} == {"m.weight": (6, 4)}


@pytest.mark.parametrize(
    "rule", ["", "several", "0", "-1", "energy:0", "energy:1.5", "energy:1e999999999", "1e9", "٣"]
)
def test_what_is_no_rank_rule_is_refused(rule: str) -> None:
    with pytest.raises(ParameterError, match="A rank is one of"):
        parse_rank(rule)


def test_rules_are_written_as_they_are_read() -> None:
    assert adapter_rules({"density": "1"}) is None
    written = write_rules({"rank": "", "rank_max": "16", "base": ""})
    assert written == {"lora.output": "adapter", "lora.rank": "auto", "lora.rank_max": "16"}
    assert adapter_rules(written) == AdapterRules(rank_max=16)
    for wrong in ({"lora.x": "1"}, {"lora.output": "gif"}, {"lora.rank_max": "5000"}):
        with pytest.raises(ResolveError):
            adapter_rules(wrong)


def test_tensors_that_peft_wraps_have_the_names_of_the_base() -> None:
    saved = {
        "m.base_layer.bias": (6,),
        "norm.bias": (4,),
        "head.modules_to_save.bias": (3,),
        "head.original_module.bias": (3,),
        "score.weight": (2,),
        "score.modules_to_save.weight": (2,),
    }
    specs = [TensorSpec(name=f"{PREFIX}{name}", dtype="F32", shape=shape) for name, shape in saved.items()]
    others = read_layout([*pair(), *specs]).others

    assert {name: spec.name.removeprefix(PREFIX) for name, spec in others.items()} == {
        "head.bias": "head.modules_to_save.bias",
        "m.bias": "m.base_layer.bias",
        "norm.bias": "norm.bias",
        "score.weight": "score.weight",
    }
    assert saved_name("m.bias", {"m"}) == f"{PREFIX}m.base_layer.bias"
    assert saved_name("norm.bias", {"m"}) == f"{PREFIX}norm.bias"
