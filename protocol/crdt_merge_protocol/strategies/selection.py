"""The K-th largest magnitude of any number of elements, exactly, in a few passes and little memory.

The bits of a non-negative float64 order like the number. Level by level, the digits of those 63 bits are
counted among the elements that can still be the K-th (a radix select); as soon as few different values are
left, they are counted themselves and the search ends. The answer is exact, so it depends neither on blocks
nor on which of the two ways it was found. Sorting everything would cost ten times as much.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final

import numpy as np

from .acceleration import Patterns
from .contract import Float64Array

_SHIFTS: Final = (49, 36, 24, 12, 0)
_WIDTHS: Final = (14, 13, 12, 12, 12)
_NO_SHIFT: Final = 63
LEVELS: Final = len(_SHIFTS)
"""Passes that a selection needs at most."""
_GATHERED_MAX: Final = 4_096
"""Candidates of one block that are worth sorting to find how few different values they have."""
_DISTINCT_MAX: Final = 4_096
"""Different values that one block reports; beyond it, counts of digits are smaller."""
_MERGED_MAX: Final = 262_144
"""Different values over all blocks, 4 MiB."""


class Countable(ABC):
    """Magnitudes that may count themselves."""

    __slots__ = ()

    @abstractmethod
    def __iter__(self) -> Iterator[Float64Array]:
        """Yield the magnitudes, in parts that may share a buffer."""

    @abstractmethod
    def counted(self, digits: tuple[int, int, int], histogram: Patterns, gathered: Patterns) -> int | None:
        """Return the number of candidates, counted and gathered; None: iterate instead."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of candidates: by value if ``is_exact``, else by digit of the level."""

    values: Patterns
    """Ascending and distinct: bit patterns of magnitudes, or digits."""
    counts: Patterns
    is_exact: bool


@dataclass(frozen=True, slots=True)
class Selection:
    """How far the search for one K-th magnitude is, and then its result."""

    rank: int
    """K among the remaining candidates, from 1, counted from the largest."""
    level: int = 0
    prefix: int = 0
    """The bits above this level's digit that all candidates share."""
    threshold: int | None = None
    """Bit pattern of the K-th magnitude, once known."""
    equal: int = 0
    """Elements of exactly that magnitude; the first ``rank`` of them belong to the K largest."""

    @property
    def is_done(self) -> bool:
        """Tell whether the threshold is known."""
        return self.threshold is not None

    @property
    def magnitude(self) -> float:
        """The K-th largest magnitude."""
        return float(np.array([self.threshold], np.int64).view(np.float64)[0])


def kept_count(density: Fraction, numel: int) -> int:
    """Return K = floor(density * numel), but at least 1 of a non-empty set if anything is kept."""
    if numel == 0 or density <= 0:
        return 0
    return max(1, int(density * numel))


def tally(selection: Selection, parts: Iterable[Float64Array]) -> Tally:
    """Return the counts of one block's candidates. ``parts`` are its magnitudes, each below 2^17 elements."""
    shift, width = _SHIFTS[selection.level], _WIDTHS[selection.level]
    histogram = np.zeros(1 << width, np.int64)
    if isinstance(parts, Countable):
        first = np.empty(_GATHERED_MAX, np.int64)
        above = _SHIFTS[selection.level - 1] if selection.level else _NO_SHIFT
        found = parts.counted((selection.prefix, above, shift), histogram, first)
        if found is not None:
            return _tally_of(found, first[:found] if found <= _GATHERED_MAX else None, histogram)
    gathered: list[Patterns] = []
    count = 0
    for part in parts:
        candidates = _candidates(selection, part.view(np.int64))
        histogram += np.bincount((candidates >> shift) & ((1 << width) - 1), minlength=1 << width)
        count += candidates.size
        if count <= _GATHERED_MAX and (selection.level > 0 or count <= _DISTINCT_MAX):
            gathered.append(candidates.copy())
        else:
            gathered.clear()
    if gathered and sum(part.size for part in gathered) == count:
        return _tally_of(count, np.concatenate(gathered), histogram)
    return _tally_of(count, None, histogram)


def _tally_of(count: int, gathered: Patterns | None, histogram: Patterns) -> Tally:
    """Return the candidates themselves if all of them were gathered, else the counts of their digits."""
    if gathered is not None:
        values, counts = np.unique(gathered, return_counts=True)
        if values.size <= _DISTINCT_MAX:
            return Tally(values, counts.astype(np.int64), is_exact=True)
    digits = np.flatnonzero(histogram)
    return Tally(digits, histogram[digits], is_exact=count == 0)


def merge_tallies(level: int, tallies: Sequence[Tally]) -> Tally:
    """Return the counts of several blocks together; the order does not matter."""
    if all(part.is_exact for part in tallies):
        merged = _add_values(tallies)
        if merged.values.size <= _MERGED_MAX:
            return merged
        tallies = [merged]
    return _add_digits(level, tallies)


def advance(selection: Selection, tallies: Sequence[Tally]) -> Selection:
    """Return the selection after a pass over all elements."""
    merged = merge_tallies(selection.level, tallies)
    from_top = np.cumsum(merged.counts[::-1])
    position = int(np.searchsorted(from_top, selection.rank))
    index = merged.values.size - 1 - position
    found, equal = int(merged.values[index]), int(merged.counts[index])
    rank = selection.rank - (int(from_top[position]) - equal)
    if merged.is_exact:
        return replace(selection, rank=rank, threshold=found, equal=equal)
    prefix = (selection.prefix << _WIDTHS[selection.level]) | found
    if selection.level == LEVELS - 1:
        return replace(selection, rank=rank, threshold=prefix, equal=equal)
    return replace(selection, rank=rank, level=selection.level + 1, prefix=prefix)


def _candidates(selection: Selection, patterns: Patterns) -> Patterns:
    if selection.level == 0:
        return patterns
    found: Patterns = patterns[(patterns >> _SHIFTS[selection.level - 1]) == selection.prefix]
    return found


def _add_values(tallies: Sequence[Tally]) -> Tally:
    values = np.concatenate([part.values for part in tallies])
    counts = np.concatenate([part.counts for part in tallies])
    distinct, inverse = np.unique(values, return_inverse=True)
    totals = np.zeros(distinct.size, np.int64)
    np.add.at(totals, inverse, counts)
    return Tally(distinct, totals, is_exact=True)


def _add_digits(level: int, tallies: Sequence[Tally]) -> Tally:
    totals = np.zeros(1 << _WIDTHS[level], np.int64)
    for part in tallies:
        digits = (part.values >> _SHIFTS[level]) & (totals.size - 1) if part.is_exact else part.values
        np.add.at(totals, digits, part.counts)
    present = np.flatnonzero(totals)
    return Tally(present, totals[present], is_exact=False)
