"""The singular value decomposition and what follows from it, exact to the bit up to a size.

QR makes the matrix square, a second QR nearly diagonal, Jacobi finishes one side. The other side is a product
away, and a QR of both gives them their orthonormality, completed where the rank is less.

Source: Drmac, Veselic, New fast and accurate Jacobi SVD algorithm I, SIAM J. Matrix Anal. Appl. 29 (2008)
1322-1342, simplified: columns are sorted by length instead of pivoted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from crdt_merge_protocol.strategies.contract import Float64Array
from crdt_merge_protocol.strategies.rows import row_sums

from .gemm import exact_matmul
from .jacobi import orthogonalise_rows
from .qr import householder_qr
from .sums import column_sums, exponent_of

EXACT_MAX: Final = 512
"""Largest min(m, n) that is decomposed exactly: some seconds a matrix there, and growing with its cube."""
_NOISE: Final = 2.0**-50
"""Rows of R shorter than this share of the longest are what rounding left of a rank that is less."""
_SQUARED: Final = 2.0**-16
"""Above this share of the largest, a singular value is good to 2^-20 of itself from the eigenvalues of the
smaller product of a matrix and its transpose, and all of them are found in half the time."""


@dataclass(frozen=True, slots=True)
class Svd:
    """Factors of ``u @ diag(s) @ vt``, p = min(m, n) of them."""

    u: Float64Array
    """``(m, p)``, orthonormal columns; in each the largest entry, the first of equals, is positive."""
    s: Float64Array
    """``(p,)``, descending, >= 0."""
    vt: Float64Array
    """``(p, n)``, orthonormal rows."""


def fits_exact(rows: int, columns: int) -> bool:
    """Tell whether a matrix of this shape is small enough for :func:`svd` to be exact to the bit."""
    return min(rows, columns) <= EXACT_MAX


def svd(matrix: Float64Array, *, is_exact: bool) -> Svd:
    """Return the thin singular value decomposition of a matrix of any rank and scale.

    Args:
        matrix: ``(m, n)`` float64, finite, not empty.
        is_exact: The same bits on every machine, slowly; else LAPACK.
    """
    shift = exponent_of(matrix)
    scaled = np.ldexp(matrix, -shift)
    if not is_exact:
        u, s, vt = _lapack(scaled)
    elif scaled.shape[0] >= scaled.shape[1]:
        u, s, vt = _exact(scaled)
    else:
        v, s, ut = _exact(np.ascontiguousarray(scaled.T))
        u, vt = np.ascontiguousarray(ut.T), np.ascontiguousarray(v.T)
    signs = _canonical_signs(u)
    with np.errstate(over="ignore"):
        return Svd(u * signs, np.ldexp(s, shift), vt * signs[:, None])


def singular_values(matrix: Float64Array, *, is_exact: bool) -> Float64Array:
    """Return the singular values alone, ``(p,)`` descending; from LAPACK a few times sooner than the rest."""
    if is_exact:
        return svd(matrix, is_exact=True).s
    shift = exponent_of(matrix)
    scaled = np.ldexp(matrix, -shift)
    values: Float64Array | None = _roots(np.linalg.eigvalsh(_smaller_square(scaled)))
    if values is None:
        values = np.linalg.svd(scaled, compute_uv=False)
    return np.ldexp(values, shift)


def symmetric_eigh(matrix: Float64Array, *, is_exact: bool) -> tuple[Float64Array, Float64Array]:
    """Return eigenvalues, descending, and eigenvectors, as columns, of a symmetric matrix.

    A multiple of the identity makes the matrix semidefinite, where the singular vectors are the eigenvectors.

    Args:
        matrix: ``(n, n)`` float64, finite, symmetric to rounding.
        is_exact: The same bits on every machine, slowly; else LAPACK.
    """
    shift = exponent_of(matrix)
    scaled = np.ldexp(matrix, -shift)
    if is_exact:
        lift = _lift(scaled)
        found = svd(scaled + lift * np.eye(scaled.shape[0]), is_exact=True)
        values, vectors = found.s - lift, found.u
    else:
        values, vectors = np.linalg.eigh(scaled)
        values, vectors = values[::-1], vectors[:, ::-1]
    return np.ldexp(values, shift), vectors * _canonical_signs(vectors)


def _lift(matrix: Float64Array) -> float:
    """Return 0 if Gershgorin's circles or the signs of the diagonal do not speak against semidefinite."""
    reach = row_sums(np.abs(matrix))
    if np.all(2.0 * np.abs(np.diagonal(matrix)) >= reach) and np.all(np.diagonal(matrix) >= 0.0):
        return 0.0
    return float(reach.max())


def _lapack(matrix: Float64Array) -> tuple[Float64Array, Float64Array, Float64Array]:
    try:
        squares, vectors = np.linalg.eigh(_smaller_square(matrix))
        s = _roots(squares)
        if s is None:
            u, s, vt = np.linalg.svd(matrix, full_matrices=False)
        elif matrix.shape[0] <= matrix.shape[1]:
            u = vectors[:, ::-1]
            vt = u.T @ matrix / s[:, None]
        else:
            vt = vectors[:, ::-1].T
            u = matrix @ vt.T / s
    except np.linalg.LinAlgError:  # Divide and conquer gave up; Jacobi does not.
        return _exact(matrix) if matrix.shape[0] >= matrix.shape[1] else _transposed(matrix)
    return u, s, vt


def _smaller_square(matrix: Float64Array) -> Float64Array:
    """Return the product of a matrix and its transpose, in the order that makes it smaller."""
    square: Float64Array = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    return square


def _roots(squares: npt.NDArray[Any]) -> Float64Array | None:
    """Return singular values, descending, from their squares; None where squaring cost too many digits."""
    if not squares[0] > squares[-1] * (_SQUARED * _SQUARED):
        return None
    roots: Float64Array = np.sqrt(squares[::-1])
    return roots


def _transposed(matrix: Float64Array) -> tuple[Float64Array, Float64Array, Float64Array]:
    v, s, ut = _exact(np.ascontiguousarray(matrix.T))
    return np.ascontiguousarray(ut.T), s, np.ascontiguousarray(v.T)


def _exact(matrix: Float64Array) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Return u, s, vt of a matrix with at least as many rows as columns, largest element near 1."""
    u = _left_vectors(matrix)
    images = exact_matmul(matrix.T, u)
    s = np.sqrt(column_sums(images * images))
    order = np.argsort(-s, kind="stable")
    v, triangle = householder_qr(images[:, order])
    v *= np.where(np.diagonal(triangle) < 0.0, -1.0, 1.0)
    return u[:, order], s[order], np.ascontiguousarray(v.T)


def _left_vectors(matrix: Float64Array) -> Float64Array:
    """Return orthonormal left singular vectors, ``(m, n)``, nearly in descending order."""
    order = np.argsort(-column_sums(matrix * matrix), kind="stable")
    q, r = householder_qr(np.ascontiguousarray(matrix[:, order]))
    _, core = householder_qr(np.ascontiguousarray(r.T))
    squares = row_sums(core * core)
    kept = np.flatnonzero(squares > squares.max() * (_NOISE * _NOISE))
    rows = orthogonalise_rows(core[kept])
    lengths = np.sqrt(row_sums(rows * rows))
    descending = np.argsort(-lengths, kind="stable")
    directions = np.zeros_like(r)
    with np.errstate(invalid="ignore", divide="ignore"):
        units = rows[descending] / lengths[descending, None]
    directions[:, : kept.size] = np.where(lengths[descending, None] > 0.0, units, 0.0).T
    basis, _ = householder_qr(directions)
    return exact_matmul(q, basis)


def _canonical_signs(vectors: Float64Array) -> npt.NDArray[np.float64]:
    """Return -1 for each column whose largest entry, the first of equals, is negative, else 1."""
    places = np.argmax(np.abs(vectors), axis=0)
    heads = vectors[places, np.arange(vectors.shape[1])]
    return np.where(heads < 0.0, -1.0, 1.0)
