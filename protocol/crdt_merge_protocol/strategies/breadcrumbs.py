"""Model Breadcrumbs: leave out the largest differences from the base and the small ones, add what is between.

Profile ``paper`` ranks magnitudes within rows (the last axis; a kernel of a convolution is a matrix with one
row per output), removes the gamma n largest and keeps the next density n. Profile ``mergekit`` ranks within
the whole tensor and removes fewer outliers where density leaves no room for all of them. Exactly so many stay
either way: of equal magnitudes the earlier ones count as larger.

Rows are partitioned, never sorted; over whole tensors see ``crumbs.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from crdt_merge_protocol.errors import ParameterError

from .averages import NORMALIZE, check_weights, shares, weight_parameter, weight_warnings
from .contract import BaseUse, Block, Float64Array, Granularity, Key, MergeContext, Strategy
from .crumbs import PASSES, CrumbSearch, CrumbState, Mask, Ranks
from .dependence import Dependence, depends
from .kernels import CHUNK_ELEMENTS, chunks
from .parameters import MERGEKIT, PAPER, Parameter, Value, profile_parameter
from .rows import row_chunks
from .task_vectors import LAMBDA
from .ties import ELECTION_PARAMETERS, SignElection, Stage, plain_differences
from .trimming import Differences, ElectionState, voters

_NAMED_MAX: Final = 3
_NANOSECONDS: Final = 60.0
"""Per element of a contribution: two selections."""
_KEY_SHIFT: Final = 32
"""The key of a magnitude is the upper half of its bits: of differences of 16-bit models all there is."""
_PAPER: Final = "Davari, Belilovsky, Model Breadcrumbs, ECCV 2024, arXiv:2312.06795"


def _crumb_parameters(default_lambda: str, *, is_signed: bool) -> tuple[Parameter, ...]:
    return (
        profile_parameter(),
        weight_parameter(is_signed=is_signed),
        Parameter(
            name="density", type="decimal", default="0.2", mergekit_default="1.0", low="0", high="1",
            per=frozenset({"tensor", "contribution"}), doc="Share of the differences that is kept.",
        ),
        Parameter(
            name="gamma", type="decimal", default="0.1", mergekit_default="0.01", low="0", high="1",
            per=frozenset({"tensor", "contribution"}),
            doc="Share of the largest differences that is left out.",
        ),
        Parameter(
            name=LAMBDA, type="decimal", default=default_lambda, mergekit_default="1.0", low="-3", high="3",
            per=frozenset({"tensor"}), doc="Scale of the result.",
        ),
    )  # fmt: skip


class ModelBreadcrumbs(Strategy):
    """The base plus the scaled sum of what lies between: out = B + lambda sum w_i crumbs_i."""

    id = "model_breadcrumbs"
    title = "Model Breadcrumbs"
    paper = _PAPER
    doc = "Leaves out the largest and the small differences from the base, adds the ones between."
    formula = (
        "t_i = X_i - B; per row of n: the gamma n largest |t_i| and all but the next density n zeroed\n"
        "out = B + lambda sum_i w_i t_i"
    )
    base: ClassVar[BaseUse] = "required"
    allows_negative_weights = True
    parameters = (
        *_crumb_parameters("0.4", is_signed=True),
        Parameter(name=NORMALIZE, type="boolean", default="false", doc="Divide by the sum of the weights."),
    )

    def validate(self, params: Mapping[str, str]) -> dict[str, Value]:
        """Return all parameters, typed; no more than everything is left out or kept."""
        return _check_shares(super().validate(params))

    def check(self, context: MergeContext) -> None:
        """Refuse as every strategy, and offline divisors that vanish in a tensor."""
        super().check(context)
        if self.divides_by_weights(context):
            check_weights(context)

    def divides_by_weights(self, context: MergeContext) -> bool:
        """Tell whether the sum of the weights is a divisor."""
        return bool(context.params[NORMALIZE])

    def granularity(self, context: MergeContext, tensor_index: int) -> Granularity:
        """Return rows where rows are ranked."""
        return _granularity(context, tensor_index)

    def scratch_bytes(self, context: MergeContext, tensor_index: int) -> int:
        """Return the memory of masks, and of one contribution being ranked."""
        return (24 + context.k) * context.specs[tensor_index].numel

    def nanoseconds(self, context: MergeContext, tensor_index: int) -> float:
        """Return the estimate for selecting."""
        return _NANOSECONDS * context.k * context.specs[tensor_index].numel

    def pass_count(self, context: MergeContext) -> int:
        """Return the passes that find crumbs of whole tensors."""
        return PASSES if context.params["profile"] == MERGEKIT else 0

    def needs(self, context: MergeContext, state: Any, pass_no: int, tensor_index: int) -> bool:
        """Tell whether a pass can still learn from a tensor."""
        return _search(context).needs(state or CrumbState(), pass_no, tensor_index)

    def observe(self, context: MergeContext, state: Any, pass_no: int, block: Block) -> Any:
        """Return counts of magnitudes."""
        return _search(context).observe(state or CrumbState(), pass_no, block, plain_differences(block))

    def compact(
        self, context: MergeContext, pass_no: int, partials: list[tuple[Key, Any]]
    ) -> list[tuple[Key, Any]]:
        """Add up counts of magnitudes."""
        return _search(context).compact(pass_no, partials)

    def end_pass(
        self, context: MergeContext, state: Any, pass_no: int, partials: Sequence[tuple[Key, Any]]
    ) -> CrumbState:
        """Return how far the searches are."""
        return _search(context).end(state or CrumbState(), pass_no, partials)

    def dependence(self, context: MergeContext, tensor_index: int) -> Dependence | None:
        """Return what decides a tensor: that tensor alone."""
        return depends(self, context, tensor_index)

    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:
        """Return a block of the base plus the scaled sum of the crumbs."""
        assert block.base is not None
        index = block.tensor_index
        is_divided = bool(context.params[NORMALIZE])
        weights = shares(context, index) if is_divided else context.weights_in(index)
        write = crumb_differences(context, state or CrumbState(), block)
        out = np.zeros(block.stop - block.start, np.float64)
        term = np.empty(min(CHUNK_ELEMENTS, out.size), np.float64)
        for i in voters(context):
            coefficient = float(context.number(LAMBDA, index) * weights[i])
            if coefficient == 0.0:
                continue
            for part in chunks(out.size):
                values = term[: part.stop - part.start]
                write(i, part, values)
                values *= coefficient
                out[part] += values
        out += block.base
        return out

    def warnings(self, context: MergeContext, state: Any) -> list[str]:  # noqa: ARG002
        """Say where rows are too short, and where the weights could not be used."""
        warnings = _short_rows(context)
        if self.divides_by_weights(context):
            warnings += weight_warnings(context)
        return warnings


class BreadcrumbsTies(SignElection):
    """What lies between, elected and merged as by TIES: out = B + lambda * merged."""

    id = "breadcrumbs_ties"
    title = "Model Breadcrumbs with election"
    paper = f"{_PAPER}, with Yadav et al., NeurIPS 2023, arXiv:2306.01708"
    doc = "Leaves out the largest and the small differences, elects a sign per element, averages what agrees."
    formula = (
        "t_i = X_i - B; per row of n: the gamma n largest |t_i| and all but the next density n zeroed\n"
        "s = sign(sum_i t_i); out = B + lambda * weighted mean of the t_i whose sign is s"
    )
    is_extra = True
    trim_parameter = ""
    parameters = (
        *_crumb_parameters("1.0", is_signed=False),
        Parameter(
            name="scope", type="choice", default="tensor", choices=("model", "tensor"),
            doc="Find majorities over the whole model or each tensor.",
        ),
        *ELECTION_PARAMETERS,
        Parameter(
            name=NORMALIZE, type="boolean", default="false", profile=MERGEKIT,
            doc="Divide by the weights of what agrees.",
        ),
    )  # fmt: skip

    def validate(self, params: Mapping[str, str]) -> dict[str, Value]:
        """Return all parameters, typed; no more than everything is left out or kept."""
        return _check_shares(super().validate(params))

    def granularity(self, context: MergeContext, tensor_index: int) -> Granularity:
        """Return rows where rows are ranked."""
        return _granularity(context, tensor_index)

    def scratch_bytes(self, context: MergeContext, tensor_index: int) -> int:
        """Return the memory of masks, and of one contribution being ranked."""
        return (24 + context.k) * context.specs[tensor_index].numel

    def nanoseconds(self, context: MergeContext, tensor_index: int) -> float:
        """Return the estimate for selecting."""
        return _NANOSECONDS * context.k * context.specs[tensor_index].numel

    def first_stages(self, context: MergeContext) -> tuple[Stage, ...]:
        """Return the passes that find crumbs of whole tensors."""
        return tuple[Stage, ...](["crumbs"] * PASSES) if context.params["profile"] == MERGEKIT else ()

    def needs(self, context: MergeContext, state: Any, pass_no: int, tensor_index: int) -> bool:
        """Tell whether a pass can still learn from a tensor."""
        if self.stages(context)[pass_no] == "crumbs":
            return _search(context).needs(_crumbs(state), pass_no, tensor_index)
        return super().needs(context, state, pass_no, tensor_index)

    def observe(self, context: MergeContext, state: Any, pass_no: int, block: Block) -> Any:
        """Return counts of magnitudes, or the majority of one block's signs."""
        if self.stages(context)[pass_no] == "crumbs":
            return _search(context).observe(_crumbs(state), pass_no, block, plain_differences(block))
        return super().observe(context, state, pass_no, block)

    def compact(
        self, context: MergeContext, pass_no: int, partials: list[tuple[Key, Any]]
    ) -> list[tuple[Key, Any]]:
        """Add up counts of magnitudes."""
        if self.stages(context)[pass_no] == "crumbs":
            return _search(context).compact(pass_no, partials)
        return super().compact(context, pass_no, partials)

    def end_pass(
        self, context: MergeContext, state: Any, pass_no: int, partials: Sequence[tuple[Key, Any]]
    ) -> ElectionState:
        """Return the state with what this pass found."""
        if self.stages(context)[pass_no] == "crumbs":
            crumbs = _search(context).end(_crumbs(state), pass_no, partials)
            return replace(state or ElectionState(), crumbs=crumbs)
        return super().end_pass(context, state, pass_no, partials)

    def differences(self, context: MergeContext, state: ElectionState, block: Block) -> Differences:
        """Return what writes the crumbs."""
        return crumb_differences(context, _crumbs(state), block)

    def warnings(self, context: MergeContext, state: Any) -> list[str]:  # noqa: ARG002
        """Say where rows are too short."""
        return _short_rows(context)


def crumb_differences(context: MergeContext, state: CrumbState, block: Block) -> Differences:
    """Return what writes the differences of a block with all but the crumbs zeroed."""
    plain = plain_differences(block)
    if context.params["profile"] == PAPER:
        masks = {i: _row_mask(context, block, i) for i in voters(context)}

        def write_rows(contribution: int, part: slice, out: Float64Array) -> None:
            plain(contribution, part, out)
            out *= masks[contribution][part]

        return write_rows
    search = _search(context)
    stays = {i: search.stays(state, block, plain, i) for i in voters(context)}

    def write(contribution: int, part: slice, out: Float64Array) -> None:
        plain(contribution, part, out)
        out *= stays[contribution](np.abs(out), block.start + part.start)

    return write


def top_of_rows(magnitudes: Float64Array, *counts: int) -> list[Mask]:
    """Return, per count, which elements are so many of the largest of their row, of equal ones the first.

    Args:
        magnitudes: ``(rows, n)`` float64, not negative.
        counts: How many.

    Returns:
        ``(rows, n)`` bool each, exactly ``count`` true in each row.
    """
    rows, width = magnitudes.shape
    bits = magnitudes.view(np.int64)  # What is not negative orders like its bits,
    keys = (bits >> _KEY_SHIFT).astype(np.int32)  # and half as many of them part in half the time.
    edges: dict[int, npt.NDArray[np.int32]] = {}
    rest, first = keys, 0
    for place in sorted({width - count for count in counts if 0 < count < width}):
        rest = np.partition(rest, place - first, axis=1)[:, place - first :]
        first = place
        edges[width - place] = rest[:, :1].copy()
    found = []
    for count in counts:
        if count not in edges:
            found.append(np.full(magnitudes.shape, count > 0))
            continue
        is_top = keys >= edges[count]
        if np.count_nonzero(is_top) != rows * count:  # At least so many are, in every row.
            tied = np.flatnonzero(np.count_nonzero(is_top, axis=1) != count)
            is_top[tied] = _top_of_tied(bits[tied], edges[count][tied], count)
        found.append(is_top)
    return found


def _top_of_tied(bits: npt.NDArray[np.int64], edges: npt.NDArray[np.int32], count: int) -> Mask:
    """Return which elements are in the top of rows in which several have the key of the last one.

    Args:
        bits: Of the magnitudes, ``(rows, n)``.
        edges: The key of the last one in each row, ``(rows, 1)``.
        count: How many.
    """
    threshold = edges.astype(np.int64) << _KEY_SHIFT
    if (np.bitwise_or.reduce(bits, axis=None) & ((1 << _KEY_SHIFT) - 1)) != 0:  # Keys are not all there is.
        place = bits.shape[1] - count
        threshold = np.partition(bits, place, axis=1)[:, place : place + 1]
    is_larger = bits > threshold
    is_equal = bits == threshold
    missing = count - np.count_nonzero(is_larger, axis=1)
    top: Mask = is_larger | (is_equal & (np.cumsum(is_equal, axis=1) <= missing[:, None]))
    return top


def _row_mask(context: MergeContext, block: Block, contribution: int) -> Mask:
    """Return which elements of a block are crumbs of their row, ``(n,)`` bool."""
    assert block.base is not None
    shape = context.specs[block.tensor_index].shape
    out = np.ones(block.stop - block.start, np.bool_)
    if not shape or not out.size:
        return out  # A scalar is left alone.
    width = _width(shape)
    removed, both = _row_ranks(context, block.tensor_index, contribution)
    values, base = block.inputs[contribution].reshape(-1, width), block.base.reshape(-1, width)
    mask = out.reshape(-1, width)
    for part in row_chunks(mask.shape[0], width):
        difference = np.subtract(values[part], base[part])
        top, outliers = top_of_rows(np.abs(difference, out=difference), both, removed)
        np.greater(top, outliers, out=mask[part])  # Outliers are at the top.
    return out


def _search(context: MergeContext) -> CrumbSearch:
    return CrumbSearch(context, lambda tensor_index, i: _whole_ranks(context, tensor_index, i))


def _crumbs(state: ElectionState | None) -> CrumbState:
    known = None if state is None else state.crumbs
    return known if isinstance(known, CrumbState) else CrumbState()


def _whole_ranks(context: MergeContext, tensor_index: int, contribution: int) -> Ranks:
    """Return how many elements of a tensor are outliers, and how many outliers or crumbs (mergekit)."""
    numel = context.specs[tensor_index].numel
    kept = int(context.number("density", tensor_index, contribution) * numel)
    removed = min(int(context.number("gamma", tensor_index, contribution) * numel), numel - kept)
    return removed, removed + kept


def _row_ranks(context: MergeContext, tensor_index: int, contribution: int) -> Ranks:
    """Return the same of a row (the paper)."""
    width = _width(context.specs[tensor_index].shape)
    removed = int(context.number("gamma", tensor_index, contribution) * width)
    kept = int(context.number("density", tensor_index, contribution) * width)
    return removed, min(removed + kept, width)


def _width(shape: tuple[int, ...]) -> int:
    return math.prod(shape[1:]) if len(shape) > 2 else shape[-1]


def _granularity(context: MergeContext, tensor_index: int) -> Granularity:
    if context.params["profile"] == MERGEKIT:
        return "elements"
    return "tensor" if len(context.specs[tensor_index].shape) > 2 else "rows"


def _short_rows(context: MergeContext) -> list[str]:
    """Say which tensors lose everything because their rows are shorter than one over the density."""
    if context.params["profile"] != PAPER:
        return []
    names = [
        spec.name
        for index, spec in enumerate(context.specs)
        if spec.shape and spec.numel and all(_loses_all(context, index, i) for i in voters(context))
    ]
    if not names:
        return []
    more = f" and {len(names) - _NAMED_MAX} more" if len(names) > _NAMED_MAX else ""
    listed = ", ".join(names[:_NAMED_MAX])
    return [f"{listed}{more}: rows are too short for this density; nothing of them was merged."]


def _loses_all(context: MergeContext, tensor_index: int, contribution: int) -> bool:
    removed, both = _row_ranks(context, tensor_index, contribution)
    return removed == both and context.number("density", tensor_index, contribution) > 0


def _check_shares(values: dict[str, Value]) -> dict[str, Value]:
    """Refuse to leave out and keep more than there is. Tables are cut to what fits where they do."""
    density, gamma = values["density"], values["gamma"]
    if not isinstance(density, Fraction) or not isinstance(gamma, Fraction) or values["profile"] != PAPER:
        return values
    if density + gamma > 1:
        raise ParameterError(
            f"density and gamma add up to {float(density + gamma):g}, more than 1.",
            hint="gamma is left out before density is kept.",
        )
    return values
