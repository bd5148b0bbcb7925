"""Squared distances between models, over each tensor or all of them: what robust aggregators judge by.

A point that is a sum of the models with coefficients that add up to one has distances to all of them that
depend on the distances between the models alone, so iterations run on a few numbers and models stream by
twice. Differences are squared directly: inner products of models that are close to each other and far from
zero would cancel.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import numpy as np

from .contract import LEAF_ELEMENTS, Block, Float64Array, Key, MergeContext, Strategy
from .dependence import Dependence, depends
from .kernels import chunks, combine
from .parameters import Parameter
from .reductions import add_leaves, leaf_products
from .trimming import WHOLE_MODEL, scope_of
from .trimming import voters as voters_of

_FARTHEST: Final = 1e290
Table = dict[tuple[int, int], float]
"""Squared distance of each pair of points, the smaller one first; infinite beyond float64."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was decided for one tensor, or for all of them."""

    coefficients: tuple[float, ...]
    """One per contribution."""
    note: str = ""
    """A warning."""


class ByDistance(Strategy):
    """The common course: all distances first, then coefficients, then one sum.

    Points are the contributions with a weight, in canonical order; after them the base, if there is one.
    """

    is_extra = True

    @abstractmethod
    def decide(self, context: MergeContext, table: Table) -> Verdict:
        """Return the coefficients of the contributions from the distances of the points."""

    def point_pairs(self, context: MergeContext) -> list[tuple[int, int]]:
        """Return the pairs of points whose distance matters, by position."""
        return list(itertools.combinations(range(len(voters_of(context)) + self.uses_base(context)), 2))

    def pass_count(self, context: MergeContext) -> int:
        """Return 1 for the distances, 0 if there are none."""
        return 1 if self.point_pairs(context) else 0

    def nanoseconds(self, context: MergeContext, tensor_index: int) -> float:
        """Return the time of all distances and one sum."""
        return (2.2 * len(self.point_pairs(context)) + 2.0 * context.k) * context.specs[tensor_index].numel

    def observe(self, context: MergeContext, state: Any, pass_no: int, block: Block) -> Any:  # noqa: ARG002
        """Return the leaf sums of all squared differences, ``(pairs, leaves)`` float64."""
        points = [block.inputs[i] for i in voters_of(context)]
        if block.base is not None:
            points.append(block.base)
        pairs = self.point_pairs(context)
        leaves = list(chunks(block.stop - block.start, LEAF_ELEMENTS))
        out = np.empty((len(pairs), len(leaves)), np.float64)
        buffer = np.empty(min(LEAF_ELEMENTS, block.stop - block.start), np.float64)
        with np.errstate(over="ignore", under="ignore"):
            for column, leaf in enumerate(leaves):
                difference = buffer[: leaf.stop - leaf.start]
                for row, (i, j) in enumerate(pairs):
                    np.subtract(points[i][leaf], points[j][leaf], out=difference)
                    out[row, column] = leaf_products(difference, difference)[0]
        return out

    def end_pass(
        self,
        context: MergeContext,
        state: Any,  # noqa: ARG002
        pass_no: int,  # noqa: ARG002
        partials: Sequence[tuple[Key, Any]],
    ) -> dict[int, Verdict]:
        """Return the coefficients of every tensor, or of all."""
        rows: dict[int, list[list[float]]] = {}
        for index, group in itertools.groupby(partials, key=lambda item: item[0][0]):
            sums = np.concatenate([partial for _, partial in group], axis=1)
            with np.errstate(over="ignore"):
                rows.setdefault(scope_of(context, index), []).append([add_leaves(row) for row in sums])
        pairs = self.point_pairs(context)
        return {
            scope: self.decide(
                context, dict(zip(pairs, map(_bounded, zip(*found, strict=True)), strict=True))
            )
            for scope, found in rows.items()
        }

    def linear_form(self, context: MergeContext, state: Any, tensor_index: int) -> Sequence[float]:
        """Return the coefficients."""
        return self._verdict(context, state, tensor_index).coefficients

    def dependence(self, context: MergeContext, tensor_index: int) -> Dependence | None:
        """Return what decides a tensor that is judged alone."""
        is_judged_as_part = scope_of(context, tensor_index) == WHOLE_MODEL and self.point_pairs(context)
        return None if is_judged_as_part else depends(self, context, tensor_index)

    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:
        """Return a block of the sum."""
        return combine(block, self.linear_form(context, state, block.tensor_index))

    def decisions(self, context: MergeContext, state: Any) -> dict[str, Any]:
        """Return the coefficients as well, by tensor or for all of them ("*")."""
        named = {
            "*" if scope == WHOLE_MODEL else context.specs[scope].name: list(verdict.coefficients)
            for scope, verdict in sorted(self._verdicts(context, state).items())
        }
        return {**super().decisions(context, state), "coefficients": named}

    def warnings(self, context: MergeContext, state: Any) -> list[str]:
        """Return each kind of trouble once."""
        return sorted({verdict.note for verdict in self._verdicts(context, state).values() if verdict.note})

    def _verdicts(self, context: MergeContext, state: dict[int, Verdict] | None) -> Mapping[int, Verdict]:
        return state or {WHOLE_MODEL: self.decide(context, {})}

    def _verdict(self, context: MergeContext, state: Any, tensor_index: int) -> Verdict:
        verdicts = self._verdicts(context, state)
        return verdicts.get(scope_of(context, tensor_index)) or next(iter(verdicts.values()))


def scope_parameter() -> Parameter:
    """Return the parameter that says over what distances are measured."""
    return Parameter(
        name="scope",
        type="choice",
        default="model",
        choices=("model", "tensor"),
        doc="Judge models as a whole, or each tensor alone.",
    )


def distance(table: Table, i: int, j: int) -> float:
    """Return the squared distance of two points; models without elements are nowhere apart."""
    return 0.0 if i == j else table.get((min(i, j), max(i, j)), 0.0)


def total(values: Sequence[float]) -> float:
    """Return a sum whose bits do not depend on the version of Python, infinite if it overflows."""
    with np.errstate(over="ignore"):
        return add_leaves(np.array(values, np.float64))


def _bounded(values: Sequence[float]) -> float:
    """Return a sum, infinite already where sums of it times small factors might overflow."""
    found = total(values)
    return found if found <= _FARTHEST else math.inf


def from_point(table: Table, place: Mapping[int, float], i: int) -> float:
    """Return the distance of point ``i`` from the sum of points with coefficients ``place``, which add to 1.

    As ``|x - sum c_j p_j|^2 = sum c_j |x - p_j|^2 - 1/2 sum c_j c_k |p_j - p_k|^2``.
    """
    first = math.fsum(c * distance(table, i, j) for j, c in place.items())
    spread = math.fsum(
        c * d * distance(table, j, k) for j, c in place.items() for k, d in place.items() if j != k
    )
    return math.sqrt(max(first - spread / 2, 0.0))


def spread_out(context: MergeContext, coefficients: Mapping[int, float]) -> tuple[float, ...]:
    """Return one coefficient per contribution from those of points."""
    out = [0.0] * context.k
    for position, i in enumerate(voters_of(context)):
        out[i] = coefficients.get(position, 0.0)
    return tuple(out)


def weighted_median(values: Sequence[float], weights: Sequence[Fraction]) -> float:
    """Return the value that half of the weight is not above and half not below; the middle of two."""
    ordered = sorted(zip(values, weights, strict=True))
    half = sum(weights, Fraction(0)) / 2
    reached = Fraction(0)
    for number, (value, weight) in enumerate(ordered):
        reached += weight
        if reached > half:
            return value
        if reached == half:
            return value / 2 + ordered[number + 1][0] / 2
    raise AssertionError("the weights are positive")


FEW: Final = "fewer than three models: nothing protects from one that lies"
EVERYTHING_FAR: Final = "the distances leave the range of float64; the models were averaged instead"
