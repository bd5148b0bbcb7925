"""Representation surgery: the common model is the inner merge, adapters belong to one merge of one set."""

import numpy as np
import pytest
from crdt_merge_protocol.errors import ArtefactMissingError
from crdt_merge_protocol.resolve_key import used_root
from crdt_merge_protocol.strategies.contract import MergeContext
from crdt_merge_protocol.strategies.reference import merge_arrays
from crdt_merge_protocol.strategies.registry import get
from support.artefacts import artefact

DIGESTS = [bytes([i]) * 32 for i in (1, 2)]
BASE = {"w": np.array([[1.0, 2.0], [3.0, -4.0]])}
MODELS = [{"w": BASE["w"] + shift} for shift in (0.5, -2.0)]


def adapters(inner="task_arithmetic", params=None, models=DIGESTS, tasks=(0, 1)):
    tensors = {}
    for i in tasks:
        tensors |= {f"{i}/down": np.full((2, 8), 0.5), f"{i}/up": np.full((8, 2), 0.25)}
    header = {"inner": inner, "params": {"lambda": "0.3"} if params is None else params}
    return artefact("surgery_adapter", header, tensors, models=models)


def merged(params, item, **options):
    used = [] if item is None else [item]
    return merge_arrays(
        "representation_surgery", MODELS, BASE, params, artefacts=used, digests=DIGESTS, **options
    )


def test_the_common_model_is_the_inner_merge():
    out = merged({}, adapters(tasks=(1,)))

    expected = merge_arrays("task_arithmetic", MODELS, BASE, {"lambda": "0.3"}, digests=DIGESTS)
    np.testing.assert_array_equal(out.tensors["w"], expected.tensors["w"])
    assert out.decisions["adapters"] == [DIGESTS[1].hex()]
    assert out.decisions["determinism"] == "bitwise"


def test_the_model_of_a_task_is_the_common_one_and_says_where_its_adapter_is():
    common, task = merged({}, adapters()), merged({}, adapters(), task=DIGESTS[0])

    np.testing.assert_array_equal(task.tensors["w"], common.tensors["w"])
    assert common.decisions["warnings"] == []
    assert [text for text in task.decisions["warnings"] if "modulators" in text]


def test_spelling_of_the_inner_parameters_does_not_matter():
    params = {"inner": "task_arithmetic", "inner.lambda": "0.30"}

    out = merged(params, adapters(params={"lambda": "0.3", "normalize": "false"}))

    assert len(out.decisions["adapters"]) == 2


@pytest.mark.parametrize(
    ("params", "item", "problem"),
    [
        ({}, None, "there is no surgery_adapter"),
        ({}, adapters(models=DIGESTS[:1]), "of another set of models"),
        ({"inner": "ties"}, adapters(), "trained on another merge|does not go with ties"),
        ({"inner.lambda": "0.5"}, adapters(), "trained on another merge"),
        ({}, adapters(params={"lambda": "x"}), "does not go with task_arithmetic"),
    ],
)
def test_adapters_of_another_merge_are_stale(params, item, problem):
    with pytest.raises(ArtefactMissingError, match=problem):
        merged(params, item)


def test_each_task_is_told_which_tensors_of_which_artefact_are_its_adapter():
    strategy, item = get("representation_surgery"), adapters(tasks=(1,))
    context = MergeContext(
        strategy=strategy.id,
        params=strategy.validate({}),
        weights=(1, 1),
        digests=tuple(DIGESTS),
        has_base=True,
        seed=b"",
        specs=(),
        artefacts=(item.artefact,),
        set_root=used_root(DIGESTS),
    )

    assert strategy.output == "modulators"
    assert strategy.adapter(context, 0) is None
    assert strategy.adapter(context, 1) == (0, {"down": "1/down", "up": "1/up"})
