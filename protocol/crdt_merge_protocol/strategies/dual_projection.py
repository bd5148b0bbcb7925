"""Dual orthogonal projections: keep every model's behaviour on the directions that its task vector uses.

For each model the loss measures the merged matrix's distance from the model's, projected on the left and on
the right singular directions of its task vector and weighted by their singular values. The published method
takes two models at a time and 200 steps of Adam. For fixed shares the loss is quadratic and convex, so its
minimum solves a Sylvester equation, for any number of models at once and independent of their order: that is
our extension. On directions that no task vector uses the mean of the models stays, where the published method
starts.

``mode=adam`` is the published method (``dual_descent.py``), for whoever wants just that: it takes the models
one after the other, in canonical order, so the digests decide who comes first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, ClassVar, Final

import numpy as np

from crdt_merge_protocol.errors import ParameterError

from .averages import shares, weight_parameter
from .contract import BaseUse, Block, Float64Array, MergeContext
from .dependence import Dependence, depends
from .dual_descent import Descent
from .kernels import combine
from .linear_algebra import householder_qr, svd, symmetric_eigh
from .matrices import (
    MatrixStrategy,
    are_finite,
    is_embedding,
    matrix_shape,
    mean_change,
    task_matrices,
)
from .parameters import Parameter, Value
from .star import multiply

_NULL: Final = 1e-10
"""Directions that no task vector uses, relative to the most used: there the mean stays."""
ADAM: Final = "adam"
_OF_STEPS: Final = ("alpha", "ema", "lr", "steps")
_EXACT_SIDE_MAX: Final = 512
_EXACT_NS: Final = (45.0, 1.5)
"""Per n^3 of an eigendecomposition, and per m n (m + n) of the products of a contribution, at 512."""
_LAPACK_NS: Final = (1.0, 0.2)


class DualProjection(MatrixStrategy):
    """The matrix nearest to all models on the directions that their task vectors use."""

    id = "dual_projection"
    title = "dual orthogonal projections"
    paper = "Yang et al., Continual Model Merging without Data: Dual Projections, NeurIPS 2025, zD5cUX67b9"
    doc = (
        "Minimises the distance from every model on the singular directions of its difference from the base, "
        "exactly and for any number of models; mode=adam goes by gradient steps from one model to the next, "
        "as published. Vectors and embeddings are averaged."
    )
    formula = (
        "T_i = X_i - B = U_i S_i V_i^T, cut to its leading directions;  a_i = w_i / sum(w)\n"
        "out minimises sum_i a_i (|S_i U_i^T (W - X_i)|^2 + |(W - X_i) V_i S_i|^2):\n"
        "A W + W C = sum_i a_i (A_i X_i + X_i C_i),  A_i = U_i S_i^2 U_i^T,  C_i = V_i S_i^2 V_i^T"
    )
    base: ClassVar[BaseUse] = "required"
    parameters = (
        Parameter(
            name="svd_epsilon", type="decimal", default="1.0", low="0.000001", high="1",
            doc="Share of the sum of the singular values that the leading directions hold.",
        ),
        Parameter(
            name="rank_rule", type="choice", default="full", choices=("full", "official"),
            doc="official: one direction fewer, as in the authors' code.",
        ),
        Parameter(
            name="mode", type="choice", default="exact", choices=("exact", ADAM),
            doc="adam: the published steps, from one model to the next in canonical order, without weights.",
        ),
        Parameter(
            name="alpha", type="decimal", default="0.8", low="0", high="1",
            doc="Share of what was merged before, at the first step with each model (adam).",
        ),
        Parameter(
            name="ema", type="decimal", default="0.99", low="0", high="1",
            doc="How much of that share stays from step to step; 1: all of it (adam).",
        ),
        Parameter(
            name="lr", type="decimal", default="0.0001", low="0", high="1",
            doc="How far a step goes at most, about (adam).",
        ),
        Parameter(
            name="steps", type="integer", default="200", low="1", high="10000", unit="steps",
            doc="With each model after the first (adam).",
        ),
        weight_parameter(),
    )  # fmt: skip

    def validate(self, params: Mapping[str, str]) -> dict[str, Value]:
        """Return all parameters, typed; those of the steps mean something with ``mode=adam`` only.

        Raises:
            ParameterError: As every strategy, and for a parameter of the other mode.
        """
        values = super().validate(params)
        foreign = [name for name in (("weight",) if values["mode"] == ADAM else _OF_STEPS) if name in params]
        if foreign:
            raise ParameterError(f"{foreign[0]} means nothing with mode={values['mode']}.")
        return values

    def determinism_in(self, context: MergeContext) -> Any:
        """Return ``bitwise`` if both sides of every matrix are small: both are diagonalised."""
        shapes = [matrix_shape(spec) for spec in context.specs]
        is_small = all(shape is None or _is_small(_sides(context, shape)) for shape in shapes)
        return "bitwise" if is_small else "fp_tolerant"

    def scratch_bytes(self, context: MergeContext, tensor_index: int) -> int:
        """Return the differences, both squares with their eigenvectors, and slices."""
        shape = matrix_shape(context.specs[tensor_index])
        if shape is None:
            return 0
        rows, columns = _sides(context, shape)
        return 8 * (shape[0] * shape[1] * (4 * context.k + 16) + 12 * (rows * rows + columns * columns))

    def nanoseconds(self, context: MergeContext, tensor_index: int) -> float:
        """Return an estimate: two eigendecompositions, and products per contribution."""
        shape = matrix_shape(context.specs[tensor_index])
        if shape is None:
            return super().nanoseconds(context, tensor_index)
        rows, columns = sides = _sides(context, shape)
        decomposition, products = _EXACT_NS if _is_small(sides) else _LAPACK_NS
        turning = products * context.k * shape[0] * shape[1] * sum(sides)
        if context.params["mode"] == ADAM:
            return turning * float(context.number("steps"))
        return decomposition * (rows**3 + columns**3) + turning

    def dependence(self, context: MergeContext, tensor_index: int) -> Dependence | None:
        """Return what decides a tensor: that tensor alone, where it is diagonalised exactly."""
        shape = matrix_shape(context.specs[tensor_index])
        is_bitwise = shape is None or _is_small(_sides(context, shape))
        return depends(self, context, tensor_index, is_bitwise=is_bitwise)

    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:  # noqa: ARG002
        """Return the minimum of the loss."""
        assert block.base is not None
        index = block.tensor_index
        parts = [(i, share) for i, share in enumerate(shares(context, index)) if share]
        shape = matrix_shape(context.specs[index])
        if len(parts) == 1 and shape is not None:
            return block.inputs[parts[0][0]].copy()
        if shape is None:
            return _average(context, block)
        every = task_matrices(context, block, block.base)
        if not are_finite(every):
            return _average(context, block)
        if context.params["mode"] == ADAM:
            change = _descent(context, shape).fold(
                [every[i] for i, _ in parts],
                lambda delta: _leading(context, delta, _is_small(shape)),
            )
            stepped: Float64Array = change.reshape(-1) + block.base
            return stepped
        weights = [float(share) for _, share in parts]
        is_small = _is_small(_sides(context, shape))
        left, right, cores = _common(context, [every[i] for i, _ in parts], is_small)
        change = _minimum(context, cores, weights, is_small)
        if left is not None:
            change = multiply(left, change, is_small)
        if right is not None:
            change = multiply(change, right.T, is_small)
        out: Float64Array = change.reshape(-1) + block.base
        return out

    def warnings(self, context: MergeContext, state: Any) -> list[str]:
        """Say that embeddings were averaged, which the published method does too."""
        found = super().warnings(context, state)
        names = [s.name for s in context.specs if len(s.shape) >= 2 and is_embedding(s.name)]
        if context.params["mode"] == ADAM:
            found.append("mode adam: the result depends on the canonical order; weights do not enter.")
        return found + ([f"{len(names)} embeddings were averaged."] if names else [])


def _descent(context: MergeContext, shape: tuple[int, int]) -> Descent:
    return Descent(
        steps=int(context.number("steps")),
        rate=float(context.number("lr")),
        share=float(context.number("alpha")),
        inertia=float(context.number("ema")),
        is_exact=_is_small(shape),
    )


def _average(context: MergeContext, block: Block) -> Float64Array:
    """Return the mean; with ``mode=adam`` that of each model and what was averaged before it."""
    if context.params["mode"] != ADAM:
        return mean_change(context, block)
    halves = [0.0] * context.k
    for i, share in enumerate(shares(context, block.tensor_index)):
        if share:
            halves = [half * 0.5 for half in halves]
            halves[i] = 0.5 if any(halves) else 1.0
    return combine(block, halves)


def _sides(context: MergeContext, shape: tuple[int, int]) -> tuple[int, int]:
    """Return the sides of the squares that are diagonalised, or multiplied with at every step."""
    rows, columns = shape
    if context.params["mode"] == ADAM:
        return shape
    return min(rows, columns * context.k), min(columns, rows * context.k)


def _is_small(sides: tuple[int, int]) -> bool:
    return max(sides) <= _EXACT_SIDE_MAX


def _common(
    context: MergeContext, deltas: list[Float64Array], is_small: bool
) -> tuple[Float64Array | None, Float64Array | None, list[Float64Array]]:
    """Return bases of what all columns, and all rows, of the task vectors span, and the task vectors in them.

    The correction of the mean lies in both. None: everything is spanned, as far as the shape tells.
    """
    rows, columns = deltas[0].shape
    factor = householder_qr if is_small else np.linalg.qr
    left = right = None
    if rows > columns * context.k:
        left = np.ascontiguousarray(factor(np.concatenate(deltas, axis=1))[0])
        deltas = [multiply(left.T, delta, is_small) for delta in deltas]
    if columns > rows * context.k:
        right = np.ascontiguousarray(factor(np.concatenate(deltas, axis=0).T.copy())[0])
        deltas = [multiply(delta, right, is_small) for delta in deltas]
    return left, right, deltas


def _minimum(
    context: MergeContext, deltas: Sequence[Float64Array], weights: Sequence[float], is_small: bool
) -> Float64Array:
    """Return the change from the base at the minimum, ``(m, n)``.

    Written as the mean of the changes plus a correction, so that models which agree are not touched.
    """
    mean = np.zeros_like(deltas[0])
    for delta, weight in zip(deltas, weights, strict=True):
        mean += weight * delta
    rows, columns = mean.shape
    left, right = np.zeros((rows, rows)), np.zeros((columns, columns))
    pull = np.zeros_like(mean)
    for delta, weight in zip(deltas, weights, strict=True):
        used = _leading(context, delta, is_small)
        apart = delta - mean
        squares = multiply(used, used.T, is_small), multiply(used.T, used, is_small)
        left += weight * squares[0]
        right += weight * squares[1]
        if is_small:
            # The order of these products shows in the bits.
            pull += weight * multiply(used, multiply(used.T, apart, is_small), is_small)
            pull += weight * multiply(multiply(apart, used.T, is_small), used, is_small)
        else:
            pull += weight * (squares[0] @ apart + apart @ squares[1])
    a, p = symmetric_eigh(left, is_exact=is_small)
    b, q = symmetric_eigh(right, is_exact=is_small)
    both = a[:, None] + b
    seen = both > _NULL * both.max()
    turned = multiply(multiply(p.T, pull, is_small), q, is_small)
    turned = np.where(seen, turned / np.where(seen, both, 1.0), 0.0)
    out: Float64Array = mean + multiply(multiply(p, turned, is_small), q.T, is_small)
    return out


def _leading(context: MergeContext, delta: Float64Array, is_small: bool) -> Float64Array:
    """Return a task vector cut to its leading directions."""
    epsilon, rule = context.number("svd_epsilon"), context.params["rank_rule"]
    if epsilon == 1 and rule == "full":
        return delta
    found = svd(delta, is_exact=is_small)
    rank = _rank(found.s, epsilon, 0 if rule == "official" else 1)
    return multiply(found.u[:, :rank] * found.s[:rank], found.vt[:rank], is_small)


def _rank(values: Float64Array, epsilon: Fraction, extra: int) -> int:
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + float(value))
    bound = float(epsilon) * sums[-1]
    reached = next((place for place, total in enumerate(sums[1:]) if total >= bound), values.size - 1)
    return min(reached + extra, values.size)


DUAL_PROJECTION_STRATEGIES: Final = (DualProjection(),)
