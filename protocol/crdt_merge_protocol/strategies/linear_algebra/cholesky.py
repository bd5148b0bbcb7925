"""Symmetric positive definite systems: blocked Cholesky and triangular solves on exact products."""

from __future__ import annotations

from typing import Final

import numpy as np

from crdt_merge_protocol.strategies.contract import Float64Array

from .gemm import subtract_lower_outer, subtract_product

_BLOCK: Final = 64
"""Columns that are eliminated one by one. Part of the format: it shows in the bits."""


class NotPositiveError(ArithmeticError):
    """The matrix is not positive definite to rounding."""


def cholesky(matrix: Float64Array) -> Float64Array:
    """Return the lower triangular L with ``L L^T = matrix``, the same bits on every machine.

    Args:
        matrix: ``(n, n)`` float64, finite, symmetric. Scale it so that the diagonal is near 1.

    Raises:
        NotPositiveError: A pivot is not positive.
    """
    lower = np.tril(matrix)
    size = lower.shape[0]
    for first in range(0, size, _BLOCK):
        stop = min(first + _BLOCK, size)
        panel = np.ascontiguousarray(lower[first:, first:stop])
        _eliminate(panel)
        lower[first:, first:stop] = panel
        below = panel[stop - first :]
        if below.shape[0]:
            subtract_lower_outer(lower[stop:, stop:], below)
    return lower


def _eliminate(panel: Float64Array) -> None:
    """Factor a panel in place: its first rows are its diagonal block."""
    for j in range(panel.shape[1]):
        pivot = float(panel[j, j])
        if not pivot > 0.0:
            raise NotPositiveError(f"pivot {pivot!r}")
        panel[j:, j] /= np.sqrt(pivot)
        panel[:j, j] = 0.0
        rest = panel[j + 1 :, j + 1 :]
        rest -= panel[j + 1 :, j, None] * panel[j + 1 : panel.shape[1], j]


def solve_positive(matrix: Float64Array, right: Float64Array) -> Float64Array:
    """Return X with ``matrix X = right``, the same bits on every machine.

    Args:
        matrix: ``(n, n)`` float64, symmetric positive definite.
        right: ``(n, r)`` float64.

    Raises:
        NotPositiveError: As :func:`cholesky`.
    """
    lower = cholesky(matrix)
    solution = right.copy()
    starts = range(0, lower.shape[0], _BLOCK)
    for first in starts:
        stop = min(first + _BLOCK, lower.shape[0])
        _forward(lower[first:stop, first:stop], solution[first:stop])
        if stop < lower.shape[0]:
            subtract_product(solution[stop:], lower[stop:, first:stop], solution[first:stop])
    for first in reversed(starts):
        stop = min(first + _BLOCK, lower.shape[0])
        if stop < lower.shape[0]:
            subtract_product(solution[first:stop], lower[stop:, first:stop].T, solution[stop:])
        _backward(lower[first:stop, first:stop], solution[first:stop])
    return solution


def _forward(lower: Float64Array, right: Float64Array) -> None:
    for j in range(lower.shape[0]):
        right[j] /= lower[j, j]
        right[j + 1 :] -= lower[j + 1 :, j, None] * right[j]


def _backward(lower: Float64Array, right: Float64Array) -> None:
    for j in reversed(range(lower.shape[0])):
        right[j] /= lower[j, j]
        right[:j] -= lower[j, :j, None] * right[j]
