"""Householder QR: panels of reflections with fixed sums, the rest of the matrix by exact products.

Source: Schreiber, Van Loan, A storage-efficient WY representation for products of Householder
transformations, SIAM J. Sci. Stat. Comput. 10 (1989) 53-57.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from crdt_merge_protocol.strategies.contract import Float64Array

from .gemm import exact_matmul
from .sums import column_sums, exponent_of

_PANEL: Final = 32
"""Columns reflected one by one before the others follow at once. Part of the format: it shows in the bits."""
_Panel = tuple[int, Float64Array, Float64Array]
"""First row, V, T: the reflections of a panel multiply to 1 - V T V^T on the rows from the first on."""


def householder_qr(matrix: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Return Q and R with ``Q R = matrix``, Q orthonormal to rounding whatever the rank.

    Args:
        matrix: ``(m, n)`` float64, finite, any scale.

    Returns:
        Q ``(m, p)`` and R ``(p, n)`` with p = min(m, n). R is upper triangular, its diagonal of either sign.
    """
    shift = exponent_of(matrix)
    work = np.ldexp(matrix, -shift)
    panels = _reflect(work)
    rows, columns = work.shape
    kept = min(rows, columns)
    q = np.eye(rows, kept)
    for first, v, t in reversed(panels):
        part = q[first:, first:]
        part -= exact_matmul(v, exact_matmul(t, exact_matmul(v.T, part)))
    return q, np.ldexp(np.triu(work[:kept]), shift)


def _reflect(work: Float64Array) -> list[_Panel]:
    """Reduce a matrix to its R, in place."""
    panels = []
    for first in range(0, min(work.shape), _PANEL):
        width = min(_PANEL, min(work.shape) - first)
        panel = np.ascontiguousarray(work[first:, first : first + width])
        v, scales = _reflect_panel(panel)
        work[first:, first : first + width] = panel
        t = _triangle(v, scales)
        rest = work[first:, first + width :]
        if rest.shape[1]:
            rest -= exact_matmul(v, exact_matmul(np.ascontiguousarray(t.T), exact_matmul(v.T, rest)))
        panels.append((first, v, t))
    return panels


def _reflect_panel(panel: Float64Array) -> tuple[Float64Array, list[float]]:
    """Reduce a panel in place; return the vectors v, as columns, and s of its reflections 1 - s v v^T."""
    vectors = np.zeros(panel.shape, np.float64)
    scales = []
    for j in range(panel.shape[1]):
        column = panel[j:, j]
        head = float(column[0])
        tail = column[1:] * column[1:]
        norm = float(np.sqrt(column_sums(tail) + head * head))
        if norm == 0.0:
            scales.append(0.0)
            continue
        diagonal = -norm if head >= 0.0 else norm
        v = vectors[j:, j]
        v[0] = 1.0
        np.divide(column[1:], head - diagonal, out=v[1:])
        scales.append((diagonal - head) / diagonal)
        rest = panel[j:, j + 1 :]
        along = column_sums(rest * v[:, None])
        along *= scales[-1]
        rest -= v[:, None] * along
        column[0] = diagonal
        column[1:] = 0.0
    return vectors, scales


def _triangle(vectors: Float64Array, scales: list[float]) -> Float64Array:
    products = exact_matmul(vectors.T, vectors)
    t = np.zeros_like(products)
    for j, scale in enumerate(scales):
        t[j, j] = scale
        if j:
            t[:j, j] = column_sums((t[:j, :j] * products[:j, j]).T.copy()) * -scale
    return t
