"""Counting magnitudes as loops, for the search of a K-th one (``selection.py``)."""

# ruff: noqa: C901, PLR0915, PLR0917 - compiled functions take their arguments by position, and those that make
# them for an element type hold all of them.
from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from .compiled_emitted import (
    Array,
    bits,
    compiled,
    doubles,
    entry_for,
    integers,
    load_f64,
    load_flag,
)
from .compiled_lanes import (
    compressed,
    how_many,
    is_below,
    lanes_f64,
    lanes_flag,
    longs_of,
    magnitudes,
    mask_of,
    numbers_of,
    put,
    spread,
    spread_long,
    sum_of_longs,
)
from .compiled_sums import DIFFERING, LANES, LOADS

COUNTED: Final = 2_048
"""Elements of every voter in hand: they share the base."""
ABSOLUTE: Final = 0x7FFFFFFFFFFFFFFF


@compiled
def _add_digits(patterns: Array, n: int, low: int, shift: int, counts: Array) -> None:
    """Count the digits of some patterns."""
    for i in range(n):
        counts[(patterns[i] - low) >> shift] += 1


def _make_count(load: Any, lanes: Any) -> Callable[..., int]:
    """Return the loop that counts magnitudes of differences of one element type."""

    @compiled
    def pattern_of(row: int, base: int, mask: int, scale: float, i: int) -> Any:
        value = load(row, i)
        if base != 0:
            value -= load_f64(base, i)
            if mask != 0:
                value *= load_flag(mask, i)
            value *= scale
        return bits(value) & ABSOLUTE

    @compiled
    def patterns_of(row: int, base: int, mask: int, scale: float, i: int) -> Any:
        value = lanes(row, i)
        if base != 0:
            value = value - lanes_f64(base, i)
            if mask != 0:
                value = value * lanes_flag(mask, i)
            value = value * spread(scale)
        return longs_of(magnitudes(value))

    @compiled
    def write_all(row: int, base: int, mask: int, scale: float, start: int, n: int, out: int) -> None:
        whole, patterns = n - n % 8, integers(out, COUNTED)
        for i in range(0, whole, 8):
            put(out, i, patterns_of(row, base, mask, scale, start + i))
        for i in range(whole, n):
            patterns[i] = pattern_of(row, base, mask, scale, start + i)

    @compiled
    def write_inside(
        row: int, base: int, mask: int, scale: float, start: int, n: int, low: int, high: int, out: int
    ) -> Any:
        whole, patterns = n - n % 8, integers(out, COUNTED + 8)
        lows, highs, width, above = spread_long(low), spread_long(high), high - low, spread_long(0)
        widths, found = spread_long(width), 0
        for i in range(start, start + whole, 8):
            pattern = patterns_of(row, base, mask, scale, i)
            above = above + numbers_of(pattern >= highs)
            inside = is_below(pattern - lows, widths)
            if mask_of(inside) != 0:
                put(out, found, compressed(pattern, inside))
                found += how_many(inside)
        beyond = sum_of_longs(above)
        for i in range(start + whole, start + n):
            last = pattern_of(row, base, mask, scale, i)
            beyond += 1 if last >= high else 0
            patterns[found] = last
            found += 1 if low <= last < high else 0
        return found, beyond

    @compiled
    def count_equal(row: int, base: int, mask: int, scale: float, start: int, n: int, low: int) -> Any:
        whole, lows, found, above = n - n % 8, spread_long(low), spread_long(0), spread_long(0)
        one = spread_long(1)
        for i in range(start, start + whole, 8):
            pattern = patterns_of(row, base, mask, scale, i)
            above = above + numbers_of(is_below(lows, pattern))
            found = found + numbers_of(is_below(pattern - lows, one))
        equal, beyond = sum_of_longs(found), sum_of_longs(above)
        for i in range(start + whole, start + n):
            last = pattern_of(row, base, mask, scale, i)
            beyond += 1 if last > low else 0
            equal += 1 if last == low else 0
        return equal, beyond

    def count(
        rows: int, k: int, base: int, masks: int, scales: int, size: int, ranges: int, histograms: int,
        gathered: int, room: int, results: int, scratch: int,
    ) -> int:  # fmt: skip
        addresses, dropped, factors = integers(rows, k), integers(masks, k), doubles(scales, k)
        limits, numbers = integers(ranges, 4 * k), integers(results, 2 * k)
        to_counts, to_first, patterns = (
            integers(histograms, k), integers(gathered, k), integers(scratch, COUNTED + 8),
        )  # fmt: skip
        for start in range(0, size, COUNTED):
            n = min(COUNTED, size - start)
            for v in range(k):
                row, mask, scale, seen = addresses[v], dropped[v], factors[v], numbers[2 * v]
                low, high, shift = limits[4 * v], limits[4 * v + 1], limits[4 * v + 2]
                counts, first = integers(to_counts[v], limits[4 * v + 3]), integers(to_first[v], room)
                if high - low == 1:
                    found, more = count_equal(row, base, mask, scale, start, n, low)
                    counts[0] += found
                    for i in range(seen, min(seen + found, room)):
                        first[i] = low
                    numbers[2 * v], numbers[2 * v + 1] = seen + found, numbers[2 * v + 1] + more
                    continue
                found = n
                if low != 0 or high != ABSOLUTE:
                    found, more = write_inside(row, base, mask, scale, start, n, low, high, scratch)
                    numbers[2 * v + 1] += more
                else:
                    write_all(row, base, mask, scale, start, n, scratch)
                numbers[2 * v] = seen + found
                if seen + found <= room:
                    for i in range(found):
                        first[seen + i] = patterns[i]
                    continue
                if seen <= room:
                    _add_digits(first, seen, low, shift, counts)
                _add_digits(patterns, found, low, shift, counts)
        return 0

    return count


for _name in DIFFERING:
    entry_for(f"count_{_name}", "iiiiiiiiiiii", _make_count(LOADS[_name], LANES[_name]))
