"""SafeMERGE against its definition in products of whole matrices."""

import numpy as np
import pytest
from crdt_merge_protocol.errors import ArtefactMissingError
from crdt_merge_protocol.strategies.reference import merge_arrays
from support.spectral import DIGESTS, ROLES, changed, roles, some_models


@pytest.mark.parametrize("threshold", ["0.05", "0.99"])
def test_safe_merge_mixes_where_the_cosine_is_below_the_threshold(threshold):
    base, models = some_models((7, 5), 4)
    merged = merge_arrays(
        "safe_merge", models, base, {"threshold": threshold}, digests=DIGESTS[:4], artefacts=roles(ROLES)
    )
    aligned, unaligned, safety, tuned = (model["w"] for model in models)
    span, change = aligned - unaligned, tuned - base["w"]
    image = span @ span.T @ change
    cosine = (image * change).sum() / np.sqrt((image**2).sum() * (change**2).sum())
    layer = merged.decisions["layers"]["w"]

    assert layer == {"rho": round(cosine, 5), "merged": cosine < float(threshold)}
    expected = tuned
    if layer["merged"]:
        expected = base["w"] + 0.8 * change + 0.2 * (safety - base["w"])
    np.testing.assert_allclose(merged.tensors["w"], expected, atol=1e-14)
    for name in ("b", "embed.w"):
        assert np.array_equal(merged.tensors[name], models[3][name])


def test_safe_merge_keeps_the_fine_tuned_model_where_alignment_changed_nothing():
    base, models = some_models((3, 3), 4)
    models[1] = {**models[1], "w": models[0]["w"]}
    merged = merge_arrays("safe_merge", models, base, digests=DIGESTS[:4], artefacts=roles(ROLES))
    assert np.array_equal(merged.tensors["w"], models[3]["w"])
    assert "nothing was tested" in merged.decisions["warnings"][0]
    assert merged.decisions["layers"]["w"] == {"rho": None, "merged": False}


def test_safe_merge_without_a_role_asks_for_a_stand_in():
    base, models = some_models((3, 3), 4)
    with pytest.raises(ArtefactMissingError, match="the role safety"):
        changed(
            "safe_merge", models, base, artefacts=roles(("aligned", "unaligned", "finetuned", "finetuned"))
        )


def test_safe_merge_thins_changes_out_only_where_it_mixes():
    base, models = some_models((20, 20), 4)
    params = {"threshold": "1", "combine": "dare_linear", "density": "0.25"}
    found = changed("safe_merge", models, base, params, artefacts=roles(ROLES))
    assert 0.35 < np.count_nonzero(np.abs(found["w"]) < 1e-15) / 400 < 0.75
    np.testing.assert_allclose(found["b"], models[3]["b"] - base["b"], atol=1e-15)
