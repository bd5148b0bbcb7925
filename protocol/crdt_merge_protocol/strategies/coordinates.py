"""Aggregators that a few liars cannot steer, element by element: median and trimmed mean.

Each element of the result lies between values that honest models hold there. Sorting is done with minima and
maxima of whole arrays, or stably; zeros are made positive first, because which of two zeros of different
sign comes first is nobody's promise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, ClassVar, Final, cast

import numpy as np

from .contract import BaseUse, Block, Float64Array, MergeContext, Strategy
from .delegation import fallback_parameter
from .dependence import Dependence, depends
from .distances import FEW
from .kernels import chunks
from .robust import AUTO, liars_parameter
from .trimming import voters as voters_of

_EXACT_BITS: Final = 52


class CoordinateMedian(Strategy):
    """The weighted median of every element; the middle of two where exactly half lies on either side.

    Weights are votes: it bears liars of less than half of the weight. With one model it is that model, with
    two of equal weight their mean, and protects from nothing; it never needs a stand-in.
    """

    id = "coordinate_median"
    title = "coordinate-wise median"
    paper = "Yin et al., Byzantine-Robust Distributed Learning, ICML 2018, arXiv:1803.01498"
    doc = "The median of every element; bears liars of less than half of the weight."
    formula = "out_j = weighted median over i of X_ij"
    base: ClassVar[BaseUse] = "unused"
    is_extra = True

    def nanoseconds(self, context: MergeContext, tensor_index: int) -> float:
        """Return the time of sorting."""
        return _sorting_time(context) * context.specs[tensor_index].numel

    def dependence(self, context: MergeContext, tensor_index: int) -> Dependence | None:
        """Return what decides a tensor: that tensor alone, in whatever order."""
        return depends(self, context, tensor_index, reads=voters_of(context), is_ordered=False)

    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:  # noqa: ARG002
        """Return a block of medians."""
        voters = voters_of(context)
        weights = [context.weights[i] for i in voters]
        is_equal = len(set(weights)) == 1
        units = _units(weights)
        out = np.empty(block.stop - block.start, np.float64)
        for part in chunks(out.size):
            values = [block.inputs[i][part] + 0.0 for i in voters]
            if is_equal:
                _sort(values)
                low, high = values[(len(values) - 1) // 2], values[len(values) // 2]
            else:
                low, high = _middles(values, units)
            np.multiply(low, 0.5, out=out[part])
            out[part] += high * 0.5
        return out

    def warnings(self, context: MergeContext, state: Any) -> list[str]:  # noqa: ARG002
        """Say when a median protects from nothing."""
        return [FEW] if len(voters_of(context)) < 3 else []


class TrimmedMean(Strategy):
    """The mean of every element without the ``f`` greatest and the ``f`` least values.

    Bears ``f`` liars among at least ``2 f + 1`` models, whatever their weights; with fewer the stand-in is
    used. A model of weight zero is not one of them. Weights weigh the mean of what stays; of equal values
    with different weights the lightest counts as the least.
    """

    id = "trimmed_mean"
    title = "coordinate-wise trimmed mean"
    paper = "Yin et al., Byzantine-Robust Distributed Learning, ICML 2018, arXiv:1803.01498"
    doc = "The mean of every element without its f greatest and least values; bears f liars among 2f + 1."
    formula = "out_j = weighted mean of X_ij over all i but the f greatest and the f least at j"
    base: ClassVar[BaseUse] = "unused"
    is_extra = True
    parameters = (liars_parameter(), fallback_parameter())

    def unmet(self, context: MergeContext) -> str | None:
        """Return what keeps it from bearing as many liars as asked for."""
        count, least = len(voters_of(context)), 2 * self._liars(context) + 1
        if count < least:
            return f"{self.id} with f = {self._liars(context)} needs {least} models, there are {count}"
        return super().unmet(context)

    def nanoseconds(self, context: MergeContext, tensor_index: int) -> float:
        """Return the time of sorting."""
        return (_sorting_time(context) + 2.0 * context.k) * context.specs[tensor_index].numel

    def dependence(self, context: MergeContext, tensor_index: int) -> Dependence | None:
        """Return what decides a tensor: that tensor alone, in whatever order."""
        return depends(self, context, tensor_index, reads=voters_of(context), is_ordered=False)

    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:  # noqa: ARG002
        """Return a block of trimmed means."""
        # Lightest first: the order among equal values must not depend on digests, which can be ground.
        voters = sorted(voters_of(context), key=lambda i: context.weights[i])
        weights = [context.weights[i] for i in voters]
        drop = self._liars(context)
        kept = slice(drop, len(voters) - drop)
        total = sum(weights)
        shares = np.array([float(weight / total) for weight in weights])
        out = np.empty(block.stop - block.start, np.float64)
        for part in chunks(out.size):
            values = [block.inputs[i][part] + 0.0 for i in voters]
            if len(set(weights)) == 1:
                _sort(values)
                out[part] = _mean(values[kept], [np.ones(1)] * (len(voters) - 2 * drop))
                continue
            stacked = np.stack(values)
            order = np.argsort(stacked, axis=0, kind="stable")[kept]
            ordered: Float64Array = np.take_along_axis(stacked, order, axis=0)
            out[part] = _mean(list(ordered), list(shares[order]))
        return out

    def _liars(self, context: MergeContext) -> int:
        asked = context.params["f"]
        return max((len(voters_of(context)) - 1) // 2, 0) if asked == AUTO else cast(int, asked)


def _sorting_time(context: MergeContext) -> float:
    """Return nanoseconds per element."""
    weights = {context.weights[i] for i in voters_of(context)}
    return 0.8 * context.k**2 if len(weights) == 1 else 60.0 * context.k


def _sort(values: list[Float64Array]) -> None:
    """Sort every element over the arrays, least first, by exchanging neighbours. Overwrites the arrays."""
    scratch = np.empty_like(values[0])
    for turn in range(len(values)):
        for i in range(turn % 2, len(values) - 1, 2):
            low, high = values[i], values[i + 1]
            np.minimum(low, high, out=scratch)
            np.maximum(low, high, out=high)
            low[:] = scratch


def _middles(values: Sequence[Float64Array], units: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Return the values at which half of the weight is reached and passed."""
    stacked = np.stack(values)
    order = np.argsort(stacked, axis=0, kind="stable")
    ordered = np.take_along_axis(stacked, order, axis=0)
    reached = np.cumsum(units[order], axis=0)
    half = reached[-1:] / 2
    low = np.count_nonzero(reached < half, axis=0)[np.newaxis]
    high = np.count_nonzero(reached <= half, axis=0)[np.newaxis]
    return np.take_along_axis(ordered, low, axis=0)[0], np.take_along_axis(ordered, high, axis=0)[0]


def _mean(values: Sequence[Float64Array], weights: Sequence[Float64Array]) -> Float64Array:
    """Return the weighted mean, added up from the least value on."""
    total, divisor = values[0] * weights[0], weights[0].copy()
    with np.errstate(over="ignore"):
        for value, weight in zip(values[1:], weights[1:], strict=True):
            total += value * weight
            divisor = divisor + weight
    total /= divisor
    return total


def _units(weights: Sequence[Fraction]) -> Float64Array:
    """Return weights as whole numbers whose sums are exact in float64, in proportion or nearly so."""
    scale = math.lcm(*(weight.denominator for weight in weights))
    whole = [int(weight * scale) for weight in weights]
    if sum(whole) >= 2 << _EXACT_BITS:
        total = sum(weights)
        whole = [max(round(weight / total * 2**_EXACT_BITS), 1) for weight in weights]
    return np.array(whole, np.float64)
