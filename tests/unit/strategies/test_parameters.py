"""Parameters: exact values, all problems at once, suggestions, one spelling."""

from fractions import Fraction

import pytest
from crdt_merge_protocol.errors import ParameterError
from crdt_merge_protocol.strategies.registry import get, names, plain_names


def test_the_26_of_the_paper_come_first():
    assert [get(name).is_extra for name in names()] == [False] * 26 + [True] * (len(names()) - 26)


def test_averages_and_task_vectors_need_nothing_but_models():
    known = {"weight_average", "linear", "slerp", "task_arithmetic", "ties", "dare", "dare_ties"}

    assert known <= set(plain_names())
    assert set(plain_names()) <= set(names())


@pytest.mark.parametrize("name", names())
def test_every_strategy_describes_itself_and_accepts_its_defaults(name):
    strategy = get(name)
    values = strategy.validate({})

    assert all([strategy.title, strategy.paper, strategy.doc, strategy.version])
    own = [name for name in values if "." not in name]
    assert [parameter.name for parameter in strategy.parameters] == own
    assert all(parameter.doc for parameter in strategy.parameters)


@pytest.mark.parametrize("name", [name for name in names() if "profile" in get(name).validate({})])
def test_defaults_follow_the_profile(name):
    strategy = get(name)

    values = strategy.validate({"profile": "mergekit"})

    for parameter in strategy.parameters:
        if parameter.mergekit_default is not None:
            assert values[parameter.name] == parameter.parse(parameter.mergekit_default)


def test_aliases_lead_to_the_published_name():
    assert get("karcher").id == "karcher"
    assert get("lerp").id == "linear"
    assert get("dare_linear").id == "dare"


def test_an_unknown_strategy_is_refused_with_a_suggestion():
    with pytest.raises(ParameterError, match="Did you mean ties"):
        get("tiess")


def test_decimals_are_exact():
    assert get("ties").validate({"density": "0.29"})["density"] == Fraction(29, 100)
    assert get("slerp").validate({"tol": "1e-12"})["tol"] == Fraction(1, 10**12)


def test_the_hint_for_a_wrong_parameter_lists_what_can_be_set_and_to_what():
    with pytest.raises(ParameterError) as caught:
        get("ties").validate({"densty": "0.5"})

    assert "density (0..1)" in caught.value.hint
    assert "profile (paper|mergekit)" in caught.value.hint


def test_all_problems_are_reported_at_once_with_suggestions():
    with pytest.raises(ParameterError) as caught:
        get("ties").validate({"densty": "0.5", "lambda": "9", "scope": "modl", "elect": "sum"})

    message = caught.value.message
    assert "no parameter 'densty' (did you mean 'density'?)" in message
    assert "lambda lies in 0..3, not 9" in message
    assert "'modl' (did you mean 'model'?)" in message
    assert "elect" not in message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nan",
        "inf",
        "1/2",
        "0x1",
        " 0.5",
        "0.5 ",
        "0_5",
        "\u0660.\u0665",
        ".5",
        "5.",
        "1e999",
        "-0.1",
        "1.0001",
    ],
)
def test_odd_numbers_are_refused(text):
    with pytest.raises(ParameterError, match="density"):
        get("ties").validate({"density": text})


@pytest.mark.parametrize(("name", "text"), [("normalize", "True"), ("t_origin", "a b"), ("t", "none ")])
def test_odd_values_of_other_types_are_refused(name, text):
    with pytest.raises(ParameterError, match=name):
        get("linear").validate({name: text})


def test_a_parameter_of_the_other_profile_is_refused():
    with pytest.raises(ParameterError, match="normalize only means something with profile mergekit"):
        get("ties").validate({"normalize": "true"})
    with pytest.raises(ParameterError, match="merge_func only means something with profile paper"):
        get("ties").validate({"merge_func": "sum", "profile": "mergekit"})


def test_equal_values_have_one_spelling():
    first = get("ties").normalise({"lambda": "1.50", "density": "2e-1"})
    second = get("ties").normalise({"density": "0.20", "lambda": "+1.5"})

    assert first == second == {"density": "0.2", "lambda": "1.5"}


def test_a_normalised_spelling_is_accepted_again():
    normalised = get("slerp").normalise({"tol": "1e-13", "max_iter": "007", "profile": "paper"})

    assert normalised == {"max_iter": "7", "profile": "paper", "tol": "0.0000000000001"}
    assert normalised == get("slerp").normalise(normalised)


def test_auto_stands_for_a_number_where_allowed():
    assert get("task_arithmetic").validate({"lambda": "auto"})["lambda"] == "auto"
    with pytest.raises(ParameterError, match="lambda is a number"):
        get("ties").validate({"lambda": "auto"})


def test_of_thousands_of_unknown_names_a_few_are_told():
    """A genome's author chooses them, and every node looks for close ones."""
    texts = {f"densiti{number}{'y' * 300}": "1" for number in range(5000)}
    with pytest.raises(ParameterError, match="and 4984 more that it does not have") as caught:
        get("ties").validate(texts)

    assert len(caught.value.message) < 4000
