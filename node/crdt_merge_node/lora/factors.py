"""Sums of low-rank differences, exact as longer factors, and the best shorter ones.

``sum_i c_i B_i A_i`` is one product: the B side by side times the A one below the other, of rank
``sum r_i``. The best approximation of rank r comes from the singular values of the small core between two QR
factors (Eckart and Young, 1936). A matrix of the module's size is made only where the factors together
would be larger.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, NamedTuple

import numpy as np
from crdt_merge_protocol.adapter_rules import RANK_CAP, parse_rank
from crdt_merge_protocol.strategies.contract import Float64Array
from crdt_merge_protocol.strategies.linear_algebra import exact_matmul, fits_exact, householder_qr, svd

from .adapter import Factors

PART_ELEMENTS: Final = 1 << 20
"""Of a difference that are computed, and are in memory, at a time."""


@dataclass(frozen=True, slots=True)
class Reduced:
    """Factors of a sum, and what was lost."""

    up: Float64Array
    """``(m, r)`` float64."""
    down: Float64Array
    """``(r, n)`` float64."""
    dropped: float
    """Share of the squared Frobenius norm that the rank could not keep, 0 to 1."""


def concatenate(parts: Sequence[tuple[float, Factors]]) -> tuple[Float64Array, Float64Array]:
    """Return the factors of ``sum_i c_i B_i A_i``: exact but for one rounding of each ``c_i B_i``."""
    up = np.concatenate([coefficient * factors.up for coefficient, factors in parts], axis=1)
    down = np.concatenate([factors.down for _, factors in parts], axis=0)
    return up, down


def target_rank(rule: str, ranks: Sequence[int]) -> int | Fraction:
    """Return the rank that a rule asks for, or the share of energy to keep.

    Args:
        rule: One of ``adapter_rules.RANK_RULES``.
        ranks: Of the parts of the sum.

    Raises:
        ParameterError: No such rule.
    """
    wanted = parse_rank(rule)
    if not isinstance(wanted, str):
        return wanted
    total = sum(ranks)
    if wanted == "auto":
        return total if total <= RANK_CAP else max(ranks)
    return {"sum": total, "max": max(ranks), "min": min(ranks), "mean": -(-total // len(ranks))}[wanted]


def rank_of_sum(total: int, rows: int, columns: int, target: int) -> int:
    """Return the rank of what :func:`reduce` makes of factors ``(rows, total)`` and ``(total, columns)``."""
    return total if target >= total else min(target, rows, columns)


def needs_singular_values(total: int, target: int | Fraction) -> bool:
    """Tell whether :func:`reduce` has anything to cut."""
    return not isinstance(target, int) or target < total


def add_up(
    parts: Iterable[tuple[float, Factors]], total: int, shape: tuple[int, int], target: int | Fraction
) -> Reduced:
    """Return the best factors of the wanted rank of ``sum_i c_i B_i A_i``.

    However many parts there are, the memory is that of a few matrices of the module's size.

    Args:
        parts: Coefficients and factors; read once, one at a time if their sum is wider than the module.
        total: Sum of their ranks.
        shape: ``(m, n)`` of the product.
        target: A rank, or the share of the squared norm to keep.
    """
    if needs_singular_values(total, target) and total > min(shape):
        product = np.zeros(shape)
        for coefficient, factors in parts:
            product += coefficient * exact_matmul(factors.up, factors.down)
        return truncate(product, target)
    up, down = concatenate(list(parts))
    return reduce(up, down, target)


def reduce(up: Float64Array, down: Float64Array, target: int | Fraction) -> Reduced:
    """Return the best factors of the wanted rank; those given, if they are short enough already."""
    if not needs_singular_values(up.shape[1], target):
        return Reduced(up, down, 0.0)
    is_exact = fits_exact(min(up.shape), min(down.shape))
    # Where the singular values come from LAPACK, nothing is gained by exactness in the rest.
    factorise = householder_qr if is_exact else np.linalg.qr
    multiply = exact_matmul if is_exact else np.matmul
    left, left_core = factorise(up)
    right, right_core = factorise(np.ascontiguousarray(down.T))
    core = multiply(left_core, np.ascontiguousarray(right_core.T))
    found = svd(core, is_exact=is_exact)
    small = _cut(found.u, found.s, found.vt, target)
    return Reduced(multiply(left, small.up), multiply(small.down, _transposed(right)), small.dropped)


def truncate(matrix: Float64Array, target: int | Fraction) -> Reduced:
    """Return the best factors of a dense difference, ``(m, n)``."""
    found = svd(matrix, is_exact=fits_exact(*matrix.shape))
    return _cut(found.u, found.s, found.vt, target)


class Part(NamedTuple):
    """Some rows of a module's difference: ranges along the first axis of its weight, in order."""

    module: str
    start: int
    """Flat index of the first element."""
    values: Float64Array
    """Flat float64."""


def row_ranges(shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the ranges of rows that a difference of this shape is computed by: what fits a few megabytes."""
    step = max(1, PART_ELEMENTS // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


def delta(factors: Factors, start: int = 0, stop: int | None = None) -> Float64Array:
    """Return the difference that factors stand for, or rows of it, in the shape of the module's weight.

    Rows are the same bits as among all: a product is exact but for one rounding of each element.
    """
    if factors.is_transposed:
        product = _transposed(exact_matmul(factors.up, factors.down[:, start:stop]))
    else:
        product = exact_matmul(factors.up[start:stop], factors.down)
    return product.reshape(-1, *factors.shape[1:])


def as_matrix(difference: Float64Array, *, is_transposed: bool) -> Float64Array:
    """Return a difference in a weight's shape as the product that factors of it have, ``(m, n)``."""
    return _transposed(difference) if is_transposed else difference.reshape(difference.shape[0], -1)


def matrix_shape(shape: tuple[int, ...], *, is_transposed: bool) -> tuple[int, int]:
    """Return the shape of that product, of a weight of this shape."""
    rows, columns = shape[0], math.prod(shape[1:])
    return (columns, rows) if is_transposed else (rows, columns)


def _cut(u: Float64Array, s: Float64Array, vt: Float64Array, target: int | Fraction) -> Reduced:
    squares = s * s
    total = float(sum(squares.tolist()))
    rank = min(target, len(s)) if isinstance(target, int) else _rank_of_share(squares, total, target)
    rank = max(rank, 1)
    root = np.sqrt(s[:rank])
    dropped = float(sum(squares[rank:].tolist())) / total if total else 0.0
    return Reduced(np.ascontiguousarray(u[:, :rank] * root), root[:, None] * vt[:rank], dropped)


def _rank_of_share(squares: Float64Array, total: float, share: Fraction) -> int:
    kept = 0.0
    for rank, square in enumerate(squares.tolist(), 1):
        kept += square
        if kept >= float(share) * total:
            return rank
    return len(squares)


def _transposed(matrix: Float64Array) -> Float64Array:
    return np.ascontiguousarray(matrix.T)
