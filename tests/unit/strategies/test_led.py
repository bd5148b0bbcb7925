"""LED-Merging: location, election and disjointness, against loops and sorted lists."""

from fractions import Fraction

import numpy as np
import pytest
from crdt_merge_protocol.errors import ArtefactMissingError, ParameterError
from crdt_merge_protocol.strategies.reference import merge_arrays
from support.artefacts import artefact

BASE = np.array([[1, -2, 3, -4], [0.5, 0.25, -1.5, 2]])
DELTAS = (
    np.array([[26, -19, 13, 6], [-38, 32, 0, -12]]) / 64,
    np.array([[18, 14, -16, 10], [-7, 29, -22, 39]]) / 64,
)
MODELS = [{"t": BASE + delta} for delta in DELTAS]
DIGESTS = [bytes([i]) * 32 for i in (1, 2, 3)]


def snip(i, base, own=None, form="score"):
    """Return the scores of a contribution; base and own by tensor name."""
    own = base if own is None else own
    tensors = {f"base/{name}": values for name, values in base.items()}
    tensors |= {f"self/{name}": values for name, values in own.items()}
    return artefact("snip_score", {"n_samples": 8, "form": form}, tensors, subject=DIGESTS[i])


def merged(params, artefacts, models=MODELS, base=None, **options):
    start = {"t": BASE} if base is None else base
    names = DIGESTS[: len(models)]
    return merge_arrays("led_merge", models, start, params, artefacts=artefacts, digests=names, **options)


def bits(text):
    return np.array([float(bit) for bit in text]).reshape(2, 4)


def located(scores, share):
    """Return the flat places, over all tensors by name, of the largest scores above zero."""
    places = [(-value, name, at) for name in sorted(scores) for at, value in enumerate(scores[name].ravel())]
    count = max(1, int(Fraction(share) * len(places))) if Fraction(share) else 0
    return {(name, at) for value, name, at in sorted(places)[:count] if value < 0}


def oracle(models, base, bases, owns, *, shares, weights):
    chosen = [located(b, r) & located(o, r) for b, o, r in zip(bases, owns, shares, strict=True)]
    out = {name: values.copy() for name, values in base.items()}
    for i, model in enumerate(models):
        others = set().union(*(chosen[j] for j in range(len(models)) if j != i))
        for name, at in chosen[i] - others:
            change = model[name].ravel()[at] - base[name].ravel()[at]
            out[name].reshape(-1)[at] += weights[i] * change
    return out


def test_masks_before_disjoint_match_the_golden_vector():
    masks = [bits("10101100"), bits("11000101")]

    out = merged({}, [snip(i, {"t": mask}, form="mask") for i, mask in enumerate(masks)])

    expected = [[0, 0.21875, 0.203125, 0], [-0.59375, 0, 0, 0.609375]]
    np.testing.assert_array_equal(out.tensors["t"] - BASE, expected)
    assert out.decisions["kept"] == {DIGESTS[0].hex(): 0.25, DIGESTS[1].hex(): 0.25}


@pytest.mark.parametrize("scope", ["tensor", "model"])
@pytest.mark.parametrize("levels", [4, 1 << 20])
def test_every_element_is_what_sorted_lists_make_it(scope, levels):
    """With four different scores nearly all are equal, so that ties decide."""
    rng = np.random.default_rng(3)
    shapes = {"a": (5, 7), "b": (7,), "c": (), "d": (0, 3)}

    def draw(low, high):
        return {name: np.array(rng.integers(low, high, shape) / 8.0) for name, shape in shapes.items()}

    base, models = draw(-99, 99), [draw(-99, 99) for _ in range(3)]
    bases, owns = [draw(0, levels) for _ in range(3)], [draw(0, levels) for _ in range(3)]
    shares, weights = ("0.3", "0.5", "0.4"), (1, 2, 1)
    table = ";".join(f"#{name.hex()}={share}" for name, share in zip(DIGESTS, shares, strict=True))

    out = merged(
        {"ratio": table, "scope": scope},
        [snip(i, bases[i], owns[i]) for i in range(3)],
        models,
        base,
        weights=weights,
    )

    if scope == "model":
        expected = oracle(models, base, bases, owns, shares=shares, weights=weights)
    else:
        expected = {}
        for name in shapes:
            one = [{name: item[name]} for item in (*models, base, *bases, *owns)]
            expected |= oracle(one[:3], one[3], one[4:7], one[7:], shares=shares, weights=weights)
    for name in shapes:
        np.testing.assert_array_equal(out.tensors[name], expected[name])


@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_neither_order_nor_blocks_show(scope):
    rng = np.random.default_rng(4)
    size = 150_000
    base = {"t": rng.normal(size=size), "u": rng.normal(size=70_000)}
    models = [{name: rng.normal(size=v.size) for name, v in base.items()} for _ in range(2)]
    scores = [
        snip(i, *({n: rng.integers(0, 50, v.size) / 4 for n, v in base.items()} for _ in range(2)))
        for i in range(2)
    ]

    whole = merged({"scope": scope}, scores, models, base, block_elements=1 << 18)
    parts = merge_arrays(
        "led_merge", models[::-1], base, {"scope": scope}, artefacts=scores[::-1],
        digests=DIGESTS[1::-1], block_elements=1 << 16,
    )  # fmt: skip

    assert whole.decisions == parts.decisions
    for name in base:
        np.testing.assert_array_equal(whole.tensors[name], parts.tensors[name])


def test_ratio_zero_keeps_the_base_and_ratio_one_all_that_scores():
    scores = [snip(0, {"t": bits("11110000")}), snip(1, {"t": bits("00001110")})]

    nothing, everything = merged({"ratio": "0"}, scores), merged({"ratio": "1"}, scores)

    np.testing.assert_array_equal(nothing.tensors["t"], BASE)
    assert len(nothing.decisions["warnings"]) == 2
    expected = np.where(bits("11110000") > 0, MODELS[0]["t"], MODELS[1]["t"])
    expected[1, 3] = BASE[1, 3]
    np.testing.assert_allclose(everything.tensors["t"], expected, rtol=1e-15)


def test_one_model_changes_what_matters_to_it():
    out = merged({"ratio": "0.5"}, [snip(0, {"t": np.arange(8.0).reshape(2, 4)})], MODELS[:1]).tensors["t"]

    np.testing.assert_array_equal(out[0], BASE[0])
    np.testing.assert_allclose(out[1], MODELS[0]["t"][1], rtol=1e-15)


def test_a_contribution_without_weight_takes_nothing_from_the_others():
    scores = [snip(i, {"t": bits("11111111")}, form="mask") for i in range(2)]

    out = merged({}, scores, weights=(1, 0)).tensors["t"]

    np.testing.assert_allclose(out, MODELS[0]["t"], rtol=1e-15)


def test_a_share_of_the_whole_model_cannot_differ_by_tensor():
    scores = [snip(i, {"t": bits("10101100")}) for i in range(2)]

    with pytest.raises(ParameterError, match="cannot differ by tensor"):
        merged({"scope": "model", "ratio": "t=0.5;0.3"}, scores)
    assert merged({"scope": "tensor", "ratio": "t=0.5;0.3"}, scores).tensors


def test_missing_scores_are_an_error_that_names_the_contribution():
    with pytest.raises(ArtefactMissingError, match=f"no snip_score for contribution {DIGESTS[1].hex()[:12]}"):
        merged({}, [snip(0, {"t": bits("1" * 8)})])
