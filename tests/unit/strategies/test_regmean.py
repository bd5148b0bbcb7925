"""RegMean against a literal solution of the normal equations."""

import numpy as np
import pytest
from crdt_merge_protocol.errors import ArtefactMissingError
from crdt_merge_protocol.strategies import regmean
from crdt_merge_protocol.strategies.reference import merge_arrays
from support.artefacts import artefact
from support.vectors import DIGESTS


def gram(i, matrices, n_tokens=1, transposed=(), aliases=None):
    """Return the Gram matrices of a contribution: by weight, the lower triangles; ``aliases`` share one."""
    tensors = {f"in/{name}": matrix[np.tril_indices(len(matrix))] for name, matrix in matrices.items()}
    inputs = {name: f"in/{name}" for name in matrices}
    inputs |= {name: f"in/{shared}" for name, shared in (aliases or {}).items()}
    header = {"n_tokens": n_tokens, "inputs": inputs}
    if transposed:
        header["transposed"] = list(transposed)
    return artefact("gram", header, tensors, subject=DIGESTS[i])


def merged(models, grams, params=None, **options):
    names = DIGESTS[: len(models)]
    return merge_arrays("regmean", models, None, params, digests=names, artefacts=grams, **options)


def models_of(shape=(3, 5), count=2, key=5):
    rng = np.random.default_rng(key)
    return [{"w": rng.normal(size=shape), "b": rng.normal(size=4)} for _ in range(count)]


def grams_of(side, count=2, key=6):
    rng = np.random.default_rng(key)
    inputs = [rng.normal(size=(side + 2, side)) for _ in range(count)]
    return [x.T @ x for x in inputs]


def oracle(models, grams, weights, a):
    """Return the minimum of the regression, by its normal equations, one output row at a time."""
    scaled = [a * g + (1 - a) * np.diag(np.diagonal(g)) for g in grams]
    system = sum(w * g for w, g in zip(weights, scaled, strict=True))
    out = np.empty_like(models[0])
    for row in range(len(out)):
        right = sum(w * g @ m[row] for w, g, m in zip(weights, scaled, models, strict=True))
        out[row] = np.linalg.solve(system, right)
    return out


@pytest.mark.parametrize("a", ["1", "0.9", "0.1", "0"])
def test_it_solves_the_regression(a):
    models, grams = models_of(), grams_of(5)
    used = [gram(i, {"w": matrix}) for i, matrix in enumerate(grams)]
    found = merged(models, used, {"a": a, "ridge": "0"}, weights=[1, 3])

    expected = oracle([m["w"] for m in models], grams, (1, 3), float(a))
    np.testing.assert_allclose(found.tensors["w"], expected, rtol=1e-11)
    np.testing.assert_allclose(found.tensors["b"], (models[0]["b"] + 3 * models[1]["b"]) / 4, rtol=1e-14)
    assert found.decisions["layers"] == ["w"]


@pytest.mark.parametrize("a", ["0.9", "0"])
def test_layers_stored_the_other_way_round_and_kernels_are_merged_alike(a):
    models, grams = models_of((3, 6)), grams_of(6)
    plain = merged(models, [gram(i, {"w": g}) for i, g in enumerate(grams)], {"a": a}).tensors["w"]
    turned = [{**m, "w": m["w"].T.copy()} for m in models]
    used = [gram(i, {"w": g}, transposed=["w"]) for i, g in enumerate(grams)]
    np.testing.assert_array_equal(merged(turned, used, {"a": a}).tensors["w"].T, plain)
    kernels = [{**m, "w": m["w"].reshape(3, 2, 3, 1)} for m in models]
    used = [gram(i, {"w": g}) for i, g in enumerate(grams)]
    np.testing.assert_array_equal(merged(kernels, used, {"a": a}).tensors["w"].reshape(3, 6), plain)


def test_layers_that_share_an_input_share_a_triangle():
    models, grams = models_of((3, 5)), grams_of(5)
    for model in models:
        model["q"] = model["w"] * 2
    used = [gram(i, {"w": g}, aliases={"q": "w"}) for i, g in enumerate(grams)]
    found = merged(models, used).tensors
    np.testing.assert_array_equal(found["q"], 2 * found["w"])


@pytest.mark.parametrize("norm", ["trace", "per_token"])
def test_a_contributor_cannot_gain_by_claiming_more(norm):
    models, grams = models_of(), grams_of(5)
    plain = merged(models, [gram(i, {"w": g}) for i, g in enumerate(grams)], {"gram_norm": norm})
    scales = (1, 1024.0) if norm == "trace" else (1, 1)
    used = [
        gram(i, {"w": g * s}, n_tokens=10 ** (i * 6) + 1)
        for i, (g, s) in enumerate(zip(grams, scales, strict=True))
    ]
    np.testing.assert_array_equal(merged(models, used, {"gram_norm": norm}).tensors["w"], plain.tensors["w"])


@pytest.mark.parametrize("a", ["0.9", "0"])
def test_inputs_that_nobody_used_are_averaged(a):
    models, grams = models_of(), grams_of(5)
    for matrix in grams:
        matrix[2, :] = matrix[:, 2] = 0.0
    found = merged(models, [gram(i, {"w": g}) for i, g in enumerate(grams)], {"a": a, "ridge": "0"})
    mean = (models[0]["w"] + models[1]["w"]) / 2
    np.testing.assert_allclose(found.tensors["w"][:, 2], mean[:, 2], rtol=1e-9)
    if a != "0":
        assert found.decisions["ridges"] == {"w": 1e-12}
        assert "singular" in found.decisions["warnings"][0]


def test_gram_matrices_of_zeros_average():
    models = models_of()
    found = merged(models, [gram(i, {"w": np.zeros((5, 5))}) for i in range(2)])
    np.testing.assert_allclose(found.tensors["w"], (models[0]["w"] + models[1]["w"]) / 2, rtol=1e-14)
    assert found.decisions["ridges"] == {"w": None}


def test_equal_gram_matrices_average_and_equal_models_stay():
    models, (matrix,) = models_of(), grams_of(5, 1)
    used = [gram(i, {"w": matrix}) for i in range(2)]
    mean = (models[0]["w"] + models[1]["w"]) / 2
    np.testing.assert_allclose(merged(models, used).tensors["w"], mean, rtol=1e-10)
    same = merged([models[0], models[0]], used)
    np.testing.assert_allclose(same.tensors["w"], models[0]["w"], rtol=1e-10)


def test_one_model_stays_and_a_missing_gram_matrix_asks_for_a_stand_in():
    models, grams = models_of(), grams_of(5)
    alone = merged(models[:1], [gram(0, {"w": grams[0]})])
    np.testing.assert_array_equal(alone.tensors["w"], models[0]["w"])
    with pytest.raises(ArtefactMissingError, match="no gram for contribution"):
        merged(models, [gram(0, {"w": grams[0]})])


@pytest.mark.parametrize("shape", [(3, 5), (5, 5)])
def test_nobody_turns_a_layer_for_the_others(shape):
    """One says [in, out]: of a square matrix nobody could tell, of another the triangles do not fit."""
    models = models_of(shape, 3)
    used = [gram(i, {"w": g}) for i, g in enumerate(grams_of(shape[1], 2))]
    (other,) = grams_of(shape[0], 1, 9)
    found = merged(models, [*used, gram(2, {"w": other}, transposed=("w",))])

    np.testing.assert_allclose(found.tensors["w"], sum(m["w"] for m in models) / 3, rtol=1e-9)
    assert found.decisions["layers"] == []


def test_large_systems_are_tolerant_and_right(monkeypatch):
    models, grams = models_of(), grams_of(5)
    used = [gram(i, {"w": g}) for i, g in enumerate(grams)]
    exact = merged(models, used)
    monkeypatch.setattr(regmean, "EXACT_SIDE_MAX", 4)
    tolerant = merged(models, used)
    assert (exact.decisions["determinism"], tolerant.decisions["determinism"]) == ("bitwise", "fp_tolerant")
    np.testing.assert_allclose(tolerant.tensors["w"], exact.tensors["w"], rtol=1e-12)
    assert merged(models, used, {"a": "0"}).decisions["determinism"] == "bitwise"


def test_what_lapack_says_of_a_system_is_believed_only_if_rounding_could_not_change_it():
    rng = np.random.default_rng(8)
    inputs = rng.normal(size=(90, 40)) * np.logspace(0, -60, 40)
    assert regmean._is_far_from_singular(inputs.T @ inputs)  # Its diagonal alone is of many scales.

    believed = []
    for power in range(30):
        system = 0.5 * (np.ones((20, 20)) + 10.0**-power * np.eye(20))
        try:
            regmean.cholesky(system)
            is_positive = True
        except regmean.NotPositiveError:
            is_positive = False
        believed.append(regmean._is_far_from_singular(system))
        assert is_positive or not believed[-1]
        assert regmean._is_positive(4.0 * system, is_small=True) == is_positive
    assert believed[:10] == [True] * 10
    assert not any(believed[13:])
    for system in (np.zeros((3, 3)), -np.eye(2), np.diag([1.0, 2.0**-600])):
        assert not regmean._is_far_from_singular(system)
