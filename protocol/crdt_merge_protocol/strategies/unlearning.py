"""Unlearning by merging: subtract what fine-tunes on one forget set agree on; merge what was unlearned.

Neither turns ordinary contributions into anything. An artefact of type ``role`` says what a model was made
for; what was not made for this is set aside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, ClassVar, Final

import numpy as np

from crdt_merge_protocol.errors import ParameterError

from .acceleration import current
from .averages import weight_parameter
from .contract import LEAF_ELEMENTS, BaseUse, Block, Float64Array, MergeContext, Strategy
from .delegation import INNER, NONE, fallback_parameter, inner_parameter, parameters_of, strategy_named
from .dependence import Dependence, depends, within
from .inner import Delegating
from .kernels import CHUNK_ELEMENTS, chunks
from .parameters import Parameter, Value
from .roles import ByRole, attribute_of, narrowed, narrowed_block
from .task_vectors import LAMBDA


class NegativeMerge(ByRole):
    """The base minus the mean of what all forget-set fine-tunes changed in the same direction."""

    id = "negative_merge"
    title = "NegMerge"
    paper = "Kim, Han, Choe, NegMerge, ICML 2025, arXiv:2410.05583"
    doc = (
        "Unlearns: subtracts the mean difference of models fine-tuned on the same forget set, where all "
        "agree in sign. lambda has to be chosen on validation data; 0.3 to 1 is a start."
    )
    formula = (
        "t_i = X_i - B; c = 1 where all t_i have one sign and none is 0, else 0\n"
        "out = B - lambda * c * sum_i w_i t_i / sum_i w_i"
    )
    base: ClassVar[BaseUse] = "required"
    roles = ("forget",)
    parameters = (
        weight_parameter(),
        Parameter(
            name=LAMBDA, type="decimal", default=NONE, low="0", high="3", choices=(NONE,),
            per=frozenset({"tensor"}),
            doc="How much is subtracted. Has to be given: it trades forgetting for accuracy.",
        ),
        Parameter(
            name="consensus", type="decimal", default="1", low="0.5", high="1",
            doc="Share of the models that must agree in sign. Below 1, which is not in the paper, those that "
            "agree are averaged.",
        ),
        fallback_parameter(),
    )  # fmt: skip

    def divides_by_weights(self, context: MergeContext) -> bool:  # noqa: ARG002
        """Tell that where no weight is left, the base stays."""
        return False

    def unmet(self, context: MergeContext) -> str | None:
        """Return why nothing can be subtracted: nobody has the role, or nobody said how much."""
        reason = super().unmet(context)
        if reason is not None or all(
            context.value(LAMBDA, index) != NONE for index in range(len(context.specs))
        ):
            return reason
        return f"{self.id}: lambda has to be given; it is chosen on validation data, usually 0.3 to 1"

    def dependence(self, context: MergeContext, tensor_index: int) -> Dependence | None:
        """Return what decides a tensor: that of the models in the role."""
        return depends(self, context, tensor_index, reads=self.taken(context))

    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:  # noqa: ARG002
        """Return a block of the base minus what the models agree on."""
        assert block.base is not None
        index = block.tensor_index
        weights = context.weights_in(index)
        voting = [i for i in self.taken(context) if weights[i]]
        out = np.zeros(block.stop - block.start, np.float64)
        agreement = _Agreement([block.inputs[i] for i in voting], block.base, [weights[i] for i in voting])
        consensus, scale = context.number("consensus"), float(context.number(LAMBDA, index))
        # A compiled loop needs no small chunks, and few calls.
        step = CHUNK_ELEMENTS if current() is None else LEAF_ELEMENTS
        for part in chunks(out.size, step):
            mean = out[part]
            if voting:
                agreement.write(part, consensus, mean)
            mean *= -scale
            mean += block.base[part]
        return out

    def decisions(self, context: MergeContext, state: Any) -> dict[str, Any]:
        """Return whose agreement was sought as well."""
        return {**super().decisions(context, state), "forget": _hex(context, self.taken(context))}


class _Agreement:
    """Means over the models that change an element in the same direction, chunk by chunk."""

    def __init__(
        self, inputs: Sequence[Float64Array], base: Float64Array, weights: Sequence[Fraction]
    ) -> None:
        self._inputs, self._base = inputs, base
        equal = len(set(weights)) == 1
        self._weights = [1.0 if equal else float(weight) for weight in weights]
        self._count_type: type[np.uint8 | np.uint32] = np.uint8 if len(inputs) < 256 else np.uint32
        self._term, self._weight = np.empty(LEAF_ELEMENTS), np.empty(LEAF_ELEMENTS)
        self._masks = [np.empty(LEAF_ELEMENTS, np.bool_) for _ in range(3)]

    def write(self, part: slice, consensus: Fraction, out: Float64Array) -> None:
        """Write the means of a range into ``out``, zero where too few agree."""
        least = math.ceil(consensus * len(self._inputs))
        accelerator = current()
        if accelerator is not None:
            inputs = [values[part] for values in self._inputs]
            if accelerator.agree(inputs, self._base[part], self._weights, least, out):
                return
        if least < len(self._inputs) or not self._write_unanimous(part, out):
            self._write_majority(part, least, out)

    def _write_unanimous(self, part: slice, out: Float64Array) -> bool:
        """Write the means where nobody disagrees; False if there is an overflow, which is not for here.

        As nobody is left out of any sum, sums need no masks, and divisors are all the same.
        """
        is_up, is_down, answer = (mask[: out.size] for mask in self._masks)
        is_up[:] = is_down[:] = True
        out[:] = 0.0
        total = 0.0
        with np.errstate(over="ignore", invalid="ignore"):
            for values, weight in zip(self._inputs, self._weights, strict=True):
                term = self._difference(values, part)
                is_up &= np.greater(term, 0.0, out=answer)
                is_down &= np.less(term, 0.0, out=answer)
                if weight != 1.0:
                    term *= weight
                out += term
                total += weight
            if not math.isfinite(np.add.reduce(out)):
                return False
        out /= total or 1.0
        # All bits of -1, or none: what is left out becomes +0, whatever its sign was.
        is_up |= is_down
        signs = is_up.view(np.int8)
        kept = self._weight[: out.size].view(np.int64)
        np.copyto(kept, np.negative(signs, out=signs))
        bits = out.view(np.int64)
        bits &= kept
        return True

    def _write_majority(self, part: slice, least: int, out: Float64Array) -> None:
        """Write the means of those who agree with the larger number, if it is large enough."""
        ups, downs = (np.zeros(out.size, self._count_type) for _ in range(2))
        for values in self._inputs:
            term = self._difference(values, part)
            ups += term > 0
            downs += term < 0
        has_consensus = np.maximum(ups, downs) >= least
        is_up, is_down = (ups > downs) & has_consensus, (ups < downs) & has_consensus
        out[:] = 0.0
        total = self._weight[: out.size]
        total[:] = 0.0
        for values, weight in zip(self._inputs, self._weights, strict=True):
            term = self._difference(values, part)
            agrees = ((term > 0) & is_up) | ((term < 0) & is_down)
            term *= agrees
            if weight != 1.0:
                term *= weight
            out += term
            total += np.multiply(agrees, weight) if weight != 1.0 else agrees
        total += total == 0
        out /= total

    def _difference(self, values: Float64Array, part: slice) -> Float64Array:
        return np.subtract(values[part], self._base[part], out=self._term[: part.stop - part.start])


class SplitUnlearnMerge(ByRole, Delegating):
    """The inner merge of models that were unlearned, each on another part of the data."""

    id = "split_unlearn_merge"
    title = "SPUNGE"
    paper = "Kadhe et al., Split, Unlearn, Merge, ICML 2024 workshop FM-Wild, arXiv:2406.11780"
    doc = (
        "Merges models from which different attributes of unwanted data were unlearned. Unlearning itself "
        "needs data and happens at the contributors; other models are set aside."
    )
    formula = "out = inner(B, all X_i in the role unlearned)"
    base: ClassVar[BaseUse] = "optional"
    roles = ("unlearned",)
    allows_negative_weights = True
    parameters = (
        inner_parameter("ties", "Strategy that merges the unlearned models."),
        fallback_parameter(),
    )

    def validate(self, params: Mapping[str, str]) -> dict[str, Value]:
        """Return all parameters, typed; the inner strategy makes one model.

        Raises:
            ParameterError: As every strategy, and for an inner one that makes a model for each task.
        """
        values = super().validate(params)
        if strategy_named(str(values[INNER])).output != "model":
            raise ParameterError(f"{values[INNER]} makes more than one model; it cannot be inner.")
        return values

    def inner(self, context: MergeContext) -> tuple[Strategy, MergeContext]:
        """Return the inner strategy, and the context with the unlearned models only."""
        within = narrowed(context, self.taken(context))
        strategy = strategy_named(str(context.params[INNER]))
        params = parameters_of(context.params, INNER)
        return strategy, replace(within, strategy=strategy.id, params=params)

    def check(self, context: MergeContext) -> None:
        """Refuse as every strategy, and what the inner one refuses."""
        super().check(context)
        if self.taken(context):
            strategy, within = self.inner(context)
            strategy.check(within)

    def unmet(self, context: MergeContext) -> str | None:
        """Return why nothing can be merged: nobody has the role, or the inner strategy cannot."""
        reason = super().unmet(context)
        if reason is not None:
            return reason
        strategy, within = self.inner(context)
        return strategy.unmet(within)

    def observe(self, context: MergeContext, state: Any, pass_no: int, block: Block) -> Any:
        """Return what the inner strategy has to know of the unlearned models."""
        return super().observe(context, state, pass_no, narrowed_block(block, self.taken(context)))

    def dependence(self, context: MergeContext, tensor_index: int) -> Dependence | None:
        """Return what decides a tensor of the inner merge, by contributions in the outer one."""
        strategy, inside = self.inner(context)
        return within(self, strategy.dependence(inside, tensor_index), self.taken(context))

    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:
        """Return the inner merge of the unlearned models."""
        return super().merge(context, state, narrowed_block(block, self.taken(context)))

    def decisions(self, context: MergeContext, state: Any) -> dict[str, Any]:
        """Return what was unlearned from which contribution as well."""
        attributes = {context.digests[i].hex(): attribute_of(context, i) or "" for i in self.taken(context)}
        return {**super().decisions(context, state), "unlearned": attributes}


def _hex(context: MergeContext, positions: Sequence[int]) -> list[str]:
    return [context.digests[i].hex() for i in positions]


UNLEARNING_STRATEGIES: Final = (NegativeMerge(), SplitUnlearnMerge())
