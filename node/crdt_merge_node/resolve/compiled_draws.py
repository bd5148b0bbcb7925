"""Philox streams as loops: the words of numpy's generator (Salmon et al., SC 2011), sixteen counters abreast.

The product of two 64-bit words is made of four of 32 bits, which processors multiply many of at a time.
"""

# ruff: noqa: PLR0917 - compiled functions take their arguments by position.
from __future__ import annotations

from typing import Any, Final

import numpy as np

from .compiled_emitted import Array, at, carray, compiled, doubles, entry, octets

BATCH: Final = 128
"""Counters in hand, four words each."""
LOW: Final = np.uint64(0xFFFFFFFF)
HALF: Final = np.uint64(32)
DROPPED: Final = np.uint64(11)
"""Bits of a word that a float64 in [0, 1) has no room for."""
FIRST, SECOND = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
FIRST_STEP, SECOND_STEP = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)


@compiled
def _high(left: Any, right: Any, mask: Any) -> Any:
    """Return the upper half of the 128-bit product of two uint64.

    ``mask`` is LOW, but the compiler must not know it: it would take this for a product of 128 bits, which
    no processor makes many of at a time.
    """
    left_low, left_high = left & LOW, left >> HALF
    right_low, right_high = right & LOW, right >> HALF
    one, other = left_high * right_low, left_low * right_high
    middle = ((left_low * right_low) >> HALF) + (one & mask) + (other & mask)
    return left_high * right_high + (one >> HALF) + (other >> HALF) + (middle >> HALF)


@compiled
def _draw(low: Any, high: Any, counter: Any, mask: Any, out: Array) -> None:
    """Write the words of BATCH counters of Philox4x64-10: the first words of all, the second, and so on."""
    for i in range(BATCH):
        key0, key1 = low, high
        x0, x1, x2, x3 = counter + np.uint64(i), np.uint64(0), np.uint64(0), np.uint64(0)
        for _ in range(10):
            high0, low0 = _high(FIRST, x0, mask), FIRST * x0
            high1, low1 = _high(SECOND, x2, mask), SECOND * x2
            x0, x1, x2, x3 = high1 ^ x1 ^ key0, low1, high0 ^ x3 ^ key1, low0
            key0 += FIRST_STEP
            key1 += SECOND_STEP
        out[i] = x0
        out[BATCH + i] = x1
        out[2 * BATCH + i] = x2
        out[3 * BATCH + i] = x3


@compiled
def _write_flags(drawn: Array, limit: Any, flags: Array) -> None:
    """Write which words are below a limit, in the order of the stream."""
    for i in range(BATCH):
        flags[4 * i] = drawn[i] < limit
        flags[4 * i + 1] = drawn[BATCH + i] < limit
        flags[4 * i + 2] = drawn[2 * BATCH + i] < limit
        flags[4 * i + 3] = drawn[3 * BATCH + i] < limit


@compiled
def _write_uniforms(drawn: Array, uniforms: Array) -> None:
    """Write words as numbers in [0, 1), in the order of the stream."""
    for i in range(BATCH):
        uniforms[4 * i] = np.float64(drawn[i] >> DROPPED) * 2.0**-53
        uniforms[4 * i + 1] = np.float64(drawn[BATCH + i] >> DROPPED) * 2.0**-53
        uniforms[4 * i + 2] = np.float64(drawn[2 * BATCH + i] >> DROPPED) * 2.0**-53
        uniforms[4 * i + 3] = np.float64(drawn[3 * BATCH + i] >> DROPPED) * 2.0**-53


@entry("iiiiiiii")
def draw(low: int, high: int, start: int, bound: int, size: int, out: int, scratch: int, mask: int) -> int:
    """Write what ``size`` words of a stream are: uniforms as float64, or with a bound which are below it.

    All words travel as int64. ``bound`` 0 stands for no bound. ``mask`` is LOW (see ``_high``).
    """
    drawn = carray(at(scratch), 4 * BATCH, np.uint64)
    limit = np.uint64(bound)
    # numpy counts up before it draws, so the first four words are those of counter 1.
    counter = (np.uint64(start) >> np.uint64(2)) + np.uint64(1)
    position = -(start & 3)
    while position < size:
        _draw(np.uint64(low), np.uint64(high), counter, np.uint64(mask), drawn)
        counter += np.uint64(BATCH)
        if position >= 0 and position + 4 * BATCH <= size:
            if bound:
                _write_flags(drawn, limit, octets(out + position, 4 * BATCH))
            else:
                _write_uniforms(drawn, doubles(out + 8 * position, 4 * BATCH))
        else:
            flags, uniforms = octets(out, size), doubles(out, size)
            for i in range(max(0, -position), min(4 * BATCH, size - position)):
                word = drawn[(i & 3) * BATCH + (i >> 2)]
                if bound:
                    flags[position + i] = word < limit
                else:
                    uniforms[position + i] = np.float64(word >> DROPPED) * 2.0**-53
        position += 4 * BATCH
    return 0
