"""Golden vectors: every row agrees with an independent implementation of the published method to 1e-9.

The numbers and where they are from stand in ``tests/support/golden_vectors.toml``.
"""

from fractions import Fraction

import numpy as np
import pytest
from crdt_merge_protocol.strategies import dare, magnitude_sampling
from crdt_merge_protocol.strategies.magnitude_sampling import keep_probabilities
from crdt_merge_protocol.strategies.randomness import stream_key, uniform
from crdt_merge_protocol.strategies.reference import merge_arrays
from crdt_merge_protocol.strategies.safe_merge import projected_cosine
from support.artefacts import artefact
from support.vectors import BASE, DATA, DELTAS, DIGESTS, FISHERS, GRAMS, LOCATED, MODELS, UNIFORMS

MERGES = {merge["name"]: merge for merge in DATA["merge"]}
LOWER = np.tril_indices(BASE.shape[1])
ARTEFACTS = {
    "": lambda _: None,
    "fisher_diag": lambda i: ({"n_samples": 100, "label_mode": "sampled"}, {"t": FISHERS[i]}),
    "gram": lambda i: ({"n_tokens": 1, "inputs": {"t": "in"}}, {"in": GRAMS[i][LOWER]}),
    "role": lambda i: ({"role": "forget", "attribute": f"part {i}"}, {}),
    "snip_score": lambda i: ({"n_samples": 8}, {"base/t": LOCATED[i], "self/t": LOCATED[i]}),
}
"""Header and tensors of a contribution's artefact, by type."""


@pytest.fixture(autouse=True)
def fixed_masks(monkeypatch):
    """Drop by the uniforms of the golden vectors instead of by the stream."""

    def uniforms(_strategy, context, _block, contribution):
        return UNIFORMS[DIGESTS.index(context.digests[contribution])].reshape(-1)

    def mask(strategy, context, block, contribution):
        density = context.params["density"]
        return None if density >= 1 else uniforms(strategy, context, block, contribution) < float(density)

    monkeypatch.setattr(dare, "draw_mask", mask)
    monkeypatch.setattr(magnitude_sampling, "draw_uniforms", uniforms)


@pytest.mark.parametrize("name", MERGES)
def test_merges_match_the_golden_vectors(name):
    golden = MERGES[name]
    k, is_of_deltas = golden.get("k", 3), golden.get("of") == "deltas"
    models = [{"t": delta} for delta in DELTAS] if is_of_deltas else list(MODELS)
    made = [ARTEFACTS[golden.get("artefact", "")](i) for i in range(k)]

    found = merge_arrays(
        golden["strategy"],
        models[:k],
        None if is_of_deltas else {"t": BASE},
        golden.get("params"),
        weights=golden.get("weights"),
        digests=DIGESTS[:k],
        artefacts=[
            artefact(golden["artefact"], *each, subject=DIGESTS[i]) for i, each in enumerate(made) if each
        ],
    ).tensors["t"]

    change = found - BASE if golden.get("is_change") else found
    np.testing.assert_allclose(change, golden["expected"], rtol=2e-9, atol=1e-10)


def test_emr_matches_the_golden_vectors():
    golden = DATA["emr"]
    common = np.array(golden["common"])

    whole = merge_arrays("emr_merging", MODELS, {"t": BASE}, digests=DIGESTS)

    assert (whole.tensors["t"] - BASE).tolist() == golden["common"]
    for name, rescaler, bits in zip(DIGESTS, golden["rescalers"], golden["masks"], strict=True):
        np.testing.assert_allclose(whole.decisions["gamma"][name.hex()], rescaler, rtol=1e-9)
        task = merge_arrays("emr_merging", MODELS, {"t": BASE}, digests=DIGESTS, task=name).tensors["t"]
        mask = np.array([int(bit) for bit in bits]).reshape(BASE.shape)
        np.testing.assert_allclose(task - BASE, rescaler * mask * common, rtol=1e-9, atol=1e-10)


def test_probabilities_of_della_match_the_golden_vector():
    """They belong to ranks within a row, the smallest magnitude first."""
    by_rank = keep_probabilities(4, Fraction(1, 2), Fraction(1, 5))

    ranks = np.abs(DELTAS[0]).argsort(axis=1).argsort(axis=1)

    np.testing.assert_allclose(by_rank[ranks], DATA["della"]["probabilities"], rtol=1e-9)


def test_the_cosine_of_safe_merge_matches_the_golden_number():
    assert projected_cosine(DELTAS[2], DELTAS[0]) == pytest.approx(DATA["safe_merge"]["cosine"], abs=5e-11)


def test_the_random_stream_matches_the_golden_words():
    golden = DATA["stream"]
    key = stream_key(b"\x01" * 32, "dare", "dec.0.attn.q.w", b"\x02" * 32, "mask")

    assert key == b"".join(int(word, 16).to_bytes(8, "little") for word in golden["words"])
    assert list(uniform(key, 0, 3)) == golden["first"]
    assert list(uniform(key, 1_000_001, 1)) == [golden["at_1000001"]]
