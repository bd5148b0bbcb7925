"""Matrix products that no rounding can reach: every BLAS, order and thread count gives the same bits.

Rows of the left factor and columns of the right one are scaled by powers of two to at most 1 and split into
slices: integers of ``bits`` bits, the first slice the leading bits, the next what was left. A product of two
slices is a sum of K integers up to 2^(2 bits), and K 2^(2 bits) <= 2^53, so all partial sums are integers
that float64 holds exactly, with or without fused multiply-add. Only the few slice products are then added
with rounding, elementwise and in a fixed order. The library must do plain IEEE 754 float64, nothing narrower.

Source: Ozaki, Ogita, Oishi, Rump, Numerical Algorithms 59 (2012) 95-118, doi:10.1007/s11075-011-9478-1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from crdt_merge_protocol.strategies.contract import Float64Array

_MANTISSA_BITS: Final = 53
_INNER_MAX: Final = 1 << 16
"""Longer sums are cut: 18 bits a slice are left at this length, and three slices still hold a float64."""
FULL: Final = 3
"""Slices for the precision of float64: six products."""
HALF: Final = 2
"""Slices for 2^-36 of the largest terms or better: three products."""


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
    inner = matrix.shape[0]
    total = _square(matrix[:_INNER_MAX].T, slices)
    for start in range(_INNER_MAX, inner, _INNER_MAX):
        total += _square(matrix[start : start + _INNER_MAX].T, slices)
    # Slice products are added in an order that is not the same above the diagonal.
    lower = np.tril(total)
    return lower + np.tril(lower, -1).T


def exact_outer(matrix: Float64Array, slices: int = FULL) -> Float64Array:
    """Return ``matrix @ matrix.T``, ``(m, m)`` float64, symmetric to the bit."""
    return exact_gram(matrix.T, slices)


def _product(left: Float64Array, right: Float64Array, slices: int) -> Float64Array:
    rows, inner = left.shape
    if inner == 0 or rows == 0 or right.shape[1] == 0:
        return np.zeros((rows, right.shape[1]), np.float64)
    bits = _bits(inner)
    lefts, row_exponents = _split(left, 1, bits, slices)
    rights, column_exponents = _split(right, 0, bits, slices)
    parts = []
    for order in range(slices):
        pairs = [(i, order - i) for i in range(order + 1) if i < len(lefts) and order - i < len(rights)]
        parts.append(sum((_times(lefts[i], rights[j]) for i, j in pairs), 0.0))
    return _scaled(parts, bits, row_exponents + column_exponents)


def _times(left: Float64Array, right: Float64Array) -> Float64Array:
    """Return the product of two slices; of the last one of float32 little is not zero."""
    found: Float64Array
    inside = np.flatnonzero(left.any(axis=0) & right.any(axis=1))
    if 2 * inside.size < left.shape[1]:
        found = np.ascontiguousarray(left[:, inside]) @ np.ascontiguousarray(right[inside])
    else:
        found = left @ right
    return found


def _square(left: Float64Array, slices: int) -> Float64Array:
    """Return the product of a matrix and its transpose: that of two slices stands for its mirror, too."""
    rows, inner = left.shape
    if inner == 0 or rows == 0:
        return np.zeros((rows, rows), np.float64)
    bits = _bits(inner)
    lefts, exponents = _split(np.ascontiguousarray(left), 1, bits, slices)
    parts = []
    for order in range(slices):
        pairs = [(i, order - i) for i in range(order + 1) if max(i, order - i) < len(lefts)]
        halves = {i: lefts[i] @ lefts[j].T for i, j in pairs if i <= j}
        parts.append(sum((halves[i] if i <= j else halves[j].T for i, j in pairs), 0.0))
    return _scaled(parts, bits, exponents + exponents.T)


def _bits(inner: int) -> int:
    return (_MANTISSA_BITS - (inner - 1).bit_length()) // 2


def _scaled(
    parts: Sequence[Float64Array | float], bits: int, exponents: npt.NDArray[np.int32]
) -> Float64Array:
    """Return the sum of the products of slices, the smallest first, with the scales put back."""
    total: Float64Array | float = 0.0
    for part in reversed(parts):
        total = part + total * 2.0**-bits
    # A sum of zeros has the sign that the library's order gives it.
    total = total + 0.0
    with np.errstate(over="ignore"):
        scaled: Float64Array = np.ldexp(total, exponents - 2 * bits)
    return scaled


def _split(matrix: Float64Array, axis: int, bits: int, slices: int) -> tuple[list[Float64Array], np.ndarray]:
    """Return slices of integers and the exponents of their scales, kept as an axis of length 1.

    Slices of zeros at the end are left out: few bits, as float32 has, do not fill three.
    """
    largest = np.maximum(matrix.max(axis=axis, keepdims=True), -matrix.min(axis=axis, keepdims=True))
    exponents = np.frexp(largest)[1]
    rest = np.ldexp(matrix, bits - exponents)
    found = []
    for _ in range(slices - 1):
        found.append(np.rint(rest))
        rest -= found[-1]
        rest *= 2.0**bits
        if not rest.any():
            return found, exponents
    found.append(np.rint(rest, out=rest))
    return found, exponents
