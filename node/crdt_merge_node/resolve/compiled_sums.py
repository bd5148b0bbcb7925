"""Decoding, encoding, weighted sums and sums over leaves as loops: the operations of numpy, in its order."""

# ruff: noqa: C901, PLR0917 - compiled functions take their arguments by position, and those that make
# them for an element type hold all of them.
from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import llvmlite.binding as llvm

from .compiled_emitted import (
    CHUNK,
    Array,
    brain,
    compiled,
    doubles,
    entry,
    entry_for,
    halves,
    integers,
    load_bf16,
    load_f16,
    load_f32,
    load_f64,
    single,
    single_of_half,
    upper,
    words,
)
from .compiled_lanes import (
    lanes_bf16,
    lanes_f16,
    lanes_f32,
    lanes_f64,
    larger_words,
    largest_word,
    put,
    put_brains,
    put_halves,
    put_singles,
    singles_of,
    singles_of_halves,
    spread,
    spread_word,
)

AS_F64, AS_F32, AS_BF16, AS_F16 = 0, 1, 2, 3
HAS_HALF: Final = llvm.get_default_triple().startswith("aarch64") or bool(
    llvm.get_host_cpu_features().get("f16c")
)
"""Whether the processor converts float16 itself; else the compiler would call a library that is not there."""
LOADS: Final[dict[str, Any]] = {"F64": load_f64, "F32": load_f32, "BF16": load_bf16} | (
    {"F16": load_f16} if HAS_HALF else {}
)
LANES: Final[dict[str, Any]] = {
    "F64": lanes_f64,
    "F32": lanes_f32,
    "BF16": lanes_bf16,
    "F16": lanes_f16,
}
"""The same, of eight elements."""
DIFFERING: Final = ("F64", "F32", "BF16")
"""Element types that have loops of their own for what is done with differences. Others are decoded before:
each takes five seconds to compile."""
LEAF: Final = 65_536


FINITE: Final = 0x7F800000
"""Bits of float32 infinity: magnitudes below are finite."""
FINITE_BRAIN: Final = 0x7F7F8000
"""Bits of the least float32 that is infinite when it is rounded to bfloat16."""


def _make_round(limit: int, seen: Any, put_lanes: Any, round_one: Any) -> Callable[..., bool]:
    """Return the loop that rounds float64 at an address to elements of a type, and tells if all is finite.

    Args:
        limit: The least magnitude, as bits of float32, that is not finite.
        seen: Makes the float32, as bits, that magnitude is looked at of, of the float32 that is written.
        put_lanes: Writes eight.
        round_one: Writes one: (value, address, index, elements at the address), and returns its magnitude.
    """

    @compiled
    def round_all(values: int, start: int, size: int, out: int, total: int) -> bool:
        whole, worst = size - size % 8, spread_word(0)
        for i in range(0, whole, 8):
            found = singles_of(lanes_f64(values, i))
            worst = larger_words(worst, seen(found))
            put_lanes(out, start + i, found)
        is_finite = largest_word(worst) < limit
        for i in range(whole, size):
            is_finite &= round_one(load_f64(values, i), out, start + i, total) < limit
        return bool(is_finite)

    return round_all


@compiled
def _same_words(found: Any) -> Any:
    return found


@compiled
def _single_at(value: float, out: int, i: int, total: int) -> Any:
    found = single(value)
    words(out, total)[i] = found
    return found & 0x7FFFFFFF


@compiled
def _brain_at(value: float, out: int, i: int, total: int) -> Any:
    found = single(value)
    halves(out, total)[i] = upper(brain(found))
    return found & 0x7FFFFFFF


round_to_single = _make_round(FINITE, _same_words, put_singles, _single_at)
round_to_brain = _make_round(FINITE_BRAIN, _same_words, put_brains, _brain_at)

if HAS_HALF:
    from .compiled_emitted import half

    @compiled
    def _half_words(found: Any) -> Any:
        return singles_of_halves(found)

    @compiled
    def _half_at(value: float, out: int, i: int, total: int) -> Any:
        rounded = half(value)
        halves(out, total)[i] = rounded
        return single_of_half(rounded) & 0x7FFFFFFF

    round_to_half = _make_round(FINITE, _half_words, put_halves, _half_at)
else:

    @compiled
    def round_to_half(values: int, start: int, size: int, out: int, total: int) -> bool:  # noqa: ARG001
        """Decline: this processor does not convert float16."""
        return False


@compiled
def store(values: int, start: int, size: int, kind: int, out: int, total: int) -> bool:
    """Write ``size`` float64 to elements of a kind at ``out``, from ``start`` on; tell if all is finite."""
    if kind == AS_F32:
        return round_to_single(values, start, size, out, total)
    if kind == AS_BF16:
        return round_to_brain(values, start, size, out, total)
    if kind == AS_F16:
        return round_to_half(values, start, size, out, total)
    source, target = doubles(values, size), doubles(out, total)[start : start + size]
    for i in range(size):
        target[i] = source[i]
    return True


@entry("iiii")
def encode(values: int, size: int, kind: int, out: int) -> int:
    """Round ``size`` float64 into elements of a kind; tell whether all of it is finite."""
    return 1 if store(values, 0, size, kind, out, size) else 0


def _make_decode(load: Any) -> Callable[..., int]:
    def decode(stored: int, size: int, out: int) -> int:
        target = doubles(out, size)
        for i in range(size):
            target[i] = load(stored, i)
        return 0

    return decode


def _make_sums(load: Any, lanes: Any) -> tuple[Any, Any, Any]:
    """Return the loops that write the sums of the terms of all rows: of four at least, of fewer, of the rest.

    The first two take eight elements at a time, the last one what is left of them.
    """

    @compiled
    def term(row: int, i: int, base: int, origin: Any, factor: Any) -> Any:
        if base == 0:
            return lanes(row, i) * factor
        return (lanes(row, i) - origin) * factor

    @compiled
    def sum_four(rows: Array, base: int, factors: Array, start: int, n: int, out: int) -> None:
        a, b, c, d = rows[0], rows[1], rows[2], rows[3]
        e, f, g, h = spread(factors[0]), spread(factors[1]), spread(factors[2]), spread(factors[3])
        origin = spread(0.0)
        for i in range(start, start + n, 8):
            if base != 0:
                origin = lanes(base, i)
            total = term(a, i, base, origin, e) + term(b, i, base, origin, f)
            total = total + term(c, i, base, origin, g)
            total = total + term(d, i, base, origin, h)
            for v in range(4, rows.size):
                total = total + term(rows[v], i, base, origin, spread(factors[v]))
            if base != 0:
                total = total + origin
            put(out, i - start, total)

    @compiled
    def sum_few(rows: Array, base: int, factors: Array, start: int, n: int, out: int) -> None:
        a, e, origin = rows[0], spread(factors[0]), spread(0.0)
        for i in range(start, start + n, 8):
            if base != 0:
                origin = lanes(base, i)
            total = term(a, i, base, origin, e)
            for v in range(1, rows.size):
                total = total + term(rows[v], i, base, origin, spread(factors[v]))
            if base != 0:
                total = total + origin
            put(out, i - start, total)

    @compiled
    def sum_some(rows: Array, base: int, factors: Array, start: int, n: int, total: Array) -> None:
        for i in range(n):
            origin = load(base, start + i) if base != 0 else 0.0
            value = 0.0
            for v in range(rows.size):
                difference = load(rows[v], start + i)
                if base != 0:
                    difference -= origin
                value = value + difference * factors[v] if v else difference * factors[v]
            total[i] = value + origin if base != 0 else value

    return sum_four, sum_few, sum_some


def _make_combine(load: Any, lanes: Any) -> Callable[..., int]:
    """Return the loop that adds up rows of one element type, with or without a base of the same type."""
    sum_four, sum_few, sum_some = _make_sums(load, lanes)

    def combine(
        rows: int, k: int, base: int, coefficients: int, size: int, kind: int, out: int, scratch: int
    ) -> int:
        addresses, factors = integers(rows, k), doubles(coefficients, k)
        total = doubles(scratch, CHUNK)
        is_finite = True
        for start in range(0, size, CHUNK):
            n = min(CHUNK, size - start)
            whole = n - n % 8
            if k >= 4:
                sum_four(addresses, base, factors, start, whole, scratch)
            elif k:
                sum_few(addresses, base, factors, start, whole, scratch)
            else:
                whole = 0
            sum_some(addresses, base, factors, start + whole, n - whole, total[whole:])
            is_finite &= store(scratch, start, n, kind, out, size)
        return 1 if is_finite else 0

    return combine


for _name, _load in LOADS.items():
    entry_for(f"combine_{_name}", "iiiiiiii", _make_combine(_load, LANES[_name]))
    entry_for(f"decode_{_name}", "iii", _make_decode(_load))


@compiled
def _fold(values: Array, width: int) -> None:
    """Add the upper half to the lower, three times: ``8 * width`` values become ``width``."""
    for i in range(width):
        left = (values[i] + values[i + 4 * width]) + (values[i + 2 * width] + values[i + 6 * width])
        right = (values[i + width] + values[i + 5 * width]) + (values[i + 3 * width] + values[i + 7 * width])
        values[i] = left + right


@compiled
def _halve(values: Array, size: int) -> Any:
    """Return the sum of ``size`` values by repeated halving, in place."""
    if size == 0:
        return 0.0
    half = 1
    while half * 2 < size:
        half *= 2
    if size == 1:
        return values[0]
    for i in range(size - half):
        values[i] += values[half + i]
    return _finish(values, half)


@compiled
def _finish(values: Array, half: int) -> Any:
    """Return the sum of the first ``half`` values, a power of two, by halving in place."""
    while half >= 8:
        half //= 8
        _fold(values, half)
    while half > 1:
        half //= 2
        for i in range(half):
            values[i] += values[half + i]
    return values[0]


@compiled
def _whole_leaf(first: int, second: int, sums: Array) -> Any:
    """Return the sum of the products of a whole leaf; they are added in eights as they are made."""
    width = LEAF // 8
    for i in range(width):
        a = load_f64(first, i) * load_f64(second, i)
        b = load_f64(first, i + width) * load_f64(second, i + width)
        c = load_f64(first, i + 2 * width) * load_f64(second, i + 2 * width)
        d = load_f64(first, i + 3 * width) * load_f64(second, i + 3 * width)
        a += load_f64(first, i + 4 * width) * load_f64(second, i + 4 * width)
        b += load_f64(first, i + 5 * width) * load_f64(second, i + 5 * width)
        c += load_f64(first, i + 6 * width) * load_f64(second, i + 6 * width)
        d += load_f64(first, i + 7 * width) * load_f64(second, i + 7 * width)
        sums[i] = (a + c) + (b + d)
    return _finish(sums, width)


@entry("iiiii")
def leaf_sums(first: int, second: int, size: int, out: int, scratch: int) -> int:
    """Write the sum over each leaf of first * second, or of first alone if there is no second."""
    product, sums = doubles(scratch, LEAF), doubles(out, size)
    for leaf in range((size + LEAF - 1) // LEAF):
        start = leaf * LEAF
        n = min(LEAF, size - start)
        if n == LEAF and second != 0:
            sums[leaf] = _whole_leaf(first + 8 * start, second + 8 * start, product)
            continue
        if second == 0:
            for i in range(n):
                product[i] = load_f64(first, start + i)
        else:
            for i in range(n):
                product[i] = load_f64(first, start + i) * load_f64(second, start + i)
        sums[leaf] = _halve(product, n)
    return 0
