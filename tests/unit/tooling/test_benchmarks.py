"""What benchmarks measure is what is used: the same results, by the same steps."""

import sys

import numpy as np
import pytest
from crdt_merge_protocol.strategies.dtypes import encode_block
from crdt_merge_protocol.strategies.registry import names
from support.synthetic import case_of

from tests.benchmarks import __main__ as command
from tests.benchmarks import naive_algebra, overhead, sync
from tests.benchmarks.__main__ import PARTS, is_measured, section, with_section
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


@pytest.fixture
def benchmarks(tmp_path, monkeypatch):
    """The command line over two parts; one takes what it yields or raises from ``outcomes``."""
    outcomes = {}

    def measure_with(name):
        def measure(_options):
            yield from outcomes[name][:-1]
            if isinstance(outcomes[name][-1], Exception):
                raise outcomes[name][-1]
            yield outcomes[name][-1]

        return measure

    results = tmp_path / "RESULTS.md"
    monkeypatch.setattr(command, "RESULTS", results)
    for module in (overhead, sync):
        monkeypatch.setattr(module, "measure", measure_with(module.__name__.rpartition(".")[2]))

    def run(*arguments, version="abc", **found):
        outcomes.update(found)
        monkeypatch.setattr(command, "_version", lambda: version)
        monkeypatch.setattr(sys, "argv", ["benchmarks", "overhead", "sync", *arguments])
        return command.main(), results.read_text()

    return run


def test_a_part_that_fails_is_named_and_leaves_its_table_while_the_rest_goes_on(benchmarks, capsys):
    one, two, three = (Row(what=f"row {n}", measured="1 ms") for n in (1, 2, 3))

    assert benchmarks(overhead=[one], sync=[two])[0] == 0
    status, text = benchmarks(overhead=[three, ValueError("no")], sync=[three])

    assert status == 1
    assert "row 1" in text.partition("## sync")[0]
    assert "row 3" in text.partition("## sync")[2]
    assert "not measured: overhead (ValueError)" in capsys.readouterr().out


def test_a_rival_that_cannot_be_had_fails_the_command_after_all_is_written(benchmarks, capsys):
    gone = Row(what="the rival", measured="could not be installed", is_missing=True)

    status, text = benchmarks(overhead=[gone], sync=[Row(what="row", measured="1 ms")])

    assert status == 1
    assert text.count("## ") == 2
    assert "not measured: overhead: the rival could not be installed" in capsys.readouterr().out


def test_what_this_version_has_measured_is_not_measured_again_if_asked(benchmarks):
    first, second = Row(what="first", measured="1 ms"), Row(what="second", measured="1 ms")

    benchmarks(overhead=[first], sync=[ValueError("no")])
    text = benchmarks("--missing", overhead=[second], sync=[second])[1]
    later = benchmarks("--missing", overhead=[second], sync=[second], version="abd")[1]
    changed = benchmarks("--missing", overhead=[first], sync=[first], version="abd+")[1]

    assert (text.count("| first |"), text.count("| second |")) == (1, 1)
    assert (later.count("| first |"), later.count("| second |")) == (0, 2)
    assert (changed.count("| first |"), changed.count("| second |")) == (2, 0)
    assert not is_measured(changed, "sync", "abd+")
