"""The extras that mergekit users know: loops over elements, and what k = 1 and weights do."""

import math

import numpy as np
import pytest
from crdt_merge_protocol.errors import ArtefactMissingError, ParameterError
from crdt_merge_protocol.strategies.contract import LEAF_ELEMENTS
from crdt_merge_protocol.strategies.reference import merge_arrays
from support.vectors import BASE, DELTAS, DIGESTS, merged

VECTORS = [{"t": delta} for delta in DELTAS]
RNG = np.random.default_rng(8)


def on_sphere(strategy, params=None, weights=(1, 2, 1)):
    return merge_arrays(strategy, VECTORS, None, params, weights=weights, digests=DIGESTS).tensors["t"]


def cosine(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True)) / math.sqrt(
        sum(a * a for a in x) * sum(b * b for b in y)
    )


def test_the_karcher_mean_stops_early_by_default_and_slerp_does_not():
    exact = on_sphere("slerp")

    assert 1e-12 < np.abs(on_sphere("karcher") - exact).max() < 1e-4


def test_karcher_of_two_is_slerp():
    two = merge_arrays("karcher", VECTORS[:2], None, {"tol": "1e-14", "max_iter": "100"}, weights=(7, 3))
    slerp = merge_arrays("slerp", VECTORS[:2], None, weights=(7, 3))

    np.testing.assert_allclose(two.tensors["t"], slerp.tensors["t"], rtol=1e-12)


def test_undivided_weights_of_multislerp_scale_the_length():
    np.testing.assert_allclose(
        on_sphere("multislerp", {"normalize": "false"}), 4 * on_sphere("multislerp"), rtol=1e-15
    )


@pytest.mark.parametrize("strategy", ["karcher", "multislerp", "nuslerp"])
def test_vectors_that_cancel_out_are_averaged(strategy):
    """SCENARIOS S16."""
    u, v = {"t": DELTAS[0]}, {"t": -DELTAS[0]}

    assert np.abs(merge_arrays(strategy, [u, v], None).tensors["t"]).max() == 0
    assert np.isfinite(merge_arrays(strategy, [u, v, {"t": DELTAS[1]}], None).tensors["t"]).all()


def slices_of(array, is_row_wise):
    """Yield the places of each vector of a matrix."""
    for i in range(array.shape[1] if is_row_wise else array.shape[0]):
        yield (slice(None), i) if is_row_wise else (i, slice(None))


@pytest.mark.parametrize("row_wise", ["false", "true"])
def test_nuslerp_of_slices_is_slerp_of_each(row_wise):
    x, y = RNG.normal(size=(2, 5, 7))
    x[1] = 0.0
    y[2] = x[2] * 3

    out = merge_arrays(
        "nuslerp", [{"t": x}, {"t": y}], None, {"flatten": "false", "row_wise": row_wise},
        weights=(1, 3), digests=DIGESTS[:2],
    ).tensors["t"]  # fmt: skip

    for place in slices_of(x, row_wise == "true"):
        a, b = x[place], y[place]
        c = cosine(a, b) if a.any() else 0.0
        expected = 0.25 * a + 0.75 * b
        if 1 - c * c > 1e-16:
            angle = math.acos(c)
            expected = (math.sin(0.25 * angle) * a + math.sin(0.75 * angle) * b) / math.sin(angle)
        np.testing.assert_allclose(out[place], expected, rtol=1e-13, atol=1e-15)


def test_nuslerp_of_slices_of_many_models_is_the_karcher_mean_of_each():
    models = RNG.normal(size=(4, 6, 9)) + 2
    models[1, 3] = 0.0
    weights = (1, 2, 3, 4)

    out = merge_arrays(
        "nuslerp", [{"t": m} for m in models], None, {"flatten": "false"}, weights=weights
    ).tensors["t"]

    for i in range(6):
        alone = merge_arrays("slerp", [{"t": m[i]} for m in models], None, weights=weights).tensors["t"]
        np.testing.assert_allclose(out[i], alone, rtol=1e-11)


def test_nuslerp_flattens_tensors_like_raw_slerp():
    raw = merge_arrays("slerp", VECTORS[:2], None, {"magnitude": "raw", "dot_threshold": "1"}, weights=(7, 3))
    out = merge_arrays("nuslerp", VECTORS[:2], None, weights=(7, 3))

    np.testing.assert_allclose(out.tensors["t"], raw.tensors["t"], rtol=1e-13)


def test_model_stock_by_rows_takes_an_angle_for_each():
    models, base = RNG.normal(size=(3, 4, 6)) + 1, RNG.normal(size=(4, 6))

    out = merge_arrays(
        "model_stock", [{"t": m} for m in models], {"t": base}, {"filter_wise": "true"}
    ).tensors["t"]

    for i in range(4):
        deltas = [m[i] - base[i] for m in models]
        c = sum(cosine(deltas[a], deltas[b]) for a, b in ((0, 1), (0, 2), (1, 2))) / 3
        t = 3 * c / (1 + 2 * c)
        np.testing.assert_allclose(out[i], t * sum(m[i] for m in models) / 3 + (1 - t) * base[i], rtol=1e-11)


def test_model_stock_may_keep_t_between_base_and_mean():
    assert np.array_equal(merged("model_stock", {"clip_t": "true"}).tensors["t"], BASE)
    assert "clip_t" in merged("model_stock").decisions["warnings"][0]


def test_a_vanishing_weight_vanishes_from_model_stock():
    two = merged("model_stock", k=2).tensors["t"]
    three = merged("model_stock", weights=("1", "1", "0.000000000001")).tensors["t"]

    np.testing.assert_allclose(three, two, atol=1e-9)


def test_model_stock_of_one_model_needs_a_stand_in():
    with pytest.raises(ArtefactMissingError, match="at least 2 models"):
        merged("model_stock", k=1)


def sce_by_loops(models, base, share):
    taus = [(m - base).reshape(-1) for m in models]
    k, n = len(taus), taus[0].size
    spread = []
    for j in range(n):
        mean = sum(t[j] for t in taus) / k
        spread.append(sum((t[j] - mean) ** 2 for t in taus) / k)
    count = int(share * sum(v != 0 for v in spread))
    kept = sorted(range(n), key=lambda j: (-spread[j], j))[:count]
    energy = [sum(t[j] ** 2 for j in kept) for t in taus]
    out = base.reshape(-1).copy()
    for j in kept:
        sign = 1 if sum(t[j] for t in taus) >= 0 else -1
        agree = [i for i in range(k) if taus[i][j] * sign > 0]
        if agree:
            out[j] += sum(energy[i] * taus[i][j] for i in agree) / sum(energy[i] for i in agree)
    return out.reshape(base.shape)


@pytest.mark.parametrize("share", ["0.1", "0.3", "0.5", "1"])
def test_sce_does_what_loops_do_with_ties_by_place(share):
    base = RNG.integers(-8, 8, (5, 7)) / 8
    models = [base + RNG.integers(-4, 5, (5, 7)) / 4 for _ in range(3)]

    out = merge_arrays(
        "sce", [{"t": m} for m in models], {"t": base}, {"select_topk": share}, digests=DIGESTS
    ).tensors["t"]

    np.testing.assert_allclose(out, sce_by_loops(models, base, float(share)), rtol=1e-12, atol=1e-15)


def test_sce_places_ties_across_leaves():
    """All variances are equal: exactly the first third stays."""
    size = 2 * LEAF_ELEMENTS + 9
    models = [{"t": np.full(size, 1.0)}, {"t": np.full(size, 3.0)}]

    out = merge_arrays("sce", models, {"t": np.zeros(size)}, {"select_topk": "0.6"}).tensors["t"]

    assert np.flatnonzero(out).tolist() == list(range(int(0.6 * size)))


def test_one_change_stays_whole_in_ram_and_shared_ones_are_averaged():
    base = {"t": np.zeros(4)}
    models = [{"t": np.array([1.0, 2.0, 0.0, 1e-6])}, {"t": np.array([3.0, 0.0, 0.0, 0.0])}]

    assert merge_arrays("ram", models, base).tensors["t"].tolist() == [2.0, 2.0, 0.0, 0.0]
    assert merge_arrays("ram", models, base, {"epsilon": "0"}).tensors["t"].tolist() == [2.0, 2.0, 0.0, 1e-6]
    weighted = merge_arrays("ram", models, base, weights=(3, 1), digests=DIGESTS[:2]).tensors["t"]
    assert weighted.tolist() == [1.5, 2.0, 0.0, 0.0]


def test_ramplus_amplifies_the_unshared_changes_of_diluted_models():
    base = {"t": np.zeros(6)}
    models = [
        {"t": np.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.0])},
        {"t": np.array([3.0, 0.0, 0.0, 0.0, 0.0, 3.0])},
    ]

    out = merge_arrays("ramplus_tl", models, base, {"r": "0.5", "alpha": "0.4"}).tensors["t"]

    np.testing.assert_allclose(out, [2, *([1 + 0.5 * 0.25] * 4), 3 * (1 + 0.5 * 0.4)])


def fusion_by_loops(model, base):
    importance = np.zeros(model.size)
    for row in range(model.shape[0]):
        p = [math.exp(x - max(model[row])) for x in model[row]]
        q = [math.exp(x - max(base[row])) for x in base[row]]
        p, q = [x / sum(p) + 1e-8 for x in p], [x / sum(q) + 1e-8 for x in q]
        divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        for column in range(model.shape[1]):
            place = row * model.shape[1] + column
            importance[place] = abs(model[row, column] - base[row, column]) * divergence
    ordered = sorted(importance)
    first, median, third = (ordered[(len(ordered) - 1) * quarter // 4] for quarter in (1, 2, 3))
    taken = importance.reshape(model.shape) >= median + 1.5 * (third - first)
    return np.where(taken, model, base)


@pytest.mark.parametrize("shape", [(6, 8), (5, 90)])
def test_fusion_takes_over_what_stands_out(shape):
    base = RNG.normal(size=shape)
    model = base + RNG.normal(size=shape) ** 3 / 4

    out = merge_arrays("arcee_fusion", [{"t": model}], {"t": base}).tensors["t"]

    expected = fusion_by_loops(model, base)
    np.testing.assert_allclose(out, expected, rtol=1e-15)
    assert 0 < np.count_nonzero(out != base) < base.size / 2


def test_fusion_of_several_models_is_the_mean_of_their_fusions():
    base = {"t": RNG.normal(size=(4, 70))}
    models = [{"t": base["t"] + RNG.normal(size=(4, 70)) ** 3 / 4} for _ in range(2)]
    alone = [merge_arrays("arcee_fusion", [m], base).tensors["t"] for m in models]

    out = merge_arrays("arcee_fusion", models, base, weights=(1, 3), digests=DIGESTS[:2]).tensors["t"]

    np.testing.assert_allclose(out, 0.25 * alone[0] + 0.75 * alone[1], rtol=1e-13)


def test_nearswap_steps_at_most_t():
    base, model = np.zeros(4), np.array([0.5, -0.05, 1e-7, 0.0])

    out = merge_arrays("nearswap", [{"t": model}], {"t": base}, {"t": "0.1"}).tensors["t"]

    np.testing.assert_allclose(out, [0.1, -0.05, 1e-7, 0.0], rtol=1e-15)


def test_passthrough_copies_the_only_model_or_the_one_that_is_named():
    assert np.array_equal(merged("passthrough", {"origin": "02"}).tensors["t"], BASE + DELTAS[1])
    assert np.array_equal(merged("passthrough", {"scale": "2"}, k=1).tensors["t"], 2 * (BASE + DELTAS[0]))
    with pytest.raises(ArtefactMissingError, match="3 are here"):
        merged("passthrough")
    with pytest.raises(ArtefactMissingError, match="0 have a digest"):
        merged("passthrough", {"origin": "ff"})


@pytest.mark.parametrize("strategy", ["karcher", "multislerp", "nuslerp", "nearswap", "model_stock"])
def test_weights_may_differ_by_tensor(strategy):
    models = [{"a": RNG.normal(size=8), "b": RNG.normal(size=8)} for _ in range(3)]
    base = {"a": np.zeros(8), "b": np.zeros(8)}
    table = {"weight": f"a#{DIGESTS[0].hex()}=5;1"}

    def run(params, weights):
        return merge_arrays(strategy, models, base, params, weights=weights, digests=DIGESTS).tensors

    assert np.array_equal(run(table, (1, 1, 1))["a"], run({}, (5, 1, 1))["a"])
    assert np.array_equal(run(table, (1, 1, 1))["b"], run({}, (1, 1, 1))["b"])
    with pytest.raises(ParameterError, match="add up to zero"):
        merge_arrays(strategy, models, base, {"weight": "a=0;1"}, digests=DIGESTS, is_strict=True)
