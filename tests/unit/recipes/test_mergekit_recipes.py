"""Configurations of mergekit become strategies with parameters, exactly or not at all."""

from __future__ import annotations

from fractions import Fraction

import pytest
from crdt_merge_node.recipes.mergekit import read_mergekit
from crdt_merge_node.recipes.mergekit_values import interpolate, layer_of
from crdt_merge_protocol.canonical import digest
from crdt_merge_protocol.errors import ParameterError
from crdt_merge_protocol.strategies.parameters import Table
from crdt_merge_protocol.strategies.registry import get

TENSORS = (
    "lm_head.weight",
    "model.embed_tokens.weight",
    *(f"model.layers.{i}.{part}.weight" for i in range(5) for part in ("mlp.up_proj", "self_attn.q_proj")),
    "model.norm.weight",
)


def digest_of(model: str) -> bytes:
    return digest("test/model", model.encode())


def table(recipe_params, strategy: str, name: str) -> Table:
    value = get(strategy).validate(recipe_params)[name]
    assert isinstance(value, Table)
    return value


def test_scalars_become_parameters_of_the_mergekit_profile() -> None:
    recipe = read_mergekit(
        """
        merge_method: ties
        base_model: base
        models:
          - model: a
            parameters: {density: 0.5}
          - model: b
            parameters: {density: 0.5}
        parameters: {normalize: true, int8_mask: true}
        dtype: bfloat16
        """
    ).recipe(TENSORS, digest_of)
    assert recipe.strategy == "ties"
    assert recipe.params == {"density": "0.5", "normalize": "true", "profile": "mergekit"}
    assert (recipe.models, recipe.base, recipe.dtype) == (("a", "b"), "base", "BF16")
    assert recipe.notes == ("int8_mask was ignored: it only saves memory there",)


def test_values_of_single_models_become_rows_by_digest() -> None:
    recipe = read_mergekit(
        """
        merge_method: task_arithmetic
        base_model: base
        models:
          - model: base
          - {model: a, parameters: {weight: 0.3}}
          - {model: b, parameters: {weight: 0.7}}
        """
    ).recipe(TENSORS, digest_of)
    weights = table(recipe.params, "task_arithmetic", "weight")
    assert recipe.models == ("a", "b"), "the base is what differences are from, not one of the models"
    for model, weight in (("a", Fraction(3, 10)), ("b", Fraction(7, 10))):
        assert weights.at(TENSORS[0], digest_of(model).hex()) == weight


def test_a_gradient_runs_over_the_layers_with_its_ends_outside() -> None:
    recipe = read_mergekit(
        """
        merge_method: slerp
        base_model: a
        models: [{model: a}, {model: b}]
        parameters:
          t:
            - filter: self_attn
              value: [0, 0.5, 1]
            - value: 0.25
        """
    ).recipe(TENSORS, digest_of)
    weights = table(recipe.params, "slerp", "weight")
    for layer, t in enumerate((0, Fraction(1, 4), Fraction(1, 2), Fraction(3, 4), 1)):
        name = f"model.layers.{layer}.self_attn.q_proj.weight"
        assert weights.at(name, digest_of("b").hex()) == t
        assert weights.at(name, digest_of("a").hex()) == 1 - t
    assert weights.at("model.norm.weight", digest_of("b").hex()) == Fraction(1, 4)
    assert recipe.base is None


def test_what_is_of_no_layer_takes_the_first_value() -> None:
    recipe = read_mergekit(
        """
        merge_method: linear
        models:
          - {model: a, parameters: {weight: [0.2, 0.8]}}
          - {model: b, parameters: {weight: 0.5}}
        """
    ).recipe(TENSORS, digest_of)
    weights = table(recipe.params, "linear", "weight")
    for tensor in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert weights.at(tensor, digest_of("a").hex()) == Fraction(1, 5)
        assert weights.at(tensor, digest_of("b").hex()) == Fraction(1, 2)
    assert weights.at("model.layers.2.mlp.up_proj.weight", digest_of("a").hex()) == Fraction(1, 2)
    assert weights.at("model.layers.4.mlp.up_proj.weight", digest_of("a").hex()) == Fraction(4, 5)


def test_a_single_layer_takes_the_last_value() -> None:
    recipe = read_mergekit(
        """
        merge_method: linear
        models:
          - {model: a, parameters: {weight: [0.2, 0.8]}}
          - {model: b, parameters: {weight: 0.5}}
        """
    ).recipe(["lm_head.weight", "model.layers.0.mlp.up_proj.weight"], digest_of)
    weights = table(recipe.params, "linear", "weight")
    assert weights.at("model.layers.0.mlp.up_proj.weight", digest_of("a").hex()) == Fraction(4, 5)
    assert weights.at("lm_head.weight", digest_of("a").hex()) == Fraction(1, 5)


def test_where_no_filter_of_a_model_matches_the_common_value_holds() -> None:
    recipe = read_mergekit(
        """
        merge_method: linear
        models:
          - {model: a, parameters: {weight: [{filter: mlp, value: 0.9}]}}
          - {model: b}
        parameters: {weight: [{filter: lm_head, value: 0.1}, {value: 0.3}]}
        """
    ).recipe(TENSORS, digest_of)
    weights = table(recipe.params, "linear", "weight")
    for tensor in TENSORS:
        common = Fraction(1, 10) if tensor == "lm_head.weight" else Fraction(3, 10)
        assert weights.at(tensor, digest_of("b").hex()) == common
        mine = Fraction(9, 10) if "mlp" in tensor else common
        assert weights.at(tensor, digest_of("a").hex()) == mine


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("merge_method: frankenmerge\nmodels: [{model: a}]", "merge_method frankenmerge"),
        ("merge_method: linear\nslices: []\nmodels: [{model: a}]", "slices is not supported"),
        ("merge_method: linear\ntokenizer_source: union\nmodels: [{model: a}]", "tokenizer_source"),
        ("merge_method: ties\nmodels: [{model: a, parameters: {wieght: 1}}]", "parameter wieght of ties"),
        ("merge_method: linear\nmodels: [{model: a, revision: x}]", "models[].revision"),
        ("merge_method: linear", "models is missing"),
        ("merge_method: linear\nmodels: [{model: a}, {model: a}]", "model a is listed twice"),
        ("merge_method: linear\nmodels: [{model: a}]\ndtype: int4", "dtype int4"),
        ("models: [", "Not YAML"),
        ("- 1", "mapping"),
        ("!!python/object/apply:os.system ['true']", "Not YAML"),
    ],
)
def test_what_cannot_be_said_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(ParameterError) as caught:
        read_mergekit(text)
    assert named in str(caught.value)


SLICED = """
merge_method: slerp
base_model: a
slices:
  - sources:
      - {model: a, layer_range: [0, LAYERS]}
      - {model: b, layer_range: [0, LAYERS]}
parameters:
  t: [0, 1]
"""


def test_one_slice_of_all_layers_is_what_models_are() -> None:
    whole = "merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}]\nparameters: {t: [0, 1]}"
    sliced = read_mergekit(SLICED.replace("LAYERS", "5")).recipe(TENSORS, digest_of)

    assert sliced == read_mergekit(whole).recipe(TENSORS, digest_of)


def test_a_slice_of_some_layers_is_refused() -> None:
    config = read_mergekit(SLICED.replace("LAYERS", "4"))
    with pytest.raises(ParameterError, match="slices takes 4 layers and the model has 5"):
        config.recipe(TENSORS, digest_of)
    with pytest.raises(ParameterError, match="how many there are is not known"):
        config.recipe((), digest_of)


@pytest.mark.parametrize(
    "sources",
    [
        "[{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 3]}]",
        "[{model: a, layer_range: [1, 5]}, {model: b, layer_range: [1, 5]}]",
        "[{model: a}]",
        "[a]",
        "[]",
        "7",
    ],
)
def test_slices_of_any_other_form_are_refused_by_name(sources: str) -> None:
    with pytest.raises(ParameterError) as caught:
        read_mergekit(f"merge_method: linear\nslices: [{{sources: {sources}}}]")

    assert str(caught.value).startswith("slices is not supported, but for one slice of all layers.")


def test_slerp_without_an_end_is_refused() -> None:
    config = read_mergekit("merge_method: slerp\nmodels: [{model: a}, {model: b}]\nparameters: {t: 0.5}")
    with pytest.raises(ParameterError, match="base_model"):
        config.recipe(TENSORS, digest_of)


@pytest.mark.parametrize("value", ["heavy", ".nan", ".inf", "[1, null]", "{}"])
def test_a_value_that_is_no_number_is_refused(value: str) -> None:
    config = read_mergekit(f"merge_method: linear\nmodels: [{{model: a, parameters: {{weight: {value}}}}}]")
    with pytest.raises(ParameterError, match="weight is a finite number"):
        config.recipe(TENSORS, digest_of)


def test_interpolation_is_exact_at_the_values_and_rounded_between() -> None:
    assert interpolate(("0", "1"), Fraction(1, 3)) == "0.333333333333"
    assert interpolate(("0", "1", "3"), Fraction(1, 2)) == "1"
    assert interpolate(("7",), Fraction(1, 2)) == "7"
    assert layer_of("model.layers.12.mlp.weight") == 12
    assert layer_of("lm_head.weight") is None
