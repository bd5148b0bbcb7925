"""DARE: masks, rescaling, and what seeds them."""

from fractions import Fraction

import numpy as np
import pytest
from crdt_merge_protocol.strategies.contract import LEAF_ELEMENTS
from crdt_merge_protocol.strategies.kernels import as_float
from crdt_merge_protocol.strategies.reference import merge_arrays

SIZE = LEAF_ELEMENTS + 4000
RNG = np.random.default_rng(3)
BASE = {"t": RNG.normal(size=SIZE)}
MODELS = [{"t": BASE["t"] + RNG.normal(size=SIZE)} for _ in range(3)]
DIGESTS = [bytes([i]) * 32 for i in range(3)]


def change(strategy="dare", models=MODELS[:1], params=None, **options):
    options.setdefault("digests", DIGESTS[: len(models)])
    merged = merge_arrays(strategy, models, BASE, params, seed=options.pop("seed", b"s"), **options)
    return merged.tensors["t"] - BASE["t"]


def test_kept_differences_are_divided_by_the_density():
    delta = MODELS[0]["t"] - BASE["t"]

    out = change(params={"density": "0.25"})

    kept = out != 0
    assert 0.24 < kept.mean() < 0.26
    np.testing.assert_allclose(out[kept], 4 * delta[kept], atol=1e-14)


def test_l1_restores_the_sum_of_magnitudes_of_the_tensor():
    delta = MODELS[0]["t"] - BASE["t"]

    for strategy in ("dare", "dare_ties"):
        out = change(strategy, params={"density": "0.25", "rescale": "l1"})

        assert np.abs(out).sum() == pytest.approx(np.abs(delta).sum(), rel=1e-10)


def test_none_leaves_what_is_kept_alone():
    out = change(params={"density": "0.5", "rescale": "none"})

    np.testing.assert_allclose(out[out != 0], (MODELS[0]["t"] - BASE["t"])[out != 0], atol=1e-14)


@pytest.mark.parametrize("strategy", ["dare", "dare_ties"])
def test_the_same_seed_gives_the_same_mask_and_another_seed_another(strategy):
    first, again, other = (change(strategy, seed=seed) for seed in (b"s", b"s", b"other"))

    assert first.tobytes() == again.tobytes()
    assert 0.4 < ((first != 0) != (other != 0)).mean() < 0.6


def test_a_salt_gives_other_masks():
    assert change(params={"seed_salt": "x"}).tobytes() != change().tobytes()


def test_masks_differ_between_contributions_strategies_and_tensors():
    first, second = (change(digests=[digest]) != 0 for digest in DIGESTS[:2])
    elected = change("dare_ties") != 0
    renamed = merge_arrays("dare", [{"u": MODELS[0]["t"]}], {"u": BASE["t"]}, seed=b"s", digests=DIGESTS[:1])

    masks = {mask.tobytes() for mask in (first, second, elected, renamed.tensors["u"] - BASE["t"] != 0)}
    assert len(masks) == 4


def test_seed_scope_contribution_keeps_a_mask_when_the_set_changes():
    params = {"seed_scope": "contribution", "density": "0.5"}

    assert change(params=params, seed=b"one").tobytes() == change(params=params, seed=b"two").tobytes()


def test_small_tensors_can_be_spared():
    delta = MODELS[0]["t"] - BASE["t"]

    for rescale in ("inverse", "l1"):
        spared = change(params={"min_numel": str(SIZE + 1), "rescale": rescale})
        dropped = change(params={"min_numel": str(SIZE), "rescale": rescale})

        np.testing.assert_allclose(spared, delta, atol=1e-14)
        assert 0.4 < (dropped == 0).mean() < 0.6


def test_dropped_entries_abstain():
    """Where only one model is left, its value is taken whole, not divided by all."""
    alone = [
        change("dare_ties", [model], digests=[digest]) for model, digest in zip(MODELS, DIGESTS, strict=True)
    ]
    together = change("dare_ties", MODELS)

    sole = np.count_nonzero(alone, axis=0) == 1
    assert sole.any()
    np.testing.assert_allclose(together[sole], np.sum(alone, axis=0)[sole], atol=1e-14)


def test_trimming_after_dropping_keeps_the_largest_of_what_is_left():
    whole = change("dare_ties")
    out = change("dare_ties", params={"ties_density": "0.1", "scope": "tensor"})

    kept = np.flatnonzero(out)
    assert kept.size == int(0.1 * SIZE) + 1
    assert np.abs(whole[kept]).min() >= np.abs(np.delete(whole, kept)).max()
    assert np.array_equal(out[kept], whole[kept])


@pytest.mark.parametrize("rescale", ["inverse", "l1"])
def test_trimming_after_dropping_works_with_every_rescaling_and_scope(rescale):
    params = {
        "ties_density": "0.1",
        "scope": "model",
        "rescale": rescale,
        "profile": "mergekit",
        "density": "0.5",
    }

    out = change("dare_ties", MODELS[:1], params)

    assert np.count_nonzero(out) == int(0.1 * SIZE)


@pytest.mark.parametrize("strategy", ["dare", "dare_ties", "della", "della_linear", "svd_knot_tying"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # Overflow in between is the point.
def test_sums_beyond_float64_end_no_merge(strategy):
    """STRATEGIES 1.12: one author of huge float64 numbers must not stop the others."""
    params = {"eps_rule": "relative"} if strategy == "svd_knot_tying" else {"rescale": "l1"}
    huge = {"t": np.tile([1.7e308, -1.7e308, 1e-300], (4, 2))}
    base = {"t": np.ones((4, 6))}

    result = merge_arrays(strategy, [huge, {"t": 2 * base["t"]}], base, params, weights=["1e9", 1])

    assert result.tensors["t"].shape == (4, 6)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # Overflow in between is the point.
@pytest.mark.parametrize("strategy", ["dare", "della_linear"])
def test_a_factor_beyond_float64_ends_no_merge(strategy):
    """Where all but a little of an author's magnitude is dropped, what restores it is huge, and so is 1e9."""
    base = np.zeros(6)
    params = {"rescale": "l1", "normalize": "false", "density": "0.5"}
    for place in range(6):  # One of them is dropped.
        large = np.full(6, 1e-3)
        large[place] = 1e304

        result = merge_arrays(
            strategy, [{"t": large}], {"t": base}, params, weights=["1e9"], digests=DIGESTS[:1], seed=b"s"
        )

        assert not np.isnan(result.tensors["t"]).any()


def test_exact_numbers_beyond_float64_become_the_largest():
    largest = np.finfo(float).max
    found = [as_float(Fraction(number)) for number in (10**400, -(10**400), 0)]

    assert found == [largest, -largest, 0.0]
