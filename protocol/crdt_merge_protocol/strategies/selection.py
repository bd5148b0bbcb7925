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

from .acceleration import Patterns, current
from .contract import Float64Array

_SHIFTS: Final = (48, 36, 24, 12, 0)
_WIDTHS: Final = (15, 12, 12, 12, 12)
_NO_SHIFT: Final = 63
_NO_PATTERNS: Final = np.empty(0, np.int64)
LEVELS: Final = len(_SHIFTS)
"""Passes that a selection needs at most."""
_GATHERED_MAX: Final = 16_384
"""Candidates that one block reports one by one; beyond it, counts of digits are smaller."""
_MERGED_MAX: Final = 262_144
"""Values over all blocks, 2 MiB; beyond it equal ones are counted, and where that is not enough, digits."""


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
    """Bit patterns of magnitudes in any order, or digits, ascending and distinct."""
    counts: Patterns | None
    """Of each value; None: one each."""
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
    first = np.empty(_GATHERED_MAX, np.int64)
    count = _count_compiled(selection, shift, parts, histogram, first)
    if count is not None:
        return _tally_of(count, first, histogram)
    count = 0
    for part in parts:
        candidates = _candidates(selection, part.view(np.int64))
        before, count = count, count + candidates.size
        if count <= _GATHERED_MAX:
            first[before:count] = candidates
            continue
        if before <= _GATHERED_MAX:
            _count_digits(first[:before], shift, histogram)
        _count_digits(candidates, shift, histogram)
    return _tally_of(count, first, histogram)


def _count_compiled(
    selection: Selection, shift: int, parts: Iterable[Float64Array], histogram: Patterns, first: Patterns
) -> int | None:
    """Return the number of candidates, counted and the first of them gathered; None: nobody did."""
    accelerator = current()
    if accelerator is None:
        return None
    above = _SHIFTS[selection.level - 1] if selection.level else _NO_SHIFT
    digits = selection.prefix, above, shift
    found = parts.counted(digits, histogram, first) if isinstance(parts, Countable) else None
    if found is not None:
        return found
    count = 0
    for part in parts:
        room = first[min(count, first.size) :]
        count += accelerator.count_values(np.ascontiguousarray(part), digits, histogram, room)
    return count


def _count_digits(candidates: Patterns, shift: int, histogram: Patterns) -> None:
    """Add the counts of the digits of some candidates."""
    digits = candidates >> shift
    digits &= histogram.size - 1
    found = np.bincount(digits)
    histogram[: found.size] += found


def _tally_of(count: int, gathered: Patterns, histogram: Patterns) -> Tally:
    """Return the candidates themselves if all of them were gathered, else the counts of their digits."""
    if count <= _GATHERED_MAX:
        return Tally(gathered[:count].copy(), None, is_exact=True)
    digits = np.flatnonzero(histogram)
    return Tally(digits, histogram[digits], is_exact=False)


def merge_tallies(level: int, tallies: Sequence[Tally]) -> Tally:
    """Return the counts of several blocks together; the order does not matter."""
    if not all(part.is_exact for part in tallies):
        return _add_digits(level, tallies)
    values = np.concatenate([_NO_PATTERNS, *(part.values for part in tallies)])
    if any(part.counts is not None for part in tallies):
        counts = np.concatenate([_counts_of(part) for part in tallies])
        merged = Tally(values, counts, is_exact=True)
    else:
        merged = Tally(values, None, is_exact=True)
    if values.size > _MERGED_MAX:
        merged = _distinct(merged)
        if merged.values.size > _MERGED_MAX:
            return _add_digits(level, [merged])
    return merged


def advance(selection: Selection, tallies: Sequence[Tally]) -> Selection:
    """Return the selection after a pass over all elements."""
    merged = merge_tallies(selection.level, tallies)
    if merged.is_exact:
        merged = _distinct(merged)
    counts = _counts_of(merged)
    from_top = np.cumsum(counts[::-1])
    position = int(np.searchsorted(from_top, selection.rank))
    index = merged.values.size - 1 - position
    found, equal = int(merged.values[index]), int(counts[index])
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


def _counts_of(part: Tally) -> Patterns:
    return np.ones(part.values.size, np.int64) if part.counts is None else part.counts


def _distinct(part: Tally) -> Tally:
    """Return the same counts with each value once, ascending."""
    if part.counts is None:
        values, counts = np.unique(part.values, return_counts=True)
        return Tally(values, counts.astype(np.int64), is_exact=True)
    order = np.argsort(part.values)
    values = part.values[order]
    first = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]])[: values.size])
    sums = np.add.reduceat(part.counts[order], first) if first.size else part.counts
    return Tally(values[first], sums, is_exact=True)


def _add_digits(level: int, tallies: Sequence[Tally]) -> Tally:
    totals = np.zeros(1 << _WIDTHS[level], np.int64)
    for part in tallies:
        if not part.is_exact:
            assert part.counts is not None, "digits are counted"
            totals[part.values] += part.counts
        elif part.counts is None:
            _count_digits(part.values, _SHIFTS[level], totals)
        else:
            np.add.at(totals, (part.values >> _SHIFTS[level]) & (totals.size - 1), part.counts)
    present = np.flatnonzero(totals)
    return Tally(present, totals[present], is_exact=False)
