"""Matrix products that no rounding can reach: every BLAS, order and thread count gives the same bits.

Both factors are cut into slices (``slices.py``), integers up to 2^bits. A product of two slices is a sum of K
integers up to 2^(2 bits), and K 2^(2 bits) <= 2^53, so all partial sums are integers that float64 holds
exactly, with or without fused multiply-add. Those of equal power of two are added, rounded at most once, and
the sums then with rounding, elementwise and in a fixed order. The library must do plain IEEE 754 float64,
nothing narrower.

Source: Ozaki, Ogita, Oishi, Rump, Numerical Algorithms 59 (2012) 95-118, doi:10.1007/s11075-011-9478-1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from crdt_merge_protocol.strategies.contract import Float64Array

from .slices import Slices, cut_left, cut_right

_MANTISSA_BITS: Final = 53
_INNER_MAX: Final = 1 << 16
"""Longer sums are cut: 18 bits a slice are left at this length, and three slices still hold a float64."""
FULL: Final = 3
"""Slices for the precision of float64: six products."""
HALF: Final = 2
"""Slices for 2^-36 of the largest terms or better: three products."""
_LAST: Final = FULL - 1
_SAFE: Final = 400
"""With exponents up to it, neither of two multiplications by a power of two leaves the range of float64."""
_CHUNK: Final = 131_072
"""Elements of a product that are put together at a time: three of these stay in the cache."""
_PANEL: Final = 128
"""Rows of a square of which what is left of the diagonal, and little more, is computed at a time."""


def exact_matmul(left: Float64Array, right: Float64Array, slices: int = FULL) -> Float64Array:
    """Return the product of two matrices, the same bits on every machine.

    Args:
        left: ``(m, K)`` float64, finite.
        right: ``(K, n)`` float64, finite.
        slices: :data:`FULL` or :data:`HALF`.

    Returns:
        ``(m, n)`` float64. The error of an element is about that of an ordinary product, K 2^-53 times the
        largest elements of its row and its column. Overflows to infinity where the true product does.
    """
    inner = left.shape[1]
    if inner <= _INNER_MAX:
        return _product(left, right, slices)
    total = _product(left[:, :_INNER_MAX], right[:_INNER_MAX], slices)
    for start in range(_INNER_MAX, inner, _INNER_MAX):
        part = slice(start, start + _INNER_MAX)
        total += _product(left[:, part], right[part], slices)
    return total


def exact_gram(matrix: Float64Array, slices: int = FULL) -> Float64Array:
    """Return ``matrix.T @ matrix``, ``(n, n)`` float64, symmetric to the bit."""
    return exact_outer(matrix.T, slices)


def exact_outer(matrix: Float64Array, slices: int = FULL) -> Float64Array:
    """Return ``matrix @ matrix.T``, ``(m, m)`` float64, symmetric to the bit."""
    inner = matrix.shape[1]
    total = _square(matrix[:, :_INNER_MAX], slices)
    for start in range(_INNER_MAX, inner, _INNER_MAX):
        total += _square(matrix[:, start : start + _INNER_MAX], slices)
    return total


def subtract_product(target: Float64Array, left: Float64Array, right: Float64Array) -> None:
    """Subtract a product, of K <= 65,536, from ``target``, ``(m, n)``, in place."""
    for part, panel in _panels(left, right, FULL):
        target[part] -= panel


def subtract_lower_outer(target: Float64Array, matrix: Float64Array) -> None:
    """Subtract the lower triangle of ``matrix @ matrix.T``, K <= 65,536, from ``target`` in place."""
    for rows, columns, part in _lower_parts(matrix, FULL):
        target[rows, columns] -= np.tril(part) if rows == columns else part


def _product(left: Float64Array, right: Float64Array, slices: int) -> Float64Array:
    out = np.zeros((left.shape[0], right.shape[1]), np.float64)
    for part, panel in _panels(left, right, slices):
        out[part] = panel
    return out


def _square(matrix: Float64Array, slices: int) -> Float64Array:
    """Return the product of a matrix and its transpose: what is below the diagonal stands for its mirror."""
    total = np.zeros((matrix.shape[0], matrix.shape[0]), np.float64)
    for rows, columns, part in _lower_parts(matrix, slices):
        total[rows, columns] = part
        if rows != columns:
            total[columns, rows] = part.T
    return total


def _panels(left: Float64Array, right: Float64Array, slices: int) -> Iterator[tuple[slice, Float64Array]]:
    """Yield ranges of rows of a product and the product there; nothing where all is zero for want of terms.

    Where K is short a few rows at a time, which stay in the cache; else that would cost the library more.
    """
    (rows, inner), columns = left.shape, right.shape[1]
    if inner == 0 or rows == 0 or columns == 0:
        return
    bits = _bits(inner)
    lefts, rights = cut_left(left, bits, slices), cut_right(right, bits, slices)
    step = max(_PANEL, inner, _CHUNK // columns)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        yield part, _rounded(lefts.rows(part), rights, bits, slices)


def _lower_parts(matrix: Float64Array, slices: int) -> Iterator[tuple[slice, slice, Float64Array]]:
    """Yield ranges of rows and columns of a square, and the square there, that cover its lower triangle."""
    rows, inner = matrix.shape
    if inner == 0 or rows == 0:
        return
    bits = _bits(inner)
    lefts = cut_left(matrix, bits, slices)
    rights = lefts.mirrored()
    for part, before in _halves(0, rows, _PANEL):
        found = _rounded(lefts.rows(part), rights.columns(before), bits, slices)
        found += 0.0  # What underflowed has no sign here.
        yield part, before, found


def _halves(first: int, stop: int, least: int) -> Iterator[tuple[slice, slice]]:
    """Yield the squares and rectangles that a lower triangle consists of, squares as small as asked."""
    if stop - first <= least:
        yield slice(first, stop), slice(first, stop)
        return
    middle = first + (stop - first) // 2
    yield slice(middle, stop), slice(first, middle)
    yield from _halves(first, middle, least)
    yield from _halves(middle, stop, least)


def _bits(inner: int) -> int:
    return (_MANTISSA_BITS - (inner - 1).bit_length()) // 2


def _rounded(left: Slices, right: Slices, bits: int, slices: int) -> Float64Array:
    """Return the product, its parts added from the smallest, with the scales put back."""
    total: Float64Array | None = None
    for order in reversed(range(slices)):
        part = _part(left, right, order, bits)
        if total is not None:
            total *= 2.0**-bits
            part = total if part is None else np.add(part, total, out=total)
        total = part
    if total is None:
        return np.zeros((left.stack.shape[0], right.stack.shape[1]), np.float64)
    # A sum of zeros has the sign that the library's order gives it.
    total += 0.0
    rows, columns = left.exponents - bits, right.exponents - bits
    if max(-rows.min(), rows.max(), -columns.min(), columns.max()) <= _SAFE:
        total *= np.ldexp(1.0, rows)
        total *= np.ldexp(1.0, columns)
    else:
        with np.errstate(over="ignore"):
            total = np.ldexp(total, rows + columns)
    return total


def _part(left: Slices, right: Slices, order: int, bits: int) -> Float64Array | None:
    """Return the sum of the products of slices i and order - i, rounded once at most; None: there are none.

    A last slice that is zero nearly everywhere, as that of float32 is, is multiplied where it is not.
    """
    first, stop = max(order - right.count + 1, 0), min(order + 1, left.count)
    few = []
    if first == 0 < stop and order == _LAST and 2 * right.last.size < right.inner:
        first = 1
        few.append((left.left(0, 1)[:, right.last], right.right(_LAST, _LAST + 1)[right.last]))
    if stop == _LAST + 1 and 2 * left.last.size < left.inner:
        stop = _LAST
        few.append((left.left(_LAST, _LAST + 1)[:, left.last], right.right(0, 1)[left.last]))
    # Three products together can be 1.25 K 2^(2 bits).
    apart = stop - first == FULL and 5 * left.inner << 2 * bits > 1 << _MANTISSA_BITS + 2
    runs = [(first, stop - 1), (stop - 1, stop)] if apart else [(first, stop)]
    found = [left.left(i, j) @ right.right(order + 1 - j, order + 1 - i) for i, j in runs if i < j]
    if few:
        columns, rows = zip(*few, strict=True)
        found.append(np.concatenate(columns, axis=1) @ np.concatenate(rows))
    for other in found[1:]:
        found[0] += other
    return found[0] if found else None
