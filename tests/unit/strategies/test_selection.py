"""The K-th largest magnitude: exact whatever the blocks, the ties and the way it was found."""

from fractions import Fraction

import numpy as np
import pytest
from crdt_merge_protocol.strategies import selection as module
from crdt_merge_protocol.strategies.selection import (
    LEVELS,
    Selection,
    advance,
    kept_count,
    merge_tallies,
    tally,
)


def select(magnitudes, k, *, block=1000, part=300):
    """Return the finished selection, and how many passes it took."""
    selection, passes = Selection(rank=k), 0
    while not selection.is_done:
        blocks = [magnitudes[start : start + block] for start in range(0, magnitudes.size, block)]
        tallies = [
            tally(selection, (values[start : start + part] for start in range(0, values.size, part)))
            for values in blocks
        ]
        selection, passes = advance(selection, tallies), passes + 1
    return selection, passes


def assert_kth(magnitudes, k, selection):
    expected = np.sort(magnitudes)[::-1][k - 1]
    above = int(np.count_nonzero(magnitudes > expected))

    assert expected == selection.magnitude
    assert k - above == selection.rank
    assert int(np.count_nonzero(magnitudes == expected)) == selection.equal


@pytest.mark.parametrize("k", [1, 2, 499, 2500, 4999, 5000])
def test_the_kth_magnitude_is_what_sorting_finds(k):
    magnitudes = np.abs(np.random.default_rng(k).normal(size=5000))

    selection, _ = select(magnitudes, k)

    assert_kth(magnitudes, k, selection)


@pytest.mark.parametrize("k", [1, 100, 101, 150, 199, 200, 201, 3000])
def test_equal_magnitudes_are_counted(k):
    magnitudes = np.abs(np.random.default_rng(0).normal(size=3000))
    magnitudes[1000:1100] = np.sort(magnitudes)[-100]
    magnitudes[2000:2900] = 0.0

    selection, _ = select(magnitudes, k)

    assert_kth(magnitudes, k, selection)


def test_every_level_is_exact_where_values_share_all_but_the_last_bits(monkeypatch):
    """With no room to list values, the search must walk all 63 bits."""
    monkeypatch.setattr(module, "_GATHERED_MAX", 0)
    magnitudes = np.nextafter(1.5, 2.0, dtype=np.float64) + np.arange(400) % 37 * np.spacing(1.5)

    selection, passes = select(magnitudes, 77, block=100, part=50)

    assert passes == LEVELS
    assert_kth(magnitudes, 77, selection)


def test_few_different_values_need_one_pass():
    magnitudes = np.arange(3000) % 5 * 0.25

    selection, passes = select(magnitudes, 700)

    assert passes == 1
    assert_kth(magnitudes, 700, selection)


def test_subnormal_and_huge_values_are_ordered():
    magnitudes = np.array([0.0, 5e-324, 1e-310, 2.3e-308, 1.0, 1.7e308])

    assert [select(magnitudes, k)[0].magnitude for k in range(1, 7)] == sorted(magnitudes, reverse=True)


@pytest.mark.parametrize("merged_max", [0, 1_000_000])
def test_tallies_may_be_merged_in_any_grouping(monkeypatch, merged_max):
    monkeypatch.setattr(module, "_MERGED_MAX", merged_max)
    magnitudes = np.abs(np.random.default_rng(4).normal(size=4000))
    selection = Selection(rank=1234)
    while not selection.is_done:
        parts = [tally(selection, [magnitudes[start : start + 500]]) for start in range(0, 4000, 500)]
        pairs = [merge_tallies(parts[i : i + 2]) for i in (6, 0, 4, 2)]
        one_by_one, grouped = advance(selection, parts), advance(selection, pairs)

        assert one_by_one == grouped

        selection = grouped
    assert_kth(magnitudes, 1234, selection)


@pytest.mark.parametrize(
    ("density", "numel", "kept"),
    [("0.29", 100, 29), ("0.2", 10, 2), ("0", 10, 0), ("0.001", 10, 1), ("0.5", 0, 0), ("1", 7, 7)],
)
def test_the_number_kept_is_exact(density, numel, kept):
    """0.29 * 100 is 28.999… in floating point."""
    assert kept == kept_count(Fraction(density), numel)
