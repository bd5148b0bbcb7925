"""One-sided Jacobi: rotate pairs of rows until all rows are orthogonal.

In every round each row meets one other, so all rotations of a round are done at once, elementwise; after
n - 1 rounds, a sweep, everybody has met. The order is that of a round-robin tournament, fixed by n alone.
Rotations are applied unscaled, ``x - t y`` and ``y + t x``, and the factors 1 / sqrt(1 + t^2) gathered per
row: two multiplications less per element.

Source: Hestenes, J. SIAM 6 (1958) 51-90; Brent, Luk, SIAM J. Sci. Stat. Comput. 6 (1985) 69-84; the stop:
Demmel, Veselic, Jacobi's method is more accurate than QR, SIAM J. Matrix Anal. Appl. 13 (1992) 1204-1245.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from crdt_merge_protocol.strategies.contract import Float64Array
from crdt_merge_protocol.strategies.rows import row_sums

_NEGLIGIBLE: Final = 2.0**-50
"""Rows whose cosine is smaller are orthogonal: nearer than rounding can tell."""
_LAST: Final = 2.0**-36
"""Convergence is quadratic: a sweep that met no greater cosine leaves none that matters."""
SWEEPS_MAX: Final = 40
"""About ten are needed at 512 rows; convergence is proven for no fixed number."""


@dataclass(slots=True)
class _Half:
    """One of each pair: rows, their scales and their squared lengths."""

    rows: Float64Array
    scales: Float64Array
    squares: Float64Array

    def renew(self) -> None:
        """Apply the gathered scales and measure the rows again."""
        self.rows *= self.scales[:, None]
        self.scales[:] = 1.0
        self.squares[:] = row_sums(self.rows * self.rows)


def orthogonalise_rows(matrix: Float64Array) -> Float64Array:
    """Return rows that are orthogonal and related to the given ones by a rotation.

    Args:
        matrix: ``(n, m)`` float64, largest element near 1.

    Returns:
        ``(n, m)`` float64, in no particular order; the lengths of the rows are the singular values.
    """
    n = matrix.shape[0]
    if n < 2:
        return matrix.copy()
    half = (n + 1) // 2
    padded = np.zeros((2 * half, matrix.shape[1]), np.float64)
    padded[:n] = matrix
    top, bottom = (
        _Half(part.copy(), np.ones(half, np.float64), np.empty(half, np.float64))
        for part in (padded[:half], padded[half:])
    )
    spare = np.empty_like(top.rows), np.empty_like(top.rows)
    for _ in range(SWEEPS_MAX):
        top.renew()
        bottom.renew()
        worst = 0.0
        for _ in range(2 * half - 1):
            worst = max(worst, _rotate(top, bottom, spare))
        if worst <= _LAST:
            break
    top.renew()
    bottom.renew()
    # A whole sweep brings every row back to where it was: the padding is last again.
    return np.concatenate([top.rows, bottom.rows])[:n]


def _rotate(top: _Half, bottom: _Half, spare: tuple[Float64Array, Float64Array]) -> float:
    """Rotate each row of ``top`` with its partner in ``bottom`` and move all to their next partners.

    Returns:
        The greatest cosine between partners before.
    """
    first, second = spare
    np.multiply(top.rows, bottom.rows, out=first)
    products = row_sums(first) * top.scales * bottom.scales
    tangents, worst = _tangents(top.squares, bottom.squares, products)
    ratio = bottom.scales / top.scales
    np.multiply(bottom.rows, (tangents * ratio)[:, None], out=first)
    np.multiply(top.rows, (tangents / ratio)[:, None], out=second)
    np.subtract(top.rows, first, out=first)
    np.add(bottom.rows, second, out=second)
    moved = tangents * products
    squares = top.squares - moved, bottom.squares + moved
    cosines = 1.0 / np.sqrt(1.0 + tangents * tangents)
    scales = top.scales * cosines, bottom.scales * cosines
    for rows, new, old, factors in (
        (first, squares[0], top.squares, scales[0]),
        (second, squares[1], bottom.squares, scales[1]),
    ):
        # Where most of a length cancelled, the difference is mostly rounding.
        lost = np.flatnonzero(new < old * 0.0625)
        if lost.size:
            again = rows[lost] * factors[lost, None]
            new[lost] = row_sums(again * again)
    for target_top, target_bottom, new_top, new_bottom in (
        (top.rows, bottom.rows, first, second),
        (top.squares, bottom.squares, *squares),
        (top.scales, bottom.scales, *scales),
    ):
        _advance(target_top, target_bottom, new_top, new_bottom)
    return worst


def _tangents(
    first: Float64Array, second: Float64Array, products: Float64Array
) -> tuple[Float64Array, float]:
    """Return the tangents of the angles that make pairs orthogonal and the greatest cosine before."""
    lengths = np.sqrt(np.maximum(first, 0.0)) * np.sqrt(np.maximum(second, 0.0))
    with np.errstate(all="ignore"):
        cosines = np.where(lengths > 0.0, np.abs(products) / lengths, 0.0)
        zeta = (second - first) / (2.0 * products)
        tangents = np.where(zeta >= 0.0, 1.0, -1.0) / (np.abs(zeta) + np.sqrt(1.0 + zeta * zeta))
    return np.where(cosines > _NEGLIGIBLE, tangents, 0.0), float(cosines.max())


def _advance(
    top: Float64Array, bottom: Float64Array, new_top: Float64Array, new_bottom: Float64Array
) -> None:
    """Write the players of the next round: all but the first of ``top`` move one place on, in a circle."""
    top[0] = new_top[0]
    if top.shape[0] == 1:
        bottom[0] = new_bottom[0]
        return
    top[1] = new_bottom[0]
    top[2:] = new_top[1:-1]
    bottom[:-1] = new_bottom[1:]
    bottom[-1] = new_top[-1]
