"""Golden vectors: every row agrees with an independent implementation of the published method to 1e-9."""

import numpy as np
import pytest
from crdt_merge_protocol.strategies import dare
from crdt_merge_protocol.strategies.randomness import stream_key, uniform
from crdt_merge_protocol.strategies.reference import merge_arrays
from support.vectors import BASE, DELTAS, DIGESTS, MODELS, UNIFORMS, rows

OUTPUTS = {
    "linear": (
        "linear",
        {},
        (1, 2, 1),
        "1.11328125 -1.87890625 2.9453125 -3.83203125; .26171875 .49609375 -1.53515625 2.3359375",
    ),
    "weight_average": (
        "weight_average",
        {},
        (1, 2, 1),
        "1.11328125 -1.87890625 2.9453125 -3.83203125; .26171875 .49609375 -1.53515625 2.3359375",
    ),
    "task_arithmetic": (
        "task_arithmetic",
        {"lambda": "0.5"},
        (1, 1, 1),
        "1.0859375 -1.8671875 3.015625 -3.7421875; .078125 .515625 -1.3984375 2.3671875",
    ),
}
CHANGES = {
    "ties paper": (
        "ties",
        {"density": "0.5"},
        (1, 1, 1),
        ".34375 .34375 -.25 0; -.59375 .4765625 .546875 .4609375",
    ),
    "ties mergekit": (
        "ties",
        {"density": "0.5", "profile": "mergekit"},
        (1, 2, 1),
        ".3229166667 .34375 0 0; -.59375 .46875 -.34375 .609375",
    ),
    "dare inverse normalised": (
        "dare",
        {"density": "0.5"},
        (1, 1, 1),
        "-.07291666667 .1458333333 .02083333333 .1770833333;-.46875 .05208333333 -.2291666667 .08333333333",
    ),
    "dare l1 sum": (
        "dare",
        {"density": "0.5", "profile": "mergekit"},
        (1, 1, 1),
        "-.3590787555 .5746822034 -.2830102152 .4375; -1.003766722 -.09154715605 -.9030720339 .2884662129",
    ),
    "dare_ties inverse mean": (
        "dare_ties",
        {"density": "0.5"},
        (1, 1, 1),
        "-1.03125 .4375 .28125 .53125; -.703125 1 -.6875 .625",
    ),
}
SPHERES = {
    "slerp raw": (
        {"magnitude": "raw"},
        (7, 3),
        ".4532499886 -.158674508 .06776477566 .1417450023;-.5397533222 .6013493997 -.1397969924 .09142011131",
    ),
    "slerp interp": (
        {},
        (7, 3),
        (
            ".4530256681 -.1571885985 .06643549221 .1419778556;"
            "-.5384854755 .6014066174 -.1408680608 .09382681542"
        ),
    ),
    "karcher": (
        {},
        (1, 2, 1),
        (
            ".1684296759 .2275602919 -.07121107605 .3290133157;"
            "-.4739643056 .4168430065 .000899525938 .6055452763"
        ),
    ),
}


@pytest.fixture
def fixed_masks(monkeypatch):
    """Drop by the uniforms of the golden vectors instead of by the stream."""

    def draw(strategy, context, block, contribution):
        if context.params["density"] >= 1:
            return None
        uniforms = UNIFORMS[DIGESTS.index(context.digests[contribution])]
        return uniforms.reshape(-1) < float(context.params["density"])

    monkeypatch.setattr(dare, "draw_mask", draw)


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_match_the_golden_vectors(name):
    strategy, params, weights, expected = OUTPUTS[name]

    merged = merge_arrays(strategy, MODELS, {"t": BASE}, params, weights=weights, digests=DIGESTS)

    np.testing.assert_allclose(merged.tensors["t"], rows(expected), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", CHANGES)
def test_changes_of_the_base_match_the_golden_vectors(name, fixed_masks):
    strategy, params, weights, expected = CHANGES[name]

    merged = merge_arrays(strategy, MODELS, {"t": BASE}, params, weights=weights, digests=DIGESTS)

    np.testing.assert_allclose(merged.tensors["t"] - BASE, rows(expected), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", SPHERES)
def test_points_on_the_sphere_match_the_golden_vectors(name):
    params, weights, expected = SPHERES[name]
    vectors = [{"t": delta} for delta in DELTAS[: len(weights)]]

    merged = merge_arrays("slerp", vectors, None, params, weights=weights, digests=DIGESTS[: len(weights)])

    np.testing.assert_allclose(merged.tensors["t"], rows(expected), rtol=2e-9, atol=1e-11)


def test_slerp_with_a_base_acts_on_the_differences_from_it():
    merged = merge_arrays("slerp", MODELS, {"t": BASE}, weights=(1, 2, 1), digests=DIGESTS)

    np.testing.assert_allclose(merged.tensors["t"] - BASE, rows(SPHERES["karcher"][2]), rtol=2e-9, atol=1e-11)


def test_the_random_stream_matches_the_golden_words():
    key = stream_key(b"\x01" * 32, "dare", "dec.0.attn.q.w", b"\x02" * 32, "mask")

    assert key == (0x7CD2A1C3C00EB37B).to_bytes(8, "little") + (0xD46B1DD8540384A0).to_bytes(8, "little")
    assert list(uniform(key, 0, 3)) == [0.78901929944205551, 0.3329445244054825, 0.054442262683315978]
    assert list(uniform(key, 1_000_001, 1)) == [0.59019987966304677]
