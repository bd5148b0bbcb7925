"""Slerp with one angle per tensor, per row or per column of it (``nuslerp``).

As Slerp it works with coefficients that depend on inner products alone, but for all slices of a tensor at a
time: arrays over slices take the place of numbers. Angles come from ``angles.py``, whose bits are fixed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, ClassVar, Final, cast

import numpy as np
import numpy.typing as npt

from .angles import acos, cos, sin
from .averages import check_weights, weight_parameter, weight_warnings
from .averages import shares as shares_in
from .contract import BaseUse, Block, Float64Array, Granularity, Key, MergeContext, Strategy
from .dependence import Dependence, depends
from .kernels import combine
from .parameters import Parameter
from .reductions import add_leaves
from .rows import row_chunks, row_length, row_products
from .sphere import ANTIPODAL, VANISHING, inner_products, pairs

Mask = npt.NDArray[np.bool_]
_COLINEAR: Final = 1e-16
"""The squared sine at and below which an arc is a line."""


class NuSlerp(Strategy):
    """Slerp of the vectors as they are; the Karcher mean, at the mean length, for more than two models."""

    id = "nuslerp"
    title = "NuSLERP"
    paper = "none; two models as in mergekit, more: Karcher 1977"
    doc = "Slerp with one angle per tensor, row or column; with a base, of the differences from it."
    formula = (
        "per slice, two: a = angle(X_0, X_1), t = w_1 / (w_0 + w_1)\n"
        "out = (sin((1 - t) a) X_0 + sin(t a) X_1) / sin a, linear where sin a is nothing\n"
        "more: the Karcher mean of the directions times the mean length"
    )
    base: ClassVar[BaseUse] = "optional"
    is_extra = True
    parameters = (
        weight_parameter(),
        Parameter(
            name="flatten", type="boolean", default="true",
            doc="One angle for each tensor; without, one for each slice of it.",
        ),
        Parameter(
            name="row_wise", type="boolean", default="false",
            doc="Slices run along the first axis (mergekit's name for it), else along the last.",
        ),
        Parameter(
            name="max_iter", type="integer", default="50", low="1", high="1000",
            doc="Steps towards the mean of more than two models.",
        ),
        Parameter(
            name="tol", type="decimal", default="1e-13", low="1e-15", high="1e-2", unit="rad",
            doc="A step shorter than this is the last.",
        ),
    )  # fmt: skip

    def check(self, context: MergeContext) -> None:
        """Refuse as every strategy, and offline weights that vanish in a tensor."""
        super().check(context)
        check_weights(context)

    def granularity(self, context: MergeContext, tensor_index: int) -> Granularity:  # noqa: ARG002
        """Return elements for one angle per tensor, else what holds whole slices."""
        if context.params["flatten"] or context.k == 1:
            return "elements"
        return "tensor" if context.params["row_wise"] else "rows"

    def scratch_bytes(self, context: MergeContext, tensor_index: int) -> int:
        """Return the memory of one chunk of slices from every model."""
        axes = context.specs[tensor_index].shape
        width = max(axes[0] if axes and context.params["row_wise"] else row_length(axes), 16_384)
        return 8 * width * (context.k + 4) + 64 * context.k**2 * 16_384

    def nanoseconds(self, context: MergeContext, tensor_index: int) -> float:
        """Return the time of all products and of one sum; slices have angles by the thousand."""
        products = 200.0 * context.k if not context.params["flatten"] else 2.0 * context.k * (context.k + 1)
        return (products + 2.0 * context.k) * context.specs[tensor_index].numel

    def pass_count(self, context: MergeContext) -> int:
        """Return 1 for the inner products of whole tensors; slices need none."""
        return 1 if context.params["flatten"] and context.k > 1 else 0

    def observe(self, context: MergeContext, state: Any, pass_no: int, block: Block) -> Any:  # noqa: ARG002
        """Return the leaf sums of all pairwise products, ``(k (k + 1) / 2, leaves)`` float64."""
        return inner_products(block)

    def end_pass(
        self,
        context: MergeContext,
        state: Any,  # noqa: ARG002
        pass_no: int,  # noqa: ARG002
        partials: Sequence[tuple[Key, Any]],
    ) -> dict[int, tuple[float, ...]]:
        """Return the coefficients of every tensor."""
        found = {}
        for index, group in itertools.groupby(partials, key=lambda item: item[0][0]):
            sums = np.concatenate([partial for _, partial in group], axis=1)
            with np.errstate(over="ignore", invalid="ignore", under="ignore"):
                products = np.array([[add_leaves(row)] for row in sums])
            found[index] = tuple(map(float, _coefficients(context, index, products)[:, 0]))
        return found

    def dependence(self, context: MergeContext, tensor_index: int) -> Dependence | None:
        """Return what decides a tensor: that tensor alone."""
        return depends(self, context, tensor_index)

    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:
        """Return a block of the points on the arcs."""
        if self.granularity(context, block.tensor_index) != "elements":
            return _merge_slices(context, block)
        plain = tuple(float(share) for share in shares_in(context, block.tensor_index))
        return combine(block, (state or {}).get(block.tensor_index, plain))

    def warnings(self, context: MergeContext, state: Any) -> list[str]:  # noqa: ARG002
        """Say where the weights could not be used."""
        return weight_warnings(context)


def _merge_slices(context: MergeContext, block: Block) -> Float64Array:
    out = np.empty(block.stop - block.start, np.float64)
    shape = context.specs[block.tensor_index].shape
    views = [_slices(context, shape, values) for values in (*block.inputs, out)]
    base = None if block.base is None else _slices(context, shape, block.base)
    target = views.pop()
    for part in row_chunks(*target.shape):
        here = None if base is None else np.ascontiguousarray(base[part])
        vectors = [np.ascontiguousarray(view[part]) if here is None else view[part] - here for view in views]
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            products = np.stack([row_products(vectors[i], vectors[j]) for i, j in pairs(context.k)])
        coefficients = _coefficients(context, block.tensor_index, products)
        total = vectors[0] * coefficients[0][:, np.newaxis]
        for vector, coefficient in zip(vectors[1:], coefficients[1:], strict=True):
            total += vector * coefficient[:, np.newaxis]
        target[part] = total if here is None else total + here
    return out


def _slices(context: MergeContext, shape: tuple[int, ...], values: Float64Array) -> Float64Array:
    """Return a view of a block whose rows are the slices."""
    if context.params["row_wise"]:
        return values.reshape(shape[0] if shape else 1, -1).T if values.size else values.reshape(0, 1)
    return values.reshape(-1, max(row_length(shape), 1))


def _coefficients(context: MergeContext, tensor_index: int, products: Float64Array) -> Float64Array:
    """Return the factors of the inputs, ``(k, slices)``, from all products, ``(k (k + 1) / 2, slices)``."""
    shares = shares_in(context, tensor_index)
    plain = np.array([[float(share)] for share in shares]) + np.zeros((1, products.shape[1]))
    gram = dict(zip(pairs(context.k), products, strict=True))
    with np.errstate(all="ignore"):
        norms = np.sqrt(np.stack([gram[i, i] for i in range(context.k)]))
        cosines = [[_cosine(gram, norms, i, j) for j in range(context.k)] for i in range(context.k)]
        is_finite = np.isfinite(norms).all(axis=0) & np.isfinite(np.array(cosines)).all(axis=(0, 1))
        if context.k == 2:
            found, is_found = _two(shares[1], cosines[0][1])
        else:
            found, is_found = _many(context, plain, norms, cosines)
    return np.where(is_found & is_finite, found, plain)


def _cosine(gram: dict[tuple[int, int], Float64Array], norms: Float64Array, i: int, j: int) -> Any:
    """Return the cosines of two inputs in every slice, 0 where either is zero."""
    has_both = (norms[i] > 0) & (norms[j] > 0)
    if i == j:
        return np.where(has_both, 1.0, 0.0)
    quotient = gram[min(i, j), max(i, j)] / norms[i] / norms[j]
    return np.where(has_both, np.clip(quotient, -1.0, 1.0), 0.0)


def _two(t: Fraction, cosine: Float64Array) -> tuple[Float64Array, Mask]:
    """Return the coefficients of two vectors as they are, and where there is an arc between them."""
    is_arc = (1.0 - cosine * cosine > _COLINEAR) & (1.0 + cosine >= ANTIPODAL)
    angle = acos(np.where(is_arc, cosine, 0.0))
    whole = sin(angle)
    return np.stack([sin(float(1 - t) * angle) / whole, sin(float(t) * angle) / whole]), is_arc


def _many(
    context: MergeContext, plain: Float64Array, norms: Float64Array, cosines: list[list[Float64Array]]
) -> tuple[Float64Array, Mask]:
    """Return the coefficients of the Karcher mean, and where there is one.

    The same steps as for single tensors; a slice that has arrived stays where it is.
    """
    k = context.k
    tolerance = float(cast(Fraction, context.params["tol"]))
    alphas = np.where(norms > 0, plain, 0.0)
    total = _add(list(alphas))
    is_found = total > 0
    alphas = alphas / np.where(is_found, total, 1.0)
    length = _norm(alphas, cosines)
    is_found &= length >= VANISHING
    mean = alphas / np.where(is_found, length, 1.0)
    is_moving = is_found.copy()
    for _ in range(cast(int, context.params["max_iter"])):
        towards = [np.clip(_add([cosines[i][j] * mean[j] for j in range(k)]), -1.0, 1.0) for i in range(k)]
        is_opposite = np.any([(alphas[i] > 0) & (1 + towards[i] < ANTIPODAL) for i in range(k)], axis=0)
        is_found &= ~(is_opposite & is_moving)
        is_moving &= is_found
        turns = [acos(d) for d in towards]
        pulls = [a * np.where(x < tolerance, 1.0, x / sin(x)) for a, x in zip(alphas, turns, strict=True)]
        along = _add([f * d for f, d in zip(pulls, towards, strict=True)])
        gradient = np.stack([f - along * c for f, c in zip(pulls, mean, strict=True)])
        step = _norm(gradient, cosines)
        is_moving &= step >= tolerance
        if not is_moving.any():
            break
        step = np.where(is_moving, step, 1.0)
        moved = cos(step) * mean + sin(step) / step * gradient
        mean = np.where(is_moving, moved / _norm(moved, cosines), mean)
    size = _add([share * each for share, each in zip(plain, norms, strict=True)])
    return size * mean / np.where(norms > 0, norms, 1.0), is_found


def _norm(vector: Float64Array, cosines: list[list[Float64Array]]) -> Float64Array:
    k = len(cosines)
    square = _add([vector[i] * cosines[i][j] * vector[j] for i in range(k) for j in range(k)])
    return np.sqrt(np.maximum(square, 0.0))


def _add(terms: list[Float64Array]) -> Float64Array:
    """Return the sum of arrays, from left to right."""
    total = terms[0].copy()
    for term in terms[1:]:
        total += term
    return total
