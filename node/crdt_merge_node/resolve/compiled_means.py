"""Means of what has information or direction as loops: the operations of numpy, in its order."""

# ruff: noqa: PLR0917 - compiled functions take their arguments by position.
from __future__ import annotations

from typing import Any

from .compiled_emitted import CHUNK, Array, compiled, doubles, entry, integers, load_f64, root

HALF, ONE, TWO = 0, 1, 2


def _make_add(power: Any) -> Any:
    """Return the loop that adds gains of one power."""

    @compiled
    def add(
        row: int,
        fisher: int,
        scale: float,
        cap: float,
        floor: float,
        weight: float,
        out: Array,
        sums: Array,
    ) -> None:
        for i in range(out.size):
            gain = load_f64(fisher, i) * scale
            gain = (power(min(cap, gain)) + floor) * weight
            sums[i] += gain
            out[i] += gain * load_f64(row, i)

    return add


@compiled
def _same(value: float) -> float:
    return value


@compiled
def _half(value: float) -> Any:
    return root(value)


@compiled
def _square(value: float) -> float:
    return value * value


_add, _add_root, _add_square = map(_make_add, (_same, _half, _square))


@entry("iidddidiii")
def add_gain(
    values: int,
    fisher: int,
    scale: float,
    cap: float,
    floor: float,
    power: int,
    weight: float,
    size: int,
    total: int,
    out: int,
) -> int:
    """Add gains (``acceleration.Gain``) to ``total`` and their products with the values to ``out``."""
    sums, means = doubles(total, size), doubles(out, size)
    if power == HALF:
        _add_root(values, fisher, scale, cap, floor, weight, means, sums)
    elif power == TWO:
        _add_square(values, fisher, scale, cap, floor, weight, means, sums)
    else:
        _add(values, fisher, scale, cap, floor, weight, means, sums)
    return 0


@compiled
def _directions(row: int, base: int, start: int, n: int, is_first: bool, ups: Array, downs: Array) -> None:
    """Count who changes an element upwards, and who downwards."""
    for i in range(n):
        change = load_f64(row, start + i) - load_f64(base, start + i)
        up, down = 1.0 if change > 0 else 0.0, 1.0 if change < 0 else 0.0
        ups[i] = up if is_first else ups[i] + up
        downs[i] = down if is_first else downs[i] + down


@compiled
def _add_agreeing(
    row: int, base: int, weight: float, start: int, n: int, sign: Array, out: Array, total: Array
) -> None:
    """Add the changes that have the sign, weighted, and their weights; no change has the sign 0."""
    for i in range(n):
        change = load_f64(row, start + i) - load_f64(base, start + i)
        agrees = 1.0 if change * sign[i] > 0 else 0.0
        out[i] += change * agrees * weight
        total[i] += agrees * weight


@entry("iiiidiii")
def agree(rows: int, k: int, base: int, weights: int, least: float, size: int, out: int, scratch: int) -> int:
    """Write the mean changes of those who agree on a direction, zero where fewer than ``least`` do."""
    addresses, shares = integers(rows, k), doubles(weights, k)
    ups, downs = doubles(scratch, CHUNK), doubles(scratch + 8 * CHUNK, CHUNK)
    total = doubles(scratch + 16 * CHUNK, CHUNK)
    for start in range(0, size, CHUNK):
        n = min(CHUNK, size - start)
        for v in range(k):
            _directions(addresses[v], base, start, n, v == 0, ups, downs)
        for i in range(n):
            sign = 1.0 if ups[i] > downs[i] else (-1.0 if ups[i] < downs[i] else 0.0)
            ups[i] = sign if max(ups[i], downs[i]) >= least else 0.0
        mean = doubles(out + 8 * start, n)
        for i in range(n):
            mean[i] = 0.0
            total[i] = 0.0
        for v in range(k):
            _add_agreeing(addresses[v], base, shares[v], start, n, ups, mean, total)
        for i in range(n):
            mean[i] /= total[i] + (1.0 if total[i] == 0 else 0.0)
    return 0
