"""The orthogonal factor of a matrix, by products alone.

Newton and Schulz's iteration drives every singular value to 1. Scaling it by what the smallest of them can be
keeps the number of steps near log(condition) instead of its square.

Source: Higham, Functions of Matrices, SIAM 2008, chapter 8; the scaling: Chen, Chow, A stable scaling of
Newton-Schulz for improving the sign function computation of a Hermitian matrix, ANL/MCS-P5059-0114 (2014).
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from crdt_merge_protocol.strategies.contract import Float64Array

from .gemm import exact_gram, exact_matmul
from .sums import column_sums, exponent_of
from .svd import svd

_STEPS_MAX: Final = 60
_LEAST: Final = 2.0**-48
"""What is smaller, relative to the whole, has no direction: those matrices go through their decomposition."""
_CLOSE: Final = 2.0**-40
"""Convergence is quadratic: one step from here is the last."""


def polar_factor(matrix: Float64Array) -> Float64Array:
    """Return the orthonormal matrix nearest to a given one: ``U V^T`` of its singular vectors.

    Args:
        matrix: ``(m, n)`` float64, finite, any scale. Where its rank is less than min(m, n) the answer is one
            of many; a fixed one.

    Returns:
        ``(m, n)`` float64, orthonormal columns if m >= n, else rows. The same bits on every machine.
    """
    if matrix.shape[0] < matrix.shape[1]:
        return np.ascontiguousarray(polar_factor(np.ascontiguousarray(matrix.T)).T)
    scaled = np.ldexp(matrix, -exponent_of(matrix))
    length = math.sqrt(float(column_sums((scaled * scaled).reshape(-1))))
    if length > 0.0:
        found = _iterate(scaled / length)
        if found is not None:
            return found
    factors = svd(matrix, is_exact=True)
    return exact_matmul(factors.u, factors.vt)


def _iterate(x: Float64Array) -> Float64Array | None:
    """Return the limit from a start with singular values in (0, 1], or None if it is not reached."""
    least, identity = _LEAST, np.eye(x.shape[1])
    for _ in range(_STEPS_MAX):
        gram = exact_gram(x)
        distance = float(np.abs(gram - identity).max())
        scale = math.sqrt(3.0 / (1.0 + least + least * least)) if distance > _CLOSE else 1.0
        x = exact_matmul(x, 1.5 * scale * identity - (0.5 * scale * scale * scale) * gram)
        least = min(0.5 * scale * least * (3.0 - scale * scale * least * least), 1.0)
        if distance <= _CLOSE:
            return x
    return None
