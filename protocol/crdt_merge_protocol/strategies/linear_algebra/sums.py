"""Sums over the first axis by repeated halving: elementwise additions in an order that depends on nothing."""

from __future__ import annotations

import numpy as np

from crdt_merge_protocol.strategies.contract import Float64Array


def column_sums(scratch: Float64Array) -> Float64Array:
    """Return the sum over axis 0 of ``scratch``, ``(n,)`` float64; overwrites it."""
    rows = scratch.shape[0]
    if rows == 0:
        return np.zeros(scratch.shape[1:], np.float64)
    while rows > 1:
        half = (rows + 1) // 2
        scratch[: rows - half] += scratch[half:rows]
        rows = half
    total: Float64Array = scratch[0].copy()
    return total


def length(vector: Float64Array) -> float:
    """Return the Euclidean length of a vector whose elements are near 1 or smaller."""
    return float(np.sqrt(column_sums(vector * vector)))


def exponent_of(matrix: Float64Array) -> int:
    """Return the e with max |element| in [2^(e - 1), 2^e), 0 for a matrix of zeros or without elements."""
    if matrix.size == 0:
        return 0
    return int(np.frexp(np.maximum(matrix.max(), -matrix.min()))[1])
