"""Parameters by tensor and contribution: each tensor is merged as if those values were the only ones."""

from fractions import Fraction

import numpy as np
import pytest
from crdt_merge_protocol.errors import ParameterError
from crdt_merge_protocol.strategies import globs
from crdt_merge_protocol.strategies.reference import merge_arrays
from crdt_merge_protocol.strategies.registry import get

RNG = np.random.default_rng(21)
NAMES = ("a.0", "a.1", "b.0")
BASE = {name: RNG.integers(-64, 64, (6, 50)) / 16 for name in NAMES}
MODELS = [{name: x + RNG.integers(-40, 40, x.shape) / 16 for name, x in BASE.items()} for _ in range(3)]
DIGESTS = [bytes([i]) * 32 for i in (7, 8, 9)]
FIRST, SECOND, THIRD = (digest.hex()[:8] for digest in DIGESTS)
LINEAR = ("weight_average", "linear", "task_arithmetic")
DELTA = ("task_arithmetic", "ties", "dare", "dare_ties")
SCOPED = {"ties": {"scope": "tensor"}, "dare_ties": {"scope": "tensor", "ties_density": "0.5"}}


def merge(strategy, params, weights=(1, 2, 1), names=NAMES, **options):
    models = [{name: model[name] for name in names} for model in MODELS]
    base = {name: BASE[name] for name in names}
    texts = {**SCOPED.get(strategy, {}), **params}
    return merge_arrays(
        strategy, models, base, texts, weights=weights, digests=DIGESTS, seed=b"s", **options
    ).tensors


@pytest.mark.parametrize("strategy", sorted({*LINEAR, *DELTA}))
def test_a_weight_by_tensor_and_contribution_is_a_factor_of_the_weight_there(strategy):
    table = merge(strategy, {"weight": f"a.*#{SECOND}=0.5;b.*#{FIRST}=3;1"})

    for names, weights in ((("a.0", "a.1"), (1, 1, 1)), (("b.0",), (3, 2, 1))):
        alone = merge(strategy, {}, weights, names)
        for name in names:
            assert table[name].tobytes() == alone[name].tobytes()


@pytest.mark.parametrize("strategy", ["ties", "dare", "dare_ties"])
@pytest.mark.parametrize("profile", ["paper", "mergekit"])
def test_a_density_by_tensor_is_that_tensors_density(strategy, profile):
    table = merge(strategy, {"density": "a.0=0.25;a.*=1;0", "profile": profile})

    for name, density in zip(NAMES, ("0.25", "1", "0"), strict=True):
        alone = merge(strategy, {"density": density, "profile": profile}, names=(name,))
        assert table[name].tobytes() == alone[name].tobytes()


@pytest.mark.parametrize("strategy", ["ties", "dare"])
@pytest.mark.parametrize("profile", ["paper", "mergekit"])
def test_a_density_by_contribution_trims_each_by_its_own(strategy, profile):
    """Of what a contribution of density zero says nothing is heard: as if it had no weight."""
    own = {"profile": profile, "density": f"#{FIRST}=0.25;#{SECOND}=0;0.5"}
    options = {} if strategy == "ties" else {"normalize": "false"}

    table = merge(strategy, {**own, **options})
    muted = merge(strategy, {"profile": profile, "density": f"#{FIRST}=0.25;0.5", **options}, (1, 0, 1))

    for name in NAMES:
        assert table[name].tobytes() == muted[name].tobytes()


def test_a_density_by_contribution_works_over_the_whole_model():
    table = merge("ties", {"scope": "model", "density": f"#{FIRST}=0.25;1"}, (1, 0, 0))

    plain = merge("ties", {"scope": "model", "density": "0.25"}, (1, 0, 0))
    for name in NAMES:
        assert table[name].tobytes() == plain[name].tobytes()


@pytest.mark.parametrize("rescale", ["inverse", "l1", "none"])
def test_every_rescaling_takes_densities_by_contribution(rescale):
    options = {"rescale": rescale, "normalize": "false"}
    table = merge("dare", {"density": f"#{FIRST}=1;#{THIRD}=0;0.5", **options})

    terms = [
        merge("dare", {"density": density, **options}, weights)
        for density, weights in (("1", (1, 0, 0)), ("0.5", (0, 2, 0)))
    ]
    for name in NAMES:
        parts = [term[name] - BASE[name] for term in terms]
        np.testing.assert_allclose(table[name] - BASE[name], sum(parts), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("strategy", DELTA)
def test_a_lambda_by_tensor_is_that_tensors_lambda(strategy):
    table = merge(strategy, {"lambda": "a.0=0;a.*=0.5;2"})

    for name, scale in zip(NAMES, ("0", "0.5", "2"), strict=True):
        assert table[name].tobytes() == merge(strategy, {"lambda": scale}, names=(name,))[name].tobytes()


def test_a_t_by_tensor_interpolates_each_tensor_its_own_way():
    options = {"digests": DIGESTS[:2]}
    texts = {"t": "a.0=0;a.*=0.25;none", "t_origin": DIGESTS[0].hex()}

    out = merge_arrays("linear", MODELS[:2], None, texts, weights=(1, 3), **options).tensors

    first, second = MODELS[:2]
    assert out["a.0"].tolist() == first["a.0"].tolist()
    np.testing.assert_allclose(out["a.1"], 0.75 * first["a.1"] + 0.25 * second["a.1"], rtol=1e-15)
    np.testing.assert_allclose(out["b.0"], 0.25 * first["b.0"] + 0.75 * second["b.0"], rtol=1e-15)


@pytest.mark.parametrize("strategy", ["ties", "dare_ties", "task_arithmetic"])
def test_without_any_weight_in_a_tensor_its_base_stays(strategy):
    out = merge(strategy, {"weight": "a.*=0;1"})

    for name in ("a.0", "a.1"):
        assert out[name].tobytes() == BASE[name].tobytes()
    assert out["b.0"].tobytes() == merge(strategy, {}, names=("b.0",))["b.0"].tobytes()


@pytest.mark.parametrize("strategy", ["weight_average", "linear", "dare", "task_arithmetic"])
def test_weights_that_cancel_are_refused_offline_and_left_out_in_a_group(strategy):
    texts = {} if strategy == "weight_average" else {"normalize": "true"}
    table = {**texts, "weight": "a.*=0;1"}
    with pytest.raises(ParameterError, match=r"zero in a\.0, a\.1"):
        merge(strategy, table, is_strict=True)

    result = merge_arrays(strategy, MODELS, BASE, table, digests=DIGESTS, seed=b"s")

    assert "a.0, a.1: the weights add up to zero there" in result.decisions["warnings"][0]
    plain = merge_arrays(strategy, MODELS, BASE, texts, digests=DIGESTS, seed=b"s")
    for name in NAMES:
        assert result.tensors[name].tobytes() == plain.tensors[name].tobytes()


@pytest.mark.parametrize(("strategy", "name"), [("ties", "density"), ("dare_ties", "ties_density")])
def test_the_share_of_a_whole_model_cannot_differ_by_tensor(strategy, name):
    with pytest.raises(ParameterError, match="cannot differ by tensor"):
        get(strategy).validate({"scope": "model", name: "a.*=0.5;1"})


def test_a_table_of_many_patterns_translates_each_once():
    """The library's memory holds 256: with more, each question would translate all of them anew."""
    table = get("weight_average").validate({"weight": ";".join(f"{n}*x=0.5" for n in range(1024))})["weight"]
    table.at("y", "ab")
    before = globs._compiled.cache_info().misses
    for _ in range(3):
        assert table.at("1023.x", "ab") == Fraction(1, 2)
        assert table.at("y", "ab") == 1

    assert globs._compiled.cache_info().misses == before


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("a.b", "a.b", True), ("a.b", "a-b", False), ("A", "a", False), ("*", "a.b", True),
        ("a.?", "a.b", True), ("[ab].*", "b.0", True), ("[!ab].*", "b.0", False), ("a]", "a]", True),
    ],
)  # fmt: skip
def test_patterns_are_those_of_the_shell(pattern, name, expected):
    assert globs.fits(pattern, name) is expected
