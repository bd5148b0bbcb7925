"""Sums of task vectors, the differences between fine-tuned models and their base."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, ClassVar, Final

from .averages import NORMALIZE, check_weights, shares, weight_parameter, weight_warnings
from .contract import BaseUse, Block, Float64Array, MergeContext, Strategy
from .dependence import Dependence, depends_on_sum
from .kernels import combine
from .parameters import Parameter

LAMBDA: Final = "lambda"
_AUTO: Final = "auto"
_AUTO_MODELS: Final = 4
_AUTO_LAMBDA: Final = Fraction(3, 10)
"""The usual value for eight vision tasks; it needs no validation data, which we do not have."""


class TaskArithmetic(Strategy):
    """The base plus the scaled sum of the task vectors: out = B + lambda sum w_i (X_i - B)."""

    id = "task_arithmetic"
    title = "task arithmetic"
    paper = "Ilharco et al., Editing Models with Task Arithmetic, ICLR 2023, arXiv:2212.04089"
    doc = "The base plus the sum of the differences from it; a negative weight forgets."
    base: ClassVar[BaseUse] = "required"
    allows_negative_weights = True
    formula = "out = B + lambda sum_i w_i (X_i - B), divided by sum_i w_i with normalize=true"
    parameters = (
        weight_parameter(is_signed=True),
        Parameter(
            name=LAMBDA,
            type="decimal",
            default="1.0",
            low="-3",
            high="3",
            choices=(_AUTO,),
            per=frozenset({"tensor"}),
            doc="Scale of the merged difference; auto is 0.3 from four models on, else 1.",
        ),
        Parameter(name=NORMALIZE, type="boolean", default="false", doc="Divide by the sum of the weights."),
    )

    def divides_by_weights(self, context: MergeContext) -> bool:
        """Tell whether the sum of the weights is a divisor."""
        return bool(context.params[NORMALIZE])

    def linear_form(self, context: MergeContext, state: Any, tensor_index: int) -> Sequence[float]:  # noqa: ARG002
        """Return the scaled weights."""
        is_divided = bool(context.params[NORMALIZE])
        weights = shares(context, tensor_index) if is_divided else context.weights_in(tensor_index)
        scale = _scale(context, tensor_index)
        return [float(scale * weight) for weight in weights]

    def dependence(self, context: MergeContext, tensor_index: int) -> Dependence:
        """Return what decides a tensor: its coefficients."""
        return depends_on_sum(self, context, self.linear_form(context, None, tensor_index))

    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:
        """Return a block of the base plus the scaled sum of differences."""
        return combine(block, self.linear_form(context, state, block.tensor_index))

    def check(self, context: MergeContext) -> None:
        """Refuse as every strategy, and offline divisors that vanish in a tensor."""
        super().check(context)
        if self.divides_by_weights(context):
            check_weights(context)

    def warnings(self, context: MergeContext, state: Any) -> list[str]:  # noqa: ARG002
        """Say where the weights could not be used."""
        return weight_warnings(context) if self.divides_by_weights(context) else []


def _scale(context: MergeContext, tensor_index: int) -> Fraction:
    scale = context.value(LAMBDA, tensor_index)
    if isinstance(scale, Fraction):
        return scale
    return _AUTO_LAMBDA if context.k >= _AUTO_MODELS else Fraction(1)
