"""Averages of whole models: no base, no randomness, one pass."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, ClassVar

from crdt_merge_protocol.errors import ParameterError

from .contract import BaseUse, Block, Float64Array, MergeContext, Strategy
from .kernels import combine
from .parameters import Parameter

NORMALIZE = "normalize"


def shares(context: MergeContext) -> list[Fraction]:
    """Return each weight over the sum of all, exact."""
    total = sum(context.weights)
    return [weight / total for weight in context.weights]


class WeightAverage(Strategy):
    """The mean of the models, weighted if they have weights: out = sum w_i X_i / sum w_i."""

    id = "weight_average"
    title = "weight averaging"
    paper = "Wortsman et al., Model soups, ICML 2022, arXiv:2203.05482; McMahan et al., arXiv:1602.05629"
    doc = "The weighted mean of the models."
    base: ClassVar[BaseUse] = "unused"

    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:  # noqa: ARG002
        """Return the weighted mean of a block."""
        return combine(block, [float(share) for share in shares(context)])


class Linear(Strategy):
    """A weighted sum, by default divided by the sum of the weights, which may have any sign."""

    id = "linear"
    title = "linear interpolation"
    paper = "Wortsman et al., Model soups, ICML 2022, arXiv:2203.05482; Frankle et al., arXiv:1912.05671"
    doc = "A weighted sum of the models, normalised unless asked otherwise."
    base: ClassVar[BaseUse] = "unused"
    allows_negative_weights = True
    parameters = (
        Parameter(name=NORMALIZE, type="boolean", default="true", doc="Divide by the sum of the weights."),
        Parameter(
            name="t",
            type="decimal",
            default="none",
            low="-1",
            high="2",
            choices=("none",),
            doc="Two models only: 0 is the model t_origin, 1 the other. Outside 0..1 it extrapolates.",
        ),
        Parameter(
            name="t_origin", type="text", default="", doc="Contribution digest, hex, of the end at t = 0."
        ),
    )

    def check(self, context: MergeContext) -> None:
        """Refuse as every strategy, and offline a ``t`` that has no meaning for these inputs."""
        super().check(context)
        if context.is_strict and self._has_stray_t(context):
            raise ParameterError(
                f"t needs exactly two models, one of them t_origin; there are {context.k}.",
                hint="Give weights instead.",
            )

    def divides_by_weights(self, context: MergeContext) -> bool:
        """Tell whether the sum of the weights is a divisor."""
        return bool(context.params[NORMALIZE])

    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:  # noqa: ARG002
        """Return the weighted sum of a block."""
        return combine(block, self._coefficients(context))

    def warnings(self, context: MergeContext, state: Any) -> list[str]:  # noqa: ARG002
        """Say when ``t`` could not be used."""
        if self._has_stray_t(context):
            return ["t needs exactly two models, one of them t_origin: the weights were used instead."]
        return []

    def _coefficients(self, context: MergeContext) -> list[float]:
        t = context.params["t"]
        if isinstance(t, Fraction) and not self._has_stray_t(context):
            origin = str(context.params["t_origin"])
            return [float(1 - t if digest.hex() == origin else t) for digest in context.digests]
        weights = shares(context) if context.params[NORMALIZE] else context.weights
        return [float(weight) for weight in weights]

    def _has_stray_t(self, context: MergeContext) -> bool:
        is_usable = context.k == 2 and str(context.params["t_origin"]) in {d.hex() for d in context.digests}
        return context.params["t"] != "none" and not is_usable
