"""Trimming to the largest magnitudes: exactly, across blocks, tensors or the whole model.

Where exactly K elements are wanted and several equal the K-th magnitude, those with the smaller (tensor,
index) stay. A pass counts them per leaf; the one leaf in which the last of them stays is looked at again when
its block is merged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .acceleration import Patterns, ScaledDifferences, current
from .contract import LEAF_ELEMENTS, Block, Float64Array, Key, MergeContext
from .kernels import chunks
from .selection import Countable, Selection

WHOLE_MODEL: Final = -1
"""Stands for a tensor index where one search or one majority covers all tensors."""
ScopeKey = tuple[int, int]
"""(tensor index or WHOLE_MODEL, contribution)."""
Differences = Callable[[int, slice, Float64Array], None]
"""Writes the differences of a contribution from the base, in a range of the block, into an array."""


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


def selection_of(state: ElectionState, scope: int, contribution: int) -> Selection:
    """Return how far a search is. The first pass needs no rank."""
    return state.selections.get((scope, contribution)) or Selection(rank=0)


def has_ties(selection: Selection) -> bool:
    """Tell whether some, but not all, elements equal to the threshold stay. Zeros may all stay."""
    return selection.equal > selection.rank and selection.magnitude > 0


def magnitudes_of(block: Block, write: Differences, contribution: int) -> Magnitudes:
    """Return the absolute differences of a contribution: an iterable of leaves in a buffer used again."""
    return Magnitudes(block, write, contribution)


@dataclass(frozen=True, slots=True)
class Magnitudes(Countable):
    """The absolute differences of one contribution in one block."""

    block: Block
    write: Differences
    contribution: int

    def __iter__(self) -> Iterator[Float64Array]:
        size = self.block.stop - self.block.start
        buffer = np.empty(min(LEAF_ELEMENTS, size), np.float64)
        for part in chunks(size, LEAF_ELEMENTS):
            leaf = buffer[: part.stop - part.start]
            self.write(self.contribution, part, leaf)
            yield np.abs(leaf, out=leaf)

    def counted(self, digits: tuple[int, int, int], histogram: Patterns, gathered: Patterns) -> int | None:
        """Return how many candidates an accelerator counted; None: there is none that can."""
        accelerator = current()
        if accelerator is None or not isinstance(self.write, ScaledDifferences):
            return None
        return accelerator.count(self.write, self.contribution, digits, histogram, gathered)


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
