"""DELLA: drop differences from the base at random, the small ones more often, then elect or add.

Within a row (the last axis; a tensor of one axis is one row) the differences are ranked by magnitude. The one
of rank r of n is kept with a probability that rises linearly from density - epsilon to density + epsilon, and
divided by it, so its expected value stays (``per_element``, the paper). ``l1`` instead restores the sum of
magnitudes of the tensor, which takes a pass (mergekit). Ranks need whole rows, so blocks are rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, ClassVar, Final, cast

import numpy as np

from crdt_merge_protocol.errors import ParameterError

from .averages import NORMALIZE, check_weights, shares, weight_parameter, weight_warnings
from .contract import BaseUse, Block, Float64Array, Granularity, Key, MergeContext, Strategy
from .dare import SEED_PARAMETERS, Factors, mask_key, restoring_factor
from .dependence import Dependence, depends
from .kernels import CHUNK_ELEMENTS, as_float, chunks
from .parameters import MERGEKIT, Parameter, Value, possible, profile_parameter
from .randomness import uniform
from .reductions import tree_sum
from .rows import order_of_rows, row_chunks, row_length, row_sums
from .task_vectors import LAMBDA
from .ties import ELECTION_PARAMETERS, SignElection, Stage
from .trimming import Differences, ElectionState, voters

_NANOSECONDS: Final = 250.0
"""Per element of a contribution: a stable sort of rows."""
_PROBABILITY: Final = (
    "r = rank of |t_i| in its row of n elements, t_i = X_i - B\n"
    "p = density - epsilon + 2 epsilon (r - 1) / (n - 1); t_i kept with probability p and divided by it\n"
)
_PRUNE_PARAMETERS: Final = (
    Parameter(
        name="density", type="decimal", default="0.7", mergekit_default="1.0", low="0", high="1",
        per=frozenset({"tensor", "contribution"}), doc="Share of the differences that is kept on average.",
    ),
    Parameter(
        name="epsilon", type="decimal", default="0.07", mergekit_default="0.15", low="0", high="0.5",
        per=frozenset({"tensor", "contribution"}),
        doc="The largest of a row are kept with density + epsilon, the smallest with density - epsilon.",
    ),
    Parameter(
        name="rescale", type="choice", default="per_element", mergekit_default="l1",
        choices=("per_element", "l1", "none"), doc="How what is kept makes up for what is dropped.",
    ),
    Parameter(
        name=LAMBDA, type="decimal", default="1.0", low="-3", high="3", per=frozenset({"tensor"}),
        doc="Scale of the result. The authors use 1.1 at density 0.7.",
    ),
    *SEED_PARAMETERS,
)  # fmt: skip
_PAPER: Final = "Deep, Bhardwaj, Poria, DELLA-Merging, 2024, arXiv:2406.11617"


class Della(SignElection):
    """Magnitude-ranked random drop, then the election and merge of TIES: out = B + lambda * merged."""

    id = "della"
    title = "DELLA-Merging"
    paper = _PAPER
    doc = (
        "Drops differences at random, small ones more often, elects a sign per element, averages what agrees."
    )
    formula = (
        f"{_PROBABILITY}s = sign(sum_i t_i); out = B + lambda * weighted mean of the t_i whose sign is s"
    )
    is_random = True
    trim_parameter = ""
    parameters = (
        profile_parameter(),
        weight_parameter(),
        *_PRUNE_PARAMETERS,
        Parameter(
            name="scope", type="choice", default="tensor", choices=("model", "tensor"),
            doc="Find majorities over the whole model or each tensor.",
        ),
        *ELECTION_PARAMETERS,
        Parameter(
            name=NORMALIZE, type="boolean", default="true", profile=MERGEKIT,
            doc="Divide by the weights of what agrees.",
        ),
    )  # fmt: skip

    def validate(self, params: Mapping[str, str]) -> dict[str, Value]:
        """Return all parameters, typed; the probabilities lie between 0 and 1."""
        return _check_window(super().validate(params))

    def granularity(self, context: MergeContext, tensor_index: int) -> Granularity:  # noqa: ARG002
        """Return rows: ranks are within them."""
        return "rows"

    def scratch_bytes(self, context: MergeContext, tensor_index: int) -> int:
        """Return the memory of what is left of every contribution, and of one being ranked."""
        return 8 * (context.k + 4) * context.specs[tensor_index].numel

    def nanoseconds(self, context: MergeContext, tensor_index: int) -> float:
        """Return the estimate for sorting rows."""
        return _NANOSECONDS * context.k * context.specs[tensor_index].numel

    def keeps_nothing(self, context: MergeContext) -> bool:
        """Tell whether everything is dropped."""
        return possible(context.params["density"]) == {0}

    def votes(self, context: MergeContext, tensor_index: int) -> list[int]:
        """Return the contributions of which something is kept."""
        return [i for i in super().votes(context, tensor_index) if context.number("density", tensor_index, i)]

    def first_stages(self, context: MergeContext) -> tuple[Stage, ...]:
        """Return the pass that finds the sums of magnitudes, if they are to be restored."""
        return ("factors",) if _needs_sums(context) else ()

    def observe(self, context: MergeContext, state: Any, pass_no: int, block: Block) -> Any:
        """Return sums of magnitudes, or the majority of one block's signs."""
        if self.stages(context)[pass_no] == "factors":
            return _observe_sums(self.id, context, block)
        return super().observe(context, state, pass_no, block)

    def end_pass(
        self, context: MergeContext, state: Any, pass_no: int, partials: Sequence[tuple[Key, Any]]
    ) -> ElectionState:
        """Return the state with what this pass found."""
        if self.stages(context)[pass_no] == "factors":
            return replace(state or ElectionState(), factors=_factors(context, partials))
        return super().end_pass(context, state, pass_no, partials)

    def draws(self, context: MergeContext, tensor_index: int) -> bool:
        """Tell whether a tensor loses elements."""
        return _loses(context, tensor_index)

    def differences(self, context: MergeContext, state: ElectionState, block: Block) -> Differences:
        """Return what writes the differences that were kept, scaled."""
        index = block.tensor_index
        kept = {i: prune(self.id, context, block, i) for i in self.votes(context, index)}
        for i in kept:
            factor = state.factors.get((index, i), 1.0)
            if factor != 1.0:
                kept[i] *= factor

        def write(contribution: int, part: slice, out: Float64Array) -> None:
            out[:] = kept[contribution][part]

        return write


class DellaLinear(Strategy):
    """Magnitude-ranked random drop, then the weighted mean: out = B + lambda sum w_i tau'_i."""

    id = "della_linear"
    title = "DELLA without election"
    paper = _PAPER
    doc = "Drops differences from the base at random, small ones more often, and averages the rest."
    formula = f"{_PROBABILITY}out = B + lambda sum_i w_i t_i / sum_i w_i"
    base: ClassVar[BaseUse] = "required"
    is_extra = True
    is_random = True
    allows_negative_weights = True
    parameters = (
        profile_parameter(),
        weight_parameter(is_signed=True),
        *_PRUNE_PARAMETERS,
        Parameter(
            name=NORMALIZE, type="boolean", default="true", mergekit_default="false",
            doc="Divide by the sum of the weights.",
        ),
    )  # fmt: skip

    def validate(self, params: Mapping[str, str]) -> dict[str, Value]:
        """Return all parameters, typed; the probabilities lie between 0 and 1."""
        return _check_window(super().validate(params))

    def check(self, context: MergeContext) -> None:
        """Refuse as every strategy, and offline divisors that vanish in a tensor."""
        super().check(context)
        if self.divides_by_weights(context):
            check_weights(context)

    def warnings(self, context: MergeContext, state: Any) -> list[str]:  # noqa: ARG002
        """Say where the weights could not be used."""
        return weight_warnings(context) if self.divides_by_weights(context) else []

    def divides_by_weights(self, context: MergeContext) -> bool:
        """Tell whether the sum of the weights is a divisor."""
        return bool(context.params[NORMALIZE])

    def granularity(self, context: MergeContext, tensor_index: int) -> Granularity:  # noqa: ARG002
        """Return rows: ranks are within them."""
        return "rows"

    def scratch_bytes(self, context: MergeContext, tensor_index: int) -> int:
        """Return the memory of ranking one contribution."""
        return 8 * 5 * context.specs[tensor_index].numel

    def nanoseconds(self, context: MergeContext, tensor_index: int) -> float:
        """Return the estimate for sorting rows."""
        return _NANOSECONDS * context.k * context.specs[tensor_index].numel

    def pass_count(self, context: MergeContext) -> int:
        """Return 1 if sums of magnitudes are to be restored."""
        return 1 if _needs_sums(context) else 0

    def observe(self, context: MergeContext, state: Any, pass_no: int, block: Block) -> Any:  # noqa: ARG002
        """Return the sums of magnitudes before and after dropping."""
        return _observe_sums(self.id, context, block)

    def end_pass(
        self,
        context: MergeContext,
        state: Any,  # noqa: ARG002
        pass_no: int,  # noqa: ARG002
        partials: Sequence[tuple[Key, Any]],
    ) -> Factors:
        """Return the factors that restore the sums."""
        return _factors(context, partials)

    def dependence(self, context: MergeContext, tensor_index: int) -> Dependence | None:
        """Return what decides a tensor: that tensor alone, and what is drawn."""
        return depends(self, context, tensor_index, is_drawn=_loses(context, tensor_index))

    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:
        """Return a block of the base plus the scaled sum of what was kept."""
        assert block.base is not None
        index = block.tensor_index
        is_divided = bool(context.params[NORMALIZE])
        weights = shares(context, index) if is_divided else context.weights_in(index)
        out = np.zeros(block.stop - block.start, np.float64)
        term = np.empty(min(CHUNK_ELEMENTS, out.size), np.float64)
        for i in voters(context):
            factor = Fraction((state or {}).get((index, i), 1.0))
            coefficient = as_float(context.number(LAMBDA, index) * weights[i] * factor)
            if coefficient == 0.0 or not context.number("density", index, i):
                continue
            kept = prune(self.id, context, block, i)
            for part in chunks(out.size):
                np.multiply(kept[part], coefficient, out=term[: part.stop - part.start])
                out[part] += term[: part.stop - part.start]
        out += block.base
        return out


def keep_probabilities(width: int, density: Fraction, epsilon: Fraction) -> Float64Array:
    """Return the probability with which the element of each rank is kept, ``(width,)``, the smallest first.

    A window that reaches beyond 0 or 1 is narrowed to what fits.
    """
    if width == 1:
        return np.array([float(density)])
    half = min(epsilon, density, 1 - density)
    out = np.arange(width, dtype=np.float64)
    out *= float(2 * half)
    out /= width - 1
    out += float(density - half)
    return out


def draw_uniforms(strategy: str, context: MergeContext, block: Block, contribution: int) -> Float64Array:
    """Return the uniforms in [0, 1) that decide what a contribution keeps of a block, ``(n,)``."""
    key = mask_key(strategy, context, block.tensor_index, contribution)
    return uniform(key, block.start, block.stop - block.start)


def prune(strategy: str, context: MergeContext, block: Block, contribution: int) -> Float64Array:
    """Return a contribution's differences from the base, ``(n,)`` in a new array, dropped ones zero.

    With ``rescale`` per_element the others are divided by the probability with which they were kept.
    """
    assert block.base is not None
    out = block.inputs[contribution] - block.base
    density = context.number("density", block.tensor_index, contribution)
    if density in (0, 1) or not out.size:
        return out if density else np.zeros_like(out)
    width = row_length(context.specs[block.tensor_index].shape)
    epsilon = context.number("epsilon", block.tensor_index, contribution)
    by_rank = keep_probabilities(width, density, epsilon)
    draws = draw_uniforms(strategy, context, block, contribution).reshape(-1, width)
    matrix = out.reshape(-1, width)
    is_divided = context.params["rescale"] == "per_element"
    parts = list(row_chunks(matrix.shape[0], width))
    first_places = np.arange(parts[0].stop)[:, None] * width
    probabilities = np.tile(by_rank, parts[0].stop)
    for part in parts:
        rows = matrix[part]
        places = order_of_rows(np.abs(rows))
        places += first_places[: len(rows)]
        keep: Float64Array = np.empty(rows.size, np.float64)
        keep[places.reshape(-1)] = probabilities[: rows.size]
        keep = keep.reshape(rows.shape)
        kept = draws[part] < keep
        rows *= kept
        if is_divided:
            np.logical_not(kept, out=kept)
            rows /= np.maximum(keep, kept, out=keep)  # No probability is above 1, which divides the rest.
    return out


def _check_window(values: dict[str, Value]) -> dict[str, Value]:
    """Refuse a window that reaches beyond 0 or 1. Those of tables are narrowed where they do."""
    density, epsilon = values["density"], values["epsilon"]
    if not isinstance(density, Fraction) or not isinstance(epsilon, Fraction) or density in (0, 1):
        return values
    room = min(density, 1 - density)
    if epsilon >= room:
        raise ParameterError(
            f"epsilon is less than {float(room):g} at density {float(density):g}, not {float(epsilon):g}.",
            hint="Probabilities from density - epsilon to density + epsilon lie between 0 and 1.",
        )
    return values


def _loses(context: MergeContext, tensor_index: int) -> bool:
    """Tell whether a tensor of some contribution loses elements by chance."""
    return any(context.number("density", tensor_index, i) not in (0, 1) for i in range(context.k))


def _needs_sums(context: MergeContext) -> bool:
    densities = cast(set[Fraction], possible(context.params["density"]))
    return context.params["rescale"] == "l1" and any(0 < density < 1 for density in densities)


def _observe_sums(strategy: str, context: MergeContext, block: Block) -> Any:
    """Return the sum of magnitudes of every row before and after dropping, ``(voters, 2, rows)``."""
    assert block.base is not None
    width = max(row_length(context.specs[block.tensor_index].shape), 1)
    sums = []
    for i in voters(context):
        before = np.abs(block.inputs[i] - block.base).reshape(-1, width)
        after = np.abs(prune(strategy, context, block, i)).reshape(-1, width)
        sums.append(np.stack([row_sums(before), row_sums(after)]))
    return np.stack(sums)


def _factors(context: MergeContext, partials: Sequence[tuple[Key, Any]]) -> Factors:
    factors: Factors = {}
    for index, group in itertools.groupby(partials, key=lambda item: item[0][0]):
        for i, (before, after) in zip(
            voters(context), np.concatenate([sums for _, sums in group], axis=2), strict=True
        ):
            factors[index, i] = restoring_factor(tree_sum(before), tree_sum(after))
    return factors
