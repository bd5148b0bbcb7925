"""AdaMerging: task vectors added with learnt coefficients, one per layer and task.

Learning them needs unlabelled inputs of all tasks; the table comes as an artefact and is applied here.
AdaMerging++ first trims the task vectors and elects signs as TIES does, each keeping its own values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, ClassVar, Final

import numpy as np

from .artefact_fields import decimal_of, row_of, unmatched
from .artefacts import Artefact, ArtefactNeed
from .contract import BaseUse, Block, Float64Array, Key, MergeContext
from .delegation import fallback_parameter
from .dependence import Dependence, depends_on_sum
from .election import Ballot, Booth
from .kernels import chunks, combine
from .parameters import Parameter
from .set_bound import SetBound, artefact_parameter
from .ties import Ties, plain_differences
from .trimming import ElectionState, scope_of, trim_of

LAMBDA_TABLE: Final = "lambda_table"
_TIES: Final = Ties()


class AdaMerging(SetBound):
    """The base plus the task vectors, each scaled by a learnt coefficient of its layer."""

    id = "ada_merging"
    title = "AdaMerging"
    paper = "Yang et al., AdaMerging, ICLR 2024, arXiv:2310.02575"
    doc = (
        "The base plus the differences from it, scaled by coefficients learnt per layer and task on "
        "unlabelled inputs. There is no version without data: a constant is task_arithmetic. Weights do not "
        "enter."
    )
    formula = (
        "out = B + sum_i lambda[layer, i] (X_i - B)\n"
        "plusplus: each difference first trimmed to `density` and freed of minority signs, as in TIES"
    )
    base: ClassVar[BaseUse] = "required"
    artefacts = (ArtefactNeed(LAMBDA_TABLE),)
    parameters = (
        Parameter(
            name="plusplus", type="boolean", default="false", doc="AdaMerging++: trim and elect signs first."
        ),
        Parameter(
            name="density", type="decimal", default="0.2", low="0", high="1",
            doc="Share of each difference that plusplus keeps, by magnitude over the whole model.",
        ),
        Parameter(
            name="lambda_min", type="decimal", default="0", low="-3", high="3",
            doc="Least coefficient that a table may hold.",
        ),
        Parameter(
            name="lambda_max", type="decimal", default="1", low="-3", high="3",
            doc="Greatest coefficient that a table may hold.",
        ),
        artefact_parameter(),
        fallback_parameter(),
    )  # fmt: skip

    def misfit(self, context: MergeContext, artefact: Artefact) -> str | None:
        """Return which tensor has no row, or which coefficient is out of range."""
        rows = artefact.header["rows"]
        missing = unmatched(rows, [spec.name for spec in context.specs])
        if missing:
            return f"the {LAMBDA_TABLE} has no row for tensor {missing[0]}"
        low, high = context.number("lambda_min"), context.number("lambda_max")
        for row in rows:
            numbers = [decimal_of(text) for text in row["lambda"]]
            if len(numbers) != context.k or any(n is None or not low <= n <= high for n in numbers):
                return f"row {row['match']} needs {context.k} coefficients within lambda_min and lambda_max"
        return None

    def divides_by_weights(self, context: MergeContext) -> bool:  # noqa: ARG002 - for none.
        """Tell that it does not."""
        return False

    def pass_count(self, context: MergeContext) -> int:
        """Return the passes of TIES for plusplus."""
        return _TIES.pass_count(_ties_context(context)) if context.params["plusplus"] else 0

    def needs(self, context: MergeContext, state: Any, pass_no: int, tensor_index: int) -> bool:
        """Tell what TIES needs."""
        return _TIES.needs(_ties_context(context), state, pass_no, tensor_index)

    def observe(self, context: MergeContext, state: Any, pass_no: int, block: Block) -> Any:
        """Return what TIES has to know of a block."""
        return _TIES.observe(_ties_context(context), state, pass_no, block)

    def compact(
        self, context: MergeContext, pass_no: int, partials: list[tuple[Key, Any]]
    ) -> list[tuple[Key, Any]]:
        """Return fewer partial results, as TIES does."""
        return _TIES.compact(_ties_context(context), pass_no, partials)

    def end_pass(
        self, context: MergeContext, state: Any, pass_no: int, partials: Sequence[tuple[Key, Any]]
    ) -> Any:
        """Return what TIES makes of a pass."""
        return _TIES.end_pass(_ties_context(context), state, pass_no, partials)

    def dependence(self, context: MergeContext, tensor_index: int) -> Dependence | None:
        """Return what decides a tensor: its coefficients, unless magnitudes are ranked over the model."""
        if context.params["plusplus"]:
            return None
        scales = [float(number) for number in self._lambdas(context, tensor_index)]
        return depends_on_sum(self, context, scales)

    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:
        """Return a block of the base plus the scaled differences."""
        scales = [float(number) for number in self._lambdas(context, block.tensor_index)]
        if not context.params["plusplus"]:
            return combine(block, scales)
        assert block.base is not None
        if context.params["density"] == 0:
            return block.base.copy()
        return _add_elected(_ties_context(context), state or ElectionState(), block, scales)

    def _lambdas(self, context: MergeContext, tensor_index: int) -> list[Fraction]:
        row = row_of(self.header(context)["rows"], context.specs[tensor_index].name)
        assert row is not None, "unmet was asked"
        return [Fraction(text) for text in row["lambda"]]


def _ties_context(context: MergeContext) -> MergeContext:
    """Return the context in which TIES trims and elects as AdaMerging++ does: all have one vote."""
    params = {**_TIES.validate({}), "density": context.params["density"]}
    return replace(context, strategy=_TIES.id, params=params, weights=(Fraction(1),) * context.k)


def _add_elected(
    context: MergeContext, state: ElectionState, block: Block, scales: Sequence[float]
) -> Float64Array:
    """Return base + sum of scale * (what is left of each difference after trimming and election)."""
    assert block.base is not None
    out = np.empty(block.stop - block.start, np.float64)
    ballot = Ballot(weights=(1.0,) * context.k, is_weighted=False, by_count=False, merge="sum")
    booth, write = Booth(ballot), plain_differences(block)
    trims = [trim_of(context, state, block, write, i) for i in range(context.k)]
    majority = state.majority.get(scope_of(context, block.tensor_index), 1.0)
    scratch = np.empty_like(booth.values[0])
    for part in chunks(out.size):
        size = part.stop - part.start
        for i, (values, trim) in enumerate(zip(booth.values, trims, strict=True)):
            write(i, part, values[:size])
            if trim is not None:
                trim.apply(values[:size], block.start + part.start, scratch[:size])
        total = booth.tally(size)
        is_positive = total >= 0 if majority > 0 else total > 0
        merged = out[part]
        merged[:] = 0.0
        for buffer, scale in zip(booth.values, scales, strict=True):
            values = buffer[:size]
            values *= (values > 0) == is_positive
            values *= scale
            merged += values
        merged += block.base[part]
    return out


ADA_MERGING_STRATEGIES: Final = (AdaMerging(),)
