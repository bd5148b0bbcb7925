"""Model Stock: how far to go from the base towards the mean, judged by the angles between fine-tunes.

Fine-tunes of one base lie around a centre that more of them would average to. Two numbers tell where on the
line from the base to their mean the point nearest to that centre is: how many there are and the cosine of
the angle between their differences from the base.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, ClassVar, Final

import numpy as np

from .averages import check_weights, weight_parameter, weight_warnings
from .averages import shares as shares_in
from .contract import BaseUse, Block, Float64Array, Granularity, Key, MergeContext, Strategy
from .delegation import fallback_parameter
from .dependence import Dependence, depends
from .kernels import combine
from .parameters import Parameter
from .rows import row_chunks, row_length, row_products
from .sphere import Sphere, inner_products, measure
from .trimming import voters as voters_of

_SINGULAR: Final = 1e-6
"""A divisor closer to zero than this means: stay at the base."""


class ModelStock(Strategy):
    """Interpolation between the base and the mean of fine-tunes, by the geometry of Model Stock.

    The published method knows no weights. Here they weigh the mean and, by pairs, the mean cosine, and N is
    the effective number 1 / sum s_i^2 of shares s_i: for equal weights all three are as published, and a
    model whose weight vanishes vanishes from the result.
    """

    id = "model_stock"
    title = "Model Stock"
    paper = "Jang, Yun, Han, Model Stock, ECCV 2024, arXiv:2403.19522"
    doc = "Goes from the base towards the mean of the models as far as the angles between them suggest."
    formula = (
        "c = mean over pairs of cos(X_i - B, X_j - B), per tensor or row\n"
        "t = N c / (1 + (N - 1) c), out = t mean(X) + (1 - t) B"
    )
    base: ClassVar[BaseUse] = "required"
    k_min = 2
    is_extra = True
    parameters = (
        weight_parameter(),
        Parameter(
            name="filter_wise", type="boolean", default="false",
            doc="One angle for each row (last axis) instead of each tensor.",
        ),
        Parameter(
            name="clip_t", type="boolean", default="false",
            doc="Keep t in 0..1; a negative mean cosine extrapolates away from the models otherwise.",
        ),
        fallback_parameter(),
    )  # fmt: skip

    def check(self, context: MergeContext) -> None:
        """Refuse as every strategy, and offline weights that vanish in a tensor."""
        super().check(context)
        check_weights(context)

    def unmet(self, context: MergeContext) -> str | None:
        """Return what keeps it from working: it needs two models that have a say."""
        if len(voters_of(context)) < 2:
            return (
                f"{self.id} merges at least 2 models of positive weight, there are {len(voters_of(context))}"
            )
        return super().unmet(context)

    def granularity(self, context: MergeContext, tensor_index: int) -> Granularity:  # noqa: ARG002
        """Return rows if each has its own angle, else elements."""
        return "rows" if context.params["filter_wise"] else "elements"

    def scratch_bytes(self, context: MergeContext, tensor_index: int) -> int:
        """Return the memory of one chunk of rows from every model."""
        width = max(row_length(context.specs[tensor_index].shape), 16_384)
        return 8 * width * (context.k + 4)

    def nanoseconds(self, context: MergeContext, tensor_index: int) -> float:
        """Return the time of all products and of one sum."""
        return (1.4 * context.k * (context.k + 1) / 2 + 2.0 * context.k) * context.specs[tensor_index].numel

    def pass_count(self, context: MergeContext) -> int:
        """Return 1 for the inner products of whole tensors; rows need none."""
        return 0 if context.params["filter_wise"] else 1

    def observe(self, context: MergeContext, state: Any, pass_no: int, block: Block) -> Any:  # noqa: ARG002
        """Return the leaf sums of all pairwise products, ``(k (k + 1) / 2, leaves)`` float64."""
        return inner_products(block)

    def end_pass(
        self,
        context: MergeContext,
        state: Any,  # noqa: ARG002
        pass_no: int,  # noqa: ARG002
        partials: Sequence[tuple[Key, Any]],
    ) -> dict[int, float]:
        """Return ``t`` of every tensor."""
        found = {}
        for index, group in itertools.groupby(partials, key=lambda item: item[0][0]):
            sphere = measure(context.k, np.concatenate([partial for _, partial in group], axis=1))
            found[index] = _ratio(context, shares_in(context, index), sphere)
        return found

    def dependence(self, context: MergeContext, tensor_index: int) -> Dependence | None:
        """Return what decides a tensor: that tensor alone."""
        return depends(self, context, tensor_index)

    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:
        """Return a block of the point between base and mean."""
        shares = [float(share) for share in shares_in(context, block.tensor_index)]
        if context.params["filter_wise"]:
            return self._merge_rows(context, block, shares)
        ratio = (state or {}).get(block.tensor_index, 0.0)
        return combine(block, [ratio * share for share in shares])

    def decisions(self, context: MergeContext, state: Any) -> dict[str, Any]:
        """Return ``t`` of every tensor as well, unless every row has its own."""
        named = {context.specs[index].name: ratio for index, ratio in sorted((state or {}).items())}
        return {**super().decisions(context, state), "t": named}

    def warnings(self, context: MergeContext, state: Any) -> list[str]:
        """Say where weights could not be used, or the result is outside of what base and models span."""
        found = weight_warnings(context)
        wild = [context.specs[i].name for i, ratio in sorted((state or {}).items()) if not 0 <= ratio <= 1]
        if wild:
            found.append(f"t lies outside 0..1 in {len(wild)} tensors, first {wild[0]}; see clip_t.")
        return found

    def _merge_rows(self, context: MergeContext, block: Block, shares: Sequence[float]) -> Float64Array:
        assert block.base is not None
        width = max(row_length(context.specs[block.tensor_index].shape), 1)
        out = np.empty(block.stop - block.start, np.float64)
        target, base = out.reshape(-1, width), block.base.reshape(-1, width)
        inputs = [values.reshape(-1, width) for values in block.inputs]
        exact = shares_in(context, block.tensor_index)
        for part in row_chunks(*target.shape):
            vectors = [values[part] - base[part] for values in inputs]
            ratios = _row_ratios(context, exact, vectors)[:, np.newaxis]
            total = vectors[0] * shares[0]
            for vector, share in zip(vectors[1:], shares[1:], strict=True):
                np.multiply(vector, share, out=vector)
                total += vector
            total *= ratios
            np.add(total, base[part], out=target[part])
        return out


def _ratio(context: MergeContext, shares: Sequence[Fraction], sphere: Sphere) -> float:
    """Return ``t`` of one tensor; 0, the base, where lengths leave the range of float64."""
    if not sphere.is_finite:
        return 0.0
    terms = [
        float(shares[i] * shares[j]) * sphere.cosines[i][j]
        for i, j in itertools.combinations(range(context.k), 2)
    ]
    weight, count = _weight_and_count(shares)
    if not weight:
        return 0.0
    cosine = math.fsum(terms) / weight
    divisor = 1.0 + (count - 1.0) * cosine
    ratio = count * cosine / divisor if abs(divisor) >= _SINGULAR else 0.0
    return min(max(ratio, 0.0), 1.0) if context.params["clip_t"] else ratio


def _row_ratios(
    context: MergeContext, shares: Sequence[Fraction], vectors: Sequence[Float64Array]
) -> Float64Array:
    """Return ``t`` of every row."""
    weight, count = _weight_and_count(shares)
    mean = np.zeros(vectors[0].shape[0], np.float64)
    with np.errstate(all="ignore"):
        norms = [np.sqrt(row_products(vector, vector)) for vector in vectors]
        for i, j in itertools.combinations(range(context.k), 2):
            has_both = (norms[i] > 0) & (norms[j] > 0)
            cosine = np.clip(row_products(vectors[i], vectors[j]) / norms[i] / norms[j], -1.0, 1.0)
            mean += float(shares[i] * shares[j]) * np.where(has_both, cosine, 0.0)
        mean /= weight or 1.0
        divisor = 1.0 + (count - 1.0) * mean
        ratios = np.where(np.abs(divisor) >= _SINGULAR, count * mean / divisor, 0.0)
    ratios[~np.isfinite(ratios)] = 0.0
    return np.clip(ratios, 0.0, 1.0) if context.params["clip_t"] else ratios


def _weight_and_count(shares: Sequence[Fraction]) -> tuple[float, float]:
    """Return the sum of the products of shares over all pairs, and the effective number of models."""
    squares = sum(share * share for share in shares)
    return float((1 - squares) / 2), float(1 / squares)
