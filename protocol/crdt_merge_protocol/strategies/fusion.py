"""Arcee Fusion: of a model, only the changes that stand out.

The importance of a change is its size times how differently model and base distribute the softmax of its
row. What lies above the median by more than one and a half times the distance of the quartiles is taken.
Quartiles are exact, by radix selection; mergekit estimates those of large tensors from random samples that
nobody can draw again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final

import numpy as np

from .acceleration import Digits
from .contract import LEAF_ELEMENTS, BaseUse, Block, Float64Array, Granularity, Key, MergeContext, Strategy
from .dependence import Dependence, depends
from .exponential import logarithm, softmax
from .kernels import chunks
from .rows import row_chunks, row_length, row_sums
from .selection import LEVELS, Selection, Tally, advance, merge_tallies, tally
from .trimming import voters as voters_of

_LIFT: Final = 1e-8
"""Added to probabilities, so that every logarithm exists."""
_SPREAD: Final = 1.5
"""Times the distance of the quartiles, as outliers are told by Tukey's fences."""
_KEPT_WIDTH: Final = 64
"""Divergences of rows at least this long are kept between passes; of shorter ones, computed again."""
_QUANTILES: Final = 3


@dataclass(frozen=True, slots=True)
class FusionState:
    """What the passes found out, by (tensor index, contribution)."""

    divergences: dict[Key, Float64Array] = field(default_factory=dict)
    """One per row."""
    selections: dict[Key, tuple[Selection, ...]] = field(default_factory=dict)
    """The searches for the first quartile, the median and the third quartile."""

    def is_done(self, key: Key) -> bool:
        """Tell whether all three are known."""
        return key in self.selections and all(each.is_done for each in self.selections[key])

    def threshold(self, key: Key) -> float:
        """Return the least importance of a change that is taken."""
        first, median, third = (selection.magnitude for selection in self.selections[key])
        return median + _SPREAD * (third - first)


class ArceeFusion(Strategy):
    """The base plus the changes that stand out; of several models, the weighted mean of those.

    Published for one model and its base. A row of a single element has no distribution: its divergence is
    zero, so is the importance of its change, and if all are zero all changes are taken, as published.
    """

    id = "arcee_fusion"
    title = "Arcee Fusion"
    paper = "none; Arcee AI, as in mergekit"
    doc = "Takes over the changes of each model that stand out from the rest, and leaves the base elsewhere."
    formula = (
        "I = |X - B| KL(softmax(X row) + 1e-8, softmax(B row) + 1e-8)\n"
        "out = B + (X - B) [I >= median(I) + 1.5 (Q3(I) - Q1(I))], the weighted mean of it for several X"
    )
    base: ClassVar[BaseUse] = "required"
    is_extra = True

    def granularity(self, context: MergeContext, tensor_index: int) -> Granularity:  # noqa: ARG002
        """Return rows: a softmax needs all of one."""
        return "rows"

    def scratch_bytes(self, context: MergeContext, tensor_index: int) -> int:
        """Return the memory of the softmaxes of one chunk of rows."""
        return 8 * 14 * max(row_length(context.specs[tensor_index].shape), LEAF_ELEMENTS)

    def nanoseconds(self, context: MergeContext, tensor_index: int) -> float:
        """Return the time of two exponentials, a logarithm and the searches."""
        return 110.0 * context.k * context.specs[tensor_index].numel

    def pass_count(self, context: MergeContext) -> int:  # noqa: ARG002
        """Return the passes of a radix selection."""
        return LEVELS

    def needs(self, context: MergeContext, state: Any, pass_no: int, tensor_index: int) -> bool:  # noqa: ARG002
        """Tell whether a quartile of a tensor is still to be found."""
        known: FusionState = state or FusionState()
        return any(not known.is_done((tensor_index, i)) for i in voters_of(context))

    def observe(self, context: MergeContext, state: Any, pass_no: int, block: Block) -> Any:
        """Return, per voter, the divergences of rows that are worth keeping and counts of importances."""
        known: FusionState = state or FusionState()
        width = row_length(context.specs[block.tensor_index].shape)
        found: list[tuple[Float64Array | None, tuple[Tally, ...]] | None] = []
        for i in voters_of(context):
            if known.is_done((block.tensor_index, i)):
                found.append(None)
                continue
            rows = _divergences(context, known, block, i)
            searches = known.selections.get((block.tensor_index, i), (Selection(rank=0),) * _QUANTILES)
            kept = rows if pass_no == 0 and width >= _KEPT_WIDTH else None
            found.append((kept, _tallies(searches, context, block, i, rows)))
        return found

    def compact(
        self,
        context: MergeContext,  # noqa: ARG002
        pass_no: int,
        partials: list[tuple[Key, Any]],
    ) -> list[tuple[Key, Any]]:
        """Add up counts of consecutive blocks of a tensor, if no divergences are kept between them."""
        if pass_no == 0:
            return partials
        ordered = sorted(partials, key=lambda item: item[0])
        groups = [list(group) for _, group in itertools.groupby(ordered, key=lambda item: item[0][0])]
        return [(group[0][0], _merge_blocks([partial for _, partial in group])) for group in groups]

    def end_pass(
        self,
        context: MergeContext,
        state: Any,
        pass_no: int,  # noqa: ARG002
        partials: Sequence[tuple[Key, Any]],
    ) -> FusionState:
        """Return the state with divergences and narrower searches."""
        known: FusionState = state or FusionState()
        divergences, selections = dict(known.divergences), dict(known.selections)
        for index, group in itertools.groupby(partials, key=lambda item: item[0][0]):
            merged = _merge_blocks([partial for _, partial in group])
            for i, column in zip(voters_of(context), merged, strict=True):
                if column is None:
                    continue
                rows, tallies = column
                if rows is not None:
                    divergences[index, i] = rows
                start = selections.get((index, i)) or _quantiles(context.specs[index].numel)
                selections[index, i] = tuple(
                    each if each.is_done else advance(each, [counts])
                    for each, counts in zip(start, tallies, strict=True)
                )
        return replace(known, divergences=divergences, selections=selections)

    def dependence(self, context: MergeContext, tensor_index: int) -> Dependence | None:
        """Return what decides a tensor: that tensor alone."""
        return depends(self, context, tensor_index)

    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:
        """Return a block of the base plus the mean of what stands out."""
        assert block.base is not None
        known: FusionState = state or FusionState()
        voters = voters_of(context)
        total = sum(context.weights[i] for i in voters)
        out = np.zeros(block.stop - block.start, np.float64)
        for i in voters:
            threshold = known.threshold((block.tensor_index, i))
            share = float(context.weights[i] / total)
            rows = _divergences(context, known, block, i)
            for part, change, importance in _importances(context, block, i, rows):
                np.multiply(change, importance >= threshold, out=change)
                np.multiply(change, share, out=change)
                out[part] += change
        out += block.base
        return out

    def decisions(self, context: MergeContext, state: Any) -> dict[str, Any]:
        """Return the thresholds as well."""
        known: FusionState = state or FusionState()
        thresholds: dict[str, dict[str, float]] = {}
        for index, i in sorted(known.selections):
            named = thresholds.setdefault(context.specs[index].name, {})
            named[context.digests[i].hex()] = known.threshold((index, i))
        return {**super().decisions(context, state), "thresholds": thresholds}


def _quantiles(numel: int) -> tuple[Selection, ...]:
    """Return the searches: index floor(q (n - 1)) from the least is rank n - index from the largest."""
    return tuple(Selection(rank=numel - (numel - 1) * quarter // 4) for quarter in (1, 2, 3))


def _divergences(context: MergeContext, state: FusionState, block: Block, i: int) -> Float64Array:
    """Return the divergence of each row of a block."""
    assert block.base is not None
    width = max(row_length(context.specs[block.tensor_index].shape), 1)
    kept = state.divergences.get((block.tensor_index, i))
    if kept is not None:
        return kept[block.start // width : block.stop // width]
    model, base = block.inputs[i].reshape(-1, width), block.base.reshape(-1, width)
    out = np.empty(len(model), np.float64)
    with np.errstate(under="ignore", over="ignore"):
        for part in row_chunks(*model.shape):
            mine, theirs = softmax(model[part]), softmax(base[part])
            mine += _LIFT
            theirs += _LIFT
            out[part] = row_sums(mine * logarithm(mine / theirs))
    # Rounding may leave less than nothing, and bits of a magnitude are what is selected by.
    return np.maximum(out, 0.0)


def _importances(
    context: MergeContext, block: Block, i: int, rows: Float64Array
) -> Iterator[tuple[slice, Float64Array, Float64Array]]:
    """Yield ranges of a block with the changes of a model there and their importances."""
    assert block.base is not None
    width = max(row_length(context.specs[block.tensor_index].shape), 1)
    for part in row_chunks(len(rows), width):
        begin = part.start * width
        for inside in chunks((part.stop - part.start) * width, LEAF_ELEMENTS):
            here = slice(begin + inside.start, begin + inside.stop)
            change = block.inputs[i][here] - block.base[here]
            if part.stop - part.start == 1:
                factors: Float64Array = rows[part]
            else:
                factors = np.repeat(rows[part], width)[inside]
            with np.errstate(all="ignore"):
                importance = np.abs(change) * factors
            yield here, change, importance


def _tallies(
    searches: Sequence[Selection], context: MergeContext, block: Block, i: int, rows: Float64Array
) -> tuple[Tally, ...]:
    """Return the counts for each search, none for a finished one; those equally far share them."""
    found: dict[Digits, Tally] = {}
    for search in searches:
        if not search.is_done and search.digits not in found:
            parts = (importance for _, _, importance in _importances(context, block, i, rows))
            found[search.digits] = tally(search, parts)
    nothing = Tally(Selection(rank=0).digits, np.empty(0, np.int64), None, is_exact=True)
    return tuple(nothing if search.is_done else found[search.digits] for search in searches)


def _merge_blocks(blocks: Sequence[Any]) -> list[Any]:
    """Return what several blocks of one tensor found, as if they were one, in order."""
    merged: list[Any] = []
    for column in zip(*blocks, strict=True):
        shown = [each for each in column if each is not None]
        if not shown:
            merged.append(None)
            continue
        kept = [rows for rows, _ in shown if rows is not None]
        tallies = zip(*(tallies for _, tallies in shown), strict=True)
        merged.append((
            np.concatenate(kept) if kept else None,
            tuple(merge_tallies(same) for same in tallies),
        ))  # fmt: skip
    return merged
