"""Weight scope alignment: declared scopes are checked, fused ones told, aligned ones computed by hand."""

import numpy as np
import pytest
from crdt_merge_protocol.errors import ArtefactMissingError, ParameterError
from crdt_merge_protocol.strategies.contract import LEAF_ELEMENTS
from crdt_merge_protocol.strategies.reference import merge_arrays
from crdt_merge_protocol.strategies.registry import get
from support.artefacts import artefact

RNG = np.random.default_rng(41)
SHAPES = {"a.weight": (6, 40), "embed.weight": (5, 8), "norm": (40,), "s": (), "void": (0, 3)}
SCOPES = ((0.0, 1.0), (0.5, 2.0), (-0.25, 0.5))
MODELS = [
    {name: mean + deviation * RNG.normal(size=shape) for name, shape in SHAPES.items()}
    for mean, deviation in SCOPES
]
DIGESTS = [bytes([i]) * 32 for i in (1, 2, 3)]
WEIGHTS = (1, 2, 1)


def declared(i, scope=None):
    values = MODELS[i]["a.weight"]
    mean, variance = scope or (values.mean(), values.var())
    header = {"scopes": {"a.weight": {"mean": f"{mean:.12f}", "variance": f"{variance:.12f}", "count": 240}}}
    return artefact("weight_scope", header, subject=DIGESTS[i])


def merge(params=None, models=MODELS, **options):
    options.setdefault("digests", DIGESTS[: len(models)])
    options.setdefault("weights", WEIGHTS[: len(models)])
    return merge_arrays("weight_scope_alignment", models, None, params, **options)


def average(models=MODELS, weights=WEIGHTS):
    digests = DIGESTS[: len(models)]
    return merge_arrays("weight_average", models, weights=weights[: len(models)], digests=digests).tensors


def measure(values):
    """Return mean and population deviation, one element at a time."""
    flat = values.reshape(-1).tolist()
    mean = sum(flat) / len(flat)
    return mean, (sum((x - mean) ** 2 for x in flat) / len(flat)) ** 0.5


def fused(scopes, weights, fusion):
    total = sum(weights)
    mean = sum(w * m for w, (m, _) in zip(weights, scopes, strict=True)) / total
    if fusion == "mean_std":
        return mean, sum(w * d for w, (_, d) in zip(weights, scopes, strict=True)) / total
    raw = sum(w * (d * d + m * m) for w, (m, d) in zip(weights, scopes, strict=True)) / total
    return mean, (raw - mean * mean) ** 0.5


def test_models_in_the_scope_they_declare_are_averaged():
    result = merge(artefacts=[declared(i) for i in range(3)])

    for name, expected in average().items():
        assert result.tensors[name].tobytes() == expected.tobytes()
    assert (result.decisions["misfits"], result.decisions["warnings"]) == ({}, [])


def test_decisions_say_whether_scopes_were_declared_and_where_or_computed():
    artefacts = [declared(0), declared(2)]
    told = merge(artefacts=artefacts, is_strict=False).decisions
    names = [item.artefact.digest.hex() for item in artefacts]
    assert told["source"] == "artefact"
    assert told["declared_in"] == {DIGESTS[0].hex(): names[0], DIGESTS[2].hex(): names[1]}

    for mode in ("target", "posthoc_affine"):
        told = merge({"mode": mode}, artefacts=artefacts).decisions
        assert told["source"] == "computed"
        assert "declared_in" not in told


@pytest.mark.parametrize("scope", [(0.0, 1.3), (0.3, 1.0), (0.0, 0.7)])
def test_a_model_out_of_its_scope_is_named_and_left_out_if_asked(scope):
    artefacts = [declared(0, scope), declared(1), declared(2)]

    warned, excluded = (merge({"misfit": rule}, artefacts=artefacts) for rule in ("warn", "exclude"))

    assert warned.decisions["misfits"] == {"a.weight": [DIGESTS[0].hex()]}
    assert "a.weight: not in the scope" in warned.decisions["warnings"][0]
    assert warned.tensors["a.weight"].tobytes() == average()["a.weight"].tobytes()
    rest = (2 * MODELS[1]["a.weight"] + MODELS[2]["a.weight"]) / 3
    np.testing.assert_allclose(excluded.tensors["a.weight"], rest, rtol=1e-12)
    assert excluded.tensors["norm"].tobytes() == average()["norm"].tobytes()


def test_a_wider_tolerance_accepts_more():
    artefacts = [declared(0, (0.0, 1.3)), declared(1), declared(2)]

    assert merge({"tolerance": "0.5"}, artefacts=artefacts).decisions["misfits"] == {}


def test_who_declares_nothing_is_set_aside_in_a_group_and_refused_offline():
    artefacts = [declared(0), declared(2)]

    result = merge(artefacts=artefacts)

    expected = average([MODELS[0], MODELS[2]], (1, 1))
    for name in SHAPES:
        np.testing.assert_allclose(result.tensors[name], expected[name], rtol=1e-15)
    assert "020202020202: declares no scope, set aside" in result.decisions["warnings"][0]
    with pytest.raises(ArtefactMissingError, match="no weight_scope for contribution 0202"):
        merge(artefacts=artefacts, is_strict=True)


def test_without_any_declared_scope_this_is_another_strategy():
    with pytest.raises(ArtefactMissingError, match="without one this is weight_average"):
        merge()


@pytest.mark.parametrize("fusion", ["mean_std", "pooled"])
def test_the_target_of_the_next_round_is_told_beside_the_average(fusion):
    result = merge({"mode": "target", "scope_fusion": fusion})

    expected = fused([measure(model["a.weight"]) for model in MODELS], WEIGHTS, fusion)
    scopes = result.decisions["target_scopes"]
    assert list(scopes) == ["a.weight"]
    assert (scopes["a.weight"]["mean"], scopes["a.weight"]["deviation"]) == pytest.approx(expected, rel=1e-12)
    assert "plain average" in result.decisions["warnings"][0]
    for name, values in average().items():
        assert result.tensors[name].tobytes() == values.tobytes()


@pytest.mark.parametrize("fusion", ["mean_std", "pooled"])
@pytest.mark.parametrize("rows", [False, True])
def test_aligning_afterwards_equals_loops_over_tensors_and_rows(rows, fusion):
    params = {"mode": "posthoc_affine", "scope_fusion": fusion, "granularity": "row" if rows else "tensor"}

    result = merge(params)

    parts = range(6) if rows else [slice(None)]
    for part in parts:
        pieces = [model["a.weight"][part] for model in MODELS]
        scopes = [measure(piece) for piece in pieces]
        mean, deviation = fused(scopes, WEIGHTS, fusion)
        expected = sum(
            w * ((piece - m) / d * deviation + mean)
            for w, piece, (m, d) in zip(WEIGHTS, pieces, scopes, strict=True)
        )
        np.testing.assert_allclose(
            result.tensors["a.weight"][part], expected / sum(WEIGHTS), rtol=1e-11, atol=1e-12
        )
    for name in ("embed.weight", "norm", "s", "void"):
        assert result.tensors[name].tobytes() == average()[name].tobytes()
    assert "not in the paper" in result.decisions["warnings"][0]


@pytest.mark.parametrize("params", [{}, {"granularity": "row"}])
def test_one_model_and_equal_models_stay_as_they_are(params):
    for count in (1, 3):
        out = merge({"mode": "posthoc_affine", **params}, [MODELS[1]] * count).tensors
        for name, expected in MODELS[1].items():
            np.testing.assert_allclose(out[name], expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("params", [{}, {"granularity": "row"}])
def test_constant_tensors_are_averaged_as_they_are(params):
    models = [{"t": np.full((3, 4), 2.0)}, {"t": RNG.normal(size=(3, 4))}]

    out = merge({"mode": "posthoc_affine", **params}, models, weights=(1, 1)).tensors["t"]

    np.testing.assert_allclose(out, (models[0]["t"] + models[1]["t"]) / 2, rtol=1e-15)


def test_which_tensors_have_a_scope_can_be_said():
    params = {"mode": "target", "align": "embed.*=always;norm=always;never"}

    assert set(merge(params).decisions["target_scopes"]) == {"embed.weight", "norm"}


@pytest.mark.parametrize(
    "params",
    [
        {"mode": "target"},
        {"mode": "posthoc_affine"},
        {"mode": "posthoc_affine", "granularity": "row", "scope_fusion": "pooled"},
    ],
)
def test_blocks_and_the_order_of_inputs_do_not_show(params):
    models = [{"t": RNG.normal(size=(700, 300)), "u": RNG.normal(size=(3, LEAF_ELEMENTS))} for _ in range(3)]

    whole = merge(params, models)
    small = merge(
        params, models[::-1], digests=DIGESTS[::-1], weights=WEIGHTS[::-1], block_elements=LEAF_ELEMENTS
    )

    assert whole.decisions == small.decisions
    for name in ("t", "u"):
        assert whole.tensors[name].tobytes() == small.tensors[name].tobytes()


def test_rows_are_aligned_afterwards_only():
    with pytest.raises(ParameterError, match="posthoc_affine only"):
        get("weight_scope_alignment").validate({"granularity": "row"})
