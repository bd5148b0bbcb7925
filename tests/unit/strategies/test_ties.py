"""TIES against loops over single elements, and where it must not surprise (SCENARIOS S15)."""

from fractions import Fraction

import numpy as np
import pytest
from crdt_merge_protocol.strategies.contract import LEAF_ELEMENTS
from crdt_merge_protocol.strategies.reference import merge_arrays

RNG = np.random.default_rng(9)
BASE = {"a": RNG.integers(-64, 64, (5, 7)) / 16, "b": RNG.integers(-64, 64, 11) / 16}
MODELS = [{name: x + RNG.integers(-40, 40, x.shape) / 16 for name, x in BASE.items()} for _ in range(4)]
DIGESTS = [bytes([i]) * 32 for i in range(4)]
WEIGHTS = (1, 2, Fraction(1, 2), 3)


def flat(model):
    return [float(x) for name in sorted(model) for x in model[name].reshape(-1)]


def changes(model):
    return [x - b for x, b in zip(flat(model), flat(BASE), strict=True)]


def sign(x):
    return (x > 0) - (x < 0)


def trim_paper(delta, density):
    order = sorted(map(abs, delta))
    drop = len(delta) - int(Fraction(density) * len(delta))
    return [x if drop == 0 or abs(x) >= order[drop - 1] else 0.0 for x in delta]


def merge_paper(columns, weights, *, func, by_count):
    votes = [sign(sum(map(sign, column)) if by_count else sum(column)) for column in columns]
    majority = sign(sum(votes)) or 1
    for column, vote in zip(columns, votes, strict=True):
        agreeing = [(w, x) for w, x in zip(weights, column, strict=True) if x * (vote or majority) > 0]
        if func == "max":
            yield max((x for _, x in agreeing), key=abs, default=0.0)
            continue
        total = sum(w * x for w, x in agreeing)
        yield float(total / sum(w for w, _ in agreeing)) if func == "mean" and agreeing else float(total)


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), WEIGHTS])
@pytest.mark.parametrize("func", ["mean", "sum", "max"])
@pytest.mark.parametrize("elect", ["sum", "count"])
@pytest.mark.parametrize("density", ["0.1", "0.5", "0.9", "1"])
def test_the_paper_profile_equals_loops_over_elements(density, elect, func, weights):
    trimmed = [trim_paper(changes(model), density) for model in MODELS]
    expected = list(
        merge_paper(list(zip(*trimmed, strict=True)), weights, func=func, by_count=elect == "count")
    )

    params = {"density": density, "merge_func": func, "elect": elect}
    merged = merge_arrays("ties", MODELS, BASE, params, weights=weights, digests=DIGESTS)

    np.testing.assert_allclose(changes(merged.tensors), expected, rtol=1e-13, atol=1e-13)


def merge_mergekit(columns, weights, *, normalize):
    for column in columns:
        weighted = [float(w) * x for w, x in zip(weights, column, strict=True)]
        vote = 1 if sum(weighted) >= 0 else -1
        agreeing = [(w, x) for w, x in zip(weights, weighted, strict=True) if sign(x) == vote]
        total = sum(x for _, x in agreeing)
        yield total / float(sum(w for w, _ in agreeing)) if normalize and agreeing else total


@pytest.mark.parametrize("normalize", ["true", "false"])
@pytest.mark.parametrize("density", ["0.1", "0.5", "0.9", "1"])
def test_the_mergekit_profile_equals_loops_over_elements(density, normalize):
    expected = []
    for name, base in BASE.items():
        deltas = [(model[name] - base).reshape(-1).tolist() for model in MODELS]
        kept = max(1, int(Fraction(density) * len(deltas[0])))
        trimmed = []
        for delta in deltas:
            best = sorted(range(len(delta)), key=lambda i, d=delta: (-abs(d[i]), i))[:kept]
            trimmed.append([x if i in best else 0.0 for i, x in enumerate(delta)])
        columns = list(zip(*trimmed, strict=True))
        expected += merge_mergekit(columns, WEIGHTS, normalize=normalize == "true")

    params = {"density": density, "normalize": normalize, "profile": "mergekit"}
    merged = merge_arrays("ties", MODELS, BASE, params, weights=WEIGHTS, digests=DIGESTS)

    np.testing.assert_allclose(changes(merged.tensors), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("scope", ["tensor", "model"])
@pytest.mark.parametrize("density", ["0.3", "0.5", "0.77"])
@pytest.mark.parametrize("block", [LEAF_ELEMENTS, 4 * LEAF_ELEMENTS])
def test_exactly_k_stay_where_most_magnitudes_are_equal(density, block, scope):
    """The first in (tensor, index) order stay, across blocks and tensors."""
    sizes = {"a": 2 * LEAF_ELEMENTS + 100, "b": 1000, "c": LEAF_ELEMENTS}
    base = {name: np.zeros(size) for name, size in sizes.items()}
    delta = {name: np.where(np.arange(size) % 3 == 0, -1.0, 1.0) for name, size in sizes.items()}
    delta["a"][:50] = 2.0
    delta["b"][500:] = 0.5

    params = {"density": density, "profile": "mergekit", "scope": scope}
    merged = merge_arrays("ties", [delta], base, params, block_elements=block).tensors

    groups = [list(sizes)] if scope == "model" else [[name] for name in sizes]
    for group in groups:
        whole = np.concatenate([delta[name] for name in group])
        best = np.argsort(-np.abs(whole), kind="stable")[: int(Fraction(density) * whole.size)]
        expected = np.zeros(whole.size)
        expected[best] = whole[best]

        assert np.array_equal(expected, np.concatenate([merged[name] for name in group]))


def test_exactly_k_stay_where_they_just_fill_a_leaf():
    base, delta = {"t": np.zeros(2 * LEAF_ELEMENTS)}, {"t": np.ones(2 * LEAF_ELEMENTS)}

    merged = merge_arrays("ties", [delta], base, {"density": "0.5", "profile": "mergekit"}).tensors["t"]

    assert (merged[:LEAF_ELEMENTS].sum(), merged[LEAF_ELEMENTS:].sum()) == (LEAF_ELEMENTS, 0)


@pytest.mark.parametrize("strategy", ["ties", "dare_ties"])
@pytest.mark.parametrize("profile", ["paper", "mergekit"])
@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_identical_tensors_give_the_model(strategy, profile, n):
    """SCENARIOS S15: n contributions of the same tensors and different weights, nothing dropped."""
    params = {"density": "1", "profile": profile}
    if profile == "mergekit" and strategy == "dare_ties":
        params["normalize"] = "true"

    merged = merge_arrays(strategy, [MODELS[0]] * n, BASE, params, weights=range(1, n + 1))

    for name in BASE:
        np.testing.assert_allclose(merged.tensors[name], MODELS[0][name], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("strategy", ["ties", "dare_ties"])
@pytest.mark.parametrize("params", [{}, {"profile": "mergekit"}, {"elect": "count"}, {"merge_func": "max"}])
def test_all_weight_on_one_model_gives_that_model(strategy, params):
    """SCENARIOS S15: the other one neither adds nor votes."""
    merged = merge_arrays(strategy, MODELS[:2], BASE, {"density": "1", **params}, weights=(1, 0))

    for name in BASE:
        assert merged.tensors[name].tolist() == MODELS[0][name].tolist()


@pytest.mark.parametrize("strategy", ["ties", "dare", "dare_ties"])
@pytest.mark.parametrize("profile", ["paper", "mergekit"])
def test_density_zero_gives_the_base(strategy, profile):
    merged = merge_arrays(strategy, MODELS, BASE, {"density": "0", "profile": profile})

    for name, base in BASE.items():
        assert merged.tensors[name].tolist() == base.tolist()


def test_cancelled_votes_are_positive_where_the_model_is_of_two_minds_as_well():
    base = {"t": np.zeros(3)}
    models = [{"t": np.array([1.0, -1.0, 1.0])}, {"t": np.array([1.0, -1.0, -1.0])}]

    merged = merge_arrays("ties", models, base, {"density": "1"}).tensors["t"]

    assert merged.tolist() == [1.0, -1.0, 1.0]


def test_cancelled_votes_follow_the_majority_of_the_model():
    """+1 and -1 cancel out; two of three other elements were elected negative."""
    base = {"t": np.zeros(4)}
    models = [{"t": np.array([1.0, -2.0, -2.0, 5.0])}, {"t": np.array([-1.0, -2.0, -2.0, 5.0])}]

    paper = merge_arrays("ties", models, base, {"density": "1"}).tensors["t"]
    mergekit = merge_arrays("ties", models, base, {"profile": "mergekit"}).tensors["t"]

    assert paper.tolist() == [-1.0, -2.0, -2.0, 5.0]
    assert mergekit.tolist() == [1.0, -2.0, -2.0, 5.0]


def test_denser_trims_contain_sparser_ones():
    """Support is nested in the density."""
    supports = []
    for density in ("0.1", "0.4", "0.8", "1"):
        merged = merge_arrays("ties", MODELS[:1], BASE, {"density": density}).tensors
        supports.append({i for i, x in enumerate(changes(merged)) if x})

    assert supports[0] < supports[1] < supports[2] < supports[3]


def test_thresholds_go_to_the_manifest():
    decisions = merge_arrays("ties", MODELS, BASE, {"density": "0.5"}, digests=DIGESTS).decisions

    assert decisions["thresholds"]["*"][DIGESTS[0].hex()] == sorted(map(abs, changes(MODELS[0])))[-24]


def test_more_voters_than_a_byte_counts():
    digests = [i.to_bytes(32, "big") for i in range(300)]

    merged = merge_arrays("ties", [MODELS[0]] * 300, BASE, {"density": "1"}, digests=digests).tensors

    for name, expected in MODELS[0].items():
        np.testing.assert_allclose(merged[name], expected, rtol=1e-13)
