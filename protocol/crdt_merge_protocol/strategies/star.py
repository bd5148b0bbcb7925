"""STAR: cut every task vector to its leading singular directions and scale what is left up again.

Small singular values of a task vector are mostly what collides with other tasks. A cut by a share of the sum
of the singular values keeps fewer directions of matrices whose spectrum falls off quickly; the scale restores
that sum, the nuclear norm.

The rank is a decision on numbers that LAPACK does not give alike everywhere. So a pass decides the ranks of
the matrices that are too large for the exact decomposition, the merge uses those, and the manifest lists
them. The ranks of small matrices are the same wherever they are found; they are found while merging.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, ClassVar, Final

import numpy as np

from .averages import shares, weight_parameter
from .contract import BaseUse, Block, Float64Array, Key, MergeContext
from .dependence import Dependence, depends
from .linear_algebra import exact_matmul, singular_values, svd
from .matrices import (
    MatrixStrategy,
    are_finite,
    is_exact,
    matrix_shape,
    mean_change,
    sentence,
    svd_nanoseconds,
    task_matrices,
)
from .parameters import Parameter
from .task_vectors import LAMBDA

Ranks = dict[tuple[int, int], int]
"""By (tensor index, contribution)."""
ETA: Final = "eta"
_UNBOUNDED: Final = -1
"""Stands for a rank where the differences leave the range of float64."""


class Star(MatrixStrategy):
    """Task vectors, each cut to its leading singular directions and scaled to its nuclear norm, averaged."""

    id = "star"
    title = "STAR"
    paper = "Lee et al., STAR: Spectral Truncation and Rescale, NAACL 2025, arXiv:2502.10339"
    doc = (
        "Keeps the leading singular directions of each difference from the base, scaled up to its nuclear "
        "norm, and averages them. Vectors and embeddings are averaged."
    )
    formula = (
        "X_i - B = U diag(s) V^T;  r: smallest with s_1 + ... + s_r >= eta/100 sum(s)\n"
        "out = B + lambda sum_i w_i U_r diag(s_r) V_r^T sum(s) / (s_1 + ... + s_r) / sum_i w_i"
    )
    base: ClassVar[BaseUse] = "required"
    parameters = (
        Parameter(
            name=ETA, type="decimal", default="40", low="0.000001", high="100", unit="%",
            per=frozenset({"tensor", "contribution"}),
            doc="Share of the sum of the singular values that is kept.",
        ),
        Parameter(
            name=LAMBDA, type="decimal", default="1.0", low="-3", high="3", per=frozenset({"tensor"}),
            doc="Scale of the result.",
        ),
        weight_parameter(),
    )  # fmt: skip

    def nanoseconds(self, context: MergeContext, tensor_index: int) -> float:
        """Return an estimate: one decomposition per contribution, and values alone in the pass."""
        share = 1.0 if is_exact(context, tensor_index) else 1.3
        return svd_nanoseconds(context, tensor_index, share * context.k)

    def pass_count(self, context: MergeContext) -> int:
        """Return 1 if ranks have to be decided before the merge."""
        return 0 if all(is_exact(context, index) for index in range(len(context.specs))) else 1

    def needs(self, context: MergeContext, state: Any, pass_no: int, tensor_index: int) -> bool:  # noqa: ARG002
        """Tell whether a matrix is too large for the exact decomposition."""
        return not is_exact(context, tensor_index)

    def observe(self, context: MergeContext, state: Any, pass_no: int, block: Block) -> list[int] | None:  # noqa: ARG002
        """Return the rank of each contribution's difference."""
        index = block.tensor_index
        if is_exact(context, index):
            return None
        deltas = task_matrices(context, block, block.base)
        if not are_finite(deltas):
            return [_UNBOUNDED] * context.k
        values = [singular_values(delta, is_exact=False) for delta in deltas]
        return [leading_rank(s, context.number(ETA, index, i)) for i, s in enumerate(values)]

    def end_pass(
        self,
        context: MergeContext,  # noqa: ARG002
        state: Any,  # noqa: ARG002
        pass_no: int,  # noqa: ARG002
        partials: Sequence[tuple[Key, Any]],
    ) -> Ranks:
        """Return the ranks."""
        return {(index, i): rank for (index, _), ranks in partials for i, rank in enumerate(ranks or ())}

    def dependence(self, context: MergeContext, tensor_index: int) -> Dependence | None:
        """Return what decides a tensor: that tensor alone, where it is decomposed exactly."""
        return depends(self, context, tensor_index, is_bitwise=is_exact(context, tensor_index))

    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:
        """Return the base plus the mean of the truncated and scaled differences."""
        assert block.base is not None
        index = block.tensor_index
        scale = float(context.number(LAMBDA, index))
        if matrix_shape(context.specs[index]) is None:
            return mean_change(context, block, scale)
        deltas = task_matrices(context, block, block.base)
        if not are_finite(deltas):
            return mean_change(context, block, scale)
        ranks, total = state or {}, np.zeros(deltas[0].shape, np.float64)
        for i, (delta, share) in enumerate(zip(deltas, shares(context, index), strict=True)):
            if share:
                eta = context.number(ETA, index, i)
                total += float(share) * _truncate(delta, eta, ranks.get((index, i)), is_exact(context, index))
        total *= scale
        out: Float64Array = total.reshape(-1) + block.base
        return out

    def decisions(self, context: MergeContext, state: Any) -> dict[str, Any]:
        """Return the ranks that a pass decided as well."""
        ranks: dict[str, dict[str, int]] = {}
        for (index, i), rank in sorted((state or {}).items()):
            ranks.setdefault(context.specs[index].name, {})[context.digests[i].hex()] = rank
        return {**super().decisions(context, state), "ranks": ranks}

    def warnings(self, context: MergeContext, state: Any) -> list[str]:
        """Name large matrices that were averaged because their differences overflow."""
        found = sorted({index for (index, _), rank in (state or {}).items() if rank == _UNBOUNDED})
        names = [context.specs[index].name for index in found]
        note = "differences from the base leave the range of float64; they were averaged"
        return super().warnings(context, state) + ([sentence(names, note)] if names else [])


def leading_rank(values: Float64Array, eta: Fraction) -> int:
    """Return how many singular values make up a share of their sum, at least 1.

    Args:
        values: Descending, >= 0.
        eta: Percent.
    """
    sums = _running_sums(values)
    reached = int(np.searchsorted(sums, float(eta / 100) * sums[-1], side="left"))
    return min(reached + 1, values.size)


def _running_sums(values: Float64Array) -> Float64Array:
    # One addition after the other: that order is part of the result.
    sums = values.copy()
    for place in range(1, sums.size):
        sums[place] += sums[place - 1]
    return sums


def _truncate(delta: Float64Array, eta: Fraction, rank: int | None, is_small: bool) -> Float64Array:
    found = svd(delta, is_exact=is_small)
    rank = leading_rank(found.s, eta) if rank is None else rank
    sums = _running_sums(found.s)
    if sums[-1] == 0.0:
        return np.zeros_like(delta)
    left = found.u[:, :rank] * (found.s[:rank] * (sums[-1] / sums[rank - 1]))
    return multiply(left, found.vt[:rank], is_small)


def multiply(left: Float64Array, right: Float64Array, is_small: bool) -> Float64Array:
    """Return a matrix product, exact to the bit if asked."""
    if is_small:
        return exact_matmul(np.ascontiguousarray(left), np.ascontiguousarray(right))
    product: Float64Array = left @ right
    return product


STAR_STRATEGIES: Final = (Star(),)
