"""Where a K-th magnitude will be: the range that a sample suggests changes no result, only the way to it."""

import numpy as np
import pytest
from crdt_merge_protocol.blobs import TensorSpec
from crdt_merge_protocol.strategies import sampling, ties, trimming
from crdt_merge_protocol.strategies.acceleration import Digits
from crdt_merge_protocol.strategies.contract import LEAF_ELEMENTS, MergeContext, exact_weights
from crdt_merge_protocol.strategies.reference import merge_arrays
from crdt_merge_protocol.strategies.sampling import likely_digits, sampled_leaves, step_in_leaf
from crdt_merge_protocol.strategies.selection import TOP, Selection, advance, tally
from crdt_merge_protocol.strategies.ties import Ties

NUMEL = 40 * LEAF_ELEMENTS


def pattern(value):
    return int(np.array([value]).view(np.int64)[0])


def select(magnitudes, selection):
    """Return the finished selection and how many passes it took."""
    passes = 0
    while not selection.is_done:
        selection = advance(selection, [tally(selection, [part]) for part in np.array_split(magnitudes, 7)])
        passes += 1
    return selection, passes


@pytest.mark.parametrize("rank", [1, 2, 999, 2_500, 4_000, 4_999, 5_000])
@pytest.mark.parametrize(
    ("low", "high"),
    [(0.0, 1e-9), (0.1, 0.2), (0.5, 0.5), (1.0, 1.0), (0.9, 1.1), (3.0, 4.0), (4.0, 1e300), (0.0, 1e300)],
)
def test_a_search_that_begins_anywhere_ends_at_the_kth(rank, low, high):
    magnitudes = np.abs(np.random.default_rng(rank).normal(size=5000))
    magnitudes[1000:1900] = 1.0
    magnitudes[2000:2300] = 0.0
    digits = Digits.between(pattern(low), pattern(high) + 1)

    found, passes = select(magnitudes, Selection(rank=rank, digits=digits))

    expected, _ = select(magnitudes, Selection(rank=rank))
    assert (found.threshold, found.rank, found.equal) == (expected.threshold, expected.rank, expected.equal)
    assert passes <= 2  # Few values are left after a miss.


def test_a_miss_costs_no_more_than_a_search_from_scratch(monkeypatch):
    """With no room to list values, every digit has to be walked."""
    monkeypatch.setattr("crdt_merge_protocol.strategies.selection._GATHERED_MAX", 0)
    magnitudes = np.nextafter(1.5, 2.0, dtype=np.float64) + np.arange(400) % 37 * np.spacing(1.5)
    for low, high in ((0.0, 1.0), (2.0, 1e300), (1.0, 2.0), (1.5, 1.5)):
        digits = Digits.between(pattern(low), pattern(high) + 1)

        found, passes = select(magnitudes, Selection(rank=77, digits=digits))

        assert found.magnitude == np.sort(magnitudes)[-77]
        assert passes <= ties.LEVELS + 1


@pytest.mark.parametrize("share", [0.001, 0.2, 0.5, 0.999])
def test_the_range_holds_the_kth_and_little_else(share):
    rng = np.random.default_rng(1)
    values = np.abs(rng.normal(size=NUMEL))
    leaves = [
        values[start : stop : step_in_leaf(NUMEL)] for start, stop in sampled_leaves(NUMEL, 0, (0, NUMEL))
    ]

    digits = likely_digits(leaves, share)

    bits = np.sort(values.view(np.int64))[::-1]
    assert digits.low <= bits[int(share * NUMEL)] < digits.high
    assert np.count_nonzero((bits >= digits.low) & (bits < digits.high)) < 0.03 * NUMEL


def test_places_that_differ_make_the_range_wider():
    rng = np.random.default_rng(2)
    alike = [np.abs(rng.normal(size=4096)) for _ in range(20)]
    unlike = [leaf * (1 + number) for number, leaf in enumerate(alike)]

    def width(leaves):
        digits = likely_digits(leaves, 0.2)
        values = np.concatenate(leaves).view(np.int64)
        return np.count_nonzero((values >= digits.low) & (values < digits.high))

    assert width(unlike) > 3 * width(alike)


def test_few_or_no_leaves_suggest_nothing():
    assert likely_digits([np.ones(9)] * 3, 0.5) is None
    assert likely_digits([np.empty(0)] * 30, 0.5) is None


def test_equal_magnitudes_make_a_range_of_one():
    assert likely_digits([np.zeros(4096)] * 20, 0.5) == Digits(0, 1, 0)
    assert likely_digits([np.ones(4096)] * 20, 0.0).high == TOP


@pytest.mark.parametrize("numel", [NUMEL, 10**9])
def test_the_sample_depends_on_the_place_alone(numel):
    spans = [(0, 3 * LEAF_ELEMENTS), (3 * LEAF_ELEMENTS, NUMEL - 5)]

    cut = [leaf for span in spans for leaf in sampled_leaves(numel, 7, span)]

    assert cut == list(sampled_leaves(numel, 7, (0, NUMEL - 5)))
    assert all(stop - start <= LEAF_ELEMENTS for start, stop in cut)
    assert step_in_leaf(numel) >= 1


@pytest.mark.parametrize("params", [{}, {"profile": "mergekit", "density": "0.3"}, {"scope": "tensor"}])
def test_merges_are_the_same_without_a_sample(params, monkeypatch):
    """Also where blocks are large, ties heavy, and some tensors too small to be searched with one."""
    monkeypatch.setattr(sampling, "LEAVES_MIN", 8)
    rng = np.random.default_rng(3)
    shapes = {"a": (12 * LEAF_ELEMENTS + 5,), "b": (100,)}

    def model():
        return {name: np.round(rng.standard_normal(shape), 2) for name, shape in shapes.items()}

    models, base = [model() for _ in range(3)], model()
    seen = []
    monkeypatch.setattr(trimming, "likely_digits", lambda *args: seen.append(1) or likely_digits(*args))

    found = merge_arrays("ties", models, base=base, params=params, block_elements=4 * LEAF_ELEMENTS)

    assert seen
    monkeypatch.setattr(sampling, "LEAVES_MIN", 1 << 30)
    plain = merge_arrays("ties", models, base=base, params=params, block_elements=LEAF_ELEMENTS)
    assert plain.decisions == found.decisions
    assert {n: x.tobytes() for n, x in plain.tensors.items()} == {
        n: x.tobytes() for n, x in found.tensors.items()
    }


def test_a_driver_may_skip_what_the_sample_does_not_look_at():
    strategy = Ties()
    context = MergeContext(
        strategy="ties",
        params=strategy.validate({}),
        weights=exact_weights([1 << 32] * 2),
        digests=(bytes(32), bytes([1]) * 32),
        has_base=True,
        seed=b"",
        specs=(TensorSpec(name="w", dtype="F32", shape=(NUMEL,)),),
    )
    assert strategy.stages(context)[0] == "sample"

    looks = list(strategy.looks_at(context, None, 0, 0, (0, NUMEL)))

    assert 0 < sum(stop - start for start, stop in looks) <= NUMEL / 2
    assert list(strategy.looks_at(context, None, 1, 0, (0, NUMEL))) == [(0, NUMEL)]
