"""Unlearning: what all agree on, who takes part, and what has to be said before anything is subtracted."""

import itertools
import math

import numpy as np
import pytest
from crdt_merge_protocol.blobs import Schema
from crdt_merge_protocol.errors import ArtefactMissingError, ParameterError, RoleMissingError
from crdt_merge_protocol.strategies.artefact_checks import check_artefact
from crdt_merge_protocol.strategies.contract import LEAF_ELEMENTS
from crdt_merge_protocol.strategies.reference import merge_arrays
from crdt_merge_protocol.strategies.registry import get
from support.artefacts import artefact

RNG = np.random.default_rng(31)
SHAPES = {"m": (5, 7), "s": (), "v": (9,), "void": (0, 3)}
BASE = {name: RNG.integers(-64, 64, shape) / 16 for name, shape in SHAPES.items()}
MODELS = [{name: x + RNG.integers(-3, 6, x.shape) / 16 for name, x in BASE.items()} for _ in range(5)]
DIGESTS = [bytes([i]) * 32 for i in range(1, 6)]


def roles(names, digests=DIGESTS):
    return [
        artefact("role", {"role": name, "attribute": f"part {i}"}, subject=digests[i])
        for i, name in enumerate(names)
        if name
    ]


def forget(params, names=("forget",) * 5, **options):
    k = len(names)
    return merge_arrays(
        "negative_merge", MODELS[:k], BASE, params, digests=DIGESTS[:k], artefacts=roles(names), **options
    )


def sign(x):
    return (x > 0) - (x < 0)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("consensus", ["1", "0.6", "0.5"])
@pytest.mark.parametrize("weights", [(1, 1, 1, 1, 1), (1, 2, 3, 1, 2)])
def test_the_merge_equals_loops_over_elements(k, consensus, weights):
    params = {"lambda": "0.5", "consensus": consensus}

    out = forget(params, ("forget",) * k, weights=weights[:k]).tensors

    for name, base in BASE.items():
        for place in np.ndindex(base.shape):
            column = [float(model[name][place] - base[place]) for model in MODELS[:k]]
            counts = {s: sum(1 for x in column if sign(x) == s) for s in (1, -1)}
            side = max(counts, key=counts.get)
            expected = 0.0
            if counts[side] >= math.ceil(float(consensus) * k) and counts[1] != counts[-1]:
                agreeing = [(w, x) for w, x in zip(weights, column, strict=False) if sign(x) == side]
                expected = -0.5 * sum(w * x for w, x in agreeing) / sum(w for w, _ in agreeing)
            assert out[name][place] - base[place] == pytest.approx(expected, abs=1e-14)


def test_one_model_is_task_negation():
    out = forget({"lambda": "0.75"}, ("forget",)).tensors
    negated = merge_arrays("task_arithmetic", MODELS[:1], BASE, {"lambda": "-0.75"}).tensors

    for name in BASE:
        np.testing.assert_allclose(out[name], negated[name], rtol=1e-14, atol=1e-14)


def test_the_mask_shrinks_with_every_model():
    touched = []
    for k in range(1, 6):
        out = forget({"lambda": "1"}, ("forget",) * k).tensors
        touched.append({(n, p) for n, b in BASE.items() for p in np.ndindex(b.shape) if out[n][p] != b[p]})

    assert all(larger >= smaller for larger, smaller in itertools.pairwise(touched))
    assert len(touched[0]) > len(touched[4]) > 0


def test_lambda_has_no_default():
    with pytest.raises(ArtefactMissingError, match="lambda has to be given"):
        forget({})


def test_contributions_in_other_roles_are_set_aside_with_a_warning():
    mixed = forget({"lambda": "1"}, ("forget", "finetuned", "forget", "", "safety"))

    alone = merge_arrays(
        "negative_merge", [MODELS[0], MODELS[2]], BASE, {"lambda": "1"},
        digests=[DIGESTS[0], DIGESTS[2]], artefacts=roles(["forget", "", "forget"]),
    )  # fmt: skip
    for name in BASE:
        assert mixed.tensors[name].tobytes() == alone.tensors[name].tobytes()
    assert mixed.decisions["forget"] == [DIGESTS[0].hex(), DIGESTS[2].hex()]
    names = ", ".join(DIGESTS[i].hex()[:12] for i in (1, 3, 4))
    assert mixed.decisions["warnings"] == [f"contribution {names}: not in the role forget, set aside."]


def test_offline_nothing_is_set_aside_silently():
    with pytest.raises(RoleMissingError, match="in the role forget; not contribution 0202"):
        forget({"lambda": "1"}, ("forget", "finetuned"), is_strict=True)


@pytest.mark.parametrize(
    ("strategy", "params"), [("negative_merge", {"lambda": "1"}), ("split_unlearn_merge", {})]
)
def test_without_any_contribution_in_the_role_there_is_no_merge(strategy, params):
    with pytest.raises(ArtefactMissingError, match="no contribution has the role"):
        merge_arrays(strategy, MODELS, BASE, params, digests=DIGESTS, artefacts=roles(["finetuned"] * 5))


def test_models_equal_to_the_base_are_no_reason_to_change_it():
    out = merge_arrays(
        "negative_merge",
        [BASE, BASE],
        BASE,
        {"lambda": "1"},
        digests=DIGESTS[:2],
        artefacts=roles(["forget"] * 2),
    ).tensors

    for name, base in BASE.items():
        assert out[name].tolist() == base.tolist()


def test_blocks_and_the_order_of_inputs_do_not_show():
    base = {"t": RNG.normal(size=2 * LEAF_ELEMENTS + 77)}
    models = [{"t": base["t"] + RNG.normal(size=base["t"].shape)} for _ in range(3)]
    options = {"artefacts": roles(["forget"] * 3), "params": {"lambda": "0.5"}, "base": base}

    whole = merge_arrays("negative_merge", models, digests=DIGESTS[:3], **options).tensors["t"]
    small = merge_arrays(
        "negative_merge", models[::-1], digests=DIGESTS[2::-1], block_elements=LEAF_ELEMENTS, **options
    ).tensors["t"]

    assert whole.tobytes() == small.tobytes()


def hard_numbers(rng, size, largest):
    """Return numbers of which many are equal, zero of either sign, next to nothing, or large."""
    drawn = rng.choice([0.0, -0.0, 5e-324, -5e-324, 2.3e-308, 1.0, -1.0, 1.5, largest, -largest], size)
    return np.where(rng.random(size) < 0.5, drawn, rng.normal(size=size))


@pytest.mark.parametrize("largest", [1e3, 1e307])
@pytest.mark.parametrize("weights", [(1, 1, 1), (3, 1, 2)])
def test_unanimous_means_have_the_bits_of_masked_sums(weights, largest):
    rng = np.random.default_rng(8)
    base, *models = (hard_numbers(rng, 40_001, largest) for _ in range(4))

    out = merge_arrays(
        "negative_merge", [{"t": model} for model in models], {"t": base}, {"lambda": "0.5"},
        digests=DIGESTS[:3], artefacts=roles(["forget"] * 3), weights=weights,
    ).tensors["t"]  # fmt: skip

    terms = [model - base for model in models]
    agrees = np.all([x > 0 for x in terms], axis=0) | np.all([x < 0 for x in terms], axis=0)
    total, weight = np.zeros(base.size), np.zeros(base.size)
    for x, w in zip(terms, weights, strict=True):
        total += x * agrees * float(w)
        weight += agrees * float(w)
    assert out.tobytes() == (total / (weight + (weight == 0)) * -0.5 + base).tobytes()


@pytest.mark.parametrize(
    ("inner", "params"),
    [
        ("ties", {}),
        ("task_arithmetic", {"lambda": "0.5"}),
        ("weight_average", {}),
        ("slerp", {}),
        ("dare_ties", {"density": "0.5"}),
        ("della", {"profile": "mergekit", "density": "0.5"}),
    ],
)
def test_unlearned_models_are_merged_by_the_inner_strategy_and_the_others_set_aside(inner, params):
    texts = {"inner": inner, **{f"inner.{name}": text for name, text in params.items()}}
    names = ("unlearned", "", "unlearned", "finetuned", "unlearned")
    taken = [0, 2, 4]

    out = merge_arrays(
        "split_unlearn_merge", MODELS, BASE, texts, digests=DIGESTS, seed=b"s", artefacts=roles(names)
    )

    plain = merge_arrays(
        inner, [MODELS[i] for i in taken], BASE, params, digests=[DIGESTS[i] for i in taken], seed=b"s"
    )
    for name in BASE:
        assert out.tensors[name].tobytes() == plain.tensors[name].tobytes()
    assert out.decisions["inner"] == plain.decisions
    assert out.decisions["unlearned"] == {DIGESTS[i].hex(): f"part {i}" for i in taken}
    assert "set aside" in out.decisions["warnings"][0]


def test_ties_merges_unlearned_models_unless_asked_otherwise():
    values = get("split_unlearn_merge").validate({})

    assert (values["inner"], float(values["inner.density"]), float(values["inner.lambda"])) == (
        "ties",
        0.2,
        1.0,
    )


def test_an_inner_strategy_makes_one_model():
    with pytest.raises(ParameterError, match="representation_surgery makes more than one model"):
        get("split_unlearn_merge").validate({"inner": "representation_surgery"})


def test_a_role_may_say_what_it_is_about():
    header = {"artefact": "role/1", "subject": "00" * 32, "role": "unlearned", "attribute": "health"}

    schema = Schema(())
    assert check_artefact("role", header, (), schema) == []
    assert "attribute is a text" in check_artefact("role", {**header, "attribute": 3}, (), schema)[0]
