"""AdaMerging and its plus-plus: tables of coefficients against loops over elements."""

import numpy as np
import pytest
from crdt_merge_protocol.errors import ArtefactMissingError, BaseMissingError
from crdt_merge_protocol.strategies.reference import merge_arrays
from support.artefacts import artefact

DIGESTS = [bytes([i]) * 32 for i in (1, 2, 3)]
SHAPES = {"layer.0.w": (5, 7), "layer.1.w": (4, 3), "head": (6,)}
ROWS = [
    {"match": "layer.0.*", "lambda": ["0.3", "0.25", "0"]},
    {"match": "layer.*", "lambda": ["0.5", "1", "0.1"]},
    {"match": "head", "lambda": ["1", "0.125", "0.75"]},
]


def draw(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.integers(-999, 999, shape) / 64 for name, shape in SHAPES.items()}


BASE, MODELS = draw(0), [draw(i) for i in (1, 2, 3)]


def table(rows=ROWS, models=DIGESTS, **more):
    return artefact("lambda_table", {"rows": rows, **more}, models=models)


def merged(params=None, artefacts=None, models=MODELS, base=BASE, **options):
    used = [table()] if artefacts is None else artefacts
    names = DIGESTS[: len(models)]
    return merge_arrays("ada_merging", models, base, params, artefacts=used, digests=names, **options)


def lambdas(name):
    row = {"layer.0.w": ROWS[0], "layer.1.w": ROWS[1], "head": ROWS[2]}[name]
    return [float(text) for text in row["lambda"]]


def trimmed(difference, kept):
    """Return a model's differences with all but the ``kept`` largest, and what equals the last, at zero."""
    sizes = sorted((abs(v) for values in difference.values() for v in values.ravel()), reverse=True)
    least = sizes[kept - 1]
    return {name: np.where(np.abs(v) >= least, v, 0.0) for name, v in difference.items()}


def test_every_layer_has_its_own_coefficients():
    out = merged().tensors

    for name, shape in SHAPES.items():
        expected = np.empty(shape)
        for place in np.ndindex(shape):
            start = BASE[name][place]
            steps = [scale * (m[name][place] - start) for scale, m in zip(lambdas(name), MODELS, strict=True)]
            expected[place] = start + sum(steps)
        np.testing.assert_allclose(out[name], expected, rtol=1e-13, atol=1e-13)


def test_plus_plus_trims_and_elects_first():
    out = merged({"plusplus": "true", "density": "0.3"}).tensors

    numel = sum(values.size for values in BASE.values())
    left = [trimmed({n: m[n] - BASE[n] for n in SHAPES}, int(0.3 * numel) + 1) for m in MODELS]
    votes = {name: sum(item[name] for item in left) for name in SHAPES}
    signs = [sign for values in votes.values() for sign in np.sign(values).ravel()]
    majority = 1.0 if sum(signs) >= 0 else -1.0
    for name, shape in SHAPES.items():
        expected = BASE[name].copy()
        for place in np.ndindex(shape):
            elected = np.sign(votes[name][place]) or majority
            for scale, item in zip(lambdas(name), left, strict=True):
                if item[name][place] * elected > 0:
                    expected[place] += scale * item[name][place]
        np.testing.assert_allclose(out[name], expected, rtol=1e-13, atol=1e-13)


def test_a_coefficient_of_zero_still_votes():
    """A task whose layer is switched off elects signs as the published method has it."""
    one = {"t": np.array([1.0, -4.0])}
    rows = [{"match": "*", "lambda": ["1", "0"]}]
    models = [one, {"t": np.array([-5.0, -1.0])}]

    out = merged(
        {"plusplus": "true", "density": "1"}, [table(rows, DIGESTS[:2])], models, {"t": np.zeros(2)}
    ).tensors["t"]

    assert out.tolist() == [0.0, -4.0]


@pytest.mark.parametrize("plusplus", ["false", "true"])
def test_neither_order_nor_blocks_show(plusplus):
    rng = np.random.default_rng(6)
    base, *models = ({"t": rng.integers(-99, 99, 150_000) / 8} for _ in range(4))
    rows, params = [{"match": "*", "lambda": ["0.3", "0.2", "0.1"]}], {"plusplus": plusplus}

    whole = merged(params, [table(rows)], models, base, block_elements=1 << 18).tensors["t"]
    parts = merge_arrays(
        "ada_merging", models[::-1], base, params, artefacts=[table(rows)], digests=DIGESTS[::-1],
        block_elements=1 << 16,
    ).tensors["t"]  # fmt: skip

    np.testing.assert_array_equal(whole, parts)


def test_a_table_of_another_set_is_stale():
    with pytest.raises(ArtefactMissingError, match="of another set of models"):
        merged(artefacts=[table(models=[*DIGESTS[:2], b"\x09" * 32])])


def test_a_table_of_another_base_is_stale():
    with pytest.raises(ArtefactMissingError, match="another base"):
        merged(artefacts=[table(base="ab" * 32)], base_content=b"\xcd" * 32)
    assert merged(artefacts=[table(base="ab" * 32)], base_content=b"\xab" * 32).tensors


def test_without_a_table_nothing_stands_in():
    with pytest.raises(ArtefactMissingError, match="there is no lambda_table"):
        merged(artefacts=[])


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (ROWS[:2], "no row for tensor head"),
        ([{"match": "*", "lambda": ["0.3", "1.5", "0"]}], "within lambda_min and lambda_max"),
        ([{"match": "*", "lambda": ["0.3", "0.5"]}], "needs 3 coefficients"),
    ],
)
def test_a_table_that_does_not_fit_is_not_used(rows, problem):
    with pytest.raises(ArtefactMissingError, match=problem):
        merged(artefacts=[table(rows)])


def test_the_range_can_be_widened():
    rows = [{"match": "*", "lambda": ["-1", "1.5", "0"]}]

    out = merged({"lambda_min": "-1", "lambda_max": "2"}, [table(rows)]).tensors["head"]

    start = BASE["head"]
    expected = start - (MODELS[0]["head"] - start) + 1.5 * (MODELS[1]["head"] - start)
    np.testing.assert_allclose(out, expected, rtol=1e-13)


def test_it_needs_a_base():
    with pytest.raises(BaseMissingError):
        merged(base=None)
