"""A narrow range in which a K-th magnitude should be, from a few leaves of the elements.

The search that begins there is exact (``selection.py``): the sample decides how long it takes, never what it
finds. It is drawn by position, every so many leaves and every so many elements of them. Magnitudes differ
more between places of a model than inside of one, so how far the estimate can be off is judged by how much
the leaves differ (a sample in clusters: Cochran, Sampling Techniques, chapter 9).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from .acceleration import Digits
from .contract import LEAF_ELEMENTS, Float64Array
from .selection import TOP

LEAVES_MIN: Final = 16
"""Fewer are searched without a sample: a pass over them costs little."""
_LEAVES_SEEN: Final = 16
_STRIDE_MAX: Final = 64
_SAMPLE_MAX: Final = 1 << 19
_PER_LEAF: Final = 8_192
_DEVIATIONS: Final = 5.0
"""A range this many standard deviations wide to each side misses next to never."""
_LEAST_MARGIN: Final = 1e-4


def is_sampled(numel: int) -> bool:
    """Tell whether so many elements are searched with the help of a sample."""
    return numel >= LEAVES_MIN * LEAF_ELEMENTS


def sampled_leaves(numel: int, tensor_index: int, span: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Yield the ranges of the leaves in a span of a tensor that are in the sample.

    Args:
        numel: Elements that are searched, over all tensors.
        tensor_index: Moves the places, so that small tensors are not all in or all out.
        span: Its first element, at the border of a leaf, and the one behind its last.
    """
    stride = min(max(numel // LEAF_ELEMENTS // _LEAVES_SEEN, 1), _STRIDE_MAX)
    start, stop = span
    for first in range(start, stop, LEAF_ELEMENTS):
        if (first // LEAF_ELEMENTS + tensor_index) % stride == 0:
            yield first, min(first + LEAF_ELEMENTS, stop)


def step_in_leaf(numel: int) -> int:
    """Return how many elements of a leaf in the sample stand for one."""
    seen = max(numel // LEAF_ELEMENTS // _STRIDE_MAX, _LEAVES_SEEN)
    return LEAF_ELEMENTS // max(min(_PER_LEAF, _SAMPLE_MAX // seen), 1)


def likely_digits(leaves: Sequence[Float64Array], share: float) -> Digits | None:
    """Return a range that should hold the magnitude that a share of all elements reach; None: who knows.

    Args:
        leaves: The magnitudes in the sample, leaf by leaf.
        share: K over the number of elements.
    """
    counts = np.array([leaf.size for leaf in leaves], np.float64)
    size = int(counts.sum())
    if len(leaves) < _LEAVES_SEEN // 2 or not size:
        return None
    patterns = np.concatenate(leaves).view(np.int64)
    middle = min(int(share * size), size - 1)
    estimate = np.partition(patterns, size - 1 - middle)[size - 1 - middle]
    reach = np.array([np.count_nonzero(leaf.view(np.int64) >= estimate) for leaf in leaves], np.float64)
    misses = reach - counts * (reach.sum() / size)
    n = len(leaves)
    deviation = math.sqrt(math.fsum((misses * misses).tolist()) * n / (n - 1)) / size
    # Heavy ties make all leaves alike; a place in the order is uncertain all the same.
    deviation = max(deviation, math.sqrt(share * (1 - share) / size))
    margin = max(_DEVIATIONS * deviation, _LEAST_MARGIN)
    highest, lowest = int((share - margin) * size), int((share + margin) * size) + 1
    places = [size - 1 - place for place in (lowest, highest) if 0 < place < size]
    ordered = np.partition(patterns, places) if places else patterns
    low = int(ordered[size - 1 - lowest]) if lowest < size else 0
    high = int(ordered[size - 1 - highest]) + 1 if highest > 0 else TOP
    return Digits.between(low, high)
