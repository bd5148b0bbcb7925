"""The K-th largest magnitude of any number of elements, exactly, in a few passes and little memory.

The bits of a non-negative float64 order like the number, so magnitudes are looked for among 63-bit patterns.
Each pass counts a range of patterns by digits, and how many lie above it; the digit that holds the K-th is
the range of the next pass (a radix select). As soon as few different values are left in the range, they are
counted themselves and the search ends. A search may begin with a narrow range that a sample suggests
(``sampling.py``); if the K-th is not in it, it goes on above or below. The answer is exact, so it depends
neither on blocks nor on how it was found. Sorting everything would cost ten times as much.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final

import numpy as np

from .acceleration import Digits, Patterns, ScaledDifferences, current
from .contract import Float64Array

TOP: Final = 1 << 63
"""Above all patterns."""
_ALL: Final = Digits(0, TOP, 48)
"""The range of the first pass: its digits have 15 bits, those of later ones 12."""
_NO_PATTERNS: Final = np.empty(0, np.int64)
LEVELS: Final = 5
"""Passes that a selection needs at most."""
_GATHERED_MAX: Final = 16_384
"""Candidates that one block reports one by one; beyond it, counts of digits are smaller."""
_MERGED_MAX: Final = 262_144
"""Values over all blocks, 2 MiB; beyond it equal ones are counted, and where that is not enough, digits."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of candidates: by value if ``is_exact``, else by digit."""

    digits: Digits
    """Which range was looked at."""
    values: Patterns
    """Bit patterns of magnitudes in any order, or digits, ascending and distinct."""
    counts: Patterns | None
    """Of each value; None: one each."""
    is_exact: bool
    above: int = 0
    """Elements above the range."""


@dataclass(frozen=True, slots=True)
class Selection:
    """How far the search for one K-th magnitude is, and then its result."""

    rank: int
    """K among all elements, from 1, counted from the largest. Once done: among those of the threshold."""
    digits: Digits = _ALL
    """The range in which it is looked for, and how that is counted."""
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
    digits = selection.digits
    histogram, gathered = _room_for(digits)
    counted = _count_compiled(digits, parts, histogram, gathered)
    if counted is None:
        counted = _count(digits, parts, histogram, gathered)
    return _tally_of(digits, counted, gathered, histogram)


def tally_differences(
    selections: Mapping[int, Selection], write: ScaledDifferences
) -> dict[int, Tally] | None:
    """Return the counts of one block's candidates of several contributions at once; None: nobody can."""
    accelerator = current()
    if accelerator is None or not selections:
        return None
    digits = [selection.digits for selection in selections.values()]
    rooms = [_room_for(each) for each in digits]
    histograms, gathered = [room[0] for room in rooms], [room[1] for room in rooms]
    counted = accelerator.count(write, list(selections), digits, histograms, gathered)
    if counted is None:
        return None
    found = zip(digits, counted, gathered, histograms, strict=True)
    return dict(zip(selections, (_tally_of(*each) for each in found), strict=True))


def _room_for(digits: Digits) -> tuple[Patterns, Patterns]:
    """Return arrays for the counts of digits, and for candidates."""
    return np.zeros(digits.bins, np.int64), np.empty(_GATHERED_MAX, np.int64)


def _count(
    digits: Digits, parts: Iterable[Float64Array], histogram: Patterns, gathered: Patterns
) -> tuple[int, int]:
    """Count candidates and what is above them, by digits where there are too many to gather."""
    count = above = 0
    for part in parts:
        candidates = part.view(np.int64)
        if digits.high < TOP:
            above += int(np.count_nonzero(candidates >= digits.high))
        if digits.is_narrow:
            # Below the range, differences wrap to large numbers.
            inside = (candidates - digits.low).view(np.uint64) < digits.width
            candidates = candidates[inside]
        before, count = count, count + candidates.size
        if count <= gathered.size:
            gathered[before:count] = candidates
            continue
        if before <= gathered.size:
            _count_digits(gathered[:before], digits, histogram)
        _count_digits(candidates, digits, histogram)
    return count, above


def _count_compiled(
    digits: Digits, parts: Iterable[Float64Array], histogram: Patterns, gathered: Patterns
) -> tuple[int, int] | None:
    """Return the numbers of candidates and of what is above; None: nobody counted."""
    accelerator = current()
    if accelerator is None:
        return None
    count = above = 0
    for part in parts:
        room = gathered[min(count, gathered.size) :]
        more, beyond = accelerator.count_values(np.ascontiguousarray(part), digits, histogram, room)
        if count <= gathered.size < count + more:
            _count_digits(gathered[:count], digits, histogram)
        count, above = count + more, above + beyond
    return count, above


def _count_digits(candidates: Patterns, digits: Digits, histogram: Patterns) -> None:
    """Add the counts of the digits of some candidates."""
    found = np.bincount((candidates - digits.low) >> digits.shift)
    histogram[: found.size] += found


def _tally_of(digits: Digits, counted: tuple[int, int], gathered: Patterns, histogram: Patterns) -> Tally:
    """Return the candidates themselves if all of them were gathered, else the counts of their digits."""
    count, above = counted
    if count <= gathered.size:
        return Tally(digits, gathered[:count].copy(), None, is_exact=True, above=above)
    return _counted_digits(digits, histogram, above)


def _counted_digits(digits: Digits, histogram: Patterns, above: int) -> Tally:
    """Return counts of digits; those of digits without a shift are counts of values."""
    present = np.flatnonzero(histogram)
    counts = histogram[present]
    if digits.shift == 0:
        return Tally(digits, present + digits.low, counts, is_exact=True, above=above)
    return Tally(digits, present, counts, is_exact=False, above=above)


def merge_tallies(tallies: Sequence[Tally]) -> Tally:
    """Return the counts of several blocks together, at least one; the order does not matter."""
    digits, above = tallies[0].digits, sum(part.above for part in tallies)
    if not all(part.is_exact for part in tallies):
        return _add_digits(digits, tallies, above)
    values = np.concatenate([_NO_PATTERNS, *(part.values for part in tallies)])
    counts = None
    if any(part.counts is not None for part in tallies):
        counts = np.concatenate([_counts_of(part) for part in tallies])
    merged = Tally(digits, values, counts, is_exact=True, above=above)
    if values.size > _MERGED_MAX:
        merged = _distinct(merged)
        if merged.values.size > _MERGED_MAX:
            return _add_digits(digits, [merged], above)
    return merged


def advance(selection: Selection, tallies: Sequence[Tally]) -> Selection:
    """Return the selection after a pass over all elements."""
    merged = merge_tallies(tallies)
    digits = selection.digits
    rank = selection.rank - merged.above
    if rank < 1:
        return replace(selection, digits=digits.above())
    if merged.is_exact and merged.counts is None:
        return _advance_among(selection, merged.values, rank)
    if merged.is_exact:
        merged = _distinct(merged)
    counts = _counts_of(merged)
    from_top = np.cumsum(counts[::-1])
    position = int(np.searchsorted(from_top, rank))
    if position == from_top.size:
        return replace(selection, digits=digits.below())
    index = merged.values.size - 1 - position
    found, equal = int(merged.values[index]), int(counts[index])
    if merged.is_exact:
        return replace(selection, rank=rank - (int(from_top[position]) - equal), threshold=found, equal=equal)
    return replace(selection, digits=digits.within(found))


def _advance_among(selection: Selection, values: Patterns, rank: int) -> Selection:
    """Return the selection after all candidates have been gathered."""
    if rank > values.size:
        return replace(selection, digits=selection.digits.below())
    place = values.size - rank
    found = int(np.partition(values, place)[place])
    equal = int(np.count_nonzero(values == found))
    return replace(selection, rank=rank - int(np.count_nonzero(values > found)), threshold=found, equal=equal)


def _counts_of(part: Tally) -> Patterns:
    return np.ones(part.values.size, np.int64) if part.counts is None else part.counts


def _distinct(part: Tally) -> Tally:
    """Return the same counts with each value once, ascending."""
    if part.counts is None:
        values, counts = np.unique(part.values, return_counts=True)
        return replace(part, values=values, counts=counts.astype(np.int64))
    order = np.argsort(part.values)
    values = part.values[order]
    first = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]])[: values.size])
    sums = np.add.reduceat(part.counts[order], first) if first.size else part.counts
    return replace(part, values=values[first], counts=sums)


def _add_digits(digits: Digits, tallies: Sequence[Tally], above: int) -> Tally:
    totals = np.zeros(digits.bins, np.int64)
    for part in tallies:
        if not part.is_exact:
            assert part.counts is not None, "digits are counted"
            totals[part.values] += part.counts
        elif part.counts is None:
            _count_digits(part.values, digits, totals)
        else:
            np.add.at(totals, (part.values - digits.low) >> digits.shift, part.counts)
    return _counted_digits(digits, totals, above)
