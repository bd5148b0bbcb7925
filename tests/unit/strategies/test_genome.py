"""Genomes: applying one is running its inner strategy; nothing else may come of it."""

import numpy as np
import pytest
from crdt_merge_protocol.errors import ArtefactMissingError
from crdt_merge_protocol.strategies.reference import merge_arrays
from support.artefacts import artefact

DIGESTS = [bytes([i]) * 32 for i in (1, 2, 3)]
IDS = ["evolutionary_merge", "genetic_merge"]


def draw(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.integers(-999, 999, (5, 7)) / 64 for name in ("layer.0.w", "layer.1.w")}


BASE, MODELS = draw(0), [draw(i) for i in (1, 2, 3)]


def genome(inner="ties", params=None, groups=(), models=DIGESTS, **more):
    header = {"inner": inner, "params": params or {}, "layer_groups": list(groups), **more}
    return artefact("genome", header, models=models)


def merged(item, strategy=IDS[0], base=BASE, **options):
    return merge_arrays(strategy, MODELS, base, artefacts=[item], digests=DIGESTS, **options)


@pytest.mark.parametrize("strategy", IDS)
@pytest.mark.parametrize(
    ("inner", "params"),
    [("ties", {"density": "0.4"}), ("dare_ties", {"density": "0.5"}), ("linear", {}), ("slerp", {})],
)
def test_a_genome_runs_its_inner_strategy(strategy, inner, params):
    item = genome(inner, params, search={"algo": "ga", "score": "0.71"})

    out = merged(item, strategy, seed=b"s")

    expected = merge_arrays(inner, MODELS, BASE, params, digests=DIGESTS, seed=b"s")
    for name in BASE:
        np.testing.assert_array_equal(out.tensors[name], expected.tensors[name])
    assert out.decisions["strategy"] == strategy
    assert out.decisions["inner"]["strategy"] == inner
    assert out.decisions["search"] == {"algo": "ga", "score": "0.71"}
    assert out.decisions["artefact"] == item.artefact.digest.hex()


def test_the_class_and_the_base_are_those_of_the_inner_strategy():
    item = genome("weight_average")

    without = merged(item, base=None)

    expected = merge_arrays("weight_average", MODELS, digests=DIGESTS)
    np.testing.assert_array_equal(without.tensors["layer.0.w"], expected.tensors["layer.0.w"])
    assert without.decisions["determinism"] == "bitwise"


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        (genome(models=DIGESTS[:2]), "of another set of models"),
        (genome("fisher_merge"), "fisher_merge cannot be an inner strategy"),
        (genome("genetic_merge"), "genetic_merge cannot be an inner strategy"),
        (genome("nonsense"), "no strategy 'nonsense'"),
        (genome("ties", {"densty": "0.4"}), "did you mean 'density'"),
        (genome("linear", groups=[{"match": "*", "values": {"normalize": "true"}}]), "normalize"),
        (genome("ties", groups=[{"match": "a;b", "values": {"density": "1"}}]), "holds one of"),
        (genome("ties", groups=[{"match": "*", "values": {"density": ["1", "1"]}}]), "2 values for 3"),
    ],
)
def test_a_genome_that_cannot_run_is_not_run(item, problem):
    with pytest.raises(ArtefactMissingError, match=problem):
        merged(item)


def test_a_genome_that_needs_a_base_says_so_without_one():
    with pytest.raises(ArtefactMissingError, match="no base is given"):
        merged(genome("ties"), base=None)


def test_equal_digests_of_unequal_genomes_are_not_confused():
    """Digests follow from contents; should a caller make them up, the contents still decide."""
    first, second = genome("linear"), genome("slerp")
    second = type(second)(
        type(second.artefact)(
            digest=first.artefact.digest, type="genome", header=second.artefact.header, specs=()
        ),
        {},
    )

    inner = [merged(item).decisions["inner"]["strategy"] for item in (first, second, first)]

    assert inner == ["linear", "slerp", "linear"]
