"""Matrices cut into slices: integers of few bits that add up to the matrix, each with its power of two.

Rows of a left factor and columns of a right one are scaled by powers of two to at most 1. The first slice is
the leading ``bits`` bits of that, rounded to an integer, the next those of what is left, and so on: so a
slice after the first is at most 2^(bits - 1).

All slices stand side by side in one array, those of the left factor from the first to the last and those of
the right one from the last to the first. So the sum of the products of slices whose powers are equal is one
product of two contiguous parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from crdt_merge_protocol.strategies.contract import Float64Array

_CHUNK: Final = 16_384
"""Elements that are cut at a time: what that needs stays in the second-level cache."""
_THIRD: Final = 2
_SAFE: Final = 900
"""Up to this exponent scaling is a multiplication, rounded once as by ``ldexp`` and sooner done."""

Exponents = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Slices:
    """The slices of a factor; K is the length that its product sums over."""

    stack: Float64Array
    """``(m, count K)`` of a left factor, ``(count K, n)`` of a right one."""
    exponents: Exponents
    """Of the scales, ``(m, 1)`` or ``(1, n)``."""
    inner: int
    """K."""
    count: int
    """Slices after these are zero: few bits, as float32 has, do not fill three."""
    last: npt.NDArray[np.int64]
    """Where along K the third slice is not zero."""

    def left(self, first: int, stop: int) -> Float64Array:
        """Return slices of a left factor, ``(m, (stop - first) K)``."""
        return self.stack[:, first * self.inner : stop * self.inner]

    def right(self, first: int, stop: int) -> Float64Array:
        """Return slices of a right factor, the last first, ``((stop - first) K, n)``."""
        return self.stack[(self.count - stop) * self.inner : (self.count - first) * self.inner]

    def rows(self, part: slice) -> Slices:
        """Return the slices of some rows of a left factor."""
        return Slices(self.stack[part], self.exponents[part], self.inner, self.count, self.last)

    def columns(self, part: slice) -> Slices:
        """Return the slices of some columns of a right factor."""
        return Slices(self.stack[:, part], self.exponents[:, part], self.inner, self.count, self.last)

    def mirrored(self) -> Slices:
        """Return the slices of the transpose of this left factor, as a right one."""
        parts = [self.left(i, i + 1) for i in reversed(range(self.count))]
        stack = np.concatenate(parts, axis=1).T if parts else self.stack.T
        return Slices(stack, self.exponents.T, self.inner, self.count, self.last)


def cut_left(matrix: Float64Array, bits: int, slices: int) -> Slices:
    """Return the slices of a left factor, ``(m, K)``."""
    inner = matrix.shape[1]
    if matrix.flags.f_contiguous:
        stack, exponents, count, last = _cut(matrix.T, 0, bits, range(slices))
        return Slices(stack.T[:, : count * inner], exponents.T, inner, count, last)
    stack, exponents, count, last = _cut(matrix, 1, bits, range(slices))
    return Slices(stack[:, : count * inner], exponents, inner, count, last)


def cut_right(matrix: Float64Array, bits: int, slices: int) -> Slices:
    """Return the slices of a right factor, ``(K, n)``."""
    inner = matrix.shape[0]
    stack, exponents, count, last = _cut(matrix, 0, bits, range(slices)[::-1])
    return Slices(stack[(slices - count) * inner :], exponents, inner, count, last)


def scaled(matrix: Float64Array, exponents: Exponents) -> Float64Array:
    """Return the matrix times 2 to the exponents, rounded once."""
    if exponents.size and exponents.min() >= -_SAFE and exponents.max() <= _SAFE:
        product: Float64Array = matrix * np.ldexp(1.0, exponents)
        return product
    with np.errstate(over="ignore"):
        return np.ldexp(matrix, exponents)


def _cut(
    matrix: Float64Array, axis: int, bits: int, places: range
) -> tuple[Float64Array, Exponents, int, npt.NDArray[np.int64]]:
    """Return the stack of a matrix that is summed over along an axis, and what else ``Slices`` has.

    Args:
        matrix: Any order in memory; soonest if its rows are contiguous.
        axis: Where K is.
        bits: Of a slice.
        places: Where in the stack each slice goes.
    """
    slices, (rows, columns) = len(places), matrix.shape
    exponents = _exponents(matrix, axis)
    shape = (slices, rows, columns) if axis == 0 else (rows, slices, columns)
    stack = np.empty(shape, np.float64)
    count, seen = 0, np.zeros(matrix.shape[axis], np.bool_)
    step = max(_CHUNK // max(columns, 1), 1)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        rest = scaled(matrix[part], bits - (exponents if axis == 0 else exponents[part]))
        for number, place in enumerate(places):
            target = stack[place, part] if axis == 0 else stack[part, place]
            if number and not rest.any():
                target[:] = 0.0
                continue
            count = max(count, number + 1)
            np.rint(rest, out=target)
            rest -= target
            rest *= 2.0**bits
            if number == _THIRD:
                seen[part if axis == 0 else slice(None)] |= target.any(axis=1 - axis)
    flat = stack.reshape((slices * rows, columns) if axis == 0 else (rows, slices * columns))
    return flat, exponents, count, np.flatnonzero(seen)


def _exponents(matrix: Float64Array, axis: int) -> Exponents:
    """Return the e of each row or column with max |element| in [2^(e - 1), 2^e), 0 for zeros."""
    largest = np.maximum(matrix.max(axis=axis, keepdims=True), -matrix.min(axis=axis, keepdims=True))
    exponents: Exponents = np.frexp(largest)[1]
    return exponents
