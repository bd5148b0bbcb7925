"""Loops over stored elements, compiled by numba: the same operations in the same order as the numpy forms.

Nothing is contracted or reassociated (fastmath is off), so the bits are those of the definitions in the
protocol room. Inputs come as addresses: one compilation serves any number of contributions. Whoever calls
keeps what is at the addresses alive; ``compiled.py`` does.
"""

# ruff: noqa: PLR0917 - compiled functions take their arguments by position.
from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

F = TypeVar("F", bound=Callable[..., Any])
Array = npt.NDArray[Any]

CHUNK: Final = 2_048
"""Elements in hand: 16 KiB of float64 stay in the first-level cache."""
AS_F64, AS_F32, AS_BF16 = 0, 1, 2
MEAN_COUNTED, MEAN_WEIGHTED, SUM, MAX = 0, 1, 2, 3


def compiled(function: F) -> F:
    """Compile on the first call, kept on disk where that is possible."""
    try:
        return cast(F, numba.njit(cache=True, nogil=True, error_model="numpy")(function))
    except RuntimeError:  # No place for a cache: neither beside the module nor in the user's directory.
        return cast(F, numba.njit(nogil=True, error_model="numpy")(function))


def emitted(function: Callable[..., Any]) -> Any:
    """Make a function of LLVM instructions, which numba's own types cannot describe."""
    return intrinsic(function)


@emitted
def _load(_typing: Any, address: Any, index: Any, like: Any) -> Any:
    """Return element ``index`` of the array at ``address``, exact, as float64. uint16 is bfloat16."""
    signature = types.float64(address, index, like)
    is_brain = like.dtype == types.uint16

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        element = context.get_value_type(like.dtype)
        pointer = builder.inttoptr(arguments[0], element.as_pointer())
        value = builder.load(builder.gep(pointer, [arguments[1]]))
        if like.dtype == types.uint8:
            return builder.uitofp(value, ir.DoubleType())
        if is_brain:
            word = builder.shl(builder.zext(value, ir.IntType(32)), ir.IntType(32)(16))
            value = builder.bitcast(word, ir.FloatType())
        return value if like.dtype == types.float64 else builder.fpext(value, ir.DoubleType())

    return signature, generate


@emitted
def _single(_typing: Any, value: Any) -> Any:
    """Return the bits of a float64 rounded to float32."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.fptrunc(arguments[0], ir.FloatType()), ir.IntType(32))

    return types.int32(value), generate


@emitted
def _bits(_typing: Any, value: Any) -> Any:
    """Return the bits of a float64."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(64))

    return types.int64(value), generate


@emitted
def _high_product(_typing: Any, left: Any, right: Any) -> Any:
    """Return the upper half of the 128-bit product of two uint64."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        wide = ir.IntType(128)
        product = builder.mul(builder.zext(arguments[0], wide), builder.zext(arguments[1], wide))
        return builder.trunc(builder.lshr(product, wide(64)), ir.IntType(64))

    return types.uint64(left, right), generate


@emitted
def _brain(_typing: Any, single: Any) -> Any:
    """Return the bits of a float32 rounded to bfloat16, in the upper half; wrong for NaN."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        last = builder.and_(builder.lshr(arguments[0], word(16)), word(1))
        rounded = builder.add(builder.add(arguments[0], word(0x7FFF)), last)
        return builder.and_(rounded, word(0xFFFF0000))

    return types.int32(single), generate


@emitted
def _upper(_typing: Any, bits: Any) -> Any:
    """Return the upper half of 32 bits."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.trunc(builder.lshr(arguments[0], ir.IntType(32)(16)), ir.IntType(16))

    return types.uint16(bits), generate


@emitted
def _larger(_typing: Any, worst: Any, single: Any) -> Any:
    """Return the larger of ``worst`` and the exponent of a float32. In numba int32 would become int64."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        exponent = builder.and_(arguments[1], ir.IntType(32)(0x7F800000))
        return builder.select(builder.icmp_signed(">", exponent, arguments[0]), exponent, arguments[0])

    return types.int32(worst, single), generate


@compiled
def round_to_single(values: Array, start: int, size: int, out: Array) -> bool:
    """Write ``values[:size]``, rounded to float32, as bits to ``out[start:]``; tell if all is finite."""
    target = out[start : start + size]  # Indices that start at zero need no check for negative ones.
    worst = np.int32(0)
    for i in range(size):
        bits = _single(values[i])
        worst = _larger(worst, bits)
        target[i] = bits
    return bool(worst != 0x7F800000)


@compiled
def round_to_brain(values: Array, start: int, size: int, out: Array) -> bool:
    """Write ``values[:size]``, rounded to float32, then bfloat16, as bits; tell if all is finite."""
    target = out[start : start + size]
    worst = np.int32(0)
    for i in range(size):
        bits = _single(values[i])
        rounded = _brain(bits)
        worst = _larger(_larger(worst, bits), rounded)
        target[i] = _upper(rounded)
    return bool(worst != 0x7F800000)


@compiled
def round_all(values: Array, kind: int, singles: Array, brains: Array) -> bool:
    """Write all of ``values`` to ``singles`` or ``brains``; tell whether all of it is finite."""
    if kind == AS_F32:
        return round_to_single(values, 0, values.size, singles)
    return round_to_brain(values, 0, values.size, brains)


@compiled
def widen(address: int, like: Array, out: Array) -> None:
    """Decode stored elements to float64."""
    for i in range(out.size):
        out[i] = _load(address, i, like)


@compiled
def _add(
    row: int, like: Array, base: int, base_like: Array, factor: float, start: int, n: int, total: Array
) -> None:
    """Add factor * row, or factor * (row - base), to the first ``n`` sums."""
    if base == 0:
        for i in range(n):
            total[i] += _load(row, start + i, like) * factor
    else:
        for i in range(n):
            total[i] += (_load(row, start + i, like) - _load(base, start + i, base_like)) * factor


@compiled
def _add_four(
    rows: Array, like: Array, base: int, base_like: Array, factors: Array, start: int, n: int, total: Array
) -> None:
    """Add four rows, one after the other for every element: sums are loaded and stored once for all."""
    a, b, c, d = rows[0], rows[1], rows[2], rows[3]
    e, f, g, h = factors[0], factors[1], factors[2], factors[3]
    if base == 0:
        for i in range(n):
            at = start + i
            value = total[i] + _load(a, at, like) * e
            value = value + _load(b, at, like) * f
            value = value + _load(c, at, like) * g
            total[i] = value + _load(d, at, like) * h
    else:
        for i in range(n):
            at = start + i
            origin = _load(base, at, base_like)
            value = total[i] + (_load(a, at, like) - origin) * e
            value = value + (_load(b, at, like) - origin) * f
            value = value + (_load(c, at, like) - origin) * g
            total[i] = value + (_load(d, at, like) - origin) * h


@compiled
def combine(
    rows: Array,
    like: Array,
    base: int,
    base_like: Array,
    coefficients: Array,
    size: int,
    kind: int,
    doubles: Array,
    singles: Array,
    brains: Array,
) -> bool:
    """Write the sum of coefficient times row, or base + sum of coefficient * (row - base).

    Args:
        rows: Addresses of those with a coefficient that is not zero, in canonical order.
        like: Of their element type; no element is read.
        base: Its address; 0: there is none.
        base_like: Of the base's element type.
        coefficients: One per row.
        size: Elements.
        kind: Which of the three outputs is written.
        doubles: float64.
        singles: float32 as uint32 bits.
        brains: bfloat16 as uint16 bits.

    Returns:
        Whether all of the output is finite; always, for float64.
    """
    total = np.empty(CHUNK, np.float64)
    is_finite = True
    for start in range(0, size, CHUNK):
        count = min(CHUNK, size - start)
        for i in range(count):
            total[i] = 0.0 if rows.size == 0 else -0.0  # -0.0 + x is x, whatever x.
        for number in range(0, rows.size - rows.size % 4, 4):
            _add_four(rows[number:], like, base, base_like, coefficients[number:], start, count, total)
        for number in range(rows.size - rows.size % 4, rows.size):
            _add(rows[number], like, base, base_like, coefficients[number], start, count, total)
        if base != 0:
            for i in range(count):
                total[i] += _load(base, start + i, base_like)
        if kind == AS_F32:
            is_finite &= round_to_single(total, start, count, singles)
        elif kind == AS_BF16:
            is_finite &= round_to_brain(total, start, count, brains)
        else:
            target = doubles[start : start + count]
            for i in range(count):
                target[i] = total[i]
    return is_finite


@compiled
def _differ(
    row: int,
    like: Array,
    base: int,
    mask: int,
    mask_like: Array,
    scale: float,
    start: int,
    out: Array,
    n: int,
) -> None:
    """Write (row - base) * mask * scale of a chunk; the base is float64, a mask at address 0 keeps all."""
    base_like = out
    if mask == 0:
        for i in range(n):
            out[i] = (_load(row, start + i, like) - _load(base, start + i, base_like)) * scale
    else:
        for i in range(n):
            kept = _load(mask, start + i, mask_like)
            out[i] = (_load(row, start + i, like) - _load(base, start + i, base_like)) * kept * scale


@compiled
def count_digits(
    row: int,
    like: Array,
    base: int,
    mask: int,
    mask_like: Array,
    scale: float,
    size: int,
    prefix: int,
    above: int,
    shift: int,
    histogram: Array,
    gathered: Array,
) -> int:
    """Count, by digit, the magnitudes of differences whose bits from ``above`` on are ``prefix``.

    ``above`` 63: all are candidates. The first of them are gathered as well. Returns how many there are.
    """
    values, patterns = np.empty(CHUNK, np.float64), np.empty(CHUNK, np.int64)
    digit_mask = histogram.size - 1
    found = 0
    for start in range(0, size, CHUNK):
        count = min(CHUNK, size - start)
        _differ(row, like, base, mask, mask_like, scale, start, values, count)
        for i in range(count):
            patterns[i] = _bits(values[i]) & 0x7FFFFFFFFFFFFFFF
        if above == 63:
            for i in range(count):
                histogram[(patterns[i] >> shift) & digit_mask] += 1
            for i in range(min(count, gathered.size - found)):
                gathered[found + i] = patterns[i]
            found += count if found < gathered.size else 0
            continue
        for i in range(count):
            pattern = patterns[i]
            if (pattern >> above) == prefix:
                histogram[(pattern >> shift) & digit_mask] += 1
                if found < gathered.size:
                    gathered[found] = pattern
                found += 1
    return size if above == 63 else found


@compiled
def _trim(values: Array, threshold: float, beyond: int, n: int) -> None:
    """Zero what is below the threshold, and from ``beyond`` on what equals it. Signs of zeros stay."""
    for i in range(min(beyond, n)):
        values[i] *= 1.0 if abs(values[i]) >= threshold else 0.0
    for i in range(max(beyond, 0), n):
        values[i] *= 1.0 if abs(values[i]) > threshold else 0.0


@compiled
def _vote(values: Array, by_count: bool, is_first: bool, total: Array, n: int) -> None:
    for i in range(n):
        vote = values[i]
        if by_count:
            vote = 1.0 if vote > 0 else (-1.0 if vote < 0 else 0.0)
        total[i] = vote if is_first else total[i] + vote


@compiled
def _agree(
    values: Array,
    total: Array,
    majority: float,
    weight: float,
    factor: float,
    merge: int,
    n: int,
    out: Array,
    shares: Array,
) -> None:
    """Add one voter's values, where they have the elected sign, to ``out`` and its weight to ``shares``."""
    for i in range(n):
        value = values[i]
        is_positive = total[i] >= 0 if majority > 0 else total[i] > 0
        agrees = 1.0 if (value > 0 if is_positive else value < 0) else 0.0
        term = value * agrees
        shares[i] += agrees * weight
        if merge == MAX:
            out[i] = term if abs(term) > abs(out[i]) else out[i]
        else:
            out[i] += term * factor


@compiled
def elect(
    rows: Array,
    like: Array,
    base: int,
    masks: Array,
    mask_like: Array,
    scales: Array,
    thresholds: Array,
    beyond: Array,
    weights: Array,
    is_weighted: bool,
    by_count: bool,
    merge: int,
    majority: float,
    scale: float,
    is_counting: bool,
    out: Array,
    size: int,
) -> int:
    """Trim, elect signs and merge what agrees, for one block; or only count the elected signs.

    Args:
        rows: Addresses of the voters' elements.
        like: Of their element type.
        base: Address of the base, float64.
        masks: Addresses of what dropping leaves, one byte per element; 0: all.
        mask_like: uint8.
        scales: What differences are multiplied by.
        thresholds: K-th magnitudes; below zero: nothing is trimmed.
        beyond: From which element on, what equals the threshold goes too.
        weights: One per voter, positive.
        is_weighted: Weights count in the election.
        by_count: One vote each, instead of the values.
        merge: How what agrees is merged.
        majority: The sign where votes cancel out.
        scale: Of the merged difference.
        is_counting: Only count.
        out: ``(size,)`` float64.
        size: Elements.

    Returns:
        How many more elements were elected positive than negative.
    """
    k = rows.size
    values = np.empty((k, CHUNK), np.float64)
    total, shares = np.empty(CHUNK, np.float64), np.empty(CHUNK, np.float64)
    balance = 0
    for start in range(0, size, CHUNK):
        n = min(CHUNK, size - start)
        for v in range(k):
            mine = values[v]
            _differ(rows[v], like, base, masks[v], mask_like, scales[v], start, mine, n)
            if thresholds[v] >= 0:
                _trim(mine, thresholds[v], min(max(beyond[v] - start, 0), n), n)
            if is_weighted:
                for i in range(n):
                    mine[i] *= weights[v]
            _vote(mine, by_count, v == 0, total, n)
        if is_counting:
            for i in range(n):
                balance += (1 if total[i] > 0 else 0) - (1 if total[i] < 0 else 0)
            continue
        merged = out[start:]
        for i in range(n):
            merged[i] = shares[i] = 0.0
        for v in range(k):
            factor = 1.0 if is_weighted or merge == MAX else weights[v]
            weight = 1.0 if merge == MEAN_COUNTED else weights[v]
            _agree(values[v], total, majority, weight, factor, merge, n, merged, shares)
        is_mean = merge in (MEAN_COUNTED, MEAN_WEIGHTED)
        for i in range(n):
            value = merged[i]
            if is_mean:
                value /= shares[i] + (1.0 if shares[i] == 0 else 0.0)
            merged[i] = value * scale + _load(base, start + i, out)
    return balance


@compiled
def _philox(counter: Any, key0: Any, key1: Any) -> Any:
    """Return the four words of Philox4x64-10 at a counter (Salmon et al., SC 2011)."""
    x0, x1, x2, x3 = counter, np.uint64(0), np.uint64(0), np.uint64(0)
    for _ in range(10):
        high0 = _high_product(np.uint64(0xD2E7470EE14C6C93), x0)
        low0 = np.uint64(0xD2E7470EE14C6C93) * x0
        high1 = _high_product(np.uint64(0xCA5A826395121157), x2)
        low1 = np.uint64(0xCA5A826395121157) * x2
        x0, x1, x2, x3 = high1 ^ x1 ^ key0, low1, high0 ^ x3 ^ key1, low0
        key0 += np.uint64(0x9E3779B97F4A7C15)
        key1 += np.uint64(0xBB67AE8584CAA73B)
    return x0, x1, x2, x3


@compiled
def keep(low: Any, high: Any, start: Any, bound: Any, out: Array) -> None:
    """Write which words of a Philox stream are below ``bound``; all but ``out`` are uint64."""
    # numpy counts up before it draws, so the first four words are those of counter 1.
    counter = (start >> np.uint64(2)) + np.uint64(1)
    skip = np.int64(start & np.uint64(3))
    words = np.empty(4, np.uint64)
    position = -skip
    while position < out.size:
        x0, x1, x2, x3 = _philox(counter, low, high)
        if position >= 0 and position + 4 <= out.size:
            out[position] = x0 < bound
            out[position + 1] = x1 < bound
            out[position + 2] = x2 < bound
            out[position + 3] = x3 < bound
        else:
            words[0], words[1], words[2], words[3] = x0, x1, x2, x3
            for word in range(4):
                if 0 <= position + word < out.size:
                    out[position + word] = words[word] < bound
        position += 4
        counter += np.uint64(1)
