"""Model Breadcrumbs: exactly what lies between, by sorting single rows and tensors."""

from fractions import Fraction

import numpy as np
import pytest
from crdt_merge_protocol.errors import ParameterError
from crdt_merge_protocol.strategies.breadcrumbs import top_of_rows
from crdt_merge_protocol.strategies.contract import LEAF_ELEMENTS
from crdt_merge_protocol.strategies.reference import merge_arrays
from crdt_merge_protocol.strategies.registry import get

RNG = np.random.default_rng(29)
SHAPES = {"conv": (4, 3, 3, 3), "m": (5, 7), "s": (), "v": (9,), "void": (0, 3)}
BASE = {name: RNG.integers(-64, 64, shape) / 16 for name, shape in SHAPES.items()}
MODELS = [{name: x + RNG.integers(-9, 9, x.shape) / 16 for name, x in BASE.items()} for _ in range(3)]
DIGESTS = [bytes([i]) * 32 for i in (4, 5, 6)]
BOTH = ("model_breadcrumbs", "breadcrumbs_ties")


def crumbs(values, removed, kept):
    """Return the values with all but the crumbs zeroed, by sorting."""
    order = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))
    stays = set(order[removed : removed + kept])
    return [value if i in stays else 0.0 for i, value in enumerate(values)]


def crumbs_paper(delta, density, gamma):
    if not delta.shape or not delta.size:
        return delta.reshape(-1).tolist()
    out = []
    for row in delta.reshape(delta.shape[0], -1) if delta.ndim > 1 else [delta]:
        width = len(row)
        out += crumbs(row.tolist(), int(Fraction(gamma) * width), int(Fraction(density) * width))
    return out


def crumbs_mergekit(delta, density, gamma):
    """By ascending positions, as its authors count."""
    values = delta.reshape(-1).tolist()
    size = len(values)
    top, target = int(Fraction(gamma) * size), int(Fraction(density) * size)
    bottom = max(0, size - target - top)
    return crumbs(values, size - bottom - target, target)


def sign(x):
    return (x > 0) - (x < 0)


def elect(columns, weights, profile):
    weighted = [[w * x for w, x in zip(weights, column, strict=True)] for column in columns]
    if profile == "mergekit":
        votes = [1 if sum(column) >= 0 else -1 for column in weighted]
        return [
            sum(x for x in column if sign(x) == vote) for column, vote in zip(weighted, votes, strict=True)
        ]
    votes = [sign(sum(column)) for column in columns]
    majority = sign(sum(votes)) or 1
    out = []
    for column, vote in zip(columns, votes, strict=True):
        voices = [(w, x) for w, x in zip(weights, column, strict=True) if x * (vote or majority) > 0]
        out.append(sum(w * x for w, x in voices) / sum(w for w, _ in voices) if voices else 0.0)
    return out


@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 2, 3)])
@pytest.mark.parametrize(
    ("density", "gamma"), [("0.2", "0.1"), ("0.5", "0.25"), ("0.75", "0"), ("0.9", "0.1")]
)
@pytest.mark.parametrize("profile", ["paper", "mergekit"])
def test_both_equal_loops_over_sorted_rows_and_tensors(profile, density, gamma, weights):
    """Most magnitudes are equal to others here, so ties decide."""
    params = {"density": density, "gamma": gamma, "lambda": "0.5", "profile": profile}
    added, elected = (
        merge_arrays(name, MODELS, BASE, params, weights=weights, digests=DIGESTS).tensors for name in BOTH
    )

    cut = crumbs_paper if profile == "paper" else crumbs_mergekit
    for name, base in BASE.items():
        columns = list(zip(*(cut(model[name] - base, density, gamma) for model in MODELS), strict=True))
        total = [0.5 * sum(w * x for w, x in zip(weights, column, strict=True)) for column in columns]
        np.testing.assert_allclose((added[name] - base).reshape(-1), total, rtol=1e-13, atol=1e-13)
        merged = [0.5 * x for x in elect(columns, weights, profile)]
        np.testing.assert_allclose((elected[name] - base).reshape(-1), merged, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("counts", [(0, 11), (1, 0), (3, 1), (10, 10), (11, 3), (12, 5)])
@pytest.mark.parametrize("levels", [1, 2, 5, 1000])
@pytest.mark.parametrize("step", [1.0, 0.1, 2.0**-21, 2.0**-52, 5e-324])
def test_the_top_of_rows_is_that_of_a_stable_sort(counts, levels, step):
    """Steps down to the last bit of a number: those of few bits and of many are told apart differently."""
    magnitudes = (step > 1e-300) * RNG.integers(0, 2, (40, 1)) + RNG.integers(0, levels, (40, 11)) * step

    order = np.argsort(-magnitudes, axis=1, kind="stable")
    for count, found in zip(counts, top_of_rows(magnitudes, *counts), strict=True):
        expected = np.zeros(magnitudes.shape, bool)
        np.put_along_axis(expected, order[:, :count], values=True, axis=1)
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("levels", [3, 10**9])
@pytest.mark.parametrize(("density", "gamma"), [("0.3", "0.1"), ("0.5", "0.5"), ("0.95", "0.3")])
@pytest.mark.parametrize("block", [LEAF_ELEMENTS, 4 * LEAF_ELEMENTS])
def test_whole_tensors_are_cut_exactly_across_blocks(block, density, gamma, levels):
    sizes = {"a": 2 * LEAF_ELEMENTS + 100, "b": 1000}
    base = {name: np.zeros(size) for name, size in sizes.items()}
    delta = {name: RNG.integers(-levels, levels, size).astype(float) for name, size in sizes.items()}

    params = {"density": density, "gamma": gamma, "profile": "mergekit"}
    out = merge_arrays("model_breadcrumbs", [delta], base, params, block_elements=block).tensors

    for name, size in sizes.items():
        kept = int(Fraction(density) * size)
        removed = min(int(Fraction(gamma) * size), size - kept)
        order = np.argsort(-np.abs(delta[name]), kind="stable")[removed : removed + kept]
        expected = np.zeros(size)
        expected[order] = delta[name][order]
        assert np.array_equal(out[name], expected)


@pytest.mark.parametrize("strategy", BOTH)
@pytest.mark.parametrize("profile", ["paper", "mergekit"])
def test_blocks_and_the_order_of_inputs_do_not_show(strategy, profile):
    shape = (700, 300)
    base = {"t": RNG.normal(size=shape), "v": RNG.normal(size=(LEAF_ELEMENTS + 5,))}
    models = [{name: x + RNG.normal(size=x.shape) for name, x in base.items()} for _ in range(3)]
    params = {"profile": profile, "density": "0.3", "gamma": "0.1"}

    whole = merge_arrays(strategy, models, base, params, digests=DIGESTS)
    small = merge_arrays(
        strategy, models[::-1], base, params, digests=DIGESTS[::-1], block_elements=LEAF_ELEMENTS
    )

    for name in base:
        assert whole.tensors[name].tobytes() == small.tensors[name].tobytes()


@pytest.mark.parametrize("strategy", BOTH)
@pytest.mark.parametrize("profile", ["paper", "mergekit"])
def test_no_density_gives_the_base_and_no_difference_either(strategy, profile):
    for models, density in ((MODELS, "0"), ([BASE, BASE], "0.5")):
        params = {"density": density, "profile": profile}
        out = merge_arrays(strategy, models, BASE, params, digests=DIGESTS[: len(models)]).tensors
        for name, base in BASE.items():
            if base.shape or density != "0" or profile == "mergekit":  # The paper leaves scalars alone.
                assert out[name].tolist() == base.tolist()


@pytest.mark.parametrize("strategy", BOTH)
def test_full_density_leaves_no_outlier_out_in_mergekit(strategy):
    out = merge_arrays(strategy, MODELS[:1], BASE, {"profile": "mergekit", "gamma": "0.5"}).tensors

    for name in BASE:
        np.testing.assert_allclose(out[name], MODELS[0][name], rtol=1e-15)


@pytest.mark.parametrize("strategy", BOTH)
@pytest.mark.parametrize("profile", ["paper", "mergekit"])
def test_a_contribution_without_weight_has_no_say(strategy, profile):
    params = {"profile": profile, "density": "0.5"}
    alone = merge_arrays(strategy, MODELS[:1], BASE, params, digests=DIGESTS[:1]).tensors
    muted = merge_arrays(strategy, MODELS, BASE, params, weights=(1, 0, 0), digests=DIGESTS).tensors

    for name in BASE:
        assert alone[name].tobytes() == muted[name].tobytes()


@pytest.mark.parametrize("strategy", BOTH)
@pytest.mark.parametrize("profile", ["paper", "mergekit"])
def test_twice_the_differences_give_twice_the_change(strategy, profile):
    doubled = [{name: b + 2 * (model[name] - b) for name, b in BASE.items()} for model in MODELS]
    params = {"profile": profile, "density": "0.5"}

    once, twice = (
        merge_arrays(strategy, models, BASE, params, digests=DIGESTS).tensors for models in (MODELS, doubled)
    )

    for name, b in BASE.items():
        np.testing.assert_allclose(twice[name] - b, 2 * (once[name] - b), rtol=1e-13, atol=1e-13)


def test_rows_too_short_for_the_density_are_warned_of():
    column = {"c": np.ones((5, 1)), "m": np.ones((2, 20))}
    zero = {name: np.zeros(x.shape) for name, x in column.items()}

    result = merge_arrays("model_breadcrumbs", [column], zero)

    assert result.decisions["warnings"] == [
        "c: rows are too short for this density; nothing of them was merged."
    ]
    assert result.tensors["c"].tolist() == zero["c"].tolist()


@pytest.mark.parametrize("strategy", BOTH)
def test_more_than_everything_is_refused(strategy):
    with pytest.raises(ParameterError, match=r"add up to 1\.2"):
        get(strategy).validate({"density": "0.9", "gamma": "0.3"})
    get(strategy).validate({"density": "0.9", "gamma": "0.3", "profile": "mergekit"})


@pytest.mark.parametrize("strategy", BOTH)
@pytest.mark.parametrize("profile", ["paper", "mergekit"])
def test_shares_may_differ_by_tensor_and_contribution(strategy, profile):
    first = DIGESTS[0].hex()[:8]
    table = {"density": f"m=0.5;v#{first}=0;0.7", "gamma": "m=0.2;0", "profile": profile}

    out, plain = (
        merge_arrays(strategy, MODELS[:1], BASE, params, digests=DIGESTS[:1]).tensors
        for params in (table, {"density": "0.5", "gamma": "0.2", "profile": profile})
    )

    assert out["m"].tobytes() == plain["m"].tobytes()
    assert out["v"].tolist() == BASE["v"].tolist()
