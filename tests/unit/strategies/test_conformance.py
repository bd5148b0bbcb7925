"""What every registered strategy must keep, whoever wrote it: a new one is held to it by its name.

What concerns bits, blocks and memory is in ``test_conformance_of_bits.py``.
"""

import inspect
from fractions import Fraction

import numpy as np
import pytest
from crdt_merge_protocol.blobs import Schema
from crdt_merge_protocol.errors import (
    ArtefactMissingError,
    BaseMissingError,
    EmptySetError,
    ParameterError,
)
from crdt_merge_protocol.strategies.artefact_checks import check_artefact, check_values
from crdt_merge_protocol.strategies.dtypes import encode_block
from crdt_merge_protocol.strategies.reference import merge_arrays
from crdt_merge_protocol.strategies.registry import get, names
from hypothesis import given
from hypothesis import strategies as st
from support.artefacts import specs_of
from support.conformance import COUNT, EVERY, SHAPES, case, model, uses_linear_algebra
from support.profile import examples
from support.synthetic import NAMES

ON_DIFFERENCES = [name for name in names() if get(name).base == "required"]
ABSOLUTE = {
    "ram": "a change is one above epsilon",
    "ramplus_tl": "a change is one above epsilon",
    "nearswap": "a step has a length",
    "arcee_fusion": "a softmax has a temperature",
}
"""Not equivariant to scale by their own definition, and why."""
MEANS = {
    "weight_average": {}, "linear": {}, "slerp": {}, "karcher": {}, "multislerp": {}, "nuslerp": {},
    "model_stock": {}, "sce": {"select_topk": "1"}, "ram": {}, "ramplus_tl": {"r": "0"},
    "nearswap": {"t": "1000"}, "passthrough": {}, "coordinate_median": {}, "trimmed_mean": {}, "krum": {},
    "multi_krum": {}, "geometric_median": {}, "norm_clipped_mean": {}, "fisher_merge": {},
    "task_arithmetic": {"normalize": "true"}, "ties": {"density": "1"}, "dare": {"density": "1"},
    "dare_ties": {"density": "1"},
}  # fmt: skip
"""With these parameters, the merge of equal models is that model."""


@EVERY
def test_synthetic_artefacts_are_valid_and_complete(name):
    """Otherwise the other tests here would try nothing."""
    made = case(name)

    assert made.unmet is None
    schema = Schema(specs_of(made.models[0]))
    for item in made.artefacts:
        assert check_artefact(item.artefact.type, item.artefact.header, item.artefact.specs, schema) == []
        for tensor, values in item.tensors.items():
            assert check_values(item.artefact.type, tensor, values.reshape(-1).astype(float)) is None


@EVERY
def test_texts_tell_what_it_is(name):
    strategy = get(name)

    for text in (strategy.title, strategy.paper, strategy.doc, strategy.formula):
        assert text == text.strip() != ""
    assert strategy.doc.endswith(".")
    assert all(len(line) <= 110 for line in strategy.formula.split("\n"))
    assert inspect.getdoc(type(strategy))
    for parameter in strategy.parameters:
        assert parameter.doc[0].isupper() or parameter.doc.split()[0].rstrip(":;,") in dir_of(parameter)
        assert parameter.doc.endswith(".")
        assert parameter.type != "decimal" or None not in (parameter.low, parameter.high)


def dir_of(parameter):
    """Return words a sentence about a parameter may begin with in lower case: names of values."""
    return {parameter.name, *parameter.choices, "auto", "lambda", "nu", "t"}


@EVERY
def test_shapes_are_kept_and_values_finite(name):
    for count in (COUNT, 7):
        merged = case(name, count=count).merge().tensors

        assert {key: x.shape for key, x in merged.items()} == SHAPES
        assert all(np.isfinite(x).all() for x in merged.values())


@EVERY
def test_one_model_merges_or_calls_for_the_stand_in(name):
    made = case(name, count=1)
    if made.unmet is not None:
        assert any(parameter.name == "fallback" for parameter in get(name).parameters)
        return

    assert all(np.isfinite(x).all() for x in made.merge().tensors.values())


@EVERY
def test_a_merge_of_nothing_is_an_error(name):
    """SCENARIOS B60: with k = 0 there is nothing to resolve, base or not."""
    with pytest.raises(EmptySetError):
        merge_arrays(name, [], model(np.random.default_rng(4)))


@pytest.mark.parametrize("name", ON_DIFFERENCES)
def test_a_base_that_is_missing_is_named(name):
    """SCENARIOS B60."""
    with pytest.raises(BaseMissingError, match=name):
        merge_arrays(name, [model(np.random.default_rng(4))])


@pytest.mark.parametrize("name", ON_DIFFERENCES)
def test_no_differences_give_the_base(name):
    base = model(np.random.default_rng(4))

    merged = case(name, models=[base] * COUNT, base=base).merge().tensors

    for key in SHAPES:
        np.testing.assert_array_equal(merged[key], base[key])


@pytest.mark.parametrize("name", [name for name in names() if name not in ABSOLUTE])
def test_scaled_differences_give_a_scaled_result(name):
    """A power of two scales without rounding, so that strategies made of plain arithmetic are exact."""
    rng = np.random.default_rng(6)
    models = [model(rng) for _ in range(COUNT)]
    zero = {key: np.zeros_like(x) for key, x in models[0].items()}
    scaled = [{key: np.asarray(x * np.float32(0.125)) for key, x in each.items()} for each in models]

    plain = case(name, models=models, base=zero).merge().tensors
    result = case(name, models=scaled, base=zero).merge().tensors

    for key in SHAPES:
        np.testing.assert_allclose(result[key], plain[key] * 0.125, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "scale"),
    [(name, scale) for name in MEANS for scale in (1.0, 1e-15, 1e8) if scale == 1 or name not in ABSOLUTE],
)
def test_the_merge_of_equal_models_is_that_model(name, scale):
    """SCENARIOS S20: at any magnitude, after rounding to float32. Only weights tell them apart."""
    same = model(np.random.default_rng(9), scale)
    zero = {key: np.zeros_like(x) for key, x in same.items()}
    made = case(name, MEANS[name], models=[same] * COUNT, base=zero)

    merged = made.merge(weights=[1, 2, 3, 4, 5]).tensors

    for key in SHAPES:
        found = np.frombuffer(encode_block("F32", merged[key].reshape(-1)), np.float32)
        np.testing.assert_array_equal(found, same[key].reshape(-1))


HOSTILE = {
    "zeros": lambda _: [np.zeros(6)] * COUNT,
    "opposite": lambda _: [np.ones(6), -np.ones(6)] * 2 + [np.ones(6)],
    "cancelling": lambda _: [np.ones(6), -np.ones(6), np.arange(6.0), -np.arange(6.0), np.zeros(6)],
    "one is zero": lambda rng: [np.zeros(6), *rng.normal(size=(4, 6))],
    "huge": lambda rng: [*(rng.normal(size=(4, 6)) * 1e200), np.ones(6)],
    "tiny": lambda rng: [*(rng.normal(size=(4, 6)) * 1e-310), np.zeros(6)],
    "over f16": lambda rng: list(rng.normal(size=(5, 6)) * 1e6),
    "far apart": lambda rng: [rng.normal(size=6) * 10.0**power for power in (-200, -20, 0, 20, 38)],
}


@EVERY
@pytest.mark.parametrize("attack", HOSTILE)
def test_no_set_of_contributions_can_fail_in_a_group(name, attack):
    """STRATEGIES 1.12. Warnings of numpy are errors here, so arithmetic that overflows is meant to."""
    vectors = HOSTILE[attack](np.random.default_rng(3))
    models = [{"m": np.reshape(x, (2, 3)), "s": x[0].reshape(()), "v": x} for x in vectors]
    base = {key: np.zeros_like(x) for key, x in models[0].items()}

    # Squares of huge numbers make infinities; in products of matrices numpy would warn of those.
    quiet = "ignore" if attack == "huge" and uses_linear_algebra(name) else "warn"
    with np.errstate(all=quiet, under="ignore"):
        merged = case(name, models=models, base=base).merge(weights=[1, 1, 1, 1, "0.25"])

    for values in merged.tensors.values():
        assert attack == "huge" or np.isfinite(values).all()
        stored = np.frombuffer(encode_block("F16", values.reshape(-1), "saturate"), np.float16)
        assert attack == "huge" or np.isfinite(stored).all()


FUZZED = examples(3)


def texts_of(parameter):
    """Return a search strategy for texts of a parameter's declared range."""
    if parameter.type == "boolean":
        return st.sampled_from(["true", "false"])
    if parameter.type == "choice":
        return st.sampled_from(parameter.choices)
    if parameter.type in ("text", "strategy"):
        return st.just(parameter.default)
    low = Fraction(parameter.low or -9)
    high = Fraction(parameter.high or low + 20)
    ends = [text for text in (parameter.low, parameter.high, *parameter.choices) if text is not None]
    if parameter.type == "integer":
        return st.sampled_from(ends) | st.integers(int(low), min(int(high), int(low) + 20)).map(str)
    inside = st.integers(1, 7).map(lambda eighths: f"{float(low + (high - low) * eighths / 8):.17f}")
    return st.sampled_from(ends) | inside


@EVERY
@FUZZED
@given(data=st.data())
def test_any_parameters_of_the_declared_ranges_merge(name, data):
    strategy = get(name)
    declared = strategy.parameters
    some = data.draw(st.lists(st.sampled_from(declared), unique_by=id)) if declared else []
    params = {parameter.name: data.draw(texts_of(parameter)) for parameter in some}
    try:
        strategy.validate(params)
    except ParameterError:
        return  # Some parameters belong to one profile only.
    made = case(name, params, seed=data.draw(st.integers(0, 99)))
    if made.unmet is not None:
        assert any(parameter.name == "fallback" for parameter in strategy.parameters)
        return

    assert all(np.isfinite(x).all() for x in made.merge().tensors.values())


@pytest.mark.parametrize("name", [name for name in names() if get(name).output == "modulators"])
def test_every_task_has_its_model(name):
    made = case(name)

    for task in NAMES[:COUNT]:
        assert all(np.isfinite(x).all() for x in made.merge(task=task).tensors.values())


@pytest.mark.parametrize("name", [name for name in names() if get(name).k_min > 1])
def test_fewer_models_than_it_needs_are_no_surprise(name):
    made = case(name, count=get(name).k_min - 1)

    with pytest.raises(ArtefactMissingError):
        made.merge()
