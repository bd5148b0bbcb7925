"""Fisher-weighted averaging against loops over elements, and against contributors who exaggerate."""

import math

import numpy as np
import pytest
from crdt_merge_protocol.errors import ArtefactInvalidError, ArtefactMissingError
from crdt_merge_protocol.strategies.reference import merge_arrays
from crdt_merge_protocol.strategies.registry import get
from support.artefacts import artefact
from support.vectors import DIGESTS, FISHERS, MODELS


def fisher(i, tensors, mode="sampled"):
    header = {"n_samples": 100, "label_mode": mode}
    return artefact("fisher_diag", header, tensors, subject=DIGESTS[i])


def fishers(scales=(1, 1, 1)):
    return [fisher(i, {"t": FISHERS[i] * scale}) for i, scale in enumerate(scales)]


def merged(params=None, artefacts=None, models=MODELS, **options):
    used = fishers() if artefacts is None else artefacts
    return merge_arrays(
        "fisher_merge", models, None, params, artefacts=used, digests=DIGESTS[: len(models)], **options
    )


def oracle(models, weights, fisher_list, *, norms, floor, power=1.0):
    """Return the merge, one element at a time."""
    out = np.empty_like(models[0])
    for place in np.ndindex(out.shape):
        above = below = 0.0
        for model, weight, information, norm in zip(models, weights, fisher_list, norms, strict=True):
            gain = weight * ((information[place] / norm) ** power + floor)
            above += gain * model[place]
            below += gain
        out[place] = above / below
    return out


def rms(values):
    return math.sqrt(math.fsum(value * value for value in values.ravel()) / values.size)


@pytest.mark.parametrize("power", ["0.5", "1", "2"])
@pytest.mark.parametrize("normalize", ["none", "model_l2", "tensor_mean"])
def test_every_element_is_what_a_loop_makes_it(normalize, power):
    rng = np.random.default_rng(5)
    names = {"a": (5, 7), "b": (7,), "c": ()}
    models = [{name: rng.normal(size=shape) for name, shape in names.items()} for _ in DIGESTS]
    tensors = [{name: rng.gamma(0.5, size=shape) for name, shape in names.items()} for _ in DIGESTS]
    weights = (1, 2, 3)

    out = merged(
        {"normalize": normalize, "floor": "0.01", "fisher_power": power},
        [fisher(i, tensors[i]) for i in range(3)],
        models,
        weights=weights,
    )

    for name in names:
        whole = [np.concatenate([t[n].ravel() for n in names]) for t in tensors]
        norms = {
            "none": [1.0] * 3,
            "model_l2": [rms(values) for values in whole],
            "tensor_mean": [t[name].mean() for t in tensors],
        }[normalize]
        expected = oracle(
            [model[name] for model in models],
            weights,
            [t[name] for t in tensors],
            norms=norms,
            floor=0.01,
            power=float(power),
        )
        np.testing.assert_allclose(out.tensors[name], expected, rtol=1e-12)


@pytest.mark.parametrize("factor", [2.0**30, 2.0**-30])
def test_scaling_a_fisher_diagonal_takes_nothing_over(factor):
    honest, exaggerated = merged(), merged(artefacts=fishers((factor, 1, 1)))

    np.testing.assert_array_equal(honest.tensors["t"], exaggerated.tensors["t"])


def test_a_cap_bounds_what_a_diagonal_decides_where_it_is_large():
    rng = np.random.default_rng(1)
    models = [{"t": rng.normal(size=4_096)} for _ in DIGESTS]
    peak = np.zeros(4_096)
    peak[7] = 1.0
    informations = [fisher(0, {"t": peak}), *(fisher(i, {"t": np.ones(4_096)}) for i in (1, 2))]

    free = merged(artefacts=informations, models=models).tensors["t"][7]
    capped = merged({"cap": "1", "floor": "0"}, informations, models).tensors["t"][7]

    first, *others = (model["t"][7] for model in models)
    assert free == pytest.approx((64 * first + sum(others)) / 66, rel=1e-6)
    assert capped == pytest.approx((first + sum(others)) / 3)


def test_without_normalising_the_scale_decides_and_the_merge_says_so():
    out = merged({"normalize": "none"}, fishers((1e12, 1, 1)))

    np.testing.assert_allclose(out.tensors["t"], MODELS[0]["t"], rtol=1e-9)
    assert "scales one up" in out.decisions["warnings"][0]


def test_a_fisher_diagonal_of_zeros_has_next_to_no_say():
    nothing = fisher(0, {"t": np.zeros((2, 4))})

    out = merged(artefacts=[nothing, *fishers()[1:]]).tensors["t"]

    others = merge_arrays(
        "fisher_merge", MODELS[1:], None, artefacts=fishers()[1:], digests=DIGESTS[1:]
    ).tensors["t"]
    np.testing.assert_allclose(out, others, atol=1e-5)


@pytest.mark.parametrize("floor", ["0", "0.000001"])
def test_what_nobody_knows_anything_of_is_averaged(floor):
    frozen = [fisher(i, {}) for i in range(3)]

    out = merged({"floor": floor}, frozen, weights=(1, 2, 1)).tensors["t"]

    mean = merge_arrays("weight_average", MODELS, weights=(1, 2, 1), digests=DIGESTS).tensors["t"]
    np.testing.assert_allclose(out, mean, rtol=1e-14)


@pytest.mark.parametrize("weights", [(1, 1, 1), (3, 1, 2)])
def test_sums_of_gains_begin_at_plus_zero(weights):
    rng = np.random.default_rng(9)
    models = [rng.choice([0.0, -0.0, 5e-324, -5e-324, 1.0, -1.5], 20_001) for _ in range(3)]
    known = [rng.choice([0.0, 5e-324, 0.25, 3.0], 20_001) for _ in range(3)]

    out = merged(
        {"normalize": "none", "floor": "0"},
        [fisher(i, {"t": values}) for i, values in enumerate(known)],
        [{"t": model} for model in models],
        weights=weights,
    ).tensors["t"]

    above, below, plain = (np.zeros(20_001) for _ in range(3))
    for model, information, weight in zip(models, known, weights, strict=True):
        above += information * float(weight) * model
        below += information * float(weight)
        plain += model * (weight / sum(weights))
    expected = np.where(below == 0, plain, above / np.where(below == 0, 1.0, below))
    assert (below == 0).any()
    assert np.signbit(expected).any()
    assert out.tobytes() == expected.tobytes()


def test_power_zero_is_the_plain_mean():
    out = merged({"fisher_power": "0"}).tensors["t"]

    np.testing.assert_allclose(out, np.mean([m["t"] for m in MODELS], axis=0), rtol=1e-14)


def test_one_model_stays_itself_and_equal_fisher_values_give_the_mean():
    alone = merged(artefacts=fishers()[:1], models=MODELS[:1]).tensors["t"]
    equal = merged(artefacts=[fisher(i, {"t": np.full((2, 4), 3.0)}) for i in range(3)]).tensors["t"]

    np.testing.assert_array_equal(alone, MODELS[0]["t"])
    np.testing.assert_allclose(equal, np.mean([m["t"] for m in MODELS], axis=0), rtol=1e-14)


def test_a_missing_fisher_diagonal_is_an_error_that_names_the_contribution():
    with pytest.raises(
        ArtefactMissingError, match=f"no fisher_diag for contribution {DIGESTS[2].hex()[:12]}"
    ):
        merged(artefacts=fishers()[:2])


def test_a_missing_fisher_diagonal_can_be_the_mean_of_the_others():
    out = merged({"missing_fisher": "mean_of_others", "normalize": "none", "floor": "0"}, fishers()[:2])

    expected = oracle(
        [m["t"] for m in MODELS],
        (1, 1, 1),
        [FISHERS[0], FISHERS[1], (FISHERS[0] + FISHERS[1]) / 2],
        norms=(1, 1, 1),
        floor=0,
    )
    np.testing.assert_allclose(out.tensors["t"], expected, rtol=1e-13)
    assert DIGESTS[2].hex()[:12] in out.decisions["warnings"][0]


def test_nobody_is_the_mean_of_nobody():
    with pytest.raises(ArtefactMissingError):
        merged({"missing_fisher": "mean_of_others"}, [])


def test_kinds_of_labels_are_not_mixed_offline_and_warned_of_in_a_group():
    mixed = [fisher(0, {"t": FISHERS[0]}, "empirical"), *fishers()[1:]]

    with pytest.raises(ArtefactInvalidError, match="empirical and sampled"):
        merged(artefacts=mixed, is_strict=True)
    assert "empirical and sampled were mixed" in merged(artefacts=mixed).decisions["warnings"][0]


def test_a_named_kind_is_demanded_offline_and_cannot_be_used_to_stop_a_group():
    mixed = [fisher(0, {"t": FISHERS[0]}, "empirical"), *fishers()[1:]]

    with pytest.raises(ArtefactMissingError, match=f"of label mode sampled for .* {DIGESTS[0].hex()[:12]}"):
        merged({"label_mode": "sampled"}, mixed, is_strict=True)
    with pytest.raises(ArtefactMissingError, match="of label mode expected"):
        merged({"label_mode": "expected"}, mixed)
    out = merged({"label_mode": "sampled"}, mixed)
    assert DIGESTS[0].hex()[:12] in out.decisions["warnings"][0]


def test_where_others_can_stand_for_it_a_fisher_diagonal_is_optional():
    strategy = get("fisher_merge")

    assert [n.is_optional for n in strategy.artefacts_for({})] == [False]
    assert [n.is_optional for n in strategy.artefacts_for({"missing_fisher": "mean_of_others"})] == [True]


def test_neither_order_nor_blocks_show():
    rng = np.random.default_rng(9)
    models = [{"t": rng.normal(size=(3, 70_000))} for _ in DIGESTS]
    informations = [fisher(i, {"t": rng.gamma(1.0, size=(3, 70_000))}) for i in range(3)]

    whole = merged(artefacts=informations, models=models, block_elements=1 << 18).tensors["t"]
    parts = merge_arrays(
        "fisher_merge",
        models[::-1],
        artefacts=informations[::-1],
        digests=DIGESTS[::-1],
        block_elements=1 << 16,
    ).tensors["t"]

    np.testing.assert_array_equal(whole, parts)
