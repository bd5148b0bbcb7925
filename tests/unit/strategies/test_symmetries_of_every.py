"""What every registered strategy keeps when models are negated, renamed, strided or all the same.

Exceptions are named with their reason, and must be ones: what does hold may not be excepted. So a strategy
that is registered tomorrow is held to everything here, or the exception is written down.
"""

import itertools

import numpy as np
import pytest
from crdt_merge_protocol.strategies.dtypes import encode_block
from crdt_merge_protocol.strategies.registry import get, names
from support.conformance import COUNT, EVERY, SHAPES, case, content

NOT_ODD = {"arcee_fusion": "a softmax has a direction"}
"""The merge of negated differences is not the negated one."""
NOT_MEANS = {
    "della": "drops", "della_linear": "drops", "model_breadcrumbs": "drops", "breadcrumbs_ties": "drops",
    "dare": "drops", "dare_ties": "drops", "ties": "trims", "sce": "selects where models differ",
    "split_unlearn_merge": "is ties", "evolutionary_merge": "is ties", "genetic_merge": "is ties",
    "split_fused": "is ties",
    "led_merge": "takes out what models share", "svd_knot_tying": "trims",
    "star": "cuts directions", "svd_truncated_ta": "cuts directions", "adarank": "cuts directions",
    "task_arithmetic": "adds", "ada_merging": "weighs by its table", "dam": "weighs by its coefficients",
    "negative_merge": "subtracts", "representation_surgery": "is task arithmetic",
    "arcee_fusion": "keeps what is important",
}  # fmt: skip
"""With their own parameters, the merge of equal models is not that model."""
NOT_AT = {
    ("ram", 1e-8): "takes changes below epsilon for none",
    ("ramplus_tl", 1e-8): "takes changes below epsilon for none",
    ("nearswap", 1.0): "goes a step of 0.0001",
}
"""Means at some magnitudes only: what is absolute in them has a parameter."""
SHARES = {"density", "select_topk"}
"""Parameters that say how many elements stay."""
NOT_NESTED = {
    "ada_merging": "trims only as plusplus, and then all with one density of the table",
    "safe_merge": "drops only if told to combine so",
}


def spread(rng, shapes=SHAPES):
    """Return a model without equal magnitudes, so that no vote cancels out and no selection ties."""
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def zeros(like):
    return {name: np.zeros_like(values) for name, values in like.items()}


@EVERY
def test_negated_differences_give_the_negated_merge(name):
    rng = np.random.default_rng(21)
    models = [spread(rng) for _ in range(COUNT)]
    base = zeros(models[0])
    negated = [{key: -values for key, values in each.items()} for each in models]

    plain = case(name, models=models, base=base).merge().tensors
    mirrored = case(name, models=negated, base=base).merge().tensors

    is_odd = all(np.allclose(mirrored[key], -plain[key], rtol=1e-12, atol=1e-300) for key in SHAPES)
    assert is_odd == (name not in NOT_ODD)


@EVERY
def test_only_random_strategies_see_what_tensors_are_called(name):
    """Names keep their order, which is that of equal magnitudes and of sums."""
    rng = np.random.default_rng(22)
    models, base = [spread(rng) for _ in range(COUNT)], spread(rng)

    def renamed(model):
        return {f"x.{key}": values for key, values in model.items()}

    plain = content(case(name, models=models, base=base).merge())
    other = content(case(name, models=[renamed(each) for each in models], base=renamed(base)).merge())

    is_same = plain == {key.removeprefix("x."): values for key, values in other.items()}
    assert is_same == (not get(name).is_random)


@EVERY
def test_the_layout_in_memory_does_not_show(name):
    rng = np.random.default_rng(23)
    models, base = [spread(rng) for _ in range(COUNT)], spread(rng)
    made = case(name, models=models, base=base)

    def strided(model):
        spaced = {key: np.repeat(values[..., None], 2, -1)[..., 0] for key, values in model.items()}
        return {key: np.array(values, order="F") for key, values in spaced.items()}

    other = made.merge(models=[strided(each) for each in models], base=strided(base))

    assert content(made.merge()) == content(other)


@EVERY
@pytest.mark.parametrize("scale", [1e-8, 1.0])
def test_who_claims_to_be_idempotent_is(name, scale):
    """SCENARIOS S20: with its own parameters and equal weights, after rounding to float32."""
    same = {key: values * np.float32(scale) for key, values in spread(np.random.default_rng(24)).items()}
    made = case(name, models=[same] * COUNT, base=zeros(same))

    merged = made.merge().tensors

    is_mean = all(
        np.array_equal(
            np.frombuffer(encode_block("F32", merged[key].reshape(-1)), np.float32), same[key].reshape(-1)
        )
        for key in SHAPES
    )
    assert is_mean == (name not in NOT_MEANS and (name, scale) not in NOT_AT)


@pytest.mark.parametrize(
    ("name", "parameter"),
    [(name, one.name) for name in names() for one in get(name).parameters if one.name in SHARES],
)
def test_what_a_smaller_share_keeps_a_larger_one_keeps_too(name, parameter):
    rng = np.random.default_rng(25)
    shapes = {"a": (6, 50), "b": (70,)}
    models = [spread(rng, shapes) for _ in range(COUNT)]
    if case(name, models=models[:2], base=zeros(models[0])).unmet is None:
        del models[2:]  # Few, or hardly an element of the merge is zero.
    extra = {"epsilon": "0.05"} if name.startswith("della") else {}
    kept = []
    for share in ("0.1", "0.3", "0.5", "0.7"):
        made = case(name, {parameter: share, **extra}, models=models, base=zeros(models[0]))
        merged = made.merge().tensors
        kept.append(np.concatenate([merged[key].reshape(-1) != 0 for key in shapes]))

    counts = [np.count_nonzero(each) for each in kept]
    is_nested = counts == sorted(set(counts)) and all(
        not (small & ~large).any() for small, large in itertools.pairwise(kept)
    )
    assert is_nested == (name not in NOT_NESTED)
