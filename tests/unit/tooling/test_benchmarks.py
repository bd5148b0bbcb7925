"""What benchmarks measure is what is used: the same results, by the same steps."""

import numpy as np
import pytest
from crdt_merge_protocol.strategies.dtypes import encode_block
from crdt_merge_protocol.strategies.registry import names
from support.synthetic import case_of

from tests.benchmarks import naive_algebra
from tests.benchmarks.__main__ import PARTS, section, with_section
from tests.benchmarks.arithmetic import Arithmetic
from tests.benchmarks.measure import Row


@pytest.mark.parametrize("name", names())
def test_the_arithmetic_that_is_timed_is_the_merge(name):
    rng = np.random.default_rng(1)
    shapes = {"a": (9, 6), "b": (11,)}
    base, *models = (
        {key: rng.standard_normal(shape, dtype=np.float32) for key, shape in shapes.items()} for _ in range(6)
    )
    made = case_of(name, models, base)

    timed = Arithmetic(made.context, models, base, made.artefacts).run()

    expected = made.merge().tensors
    for key in shapes:
        assert timed[key].tobytes() == encode_block("F32", expected[key].reshape(-1), "saturate")


@pytest.mark.parametrize("name", naive_algebra.FORMULAS)
def test_the_rival_by_linear_algebra_does_the_same_work(name):
    rng = np.random.default_rng(1)
    shapes = {"a": (20, 12), "b": (7, 15)}
    base, *models = (
        {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}
        for _ in range(5)
    )
    made = case_of(name, models, base)

    merged = naive_algebra.FORMULAS[name](made)

    expected = made.merge().tensors
    for key in shapes:
        np.testing.assert_allclose(merged[key], expected[key], rtol=0, atol=1e-6)


def test_a_part_replaces_its_own_section_of_the_results_only():
    first = with_section("", "sync", section([Row(what="a", measured="1 ms")], {"load before": "0.1"}))
    second = with_section(first, "merge", section([Row(what="b", measured="2 ms")], {"load before": "0.2"}))
    third = with_section(second, "sync", section([Row(what="c", measured="3 ms")], {"load before": "0.3"}))

    assert PARTS.index("merge") < PARTS.index("sync")
    assert third.index("## merge") < third.index("| b | 2 ms") < third.index("## sync") < third.index("| c |")
    assert "| a |" not in third
    assert third.count("# Measured\n") == 1
    assert with_section(third, "sync", section([], {})).count("| b | 2 ms") == 1
