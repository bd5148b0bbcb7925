"""Trimming to the largest magnitudes: exactly, across blocks, tensors or the whole model.

Where exactly K elements are wanted and several equal the K-th magnitude, those with the smaller (tensor,
index) stay. A pass counts them per leaf; the one leaf in which the last of them stays is looked at again when
its block is merged.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .acceleration import ScaledDifferences
from .contract import LEAF_ELEMENTS, Block, Float64Array, Key, MergeContext
from .kernels import chunks
from .sampling import is_sampled, likely_digits, sampled_leaves, step_in_leaf
from .selection import Selection, Tally, tally, tally_differences

WHOLE_MODEL: Final = -1
"""Stands for a tensor index where one search or one majority covers all tensors."""
ScopeKey = tuple[int, int]
"""(tensor index or WHOLE_MODEL, contribution)."""
Differences = Callable[[int, slice, Float64Array], None]
"""Writes the differences of a contribution from the base, in a range of the block, into an array.

Where differences are trimmed, a range may have a step."""


@dataclass(frozen=True, slots=True)
class ElectionState:
    """What the passes found out."""

    selections: dict[ScopeKey, Selection] = field(default_factory=dict)
    """The searches for the K-th magnitudes; absent: nothing is trimmed."""
    places: dict[ScopeKey, tuple[int, int, int]] = field(default_factory=dict)
    """(tensor index, leaf, how many): where the last elements equal to the threshold stay; absent: all do."""
    majority: dict[int, float] = field(default_factory=dict)
    """By scope: the sign where votes cancel out; absent: plus."""
    factors: dict[tuple[int, int], float] = field(default_factory=dict)
    """By (tensor index, contribution): scale after dropping, if it depends on the elements."""
    crumbs: Any = None
    """What the search for breadcrumbs found (``breadcrumbs.py``)."""


@dataclass(frozen=True, slots=True)
class Trim:
    """Which elements of one contribution stay in one block."""

    threshold: float
    """The K-th largest magnitude."""
    last_equal: int
    """Last flat index at which an element of exactly that magnitude stays."""

    def apply(self, values: Float64Array, start: int, scratch: Float64Array) -> None:
        """Zero, in place, the elements of ``values`` that do not stay. Both arrays have one size."""
        np.abs(values, out=scratch)
        values *= self.stays(scratch, start)

    def beyond(self, start: int, size: int) -> int:
        """Return the first of ``size`` elements from ``start`` on where equals go; ``size``: none."""
        return min(max(self.last_equal + 1 - start, 0), size)

    def stays(self, magnitudes: Float64Array, start: int) -> npt.NDArray[np.bool_]:
        """Return which elements stay, ``(n,)`` bool, from their magnitudes and the first one's flat index."""
        stays: npt.NDArray[np.bool_] = magnitudes >= self.threshold
        beyond = self.beyond(start, magnitudes.size)
        if beyond < magnitudes.size:
            np.greater(magnitudes[beyond:], self.threshold, out=stays[beyond:])
        return stays


def voters(context: MergeContext) -> list[int]:
    """Return the contributions that have a say."""
    return [i for i, weight in enumerate(context.weights) if weight]


def scope_of(context: MergeContext, tensor_index: int) -> int:
    """Return which search or majority a tensor belongs to."""
    return WHOLE_MODEL if context.params.get("scope") == "model" else tensor_index


def by_scope(
    context: MergeContext, partials: Sequence[tuple[Key, Any]]
) -> list[tuple[int, list[tuple[Key, Any]]]]:
    """Return what blocks reported by scope, and of each in order."""
    ordered = sorted(partials, key=lambda item: item[0])
    groups = itertools.groupby(ordered, key=lambda item: scope_of(context, item[0][0]))
    return [(scope, list(group)) for scope, group in groups]


def numel_of(context: MergeContext, scope: int) -> int:
    """Return how many elements are ranked together."""
    return context.numel if scope == WHOLE_MODEL else context.specs[scope].numel


def sample_of(
    context: MergeContext, block: Block, trimmed: Sequence[int], differences: Callable[[], Differences]
) -> list[list[Float64Array] | None]:
    """Return, per voter, the magnitudes of a block that are in the sample, by leaf; None: no trim."""
    numel = numel_of(context, scope_of(context, block.tensor_index))
    leaves = list(sampled_leaves(numel, block.tensor_index, (block.start, block.stop)))
    if not is_sampled(numel) or not leaves or not trimmed:
        return [None for _ in voters(context)]
    write, step = differences(), step_in_leaf(numel)
    parts = [slice(start - block.start, stop - block.start, step) for start, stop in leaves]
    return [[_some(write, i, part) for part in parts] if i in trimmed else None for i in voters(context)]


def _some(write: Differences, contribution: int, part: slice) -> Float64Array:
    """Return the magnitudes of some differences, in a new array."""
    out = np.empty(len(range(part.start, part.stop, part.step)), np.float64)
    write(contribution, part, out)
    return np.abs(out, out=out)


def starts_from(
    context: MergeContext, scope: int, firsts: Mapping[int, Selection], group: Sequence[tuple[Key, Any]]
) -> Iterator[tuple[ScopeKey, Selection]]:
    """Yield searches that begin in the range that a sample suggests.

    Args:
        context: Of the merge.
        scope: Of the searches.
        firsts: How they would begin without a sample, by voter.
        group: What :func:`sample_of` returned for the blocks of the scope.
    """
    numel = numel_of(context, scope)
    for column, (i, first) in enumerate(firsts.items()):
        leaves = [leaf for _, partial in group for leaf in partial[column] or ()]
        digits = likely_digits(leaves, first.rank / numel) if leaves else None
        if digits is not None:
            yield (scope, i), replace(first, digits=digits)


def selection_of(state: ElectionState, scope: int, contribution: int) -> Selection:
    """Return how far a search is. The first pass needs no rank."""
    return state.selections.get((scope, contribution)) or Selection(rank=0)


def has_ties(selection: Selection) -> bool:
    """Tell whether some, but not all, elements equal to the threshold stay. Zeros may all stay."""
    return selection.equal > selection.rank and selection.magnitude > 0


def magnitudes_of(block: Block, write: Differences, contribution: int) -> Iterator[Float64Array]:
    """Yield the absolute differences of a contribution, leaf by leaf in a buffer used again."""
    size = block.stop - block.start
    buffer = np.empty(min(LEAF_ELEMENTS, size), np.float64)
    for part in chunks(size, LEAF_ELEMENTS):
        leaf = buffer[: part.stop - part.start]
        write(contribution, part, leaf)
        yield np.abs(leaf, out=leaf)


def tally_of_each(selections: Mapping[int, Selection], block: Block, write: Differences) -> dict[int, Tally]:
    """Return the counts of a block's candidates, per contribution that is still searched."""
    open_ = {i: selection for i, selection in selections.items() if not selection.is_done}
    counted = tally_differences(open_, write) if isinstance(write, ScaledDifferences) else None
    if counted is not None:
        return counted
    return {i: tally(selection, magnitudes_of(block, write, i)) for i, selection in open_.items()}


def count_equal(block: Block, write: Differences, contribution: int, magnitude: float) -> list[int]:
    """Return how many absolute differences of each leaf of a block equal a magnitude."""
    return [int(np.count_nonzero(part == magnitude)) for part in magnitudes_of(block, write, contribution)]


def find_places(
    context: MergeContext, state: ElectionState, groups: Sequence[tuple[int, list[tuple[Key, Any]]]]
) -> Iterator[tuple[ScopeKey, tuple[int, int, int]]]:
    """Yield, for every search with ties, the leaf where the last of them stays and how many stay there."""
    for scope, group in groups:
        for column, i in enumerate(voters(context)):
            left = selection_of(state, scope, i).rank
            counts = [(key, partial[column]) for key, partial in group if partial[column] is not None]
            for (tensor_index, start), per_leaf in counts:
                for leaf, count in enumerate(per_leaf, start // LEAF_ELEMENTS):
                    if 0 < left <= count:
                        yield (scope, i), (tensor_index, leaf, left)
                    left -= count


def trim_of(
    context: MergeContext, state: ElectionState, block: Block, write: Differences, contribution: int
) -> Trim | None:
    """Return which elements of a block a contribution keeps; None: all."""
    key = scope_of(context, block.tensor_index), contribution
    selection = state.selections.get(key)
    if selection is None:
        return None
    place = state.places.get(key)
    if place is None:
        return Trim(selection.magnitude, block.stop)
    tensor_index, leaf, count = place
    here, first = (block.tensor_index, block.start), (tensor_index, leaf * LEAF_ELEMENTS)
    if first < here:
        return Trim(selection.magnitude, -1)
    if tensor_index > block.tensor_index or first[1] >= block.stop:
        return Trim(selection.magnitude, block.stop)
    start = first[1] - block.start
    part = slice(start, min(start + LEAF_ELEMENTS, block.stop - block.start))
    values = np.empty(part.stop - part.start, np.float64)
    write(contribution, part, values)
    equal = np.flatnonzero(np.abs(values) == selection.magnitude)
    return Trim(selection.magnitude, first[1] + int(equal[count - 1]))
