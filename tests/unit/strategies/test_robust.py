"""Aggregators that liars cannot steer: their definitions in loops, what they bear, when a stand-in is due."""

import itertools
import math
import statistics

import numpy as np
import pytest
from crdt_merge_protocol.errors import ArtefactMissingError
from crdt_merge_protocol.strategies.reference import merge_arrays
from support.vectors import DIGESTS

RNG = np.random.default_rng(17)
CENTRE = RNG.normal(size=40)
HONEST = [CENTRE + RNG.normal(size=40) * 0.1 for _ in range(7)]
NAMES = [bytes([i + 1]) * 32 for i in range(16)]
BEARING = [
    ("coordinate_median", {}, 3),
    ("trimmed_mean", {"f": "3"}, 3),
    ("trimmed_mean", {"f": "auto"}, 3),
    ("krum", {"f": "2"}, 2),
    ("multi_krum", {"f": "2"}, 2),
    ("geometric_median", {}, 3),
    ("geometric_median", {"scope": "tensor"}, 3),
]
ATTACKS = {
    "far": lambda _: CENTRE + 1e6,
    "infinitely far": lambda _: np.full(40, 1e200),
    "opposite": lambda _: -50 * CENTRE,
    "scattered": lambda i: np.roll(CENTRE, i + 1) * 1e9,
}


def aggregate(strategy, vectors, params=None, base=None, **options):
    models = [{"t": vector} for vector in vectors]
    options.setdefault("digests", NAMES[: len(models)])
    return merge_arrays(strategy, models, None if base is None else {"t": base}, params, **options).tensors[
        "t"
    ]


def length(vector):
    return math.sqrt(math.fsum(x * x for x in np.ravel(vector)))


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize(("strategy", "params", "liars"), BEARING)
def test_liars_below_the_breakdown_point_stay_without_effect(strategy, params, liars, attack):
    lies = [ATTACKS[attack](i) for i in range(liars)]

    out = aggregate(strategy, [*HONEST, *lies], params)

    assert np.isfinite(out).all()
    assert np.abs(out - CENTRE).max() < 0.5


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("rounds", ["1", "10"])
def test_a_liar_moves_the_clipped_mean_by_a_bounded_step(attack, rounds):
    before = aggregate("norm_clipped_mean", HONEST, {"rounds": rounds}, np.zeros(40))
    lie = ATTACKS[attack](0)
    after = aggregate("norm_clipped_mean", [*HONEST, lie], {"rounds": rounds}, np.zeros(40))

    assert length(after - before) < 0.5 * length(CENTRE)


def test_a_plain_mean_would_have_followed():
    """What the tests above are worth."""
    assert np.abs(aggregate("weight_average", [*HONEST, CENTRE + 1e6]) - CENTRE).max() > 1e4


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 9])
def test_medians_are_those_of_the_library(count):
    vectors = RNG.integers(-3, 4, (count, 50)) / 2

    out = aggregate("coordinate_median", vectors)

    assert out.tolist() == [statistics.median(column) for column in vectors.T.tolist()]


@pytest.mark.parametrize("weights", [(1, 2, 3), (1, 2, 1, 2), ("0.1", "0.2", "0.3", "0.1", "0.5"), (1, 0, 1)])
def test_weighted_medians_are_those_of_repeated_models(weights):
    vectors = RNG.integers(-3, 4, (len(weights), 50)) / 2
    counts = [round(float(weight) * 10) for weight in weights]
    repeated = [row for row, count in zip(vectors.tolist(), counts, strict=True) for _ in range(count)]

    out = aggregate("coordinate_median", vectors, weights=weights)

    assert out.tolist() == [statistics.median(column) for column in zip(*repeated, strict=True)]


@pytest.mark.parametrize("weights", [(1, 1, 1, 1, 1), (1, 2, 3, 4, 5)])
def test_trimmed_means_leave_out_both_ends(weights):
    vectors = RNG.normal(size=(5, 30))
    expected = []
    for column in vectors.T:
        kept = sorted(zip(column, weights, strict=True))[1:-1]
        expected.append(sum(x * w for x, w in kept) / sum(w for _, w in kept))

    np.testing.assert_allclose(aggregate("trimmed_mean", vectors, weights=weights), expected, rtol=1e-13)


def test_trimming_among_equal_values_does_not_look_at_digests():
    """Two hold the same value with different weights; the lighter counts as less."""
    vectors, weights = [np.ones(3), np.ones(3), np.zeros(3), 2 * np.ones(3)], [1, 5, 3, 2]
    outs = {
        aggregate("trimmed_mean", vectors, weights=weights, digests=list(order)).tobytes()
        for order in itertools.permutations(NAMES[:4])
    }

    assert len(outs) == 1


def krum_by_loops(vectors, f):
    scores = []
    for i, x in enumerate(vectors):
        apart = sorted(math.fsum((x - y) ** 2) for j, y in enumerate(vectors) if j != i)
        scores.append(math.fsum(apart[: len(vectors) - f - 2]))
    return scores


@pytest.mark.parametrize(("count", "f"), [(5, 1), (7, 2), (6, 0)])
def test_krum_takes_the_model_of_the_least_score(count, f):
    vectors = RNG.normal(size=(count, 12))
    scores = krum_by_loops(vectors, f)
    best = sorted(range(count), key=scores.__getitem__)

    assert np.array_equal(aggregate("krum", vectors, {"f": str(f)}), vectors[best[0]])
    np.testing.assert_allclose(
        aggregate("krum", vectors, {"f": str(f), "m": "2"}), vectors[best[:2]].mean(axis=0), rtol=1e-14
    )
    np.testing.assert_allclose(
        aggregate("multi_krum", vectors, {"f": str(f)}),
        vectors[best[: count - f - 2]].mean(axis=0),
        rtol=1e-13,
    )


def test_krum_averages_models_that_tie():
    """With f = 0 and three models, the two closest to each other always have equal scores."""
    out = aggregate("krum", [np.array([0.0]), np.array([1.0]), np.array([5.0])], {"f": "0"})

    assert out.tolist() == [0.5]


def test_krum_judges_whole_models_unless_told_otherwise():
    places = (0.0, 0.1, 0.25, 0.35, 0.5)
    models = [{"a": np.array([x]), "b": np.array([10.0 if x == 0.25 else 0.0])} for x in places]

    whole = merge_arrays("krum", models, digests=NAMES[:5]).tensors
    apart = merge_arrays("krum", models, params={"scope": "tensor"}, digests=NAMES[:5]).tensors

    assert whole["a"].item() != 0.25
    assert apart["a"].item() == 0.25


@pytest.mark.parametrize(
    ("strategy", "params", "count", "least"),
    [
        ("krum", {"f": "1"}, 4, 5),
        ("krum", {"f": "auto"}, 2, 3),
        ("multi_krum", {"f": "3"}, 8, 9),
        ("trimmed_mean", {"f": "1"}, 2, 3),
        ("trimmed_mean", {"f": "4"}, 8, 9),
    ],
)
def test_too_few_models_call_for_the_stand_in(strategy, params, count, least):
    with pytest.raises(ArtefactMissingError, match=f"needs {least} models"):
        aggregate(strategy, RNG.normal(size=(count, 4)), params)

    assert np.isfinite(aggregate(strategy, RNG.normal(size=(least, 4)), params)).all()


def test_a_model_of_weight_zero_is_not_one_of_them():
    with pytest.raises(ArtefactMissingError, match="there are 4"):
        aggregate("krum", RNG.normal(size=(5, 4)), weights=(1, 1, 1, 1, 0))


def test_the_geometric_median_is_where_unit_pulls_cancel():
    vectors, weights = RNG.normal(size=(6, 5)), (1, 2, 1, 1, 2, 1)

    out = aggregate("geometric_median", vectors, {"tol": "1e-14", "max_iter": "5000"}, weights=weights)

    pull = sum(w * (x - out) / length(x - out) for w, x in zip(weights, vectors, strict=True))
    assert length(pull) < 1e-5


def test_the_geometric_median_may_be_one_of_the_models():
    """Three corners of a square and its centre."""
    vectors = [np.array(p, float) for p in ((1, 0), (-1, 0), (0, 1), (0, -1), (0, 0))]

    np.testing.assert_allclose(aggregate("geometric_median", vectors), [0, 0], atol=1e-5)


def test_equal_models_have_that_median():
    assert aggregate("geometric_median", [CENTRE] * 4).tolist() == pytest.approx(CENTRE.tolist(), rel=1e-15)


def test_few_models_are_warned_about():
    for strategy in ("coordinate_median", "geometric_median"):
        models = [{"t": CENTRE}, {"t": -CENTRE}]
        decisions = merge_arrays(strategy, models, digests=DIGESTS[:2]).decisions
        assert "nothing protects" in decisions["warnings"][0]


def clipped_by_loops(vectors, limit, rounds):
    at = np.zeros_like(vectors[0])
    for _ in range(rounds):
        away = [x - at for x in vectors]
        bound = statistics.median(length(d) for d in away) if limit is None else limit
        at = at + sum(d * min(1, bound / length(d)) for d in away) / len(away)
    return at


@pytest.mark.parametrize(("limit", "rounds"), [(1.5, 1), (None, 1), (0.5, 4), (None, 3), (100.0, 2)])
def test_clipping_shortens_what_is_too_long(limit, rounds):
    vectors = [RNG.normal(size=6) * scale for scale in (0.1, 0.5, 1, 2, 30)]
    params = {"rounds": str(rounds)} | ({} if limit is None else {"max_norm": str(limit)})
    base = RNG.normal(size=6)

    out = aggregate("norm_clipped_mean", [base + x for x in vectors], params, base)

    np.testing.assert_allclose(out - base, clipped_by_loops(vectors, limit, rounds), rtol=1e-9, atol=1e-12)


def test_distances_beyond_float64_leave_the_mean():
    vectors = [np.full(4, value) for value in (1e200, -1e200, 3e200)]

    out = aggregate("geometric_median", vectors)

    np.testing.assert_allclose(out, np.full(4, 1e200), rtol=1e-15)
