"""Laws that every merge strategy obeys, whatever the models (SCENARIOS S13, S17, S20)."""

from fractions import Fraction

import numpy as np
import pytest
from crdt_merge_protocol.strategies.contract import LEAF_ELEMENTS
from crdt_merge_protocol.strategies.dtypes import encode_block
from crdt_merge_protocol.strategies.reference import merge_arrays
from crdt_merge_protocol.strategies.registry import get, plain_names
from hypothesis import given
from hypothesis import strategies as st
from support.profile import examples

PROFILE = examples(8)

SHAPES = {"": (), "a": (3, 4), "b": (7,), "c": (0,), "d": (2, 1, 5)}
"""A scalar, a matrix, a vector, nothing, and three dimensions."""

VARIANTS = [
    ("weight_average", {}),
    ("linear", {}),
    ("linear", {"normalize": "false"}),
    ("slerp", {}),
    ("slerp", {"profile": "mergekit"}),
    ("task_arithmetic", {"lambda": "0.7"}),
    ("ties", {"density": "0.4"}),
    ("ties", {"density": "0.4", "scope": "tensor", "elect": "count", "merge_func": "max"}),
    ("ties", {"density": "0.4", "profile": "mergekit"}),
    ("dare", {}),
    ("dare", {"density": "0.6", "profile": "mergekit"}),
    ("dare_ties", {"ties_density": "0.5"}),
    ("dare_ties", {"density": "0.6", "profile": "mergekit", "ties_density": "0.5"}),
]
ON_DIFFERENCES = [variant for variant in VARIANTS if get(variant[0]).base == "required"]
AVERAGES = [
    ("weight_average", {}),
    ("linear", {}),
    ("slerp", {}),
    ("slerp", {"profile": "mergekit"}),
    ("task_arithmetic", {"normalize": "true"}),
    ("ties", {"density": "1"}),
    ("dare", {"density": "1"}),
    ("dare_ties", {"density": "1"}),
]


def model(rng, *, scale=1.0):
    """Return float32 values on a coarse grid, where ties and cancellations happen, or off it."""
    grid = rng.integers(2)
    return {
        name: np.asarray(
            rng.integers(-6, 7, shape) / 4 * scale if grid else rng.normal(size=shape) * scale, np.float32
        )
        for name, shape in SHAPES.items()
    }


def content(result):
    """Return the output as float32 bytes, by tensor."""
    return {name: encode_block("F32", x.reshape(-1)) for name, x in result.tensors.items()}


@st.composite
def cases(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = draw(st.integers(1, 5))
    weights = draw(
        st.lists(st.fractions(Fraction(1, 8), 4, max_denominator=8), min_size=count, max_size=count)
    )
    return [model(rng) for _ in range(count)], model(rng), weights, draw(st.randoms(use_true_random=False))


@pytest.mark.parametrize(("strategy", "params"), VARIANTS)
@PROFILE
@given(case=cases())
def test_the_order_and_repetition_of_inputs_do_not_show(strategy, params, case):
    models, base, weights, random = case
    pairs = list(zip(models, weights, strict=True))
    expected = merge_arrays(strategy, models, base, params, weights=weights, seed=b"s")

    pairs += random.sample(pairs, random.randint(1, len(pairs)))
    random.shuffle(pairs)
    shuffled, moved = zip(*pairs, strict=True)
    result = merge_arrays(strategy, shuffled, base, params, weights=moved, seed=b"s")

    assert content(expected) == content(result)
    assert expected.decisions == result.decisions


@pytest.mark.parametrize(("strategy", "params"), VARIANTS)
@PROFILE
@given(case=cases())
def test_shapes_are_kept_and_values_finite(strategy, params, case):
    models, base, weights, _ = case

    merged = merge_arrays(strategy, models, base, params, weights=weights, seed=b"s").tensors

    assert {name: x.shape for name, x in merged.items()} == SHAPES
    assert all(np.isfinite(x).all() for x in merged.values())


@pytest.mark.parametrize(("strategy", "params"), VARIANTS)
@PROFILE
@given(case=cases())
def test_inputs_are_not_written_to_and_memory_order_does_not_show(strategy, params, case):
    models, base, weights, _ = case
    before = [{name: x.copy() for name, x in each.items()} for each in models]
    digests = [bytes([i]) * 32 for i in range(len(models))]
    expected = merge_arrays(strategy, models, base, params, weights=weights, digests=digests, seed=b"s")

    strided = [{name: np.repeat(x[..., None], 2, -1)[..., 0] for name, x in each.items()} for each in models]
    turned = [{name: np.asfortranarray(x) for name, x in each.items()} for each in strided]
    result = merge_arrays(strategy, turned, base, params, weights=weights, digests=digests, seed=b"s")

    assert content(expected) == content(result)
    for each, copy in zip(models, before, strict=True):
        assert all(np.array_equal(each[name], copy[name]) for name in SHAPES)


@pytest.mark.parametrize(("strategy", "params"), ON_DIFFERENCES)
@PROFILE
@given(case=cases())
def test_no_differences_give_the_base(strategy, params, case):
    models, base, weights, _ = case

    merged = merge_arrays(strategy, [base] * len(models), base, params, weights=weights, seed=b"s").tensors

    assert all(np.array_equal(merged[name], base[name]) for name in SHAPES)


@pytest.mark.parametrize(("strategy", "params"), ON_DIFFERENCES)
@PROFILE
@given(case=cases(), power=st.integers(-3, 3))
def test_scaled_differences_give_a_scaled_result(strategy, params, case, power):
    """A power of two scales without rounding. The zero base makes differences exact."""
    models, base, weights, _ = case
    zero = {name: np.zeros_like(x) for name, x in base.items()}
    scaled = [{name: np.asarray(x * np.float32(2.0**power)) for name, x in each.items()} for each in models]
    digests = [bytes([i]) * 32 for i in range(len(models))]

    plain = merge_arrays(strategy, models, zero, params, weights=weights, digests=digests).tensors
    result = merge_arrays(strategy, scaled, zero, params, weights=weights, digests=digests).tensors

    assert all(np.array_equal(plain[name] * 2.0**power, result[name]) for name in SHAPES)


@pytest.mark.parametrize(
    ("strategy", "params"),
    [v for v in VARIANTS if v[0] == "slerp" or not {"profile", "elect"} & set(v[1])],
)
@PROFILE
@given(case=cases())
def test_flipped_signs_flip_the_result(strategy, params, case):
    """Up and down differ only where votes cancel out: always in mergekit, often if votes are counted."""
    rng = np.random.default_rng(case[3].randint(0, 2**32))
    models = [{name: rng.normal(size=shape) for name, shape in SHAPES.items()} for _ in case[0]]
    zero = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    flipped = [{name: -x for name, x in each.items()} for each in models]
    digests = [bytes([i]) * 32 for i in range(len(models))]

    plain = merge_arrays(strategy, models, zero, params, weights=case[2], digests=digests).tensors
    result = merge_arrays(strategy, flipped, zero, params, weights=case[2], digests=digests).tensors

    assert all(np.array_equal(-plain[name], result[name]) for name in SHAPES)


@pytest.mark.parametrize(("strategy", "params"), AVERAGES)
@PROFILE
@given(case=cases(), scale=st.sampled_from([1.0, 1e-8, 1e-20, 1e8]))
def test_averages_of_equal_models_are_that_model(strategy, params, case, scale):
    """SCENARIOS S20: at any magnitude, after rounding to float32."""
    same = {name: np.asarray(x * np.float32(scale)) for name, x in case[0][0].items()}
    base = {name: np.zeros_like(x) for name, x in same.items()}
    weights = [weight + i * 5 for i, weight in enumerate(case[2])]

    result = merge_arrays(strategy, [same] * len(weights), base, params, weights=weights)

    for name, raw in content(result).items():
        assert np.array_equal(same[name].reshape(-1), np.frombuffer(raw, np.float32))


@pytest.mark.parametrize(("strategy", "params"), VARIANTS)
def test_block_size_and_compaction_do_not_show(strategy, params, monkeypatch):
    """SCENARIOS S13. Values on a grid make ties at thresholds and cancelled votes common."""
    rng = np.random.default_rng(11)
    sizes = {"a": 2 * LEAF_ELEMENTS + 3000, "b": 500}
    grid = {name: rng.integers(-50, 50, size) / 16 for name, size in sizes.items()}
    models = [{name: x + rng.integers(-99, 99, x.size) / 64 for name, x in grid.items()} for _ in range(3)]
    whole = merge_arrays(strategy, models, grid, params, seed=b"s", block_elements=8 * LEAF_ELEMENTS)

    kind = type(get(strategy))
    end_pass = kind.end_pass

    def compact_first(self, context, state, pass_no, partials):
        some = self.compact(context, pass_no, list(partials[1:]))
        return end_pass(
            self, context, state, pass_no, sorted([*partials[:1], *some], key=lambda item: item[0])
        )

    monkeypatch.setattr(kind, "end_pass", compact_first)
    blocked = merge_arrays(strategy, models, grid, params, seed=b"s", block_elements=LEAF_ELEMENTS)

    assert all(whole.tensors[name].tobytes() == blocked.tensors[name].tobytes() for name in sizes)
    assert whole.decisions == blocked.decisions


@pytest.mark.parametrize("strategy", plain_names())
def test_passes_may_be_shown_what_they_do_not_need(strategy, monkeypatch):
    rng = np.random.default_rng(12)
    models, base = [model(rng) for _ in range(3)], model(rng)
    expected = merge_arrays(strategy, models, base, seed=b"s")
    monkeypatch.setattr(type(get(strategy)), "needs", lambda *_: True)

    result = merge_arrays(strategy, models, base, seed=b"s")

    assert content(expected) == content(result)
