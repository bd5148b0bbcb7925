"""The crumbs of a whole tensor: what lies between its largest and its small elements, exactly, in passes.

For every contribution two exact searches run side by side: the magnitude of the last outlier, and that of
the last element that stays. Both are the one of trimming (``trimming.py``), each with a state of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .contract import Block, Float64Array, Key, MergeContext
from .selection import LEVELS, Selection, Tally, advance, merge_tallies
from .trimming import (
    Differences,
    ElectionState,
    Trim,
    count_equal,
    find_places,
    has_ties,
    selection_of,
    tally_of_each,
    trim_of,
    voters,
)

PASSES: Final = LEVELS + 1
"""Up to LEVELS to find the magnitudes, one to place the elements equal to them."""
Ranks = tuple[int, int]
"""How many of the largest are outliers, and how many are outliers or stay."""
Mask = npt.NDArray[np.bool_]
Stays = Callable[[Float64Array, int], Mask]
"""Returns which elements stay, from their magnitudes and the flat index of the first."""
_EDGES: Final = (0, 1)


@dataclass(frozen=True, slots=True)
class CrumbState:
    """How far the searches are: for the last outlier, and for the last element that stays."""

    edges: tuple[ElectionState, ElectionState] = (ElectionState(), ElectionState())


@dataclass(frozen=True, slots=True)
class CrumbSearch:
    """The searches of one merge."""

    context: MergeContext
    ranks: Callable[[int, int], Ranks]
    """Of a tensor and contribution, by their positions."""

    def needs(self, state: CrumbState, pass_no: int, tensor_index: int) -> bool:
        """Tell whether a pass can still learn from a tensor."""
        return any(
            self._is_open(state, pass_no, tensor_index, i, edge)
            for i in voters(self.context)
            for edge in _EDGES
        )

    def observe(
        self, state: CrumbState, pass_no: int, block: Block, write: Differences
    ) -> list[tuple[Any, Any]]:
        """Return per voter and edge the counts of magnitudes, or of those equal to the one found."""

        def look(i: int, edge: int) -> Any:
            if not self._is_open(state, pass_no, block.tensor_index, i, edge):
                return None
            selection = selection_of(state.edges[edge], block.tensor_index, i)
            if pass_no < LEVELS:
                return tally_of_each({i: selection}, block, write)[i]
            return count_equal(block, write, i, selection.magnitude)

        return [(look(i, 0), look(i, 1)) for i in voters(self.context)]

    def compact(self, pass_no: int, partials: list[tuple[Key, Any]]) -> list[tuple[Key, Any]]:
        """Add up counts of magnitudes of each tensor, which would otherwise grow with it."""
        if pass_no >= LEVELS:
            return partials
        return [
            (group[0][0], [_merge_pair(column) for column in _columns(group)])
            for _, group in _by_tensor(partials)
        ]

    def end(self, state: CrumbState, pass_no: int, partials: Sequence[tuple[Key, Any]]) -> CrumbState:
        """Return the state with what a pass found."""
        groups = _by_tensor(partials)
        first, second = (
            self._place(state.edges[edge], edge, groups)
            if pass_no == LEVELS
            else self._advance(state.edges[edge], edge, groups)
            for edge in _EDGES
        )
        return CrumbState((first, second))

    def stays(self, state: CrumbState, block: Block, write: Differences, contribution: int) -> Stays:
        """Return what tells which elements of a block stay."""
        removed, both = self.ranks(block.tensor_index, contribution)
        outlier, last = (
            trim_of(self.context, state.edges[edge], block, write, contribution) for edge in _EDGES
        )

        def choose(magnitudes: Float64Array, start: int) -> Mask:
            if removed == both:
                return np.zeros(magnitudes.size, np.bool_)
            out = _within(last, magnitudes, start)
            if removed:
                out &= ~_within(outlier, magnitudes, start)
            return out

        return choose

    def _is_open(self, state: CrumbState, pass_no: int, tensor_index: int, i: int, edge: int) -> bool:
        rank = self.ranks(tensor_index, i)[edge]
        if not 0 < rank < self.context.specs[tensor_index].numel:
            return False
        selection = selection_of(state.edges[edge], tensor_index, i)
        return not selection.is_done if pass_no < LEVELS else has_ties(selection)

    def _advance(
        self, known: ElectionState, edge: int, groups: Sequence[tuple[int, list[tuple[Key, Any]]]]
    ) -> ElectionState:
        found = dict(known.selections)
        for index, group in groups:
            for column, i in enumerate(voters(self.context)):
                tallies = [part[column][edge] for _, part in group if part[column][edge] is not None]
                if tallies:
                    start = found.get((index, i)) or Selection(rank=self.ranks(index, i)[edge])
                    found[index, i] = advance(start, tallies)
        return replace(known, selections=found)

    def _place(
        self, known: ElectionState, edge: int, groups: Sequence[tuple[int, list[tuple[Key, Any]]]]
    ) -> ElectionState:
        mine = [
            (index, [(key, [pair[edge] for pair in part]) for key, part in group]) for index, group in groups
        ]
        return replace(known, places=dict(find_places(self.context, known, mine)))


def _within(trim: Trim | None, magnitudes: Float64Array, start: int) -> Mask:
    return np.ones(magnitudes.size, np.bool_) if trim is None else trim.stays(magnitudes, start)


def _by_tensor(partials: Sequence[tuple[Key, Any]]) -> list[tuple[int, list[tuple[Key, Any]]]]:
    ordered = sorted(partials, key=lambda item: item[0])
    return [(index, list(group)) for index, group in itertools.groupby(ordered, key=lambda item: item[0][0])]


def _columns(group: Sequence[tuple[Key, Any]]) -> list[tuple[Any, ...]]:
    return list(zip(*(part for _, part in group), strict=True))


def _merge_pair(column: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
    first, second = (_merge([pair[edge] for pair in column]) for edge in _EDGES)
    return first, second


def _merge(parts: Sequence[Tally | None]) -> Tally | None:
    tallies = [part for part in parts if part is not None]
    return merge_tallies(tallies) if tallies else None
