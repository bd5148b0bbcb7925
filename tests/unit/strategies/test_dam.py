"""DAM: coefficients per column, element and scalar, in both layouts of a weight, against loops."""

import numpy as np
import pytest
from crdt_merge_protocol.errors import ArtefactMissingError
from crdt_merge_protocol.strategies.reference import merge_arrays
from support.artefacts import artefact

DIGESTS = [bytes([i]) * 32 for i in (1, 2)]
SHAPES = {
    "bias": (5,), "conv": (4, 3, 2, 2), "conv1d": (7, 5), "embed": (9, 6), "linear": (5, 7), "norm": (5,),
    "s": (),
}  # fmt: skip
COEFFICIENTS = {
    "bias": (1,), "conv": (3,), "conv1d": (7,), "embed": (6,), "linear": (7,), "norm": (5,), "s": (),
}  # fmt: skip


def draw(seed, shapes):
    rng = np.random.default_rng(seed)
    return {name: np.array(rng.integers(-64, 64, shape) / 32) for name, shape in shapes.items()}


MODELS = [draw(i, SHAPES) for i in (1, 2)]
LEARNT = [draw(i, COEFFICIENTS) for i in (3, 4)]


def coefficients(learnt=LEARNT, models=DIGESTS, transposed=("conv1d",)):
    tensors = {f"{i}/{name}": v for i, one in enumerate(learnt) for name, v in one.items()}
    return artefact("dam_coeff", {"transposed": list(transposed)}, tensors, models=models)


def merged(artefacts=None, models=MODELS, digests=DIGESTS, **options):
    used = [coefficients()] if artefacts is None else artefacts
    return merge_arrays("dam", models, artefacts=used, digests=digests[: len(models)], **options).tensors


def coefficient(name, learnt, place):
    if name in ("bias", "s"):
        return learnt[name].reshape(-1)[0]
    if name == "norm":
        return learnt[name][place]
    return learnt[name][place[0] if name == "conv1d" else place[1]]


def test_every_element_is_what_a_loop_makes_it():
    out = merged()

    for name, shape in SHAPES.items():
        expected = np.zeros(shape)
        for place in np.ndindex(shape):
            for model, learnt in zip(MODELS, LEARNT, strict=True):
                expected[place] += coefficient(name, learnt, place) * model[name][place]
        np.testing.assert_array_equal(out[name], expected)


def test_coefficients_may_be_elementwise():
    learnt = [{"w": np.arange(6.0).reshape(2, 3)}]

    out = merged([coefficients(learnt, DIGESTS[:1], ())], [{"w": np.full((2, 3), 2.0)}])["w"]

    np.testing.assert_array_equal(out, 2 * np.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("shape", [(3, 70_000), (70_000, 3), (300, 500)])
def test_neither_order_nor_blocks_show(shape, is_transposed):
    rng = np.random.default_rng(8)
    models = [{"w": rng.normal(size=shape)} for _ in DIGESTS]
    learnt = [{"w": rng.normal(size=shape[0] if is_transposed else shape[1])} for _ in DIGESTS]
    item = coefficients(learnt, DIGESTS, ("w",) if is_transposed else ())

    whole = merged([item], models, block_elements=1 << 18)["w"]
    parts = merged([item], models[::-1], DIGESTS[::-1], block_elements=1 << 16)["w"]

    direct = sum(
        m["w"] * (c["w"][:, None] if is_transposed else c["w"]) for m, c in zip(models, learnt, strict=True)
    )
    np.testing.assert_array_equal(whole, direct)
    np.testing.assert_array_equal(parts, direct)


def test_equal_coefficients_are_the_average_and_one_alone_is_the_model():
    half = [{name: np.full(shape, 0.5) for name, shape in COEFFICIENTS.items()}] * 2
    one = [{name: np.ones(shape) for name, shape in COEFFICIENTS.items()}]

    average, alone = merged([coefficients(half)]), merged([coefficients(one, DIGESTS[:1])], MODELS[:1])

    for name in SHAPES:
        np.testing.assert_array_equal(average[name], (MODELS[0][name] + MODELS[1][name]) / 2)
        np.testing.assert_array_equal(alone[name], MODELS[0][name])


def test_coefficients_of_another_set_are_stale_and_gaps_are_named():
    with pytest.raises(ArtefactMissingError, match="of another set of models"):
        merged([coefficients()], MODELS[:1])
    gap = [{**LEARNT[0]}, {name: v for name, v in LEARNT[1].items() if name != "norm"}]
    with pytest.raises(ArtefactMissingError, match="no coefficients of tensor norm"):
        merged([coefficients(gap)])
