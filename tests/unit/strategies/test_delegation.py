"""Strategies that name other strategies: whose parameters are whose, and who stands in for whom."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from crdt_merge_protocol.errors import ParameterError
from crdt_merge_protocol.strategies import registry
from crdt_merge_protocol.strategies.averages import Linear
from crdt_merge_protocol.strategies.composite import effective
from crdt_merge_protocol.strategies.contract import MergeContext
from crdt_merge_protocol.strategies.delegation import fallback_parameter, inner_parameter
from crdt_merge_protocol.strategies.parameters import Parameter
from crdt_merge_protocol.strategies.reference import merge_arrays


class Picky(Linear):
    """Needs two models."""

    id = "picky"
    k_min = 2
    parameters = (
        fallback_parameter(),
        inner_parameter("ties", "Does the work."),
        Parameter(name="depth", type="integer", default="1"),
    )


class Pickier(Linear):
    """Needs three models."""

    id = "pickier"
    k_min = 3
    parameters = (fallback_parameter(),)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    for strategy in (Picky(), Pickier()):
        monkeypatch.setitem(registry._STRATEGIES, strategy.id, strategy)


def context_of(k, texts, name="pickier"):
    strategy = registry.get(name)
    return MergeContext(
        strategy=name,
        params=strategy.validate(texts),
        weights=(Fraction(1),) * k,
        digests=tuple(bytes([i]) * 32 for i in range(k)),
        has_base=True,
        seed=b"",
        specs=(),
    )


def test_a_named_strategy_gets_its_own_parameters_and_defaults():
    values = Picky().validate(
        {"fallback": "dare_linear", "fallback.density": "0.25", "inner.density": "0.29"}
    )

    assert values["fallback"] == "dare"
    assert (values["fallback.density"], values["fallback.rescale"]) == (Fraction(1, 4), "inverse")
    assert (values["inner"], values["inner.density"], values["depth"]) == ("ties", Fraction(29, 100), 1)


def test_nothing_named_brings_no_parameters():
    assert [name for name in Picky().validate({}) if name.startswith("fallback")] == ["fallback"]


def test_what_is_given_has_one_spelling_and_nothing_else_is_added():
    texts = {"inner.density": "0.50", "fallback": "dare_linear", "fallback.density": "2.5e-1", "depth": "+2"}

    assert Picky().normalise(texts) == {
        "depth": "2",
        "fallback": "dare",
        "fallback.density": "0.25",
        "inner.density": "0.5",
    }


def test_stand_ins_may_have_stand_ins():
    texts = {"fallback": "picky", "fallback.fallback": "dare", "fallback.fallback.density": "0.5"}

    assert Pickier().validate(texts)["fallback.fallback.density"] == Fraction(1, 2)
    assert Pickier().normalise(texts) == dict(sorted(texts.items()))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"fallback": "tiess"}, "Did you mean ties"),
        ({"fallback": "ties", "fallback.densty": "1"}, "fallback: ties has no parameter 'densty'"),
        ({"fallback.density": "1"}, "fallback.density is a parameter of no strategy"),
        ({"inner.density": "2"}, "inner: density lies in 0..1, not 2"),
        ({"innr.density": "2"}, "picky has no parameter 'innr.density'"),
        ({"fallback." * 5 + "x": "2"}, "more than 4 strategies"),
    ],
)
def test_what_a_named_strategy_does_not_know_is_refused(texts, message):
    for read in (Picky().validate, Picky().normalise):
        with pytest.raises(ParameterError, match=message):
            read(texts)


def test_all_problems_of_all_named_strategies_are_in_one_message():
    texts = {"depth": "x", "fallback": "dare", "fallback.density": "9", "inner.lambda": "-1"}

    with pytest.raises(ParameterError) as caught:
        Picky().validate(texts)

    for part in ("depth is a number", "fallback: density lies in", "inner: lambda lies in"):
        assert part in caught.value.message


def test_strategies_that_name_none_know_no_dotted_parameters():
    with pytest.raises(ParameterError, match=r"ties has no parameter 'fallback.density'"):
        registry.get("ties").validate({"fallback.density": "1"})


def test_the_strategy_asked_for_is_computed_if_it_can_be():
    found = effective(Pickier(), context_of(3, {"fallback": "dare"}))

    assert (found.strategy.id, found.reasons, found.unmet) == ("pickier", (), None)


def test_stand_ins_are_asked_in_turn_with_their_own_parameters():
    texts = {"fallback": "picky", "fallback.fallback": "dare", "fallback.fallback.density": "0.125"}

    two, one = (effective(Pickier(), context_of(k, texts)) for k in (2, 1))

    assert (two.strategy.id, two.context.params["depth"], len(two.reasons)) == ("picky", 1, 1)
    assert (one.strategy.id, one.context.strategy, len(one.reasons)) == ("dare", "dare", 2)
    assert one.context.params == registry.get("dare").validate({"density": "0.125"})


def test_without_a_stand_in_the_reason_is_told():
    found = effective(Pickier(), context_of(1, {}))

    assert found.strategy.id == "pickier"
    assert "at least 3 models, there are 1" in found.unmet


def test_merging_in_memory_runs_the_stand_in():
    models = [{"t": np.array([1.0, 5.0])}, {"t": np.array([3.0, -1.0])}]
    texts = {"fallback": "task_arithmetic", "fallback.lambda": "0.5"}

    result = merge_arrays("pickier", models, {"t": np.zeros(2)}, texts)

    assert result.tensors["t"].tolist() == [2.0, 2.0]
    assert result.decisions["strategy"] == "task_arithmetic"


def test_everything_else_about_the_inputs_stays():
    context = context_of(2, {"fallback": "ties"})

    found = effective(Pickier(), context).context

    assert replace(found, strategy="pickier", params=context.params) == context
