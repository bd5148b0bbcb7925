"""DARE: drop differences from the base at random and scale up the rest, then add or elect.

Every contribution has its own mask, drawn from the seed of the resolve, so masks are the same on every node
and independent of positions. Rescaling: ``inverse`` divides by the density, which keeps the expected value
(the paper); ``l1`` restores the sum of magnitudes of each tensor, which takes a pass (mergekit).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, ClassVar, Final, cast

import numpy as np
import numpy.typing as npt

from .acceleration import Draw, ScaledDifferences, current
from .averages import NORMALIZE, check_weights, shares, weight_parameter, weight_warnings
from .contract import BaseUse, Block, Float64Array, Key, MergeContext, Strategy
from .dependence import Dependence, depends
from .kernels import CHUNK_ELEMENTS, as_float, chunks
from .parameters import MERGEKIT, Parameter, possible, profile_parameter
from .randomness import keep_bound, keep_mask, stream_key
from .reductions import add_leaves, leaf_sums
from .task_vectors import LAMBDA
from .ties import ELECTION_PARAMETERS, SignElection, Stage
from .trimming import Differences, ElectionState, voters

Factors = dict[tuple[int, int], float]
"""By (tensor index, contribution): what restores the sum of magnitudes."""
Mask = npt.NDArray[np.bool_]

_VANISHING_SUM: Final = 1e-7
"""Sums of magnitudes below this are left alone, as in mergekit."""

SEED_PARAMETERS: Final = (
    Parameter(
        name="seed_scope", type="choice", default="root", choices=("root", "contribution"),
        doc="root: new masks whenever the set changes. contribution: a contribution keeps its mask.",
    ),
    Parameter(name="seed_salt", type="text", default="", doc="Any text: another one gives other masks."),
)  # fmt: skip
_DROP_PARAMETERS: Final = (
    Parameter(
        name="density", type="decimal", default="0.5", mergekit_default="1.0", low="0", high="1",
        per=frozenset({"tensor", "contribution"}), doc="Share of the differences that is kept, at random.",
    ),
    Parameter(
        name="rescale", type="choice", default="inverse", mergekit_default="l1",
        choices=("inverse", "l1", "none"), doc="How what is kept makes up for what is dropped.",
    ),
    Parameter(
        name=LAMBDA, type="decimal", default="1.0", low="-3", high="3", per=frozenset({"tensor"}),
        doc="Scale of the result.",
    ),
    Parameter(
        name="min_numel", type="integer", default="0", low="0", unit="elements",
        doc="Nothing is dropped from smaller tensors.",
    ),
    *SEED_PARAMETERS,
)  # fmt: skip


class Dare(Strategy):
    """Random drop and rescale of task vectors, then their weighted mean: out = B + lambda sum w_i tau'_i."""

    id = "dare"
    title = "DARE"
    paper = "Yu et al., Language Models are Super Mario, ICML 2024, arXiv:2311.03099"
    doc = "Drops differences from the base at random, scales up the rest, averages them."
    base: ClassVar[BaseUse] = "required"
    is_random = True
    allows_negative_weights = True
    formula = (
        "t_i = X_i - B, each element kept with probability density and divided by it\n"
        "out = B + lambda sum_i w_i t_i / sum_i w_i"
    )
    parameters = (
        profile_parameter(),
        weight_parameter(is_signed=True),
        *_DROP_PARAMETERS,
        Parameter(
            name=NORMALIZE, type="boolean", default="true", mergekit_default="false",
            doc="Divide by the sum of the weights.",
        ),
    )  # fmt: skip

    def divides_by_weights(self, context: MergeContext) -> bool:
        """Tell whether the sum of the weights is a divisor."""
        return bool(context.params[NORMALIZE])

    def check(self, context: MergeContext) -> None:
        """Refuse as every strategy, and offline divisors that vanish in a tensor."""
        super().check(context)
        if self.divides_by_weights(context):
            check_weights(context)

    def warnings(self, context: MergeContext, state: Any) -> list[str]:  # noqa: ARG002
        """Say where the weights could not be used."""
        return weight_warnings(context) if self.divides_by_weights(context) else []

    def pass_count(self, context: MergeContext) -> int:
        """Return 1 if sums of magnitudes are to be restored."""
        return 1 if _needs_sums(context) else 0

    def needs(self, context: MergeContext, state: Any, pass_no: int, tensor_index: int) -> bool:  # noqa: ARG002
        """Tell whether a tensor loses elements."""
        return _loses(context, tensor_index)

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
        """Return what decides a tensor: that tensor alone, and the masks."""
        return depends(self, context, tensor_index, is_drawn=_loses(context, tensor_index))

    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:
        """Return a block of the base plus the scaled sum of what was kept."""
        assert block.base is not None
        out = np.zeros(block.stop - block.start, np.float64)
        voting = set(voters(context))
        coefficients = [
            _coefficient(context, block.tensor_index, state or {}, i) if i in voting else 0.0
            for i in range(context.k)
        ]
        accelerator = current()
        if accelerator is not None:
            draws = [_draw(self.id, context, block.tensor_index, i) for i in range(context.k)]
            if accelerator.drop(block, draws, coefficients, out):
                return out
        term = np.empty(min(CHUNK_ELEMENTS, out.size), np.float64)
        for i, coefficient in enumerate(coefficients):
            if coefficient == 0.0:
                continue
            mask = draw_mask(self.id, context, block, i)
            for part in chunks(out.size):
                values = term[: part.stop - part.start]
                np.subtract(block.inputs[i][part], block.base[part], out=values)
                if mask is not None:
                    values *= mask[part]
                values *= coefficient
                out[part] += values
        out += block.base
        return out


class DareTies(SignElection):
    """Random drop and rescale, then the election and merge of TIES: out = B + lambda * merged."""

    id = "dare_ties"
    title = "DARE-TIES"
    paper = "Yu et al., ICML 2024, arXiv:2311.03099, with Yadav et al., NeurIPS 2023, arXiv:2306.01708"
    doc = "Drops differences at random, scales up the rest, elects a sign per element, averages what agrees."
    is_random = True
    formula = (
        "t_i = X_i - B, each element kept with probability density and divided by it\n"
        "s = sign(sum_i t_i); out = B + lambda * weighted mean of the t_i whose sign is s"
    )
    trim_parameter = "ties_density"
    parameters = (
        profile_parameter(),
        weight_parameter(),
        *_DROP_PARAMETERS,
        Parameter(
            name="ties_density", type="decimal", default="1.0", low="0", high="1",
            per=frozenset({"tensor", "contribution"}),
            doc="Share of the differences that trimming by magnitude keeps, after dropping.",
        ),
        Parameter(
            name="scope", type="choice", default="tensor", choices=("model", "tensor"),
            doc="Rank magnitudes, and find majorities, over the whole model or each tensor.",
        ),
        *ELECTION_PARAMETERS,
        Parameter(
            name=NORMALIZE, type="boolean", default="false", profile=MERGEKIT,
            doc="Divide by the weights of what agrees.",
        ),
    )  # fmt: skip

    def keeps_nothing(self, context: MergeContext) -> bool:
        """Tell whether everything is dropped or trimmed."""
        return possible(context.params["density"]) == {0} or super().keeps_nothing(context)

    def votes(self, context: MergeContext, tensor_index: int) -> list[int]:
        """Return the contributions of which neither dropping nor trimming leaves nothing."""
        return [i for i in super().votes(context, tensor_index) if _keep_share(context, tensor_index, i)]

    def first_stages(self, context: MergeContext) -> tuple[Stage, ...]:
        """Return the pass that finds the sums of magnitudes, if they are to be restored."""
        return ("factors",) if _needs_sums(context) else ()

    def needs(self, context: MergeContext, state: Any, pass_no: int, tensor_index: int) -> bool:
        """Tell whether a pass can still learn from a tensor."""
        if self.stages(context)[pass_no] == "factors":
            return _loses(context, tensor_index)
        return super().needs(context, state, pass_no, tensor_index)

    def observe(self, context: MergeContext, state: Any, pass_no: int, block: Block) -> Any:
        """Return sums of magnitudes, or what TIES observes."""
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
        voting = set(voters(context))
        masks = [draw_mask(self.id, context, block, i) if i in voting else None for i in range(context.k)]
        scales = [
            float(_rescale(context, block.tensor_index, state.factors, i)) if i in voting else 1.0
            for i in range(context.k)
        ]
        return ScaledDifferences(block, masks, scales)


def draw_mask(strategy: str, context: MergeContext, block: Block, contribution: int) -> Mask | None:
    """Return which elements of a block a contribution keeps, ``(n,)`` bool; None: all."""
    share = _keep_share(context, block.tensor_index, contribution)
    if share >= 1:
        return None
    key = mask_key(strategy, context, block.tensor_index, contribution)
    return keep_mask(key, block.start, block.stop - block.start, share)


def _draw(strategy: str, context: MergeContext, tensor_index: int, contribution: int) -> Draw | None:
    """Return what a contribution keeps of a tensor as a rule for every element; None: all."""
    bound = keep_bound(_keep_share(context, tensor_index, contribution))
    return None if bound is None else Draw(mask_key(strategy, context, tensor_index, contribution), bound)


def mask_key(strategy: str, context: MergeContext, tensor_index: int, contribution: int) -> bytes:
    """Return the key of the stream that a contribution's mask of a tensor is drawn from."""
    salt = str(context.params["seed_salt"])
    return stream_key(
        context.seed if context.params["seed_scope"] == "root" else b"",
        strategy,
        context.specs[tensor_index].name,
        context.digests[contribution],
        f"mask/{salt}" if salt else "mask",
    )


def _keep_share(context: MergeContext, tensor_index: int, contribution: int) -> Fraction:
    """Return the share of a contribution's elements of a tensor that stays."""
    if context.specs[tensor_index].numel < cast(int, context.params["min_numel"]):
        return Fraction(1)
    return context.number("density", tensor_index, contribution)


def _loses(context: MergeContext, tensor_index: int) -> bool:
    """Tell whether a tensor of some contribution loses elements."""
    return any(_keep_share(context, tensor_index, i) < 1 for i in voters(context))


def _needs_sums(context: MergeContext) -> bool:
    densities = cast(set[Fraction], possible(context.params["density"]))
    return context.params["rescale"] == "l1" and any(0 < density < 1 for density in densities)


def _observe_sums(strategy: str, context: MergeContext, block: Block) -> Any:
    """Return leaf sums of magnitudes before and after dropping, ``(voters, 2, leaves)``; None: no drop."""
    if not _loses(context, block.tensor_index):
        return None
    assert block.base is not None
    rows = []
    for i in voters(context):
        magnitudes = np.abs(block.inputs[i] - block.base)
        before = leaf_sums(magnitudes)
        mask = draw_mask(strategy, context, block, i)
        if mask is not None:
            magnitudes *= mask
        rows.append(np.stack([before, leaf_sums(magnitudes)]))
    return np.stack(rows)


def _factors(context: MergeContext, partials: Sequence[tuple[Key, Any]]) -> Factors:
    factors: Factors = {}
    for index, group in itertools.groupby(partials, key=lambda item: item[0][0]):
        sums = [partial for _, partial in group if partial is not None]
        if not sums:
            continue
        for i, (before, after) in zip(voters(context), np.concatenate(sums, axis=2), strict=True):
            factors[index, i] = restoring_factor(add_leaves(before), add_leaves(after))
    return factors


def restoring_factor(whole: float, kept: float) -> float:
    """Return what makes a sum of magnitudes what it was before dropping; 1.0 where a sum or it has no use.

    Differences of huge float64 numbers have infinite sums, of which no ratio is a number.
    """
    if whole < _VANISHING_SUM or kept < _VANISHING_SUM or not math.isfinite(whole):
        return 1.0
    factor = whole / kept
    return factor if math.isfinite(factor) else 1.0


def _rescale(context: MergeContext, tensor_index: int, factors: Factors, contribution: int) -> Fraction:
    """Return what the kept differences of a contribution are multiplied by, exact."""
    share = _keep_share(context, tensor_index, contribution)
    if context.params["rescale"] == "inverse" or not share:
        return 1 / share if share else share
    return Fraction(factors.get((tensor_index, contribution), 1.0))


def _coefficient(context: MergeContext, tensor_index: int, factors: Factors, contribution: int) -> float:
    is_divided = bool(context.params[NORMALIZE])
    weights = shares(context, tensor_index) if is_divided else context.weights_in(tensor_index)
    weight, scale = weights[contribution], context.number(LAMBDA, tensor_index)
    return as_float(scale * weight * _rescale(context, tensor_index, factors, contribution))
