"""Averages of whole models: no base, no randomness, one pass."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, ClassVar

from crdt_merge_protocol.errors import ParameterError

from .contract import BaseUse, Block, Float64Array, MergeContext, Strategy
from .dependence import Dependence, depends_on_sum
from .kernels import combine
from .parameters import Parameter, Table

NORMALIZE = "normalize"
WEIGHT = "weight"
_NAMED_MAX = 3


def weight_parameter(*, is_signed: bool = False) -> Parameter:
    """Return the parameter that multiplies the weights of contributions, by tensor or contribution."""
    return Parameter(
        name=WEIGHT,
        type="decimal",
        default="1",
        low="-1000000" if is_signed else "0",
        high="1000000",
        per=frozenset({"tensor", "contribution"}),
        doc="Multiplies the weights, for all or by tensor and contribution.",
    )


def shares(context: MergeContext, tensor_index: int | None = None) -> list[Fraction]:
    """Return each weight over the sum of all, exact; in one tensor if there may be others there.

    Where the parameter ``weight`` makes the sum zero, the weights of the contributions are used alone.
    """
    weights = context.weights if tensor_index is None else context.weights_in(tensor_index)
    total = sum(weights)
    if not total:
        weights, total = context.weights, sum(context.weights)
    return [weight / total for weight in weights]


def cancelled_in(context: MergeContext) -> list[str]:
    """Return the tensors in which the parameter ``weight`` makes the weights add up to zero."""
    if not isinstance(context.params.get(WEIGHT), (Table, Fraction)) or context.params[WEIGHT] == 1:
        return []
    return [spec.name for index, spec in enumerate(context.specs) if not sum(context.weights_in(index))]


def check_weights(context: MergeContext) -> None:
    """Refuse, offline, to divide by weights that add up to zero in a tensor.

    Raises:
        ParameterError: They do.
    """
    names = cancelled_in(context) if context.is_strict else []
    if names:
        raise ParameterError(
            f"The weights add up to zero in {_some(names)}.", hint="Change the parameter weight there."
        )


def weight_warnings(context: MergeContext) -> list[str]:
    """Say where weights added up to zero and what was divided by instead."""
    names = cancelled_in(context)
    if not names:
        return []
    return [f"{_some(names)}: the weights add up to zero there; those of the contributions were used alone."]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED_MAX} more" if len(names) > _NAMED_MAX else ""
    return f"{', '.join(names[:_NAMED_MAX])}{more}"


class WeightAverage(Strategy):
    """The mean of the models, weighted if they have weights: out = sum w_i X_i / sum w_i."""

    id = "weight_average"
    title = "weight averaging"
    paper = "Wortsman et al., Model soups, ICML 2022, arXiv:2203.05482; McMahan et al., arXiv:1602.05629"
    doc = "The weighted mean of the models."
    base: ClassVar[BaseUse] = "unused"
    formula = "out = sum_i w_i X_i / sum_i w_i"
    parameters = (weight_parameter(),)

    def check(self, context: MergeContext) -> None:
        """Refuse as every strategy, and offline weights that vanish in a tensor.

        Raises:
            ParameterError: They do.
        """
        super().check(context)
        check_weights(context)

    def linear_form(self, context: MergeContext, state: Any, tensor_index: int) -> Sequence[float]:  # noqa: ARG002
        """Return the shares."""
        return [float(share) for share in shares(context, tensor_index)]

    def dependence(self, context: MergeContext, tensor_index: int) -> Dependence:
        """Return what decides a tensor: its coefficients."""
        return depends_on_sum(self, context, self.linear_form(context, None, tensor_index))

    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:
        """Return the weighted mean of a block."""
        return combine(block, self.linear_form(context, state, block.tensor_index))

    def warnings(self, context: MergeContext, state: Any) -> list[str]:  # noqa: ARG002
        """Say where the weights could not be used."""
        return weight_warnings(context)


class Linear(Strategy):
    """A weighted sum, by default divided by the sum of the weights, which may have any sign."""

    id = "linear"
    title = "linear interpolation"
    paper = "Wortsman et al., Model soups, ICML 2022, arXiv:2203.05482; Frankle et al., arXiv:1912.05671"
    doc = "A weighted sum of the models, normalised unless asked otherwise."
    base: ClassVar[BaseUse] = "unused"
    allows_negative_weights = True
    formula = (
        "out = sum_i w_i X_i / sum_i w_i, undivided with normalize=false\nwith t: (1 - t) X_origin + t X"
    )
    parameters = (
        weight_parameter(is_signed=True),
        Parameter(name=NORMALIZE, type="boolean", default="true", doc="Divide by the sum of the weights."),
        Parameter(
            name="t",
            type="decimal",
            default="none",
            low="-1",
            high="2",
            choices=("none",),
            per=frozenset({"tensor"}),
            doc="Two models only: 0 is the model t_origin, 1 the other. Outside 0..1 it extrapolates.",
        ),
        Parameter(
            name="t_origin", type="text", default="", doc="Contribution digest, hex, of the end at t = 0."
        ),
    )

    def check(self, context: MergeContext) -> None:
        """Refuse as every strategy, and offline what has no meaning for these inputs.

        Raises:
            ParameterError: Weights that vanish in a tensor, or ``t`` without two models and ``t_origin``.
        """
        super().check(context)
        if self.divides_by_weights(context):
            check_weights(context)
        if context.is_strict and self._has_stray_t(context):
            raise ParameterError(
                f"t needs exactly two models, one of them t_origin; there are {context.k}.",
                hint="Give weights instead.",
            )

    def divides_by_weights(self, context: MergeContext) -> bool:
        """Tell whether the sum of the weights is a divisor."""
        return bool(context.params[NORMALIZE])

    def linear_form(self, context: MergeContext, state: Any, tensor_index: int) -> Sequence[float]:  # noqa: ARG002
        """Return the coefficients."""
        return self._coefficients(context, tensor_index)

    def dependence(self, context: MergeContext, tensor_index: int) -> Dependence:
        """Return what decides a tensor: its coefficients."""
        return depends_on_sum(self, context, self.linear_form(context, None, tensor_index))

    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:  # noqa: ARG002
        """Return the weighted sum of a block."""
        return combine(block, self._coefficients(context, block.tensor_index))

    def warnings(self, context: MergeContext, state: Any) -> list[str]:  # noqa: ARG002
        """Say when ``t`` or the weights could not be used."""
        warnings = weight_warnings(context) if self.divides_by_weights(context) else []
        if self._has_stray_t(context):
            warnings.append(
                "t needs exactly two models, one of them t_origin: the weights were used instead."
            )
        return warnings

    def _coefficients(self, context: MergeContext, tensor_index: int) -> list[float]:
        t = context.value("t", tensor_index)
        if isinstance(t, Fraction) and not self._has_stray_t(context):
            origin = str(context.params["t_origin"])
            return [float(1 - t if digest.hex() == origin else t) for digest in context.digests]
        weights = (
            shares(context, tensor_index) if context.params[NORMALIZE] else context.weights_in(tensor_index)
        )
        return [float(weight) for weight in weights]

    def _has_stray_t(self, context: MergeContext) -> bool:
        is_usable = context.k == 2 and str(context.params["t_origin"]) in {d.hex() for d in context.digests}
        return context.params["t"] != "none" and not is_usable
