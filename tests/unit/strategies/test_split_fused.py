"""Fused tensors merge as their parts would, whatever the inner strategy, and are put together again."""

import numpy as np
import pytest
from crdt_merge_protocol.errors import BaseMissingError, ParameterError
from crdt_merge_protocol.strategies.contract import LEAF_ELEMENTS
from crdt_merge_protocol.strategies.fused import parse_rule
from crdt_merge_protocol.strategies.reference import merge_arrays
from crdt_merge_protocol.strategies.registry import get, plain_names

RNG = np.random.default_rng(11)
DIGESTS = [bytes([i]) * 32 for i in (1, 2, 3)]
HEADS, WIDTH = 4, 6
RULES = "*.qkv.weight=4/3;*.qkv.bias=4/3;*.gate_up.weight=2;*.c_attn.weight=columns/3;*.kv.weight=2-1-1;1"


def parts_of_model(scale):
    """Return a model whose tensors are not fused, by the names that parts get."""
    shapes = {
        **{f"h.qkv.{j}.weight": (HEADS * 2, WIDTH) for j in range(3)},
        **{f"h.qkv.{j}.bias": (HEADS * 2,) for j in range(3)},
        **{f"h.gate_up.{j}.weight": (10, WIDTH) for j in range(2)},
        **{f"h.c_attn.{j}.weight": (WIDTH, 5) for j in range(3)},
        "h.kv.0.weight": (8, 3), "h.kv.1.weight": (4, 3), "h.kv.2.weight": (4, 3),
        "norm.weight": (9,), "o.weight": (7, 5),
    }  # fmt: skip
    # Parts of unlike scale, so that what is decided over the whole comes out otherwise.
    return {
        name: scale * (1 + 4 * (".0." in name)) * RNG.integers(-99, 100, shape) / 64.0
        for name, shape in shapes.items()
    }


def fused(model):
    """Return the model as its family stores it, put together by hand."""
    heads = [model[f"h.qkv.{j}.weight"].reshape(HEADS, 2, WIDTH) for j in range(3)]
    biases = [model[f"h.qkv.{j}.bias"].reshape(HEADS, 2) for j in range(3)]
    return {
        "h.qkv.weight": np.concatenate([part[head] for head in range(HEADS) for part in heads]),
        "h.qkv.bias": np.concatenate([part[head] for head in range(HEADS) for part in biases]),
        "h.gate_up.weight": np.concatenate([model[f"h.gate_up.{j}.weight"] for j in range(2)]),
        "h.c_attn.weight": np.concatenate([model[f"h.c_attn.{j}.weight"] for j in range(3)], axis=1),
        "h.kv.weight": np.concatenate([model[f"h.kv.{j}.weight"] for j in range(3)]),
        "norm.weight": model["norm.weight"],
        "o.weight": model["o.weight"],
    }


BASE = parts_of_model(1.0)
MODELS = [{name: BASE[name] + change for name, change in parts_of_model(0.1).items()} for _ in range(3)]
PARAMETERS = {
    "krum": {"f": "0"}, "multi_krum": {"f": "0"}, "passthrough": {"origin": DIGESTS[0].hex()[:8]},
    "ties": {"density": "0.3", "scope": "tensor"}, "dare_ties": {"density": "0.6"},
}  # fmt: skip
COUNTS = {"nuslerp": 2, "arcee_fusion": 1, "nearswap": 1}
INNER = [
    name for name in plain_names()
    if name != "split_fused" and get(name).output == "model" and get(name).k_min <= 3
]  # fmt: skip


def merged(strategy, models, base, params, **options):
    digests = DIGESTS[: len(models)]
    return merge_arrays(strategy, models, base, params, digests=digests, seed=b"s", **options)


@pytest.mark.parametrize("inner", INNER)
def test_what_is_fused_is_merged_as_its_parts_are(inner):
    models, params = MODELS[: COUNTS.get(inner, 3)], PARAMETERS.get(inner, {})
    expected = merged(inner, models, BASE, params)

    given = {"inner": inner, "parts": RULES, **{f"inner.{name}": text for name, text in params.items()}}
    found = merged("split_fused", [fused(model) for model in models], fused(BASE), given)

    for name, values in fused(expected.tensors).items():
        assert found.tensors[name].tobytes() == values.tobytes(), name
    assert found.decisions["determinism"] == expected.decisions["determinism"]
    assert found.decisions["split"]["h.kv.weight"] == [f"h.kv.{j}.weight" for j in range(3)]


def test_it_makes_a_difference():
    models, base = [fused(model) for model in MODELS], fused(BASE)
    params = {"inner": "star", "parts": RULES}
    split = merged("split_fused", models, base, params).tensors
    whole = merged("star", models, base, {}).tensors
    assert np.abs(split["h.gate_up.weight"] - whole["h.gate_up.weight"]).max() > 1e-3
    assert np.array_equal(split["o.weight"], whole["o.weight"])


def test_without_rules_it_is_the_inner_strategy_whatever_the_blocks():
    shape = (3, LEAF_ELEMENTS)
    base = {"a.w": RNG.normal(size=shape), "b": RNG.normal(size=LEAF_ELEMENTS + 3)}
    models = [
        {name: values + RNG.normal(size=values.shape) for name, values in base.items()} for _ in range(2)
    ]
    plain = merged("ties", models, base, {}).tensors
    found = merged("split_fused", models, base, {}, block_elements=LEAF_ELEMENTS).tensors
    parts = merged("split_fused", models, base, {"parts": "a.w=3;1", "inner": "linear"}).tensors
    for name, values in plain.items():
        assert found[name].tobytes() == values.tobytes()
        assert parts[name].tobytes() == merged("linear", models, base, {}).tensors[name].tobytes()


def test_tables_of_the_inner_strategy_know_parts_by_name():
    models, base = [fused(model) for model in MODELS], fused(BASE)
    params = {"parts": RULES, "inner": "task_arithmetic", "inner.lambda": "h.gate_up.0.weight=0;1"}
    found = merged("split_fused", models, base, params).tensors["h.gate_up.weight"]
    assert np.array_equal(found[:10], base["h.gate_up.weight"][:10])
    assert not np.array_equal(found[10:], base["h.gate_up.weight"][10:])


@pytest.mark.parametrize(
    ("rule", "shape", "why"), [("4", (6, 2), "not divisible"), ("columns/2", (6,), "not divisible")]
)
def test_a_rule_that_does_not_fit_is_refused_offline_and_told_in_a_group(rule, shape, why):
    base = {"x.w": np.zeros(shape)}
    models = [{"x.w": RNG.normal(size=shape)} for _ in range(2)]
    with pytest.raises(ParameterError, match=why):
        merged("split_fused", models, base, {"parts": rule}, is_strict=True)
    found = merged("split_fused", models, base, {"parts": rule})
    assert why in found.decisions["warnings"][0]
    assert np.array_equal(found.tensors["x.w"], merged("ties", models, base, {}).tensors["x.w"])


def test_a_part_takes_no_other_tensors_name():
    base = {"x.0.w": np.zeros(2), "x.w": np.zeros((4, 2))}
    models = [{name: RNG.normal(size=values.shape) for name, values in base.items()} for _ in range(2)]
    found = merged("split_fused", models, base, {"parts": "x.w=2;1"})
    assert "name of another tensor" in found.decisions["warnings"][0]
    assert found.decisions["split"] == {}


@pytest.mark.parametrize("rule", ["0", "a", "3/", "rows/3", "1-", "2/0-1", "65", "columns", "-1"])
def test_a_rule_that_is_none_is_refused(rule):
    with pytest.raises(ParameterError, match="parts"):
        get("split_fused").validate({"parts": f"*.w={rule};1"})
    with pytest.raises(ValueError, match=r"parts|hold"):
        parse_rule(rule)


@pytest.mark.parametrize("inner", ["regmean", "emr_merging", "adarank", "split_fused"])
def test_an_inner_strategy_that_needs_more_than_models_is_refused(inner):
    with pytest.raises(ParameterError, match="cannot be an inner strategy"):
        get("split_fused").validate({"inner": inner})


def test_the_inner_strategy_asks_for_its_base():
    with pytest.raises(BaseMissingError):
        merged("split_fused", [{"w": np.zeros(3)}], None, {})
