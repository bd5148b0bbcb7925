"""DELLA: probabilities by rank, what they do to sums, and loops over single elements."""

from fractions import Fraction

import numpy as np
import pytest
from crdt_merge_protocol.errors import ParameterError
from crdt_merge_protocol.strategies.contract import LEAF_ELEMENTS
from crdt_merge_protocol.strategies.magnitude_sampling import keep_probabilities
from crdt_merge_protocol.strategies.randomness import stream_key, uniform
from crdt_merge_protocol.strategies.reference import merge_arrays
from crdt_merge_protocol.strategies.registry import get
from crdt_merge_protocol.strategies.rows import order_of_rows

RNG = np.random.default_rng(17)
SHAPES = {"conv": (4, 3, 3, 3), "m": (5, 7), "one": (6, 1), "s": (), "v": (8,), "void": (0, 3)}
BASE = {name: RNG.integers(-64, 64, shape) / 16 for name, shape in SHAPES.items()}
MODELS = [{name: x + RNG.integers(-40, 40, x.shape) / 16 for name, x in BASE.items()} for _ in range(3)]
DIGESTS = [bytes([i]) * 32 for i in (4, 5, 6)]
BOTH = ("della", "della_linear")


def test_probabilities_rise_with_the_rank():
    np.testing.assert_allclose(
        keep_probabilities(4, Fraction(1, 2), Fraction(1, 5)),
        [0.3, 0.43333333333333335, 0.5666666666666667, 0.7],
    )
    assert keep_probabilities(1, Fraction(1, 3), Fraction(1, 5)).tolist() == [1 / 3]
    assert keep_probabilities(3, Fraction(9, 10), Fraction(1, 2)).tolist() == pytest.approx([0.8, 0.9, 1.0])


def pruned(strategy, delta, name, digest, *, density, epsilon, is_divided=True):
    """Return the kept differences of one tensor, one element at a time."""
    width = delta.shape[-1] if delta.shape else 1
    flat = delta.reshape(-1).tolist()
    draws = uniform(stream_key(b"s", strategy, name, digest, "mask"), 0, max(len(flat), 1))
    out = []
    for place, value in enumerate(flat):
        row = flat[place // width * width : place // width * width + width]
        order = sorted(range(width), key=lambda i, row=row: (abs(row[i]), i))
        rank = order.index(place % width)
        keep = density if width == 1 else density - epsilon + 2 * epsilon * rank / (width - 1)
        scale = keep if is_divided else 1.0
        out.append(value / scale if draws[place] < keep else 0.0)
    return out


def sign(x):
    return (x > 0) - (x < 0)


@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 2, 3)])
@pytest.mark.parametrize(("density", "epsilon"), [("0.5", "0.2"), ("0.7", "0.07"), ("0.3", "0.29")])
def test_both_equal_loops_over_elements(density, epsilon, weights):
    params = {"density": density, "epsilon": epsilon, "lambda": "1.1"}
    window = {"density": float(density), "epsilon": float(epsilon)}
    linear, elected = (
        merge_arrays(name, MODELS, BASE, params, weights=weights, digests=DIGESTS, seed=b"s").tensors
        for name in ("della_linear", "della")
    )

    for name, base in BASE.items():
        for strategy, out in (("della_linear", linear), ("della", elected)):
            columns = zip(
                *(
                    pruned(strategy, model[name] - base, name, digest, **window)
                    for model, digest in zip(MODELS, DIGESTS, strict=True)
                ),
                strict=True,
            )
            columns = list(columns)
            majority = sign(sum(sign(sum(column)) for column in columns)) or 1
            expected = []
            for column in columns:
                vote = sign(sum(column)) or majority
                voices = [
                    (w, x)
                    for w, x in zip(weights, column, strict=True)
                    if strategy == "della_linear" or x * vote > 0
                ]
                total = sum(w for w, _ in voices)
                expected.append(1.1 * sum(w * x for w, x in voices) / total if total else 0.0)
            np.testing.assert_allclose(
                (out[name] - base).reshape(-1), expected, rtol=1e-12, atol=1e-12, err_msg=f"{strategy} {name}"
            )


@pytest.mark.parametrize("normalize", ["true", "false"])
def test_the_mergekit_profile_equals_loops_over_elements(normalize):
    """Sums of magnitudes are restored per tensor, weights count in the election, plus decides."""
    params = {"density": "0.5", "epsilon": "0.2", "profile": "mergekit", "normalize": normalize}
    weights = (1, 2, 3)
    linear, elected = (
        merge_arrays(name, MODELS, BASE, params, weights=weights, digests=DIGESTS, seed=b"s").tensors
        for name in ("della_linear", "della")
    )

    for name, base in BASE.items():
        for strategy, out in (("della_linear", linear), ("della", elected)):
            voices = []
            for model, digest, weight in zip(MODELS, DIGESTS, weights, strict=True):
                delta = model[name] - base
                kept = pruned(strategy, delta, name, digest, density=0.5, epsilon=0.2, is_divided=False)
                whole, left = (sum(map(abs, values)) for values in (delta.reshape(-1).tolist(), kept))
                voices.append([weight * x * (whole / left if left else 1.0) for x in kept])
            expected = []
            for column in zip(*voices, strict=True):
                vote = 1 if sum(column) >= 0 else -1
                heard = [strategy == "della_linear" or sign(x) == vote for x in column]
                total = sum(w for w, is_heard in zip(weights, heard, strict=True) if is_heard)
                divisor = total if normalize == "true" and total else 1
                expected.append(
                    sum(x for x, is_heard in zip(column, heard, strict=True) if is_heard) / divisor
                )
            np.testing.assert_allclose(
                (out[name] - base).reshape(-1), expected, rtol=1e-12, atol=1e-12, err_msg=f"{strategy} {name}"
            )


@pytest.mark.parametrize("strategy", BOTH)
@pytest.mark.parametrize("profile", ["paper", "mergekit"])
def test_density_one_drops_nothing_and_zero_everything(strategy, profile):
    params = {"profile": profile, "normalize": "true"} if profile == "mergekit" else {}
    whole = merge_arrays(strategy, MODELS[:1], BASE, {**params, "density": "1"}).tensors
    nothing = merge_arrays(strategy, MODELS, BASE, {**params, "density": "0"}).tensors

    for name, base in BASE.items():
        np.testing.assert_allclose(whole[name], MODELS[0][name], rtol=1e-15)
        assert nothing[name].tolist() == base.tolist()


@pytest.mark.parametrize("strategy", BOTH)
def test_l1_restores_the_sum_of_magnitudes_of_each_tensor(strategy):
    params = {"profile": "mergekit", "density": "0.5", "normalize": "false", "epsilon": "0.3"}
    shape = (300, 500)
    base = {"a": np.zeros(shape)}
    delta = {"a": RNG.normal(size=shape)}

    out = merge_arrays(strategy, [delta], base, params, seed=b"s").tensors["a"]

    assert 0.45 < np.count_nonzero(out) / out.size < 0.55
    assert np.abs(out).sum() == pytest.approx(np.abs(delta["a"]).sum(), rel=1e-10)
    kept = out != 0
    assert np.ptp(out[kept] / delta["a"][kept]) < 1e-12


@pytest.mark.parametrize("strategy", BOTH)
def test_the_expected_value_stays_and_large_differences_are_dropped_less(strategy):
    delta = np.tile(np.arange(1.0, 101.0), (2000, 1))

    out = merge_arrays(strategy, [{"t": delta}], {"t": np.zeros(delta.shape)}, seed=b"s").tensors["t"]

    np.testing.assert_allclose(out.mean(axis=0), delta[0], rtol=0.1)
    kept = (out != 0).mean(axis=0)
    assert abs(kept[:10].mean() - 0.6364) < 0.02
    assert abs(kept[-10:].mean() - 0.7636) < 0.02


@pytest.mark.parametrize("strategy", BOTH)
@pytest.mark.parametrize("params", [{}, {"profile": "mergekit", "density": "0.5"}])
def test_blocks_and_the_order_of_inputs_do_not_show(strategy, params):
    shape = (700, 300)
    base = {"t": RNG.normal(size=shape), "v": RNG.normal(size=(LEAF_ELEMENTS + 5,))}
    models = [{name: x + RNG.normal(size=x.shape) for name, x in base.items()} for _ in range(3)]

    whole = merge_arrays(strategy, models, base, params, digests=DIGESTS, seed=b"s")
    small = merge_arrays(
        strategy, models[::-1], base, params, digests=DIGESTS[::-1], seed=b"s", block_elements=LEAF_ELEMENTS
    )

    for name in base:
        assert whole.tensors[name].tobytes() == small.tensors[name].tobytes()


@pytest.mark.parametrize("strategy", BOTH)
def test_masks_depend_on_seed_salt_strategy_and_contribution(strategy):
    def kept(name=strategy, params=None, seed=b"s", digest=DIGESTS[0]):
        delta = {"t": np.ones((50, 40))}
        zero = {"t": np.zeros((50, 40))}
        out = merge_arrays(name, [delta], zero, params, seed=seed, digests=[digest]).tensors["t"]
        return (out != 0).tobytes()

    assert kept() == kept()
    other = BOTH[BOTH.index(strategy) - 1]
    masks = {
        kept(), kept(other), kept(params={"seed_salt": "x"}), kept(seed=b"t"), kept(digest=DIGESTS[1]),
    }  # fmt: skip
    assert len(masks) == 5
    scoped = {"seed_scope": "contribution"}
    assert kept(params=scoped, seed=b"one") == kept(params=scoped, seed=b"two")


@pytest.mark.parametrize("strategy", BOTH)
def test_a_contribution_without_weight_has_no_say(strategy):
    alone = merge_arrays(strategy, MODELS[:1], BASE, digests=DIGESTS[:1], seed=b"s").tensors
    muted = merge_arrays(strategy, MODELS, BASE, weights=(1, 0, 0), digests=DIGESTS, seed=b"s").tensors

    for name in BASE:
        assert alone[name].tobytes() == muted[name].tobytes()


@pytest.mark.parametrize("strategy", BOTH)
def test_models_equal_to_the_base_give_the_base(strategy):
    out = merge_arrays(strategy, [BASE, BASE], BASE, digests=DIGESTS[:2]).tensors

    for name, base in BASE.items():
        assert out[name].tolist() == base.tolist()


@pytest.mark.parametrize("strategy", BOTH)
def test_twice_the_differences_give_twice_the_change(strategy):
    doubled = [{name: b + 2 * (model[name] - b) for name, b in BASE.items()} for model in MODELS]

    once, twice = (
        merge_arrays(strategy, models, BASE, digests=DIGESTS, seed=b"s").tensors
        for models in (MODELS, doubled)
    )

    for name, b in BASE.items():
        np.testing.assert_allclose(twice[name] - b, 2 * (once[name] - b), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("strategy", BOTH)
@pytest.mark.parametrize(("density", "epsilon"), [("0.5", "0.5"), ("0.95", "0.05"), ("0.1", "0.2")])
def test_probabilities_beyond_0_or_1_are_refused(strategy, density, epsilon):
    with pytest.raises(ParameterError, match="epsilon is less than"):
        get(strategy).validate({"density": density, "epsilon": epsilon})


@pytest.mark.parametrize("strategy", BOTH)
def test_densities_and_windows_may_differ_by_tensor_and_contribution(strategy):
    first = DIGESTS[0].hex()[:8]
    table = {"density": f"m=0.5;v#{first}=0;1", "epsilon": "m=0.3;0.1"}

    out = merge_arrays(strategy, MODELS[:1], BASE, table, digests=DIGESTS[:1], seed=b"s").tensors
    plain = merge_arrays(
        strategy, MODELS[:1], BASE, {"density": "0.5", "epsilon": "0.3"}, digests=DIGESTS[:1], seed=b"s"
    ).tensors

    assert out["m"].tobytes() == plain["m"].tobytes()
    assert out["v"].tolist() == BASE["v"].tolist()
    np.testing.assert_allclose(out["conv"], MODELS[0]["conv"], rtol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("width", [1, 2, 7, 8, 1_000])
def test_rows_are_ranked_as_a_stable_sort_does(dtype, width):
    """Differences of float32 take the short way, float64 the long one, ties and zeros both."""
    values = np.abs(np.subtract(*RNG.standard_normal((2, 20, width)).astype(dtype).astype(float)))
    values[:, : width // 2] = np.round(values[:, : width // 2], 1).astype(dtype)
    values[0] = 0.0

    assert np.array_equal(order_of_rows(values), np.argsort(values, axis=1, kind="stable"))
