"""The comparisons with other implementations, which run by night: that none is missing shows by day."""

import numpy as np
import pytest
from crdt_merge_protocol.strategies.registry import names
from oracles.cases import K
from oracles.coverage import IN_FEW_TYPES, K_OF_FEW, WITHOUT, asked
from oracles.drawing import DTYPES, apart, fine


@pytest.fixture(scope="module")
def found():
    return asked()


def test_every_strategy_is_compared_or_it_is_said_why_not(found):
    assert found.keys() | WITHOUT.keys() == set(names())
    assert not found.keys() & WITHOUT.keys()


@pytest.mark.parametrize("name", [name for name in names() if name not in WITHOUT])
def test_comparisons_have_every_element_type_and_two_to_five_models(found, name):
    assert found[name].keys() == IN_FEW_TYPES.get(name, set(DTYPES))
    for counts in found[name].values():
        assert counts == K_OF_FEW.get(name, set(K))


@pytest.mark.parametrize("draw", [fine, apart])
@pytest.mark.parametrize("k", K)
def test_no_selection_hangs_on_how_equal_magnitudes_are_ordered(draw, k):
    base, models = draw(np.random.default_rng(k), (6, 9), k)

    for model in models:
        assert len(set(abs(model - base).reshape(-1))) == model.size


@pytest.mark.parametrize("k", K)
def test_no_election_hangs_on_rounding_to_eight_bits(k):
    """Whichever models take part, and with whichever of the weights, the greatest wins by far."""
    _, models = apart(np.random.default_rng(k), (6, 9), k)

    for element in zip(*(abs(model).reshape(-1) for model in models), strict=True):
        ordered = sorted(element)
        for i in range(1, k):
            assert 0.5 * ordered[i] > 1.25 * 2 * sum(ordered[:i])
    assert all((model.astype("f4").view("u4") & 0xFFFF == 0).all() for model in models)
