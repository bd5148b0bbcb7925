"""Random streams: addressed by position, keyed by everything they are for."""

from fractions import Fraction

import numpy as np
import pytest
from crdt_merge_protocol.strategies.randomness import keep_bound, keep_mask, stream_key, uniform, words

KEY = stream_key(b"seed", "dare", "t", b"\x01" * 32, "mask")


@pytest.mark.parametrize("start", [0, 1, 2, 3, 4, 5, 333, 65_536])
def test_any_range_equals_that_part_of_the_whole_stream(start):
    whole = words(KEY, 0, 66_000)

    assert (whole[start : start + 100] == words(KEY, start, 100)).all()


def test_every_field_of_the_key_makes_another_stream():
    fields = [b"seed", "dare", "t", b"\x01" * 32, "mask"]
    others = [b"other", "dare_ties", "u", b"\x02" * 32, "noise"]
    keys = {stream_key(*fields[:i], others[i], *fields[i + 1 :]) for i in range(5)}

    assert len(keys | {KEY}) == 6


def test_fields_of_a_key_cannot_run_into_each_other():
    assert stream_key(b"", "ab", "c", b"", "") != stream_key(b"", "a", "bc", b"", "")


@pytest.mark.parametrize("density", ["0.5", "0.1", "0.29", "0.999999", "0", "1"])
def test_a_mask_keeps_what_lies_below_the_density(density):
    uniforms = uniform(KEY, 8, 5000)

    expected = [Fraction(u) < Fraction(density) for u in uniforms.tolist()]

    assert expected == keep_mask(KEY, 8, 5000, Fraction(density)).tolist()


def test_a_density_just_below_one_keeps_all():
    assert keep_mask(KEY, 0, 1000, 1 - Fraction(1, 2**80)).all()


def test_uniforms_are_spread_evenly():
    counts, _ = np.histogram(uniform(KEY, 0, 100_000), bins=10, range=(0, 1))

    assert counts.min() > 9_600
    assert counts.max() < 10_400


@pytest.mark.parametrize("probability", [Fraction(1, 3), Fraction(2, 3), Fraction("0.1"), Fraction(1, 2**53)])
def test_the_bound_is_the_least_word_whose_uniform_is_not_below_the_probability(probability):
    bound = keep_bound(probability)

    assert Fraction(bound >> 11, 2**53) >= probability
    assert Fraction((bound - 1) >> 11, 2**53) < probability
