"""Philox streams as loops: the words of numpy's generator (Salmon et al., SC 2011), sixteen counters abreast.

The product of two 64-bit words is made of four of 32 bits, which processors multiply many of at a time. Of a
counter's four words all but the first are zero, so the first two rounds have half the products. What DARE
makes of a stream is here as well: differences are dropped as the words are drawn.
"""

# ruff: noqa: PLR0917 - compiled functions take their arguments by position.
from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from .compiled_emitted import (
    CHUNK,
    Array,
    at,
    carray,
    compiled,
    doubles,
    entry,
    entry_for,
    integers,
    load_f64,
    octets,
)
from .compiled_lanes import (
    count_up,
    doubles_of,
    first_pairs,
    first_singles,
    is_below,
    lanes_f64,
    last_pairs,
    last_singles,
    longs_of,
    mask_of,
    ones_where,
    put,
    spread,
    spread_long,
)
from .compiled_sums import DIFFERING, LANES, LOADS

BATCH: Final = 64
"""Words in hand: those of sixteen counters."""
LOW: Final = 0xFFFFFFFF
HALF: Final = 32
DROPPED: Final = np.uint64(11)
"""Bits of a word that a float64 in [0, 1) has no room for."""
# As int64, which is how all words travel.
FIRST, SECOND = 0xD2E7470EE14C6C93 - (1 << 64), 0xCA5A826395121157 - (1 << 64)
FIRST_STEP, SECOND_STEP = 0x9E3779B97F4A7C15 - (1 << 64), 0xBB67AE8584CAA73B - (1 << 64)


@compiled
def _high(left: Any, right: Any, mask: Any) -> Any:
    """Return the upper halves of the 128-bit products of two vectors of words.

    ``mask`` is LOW, but the compiler must not know it: it would take this for a product of 128 bits, which
    no processor makes many of at a time.
    """
    half = spread_long(HALF)
    left_high, right_high = left >> half, right >> half
    left_low, right_low = left & spread_long(LOW), right & spread_long(LOW)
    middle = left_high * right_low + ((left_low * right_low) >> half)
    other = left_low * right_high + (middle & mask)
    return left_high * right_high + (middle >> half) + (other >> half)


@compiled
def _round(x0: Any, x1: Any, x2: Any, x3: Any, key0: Any, key1: Any, mask: Any) -> Any:
    """Return the four words of eight counters after one round."""
    first, second = spread_long(FIRST), spread_long(SECOND)
    high0, low0 = _high(first, x0, mask), first * x0
    high1, low1 = _high(second, x2, mask), second * x2
    return high1 ^ x1 ^ key0, low1, high0 ^ x3 ^ key1, low0


@compiled
def _put_words(x0: Any, x1: Any, x2: Any, x3: Any, place: int) -> None:
    """Write the words of eight counters in the order of the stream."""
    a, b, c, d = doubles_of(x0), doubles_of(x1), doubles_of(x2), doubles_of(x3)
    ab, cd = first_singles(a, b), first_singles(c, d)
    put(place, 0, first_pairs(ab, cd))
    put(place, 8, last_pairs(ab, cd))
    ab, cd = last_singles(a, b), last_singles(c, d)
    put(place, 16, first_pairs(ab, cd))
    put(place, 24, last_pairs(ab, cd))


@compiled
def _draw(low: int, high: int, counter: int, mask: int, place: int) -> None:
    """Write BATCH words of Philox4x64-10, from those of a counter on."""
    known, first, second = spread_long(mask), spread_long(FIRST), spread_long(SECOND)
    x, y = count_up(counter), count_up(counter + 8)
    key0, key1 = spread_long(low), spread_long(high)
    # The first two rounds, without the products of zero; the one of the key is the same for all.
    x2, x3 = _high(first, x, known) ^ key1, first * x
    y2, y3 = _high(first, y, known) ^ key1, first * y
    of_key, low_of_key = _high(first, key0, known), first * key0
    low, high = low + FIRST_STEP, high + SECOND_STEP
    key0, key1 = spread_long(low), spread_long(high)
    x0, x1, x2, x3 = _high(second, x2, known) ^ key0, second * x2, of_key ^ x3 ^ key1, low_of_key
    y0, y1, y2, y3 = _high(second, y2, known) ^ key0, second * y2, of_key ^ y3 ^ key1, low_of_key
    for _ in range(8):
        low, high = low + FIRST_STEP, high + SECOND_STEP
        key0, key1 = spread_long(low), spread_long(high)
        x0, x1, x2, x3 = _round(x0, x1, x2, x3, key0, key1, known)
        y0, y1, y2, y3 = _round(y0, y1, y2, y3, key0, key1, known)
    _put_words(x0, x1, x2, x3, place)
    _put_words(y0, y1, y2, y3, place + 8 * BATCH // 2)


@compiled
def _write_flags(drawn: Array, limit: Any, flags: Array) -> None:
    """Write which words are below a limit."""
    for i in range(BATCH):
        flags[i] = drawn[i] < limit


@compiled
def _write_uniforms(drawn: Array, uniforms: Array) -> None:
    """Write words as numbers in [0, 1)."""
    for i in range(BATCH):
        uniforms[i] = np.float64(drawn[i] >> DROPPED) * 2.0**-53


@entry("iiiiiiii")
def draw(low: int, high: int, start: int, bound: int, size: int, out: int, scratch: int, mask: int) -> int:
    """Write what ``size`` words of a stream are: uniforms as float64, or with a bound which are below it.

    All words travel as int64. ``bound`` 0 stands for no bound. ``mask`` is LOW (see ``_high``).
    """
    drawn = carray(at(scratch), BATCH, np.uint64)
    limit = np.uint64(bound)
    # numpy counts up before it draws, so the first four words are those of counter 1.
    counter = (start >> 2) + 1
    position = -(start & 3)
    while position < size:
        _draw(low, high, counter, mask, scratch)
        counter += BATCH // 4
        if position >= 0 and position + BATCH <= size:
            if bound:
                _write_flags(drawn, limit, octets(out + position, BATCH))
            else:
                _write_uniforms(drawn, doubles(out + 8 * position, BATCH))
        else:
            flags, uniforms = octets(out, size), doubles(out, size)
            for i in range(max(0, -position), min(BATCH, size - position)):
                if bound:
                    flags[position + i] = drawn[i] < limit
                else:
                    uniforms[position + i] = np.float64(drawn[i] >> DROPPED) * 2.0**-53
        position += BATCH
    return 0


def _make_adders(load: Any, lanes: Any) -> tuple[Any, Any]:
    """Return what adds one contribution's kept differences to ``out``: all that is in hand, or ``n``."""

    @compiled
    def add_batch(
        row: int, base: int, start: int, factor: float, bound: int, key: Array, counter: int, scratch: int,
        mask: int, out: int,
    ) -> None:  # fmt: skip
        a, b = lanes(row, start) - lanes_f64(base, start), lanes(row, start + 8) - lanes_f64(base, start + 8)
        change = longs_of(a) | longs_of(b)
        put(scratch, BATCH, a)
        put(scratch, BATCH + 8, b)
        for i in range(16, BATCH, 16):
            a = lanes(row, start + i) - lanes_f64(base, start + i)
            b = lanes(row, start + i + 8) - lanes_f64(base, start + i + 8)
            change = change | longs_of(a) | longs_of(b)
            put(scratch, BATCH + i, a)
            put(scratch, BATCH + i + 8, b)
        if mask_of(is_below(spread_long(0), change + change)) == 0:
            return  # Nothing but zeros, which add nothing: no words are needed.
        _draw(key[0], key[1], counter, mask, scratch)
        limit, scale = spread_long(bound), spread(factor)
        for i in range(0, BATCH, 8):
            kept = ones_where(is_below(longs_of(lanes_f64(scratch, i)), limit))
            value = lanes_f64(scratch, BATCH + i) * kept * scale
            put(out, start + i, lanes_f64(out, start + i) + value)

    @compiled
    def add_some(
        row: int, base: int, start: int, n: int, factor: float, bound: int, is_drawn: bool, scratch: int,
        out: Array,
    ) -> None:  # fmt: skip
        words = carray(at(scratch), BATCH, np.uint64)
        limit = np.uint64(bound)
        for i in range(n):
            kept = 0.0 if is_drawn and words[i] >= limit else 1.0
            out[start + i] += (load(row, start + i) - load_f64(base, start + i)) * kept * factor

    return add_batch, add_some


def _make_drop(load: Any, lanes: Any) -> Callable[..., int]:
    """Return the loop that drops and adds up differences of one element type."""
    add_batch, add_some = _make_adders(load, lanes)

    def drop(
        rows: int, k: int, base: int, keys: int, bounds: int, drawn: int, factors: int, start: int, size: int,
        out: int, scratch: int, mask: int,
    ) -> int:  # fmt: skip
        addresses, limits, is_drawn = integers(rows, k), integers(bounds, k), integers(drawn, k)
        scales, total = doubles(factors, k), doubles(out, size)
        for first in range(0, size, CHUNK):
            stop = min(first + CHUNK, size)
            for i in range(first, stop):
                total[i] = 0.0
            for v in range(k):
                key = integers(keys + 16 * v, 2)
                for i in range(first, stop, BATCH):
                    counter = ((start + i) >> 2) + 1
                    n = min(BATCH, stop - i)
                    if n == BATCH and is_drawn[v]:
                        add_batch(
                            addresses[v], base, i, scales[v], limits[v], key, counter, scratch, mask, out
                        )
                        continue
                    if is_drawn[v]:
                        _draw(key[0], key[1], counter, mask, scratch)
                    add_some(addresses[v], base, i, n, scales[v], limits[v], is_drawn[v] != 0, scratch, total)
            for i in range(first, stop):
                total[i] += load_f64(base, i)
        return 0

    return drop


for _name in DIFFERING:
    entry_for(f"drop_{_name}", "iiiiiiiiiiii", _make_drop(LOADS[_name], LANES[_name]))
