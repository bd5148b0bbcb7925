"""SCE (select, calculate, erase): what models disagree most about, weighed by how much they changed.

Of every tensor only the elements with the greatest variance over the models stay (select); a model counts in
a tensor by the mean square of what stays of its changes (calculate); changes against the elected sign go
(erase). The passes: up to five to find the K-th variance, one to place elements that equal it, one for the
mean squares.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, ClassVar, Final, cast

import numpy as np
import numpy.typing as npt

from .contract import LEAF_ELEMENTS, BaseUse, Block, Float64Array, Key, MergeContext, Strategy
from .dependence import Dependence, depends
from .kernels import chunks
from .parameters import MERGEKIT, Parameter, profile_parameter
from .reductions import add_leaves, leaf_products
from .selection import LEVELS, Selection, Tally, advance, merge_tallies, tally
from .trimming import has_ties
from .trimming import voters as voters_of

_LEAST: Final = 1e-6
"""Below this mergekit takes sums of weights for zero, whatever the scale of the changes."""
_UNWEIGHED: Final = "the squares of the changes leave the range of float64; all models counted alike there"


@dataclass(frozen=True, slots=True)
class SceState:
    """What the passes found out, by tensor index."""

    selections: dict[int, Selection] = field(default_factory=dict)
    empty: frozenset[int] = frozenset()
    """Tensors of which nothing is selected."""
    places: dict[int, tuple[int, int]] = field(default_factory=dict)
    """(leaf, how many): where the last elements equal to the threshold stay; absent: all do."""
    weights: dict[int, tuple[float, ...]] = field(default_factory=dict)
    """Per voter, with sum 1."""
    unweighed: frozenset[int] = frozenset()
    """Tensors with squares beyond the range."""


class Sce(Strategy):
    """Select by variance, calculate weights from squares, erase minority signs.

    The published method knows no weights; here they multiply the calculated ones.
    """

    id = "sce"
    title = "SCE merging"
    paper = "Wan et al., FuseChat, arXiv:2408.07990"
    doc = "Keeps what the models disagree most about, weighs models by their changes, elects signs."
    formula = (
        "T_i = X_i - B; S = the floor(select_topk n) elements of greatest variance over i, n those above 0\n"
        "w_i = mean((S T_i)^2) over their sum; M_i = sign(T_i) agrees with sign(sum_i T_i), 0 is plus\n"
        "out = B + S sum w_i M_i T_i / sum w_i M_i"
    )
    base: ClassVar[BaseUse] = "required"
    is_extra = True
    parameters = (
        profile_parameter(),
        Parameter(
            name="select_topk", type="decimal", default="0.1", mergekit_default="1.0", low="0", high="1",
            doc="Share of the elements with any variance that is kept.",
        ),
    )  # fmt: skip

    def nanoseconds(self, context: MergeContext, tensor_index: int) -> float:
        """Return the time of the variances in two passes and of the merge."""
        return 50.0 * context.k * context.specs[tensor_index].numel

    def pass_count(self, context: MergeContext) -> int:
        """Return one pass for weights, and those that select if not everything is kept."""
        share = _share(context)
        return 0 if share == 0 else 1 if share == 1 else LEVELS + 2

    def needs(self, context: MergeContext, state: Any, pass_no: int, tensor_index: int) -> bool:
        """Tell whether a pass can still learn from a tensor."""
        return self._learns(context, state or SceState(), pass_no, tensor_index)

    def observe(self, context: MergeContext, state: Any, pass_no: int, block: Block) -> Any:
        """Return counts of variances, of variances equal to the threshold, or leaf sums of squares."""
        known: SceState = state or SceState()
        if not self._learns(context, known, pass_no, block.tensor_index):
            return None
        if pass_no == self.pass_count(context) - 1:
            return _squares(context, known, block)
        selection = known.selections.get(block.tensor_index, Selection(rank=0))
        if pass_no == LEVELS:
            return [int(np.count_nonzero(part == selection.magnitude)) for part in _variances(context, block)]
        varying = 0

        def counted() -> Iterator[Float64Array]:
            nonlocal varying
            for part in _variances(context, block):
                varying += int(np.count_nonzero(part))
                yield part

        found = tally(selection, counted())
        return varying, found

    def compact(
        self, context: MergeContext, pass_no: int, partials: list[tuple[Key, Any]]
    ) -> list[tuple[Key, Any]]:
        """Add up counts of variances, which would otherwise grow with the model."""
        if pass_no >= LEVELS or self.pass_count(context) == 1:
            return partials
        merged = []
        for group in _by_tensor(partials).values():
            shown = [partial for _, partial in group if partial is not None]
            if shown:
                merged.append((group[0][0], _merge_counts(shown)))
        return merged

    def end_pass(
        self,
        context: MergeContext,
        state: Any,
        pass_no: int,
        partials: Sequence[tuple[Key, Any]],
    ) -> SceState:
        """Return the state with what this pass found."""
        known: SceState = state or SceState()
        groups = {
            index: [(key, partial) for key, partial in group if partial is not None]
            for index, group in _by_tensor(partials).items()
        }
        groups = {index: group for index, group in groups.items() if group}
        if pass_no == self.pass_count(context) - 1:
            return _weigh(context, known, groups)
        if pass_no == LEVELS:
            places = {index: _place(known.selections[index], group) for index, group in groups.items()}
            return replace(known, places=places)
        selections, empty = dict(known.selections), set(known.empty)
        for index, group in groups.items():
            varying, found = _merge_counts([partial for _, partial in group])
            start = selections.get(index, Selection(rank=int(_share(context) * varying)))
            if start.rank == 0:
                empty.add(index)
            else:
                selections[index] = advance(start, [found])
        return replace(known, selections=selections, empty=frozenset(empty))

    def dependence(self, context: MergeContext, tensor_index: int) -> Dependence | None:
        """Return what decides a tensor: that tensor alone."""
        return depends(self, context, tensor_index)

    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:
        """Return a block of the base plus the selected, weighted and elected changes."""
        assert block.base is not None
        known: SceState = state or SceState()
        if _share(context) == 0 or block.tensor_index in known.empty:
            return block.base.copy()
        voters = voters_of(context)
        weights = known.weights.get(block.tensor_index) or _plain(context, voters)
        least = _LEAST if context.params["profile"] == MERGEKIT else 0.0
        out = np.empty(block.stop - block.start, np.float64)
        for part, selected in _selected(context, known, block):
            merged, base = out[part], block.base[part]
            changes = [block.inputs[i][part] - base for i in voters]
            if selected is not None:
                for change in changes:
                    np.multiply(change, selected, out=change)
            is_plus = _total(changes) >= 0
            divisor = np.zeros_like(merged)
            merged[:] = 0.0
            for change, weight in zip(changes, weights, strict=True):
                agrees = ((change > 0) & is_plus) | ((change < 0) & ~is_plus)
                divisor += agrees * weight
                np.multiply(change, agrees, out=change)
                np.multiply(change, weight, out=change)
                merged += change
            divisor = np.maximum(divisor, least)
            divisor += divisor == 0
            merged /= divisor
            merged += base
        return out

    def decisions(self, context: MergeContext, state: Any) -> dict[str, Any]:
        """Return the weights of every tensor as well."""
        known: SceState = state or SceState()
        names = [context.digests[i].hex() for i in voters_of(context)]
        tensors = {
            context.specs[index].name: dict(zip(names, weights, strict=True))
            for index, weights in sorted(known.weights.items())
        }
        return {**super().decisions(context, state), "weights": tensors}

    def warnings(self, context: MergeContext, state: Any) -> list[str]:
        """Say where weights could not be calculated."""
        known: SceState = state or SceState()
        names = [context.specs[index].name for index in sorted(known.unweighed)]
        return [f"{len(names)} tensors, first {names[0]}: {_UNWEIGHED}."] if names else []

    def _learns(self, context: MergeContext, state: SceState, pass_no: int, tensor_index: int) -> bool:
        if pass_no == self.pass_count(context) - 1:
            return tensor_index not in state.empty
        selection = state.selections.get(tensor_index)
        if pass_no == LEVELS:
            return selection is not None and has_ties(selection)
        return pass_no == 0 or (selection is not None and not selection.is_done)


def _share(context: MergeContext) -> Fraction:
    return cast(Fraction, context.params["select_topk"])


def _total(changes: Sequence[Float64Array]) -> Float64Array:
    total = changes[0].copy()
    for change in changes[1:]:
        total += change
    return total


def _variances(context: MergeContext, block: Block) -> Iterator[Float64Array]:
    """Yield the population variance over the voters, leaf by leaf."""
    assert block.base is not None
    voters = voters_of(context)
    for leaf in chunks(block.stop - block.start, LEAF_ELEMENTS):
        out = np.empty(leaf.stop - leaf.start, np.float64)
        for part in chunks(out.size):
            here = slice(leaf.start + part.start, leaf.start + part.stop)
            out[part] = _variance([block.inputs[i][here] - block.base[here] for i in voters])
        yield out


def _variance(changes: Sequence[Float64Array]) -> Float64Array:
    with np.errstate(over="ignore", under="ignore"):
        mean = _total(changes)
        mean /= len(changes)
        variance = np.zeros_like(mean)
        for change in changes:
            distance = change - mean
            distance *= distance
            variance += distance
        variance /= len(changes)
    return variance


def _selected(
    context: MergeContext, state: SceState, block: Block
) -> Iterator[tuple[slice, npt.NDArray[np.bool_] | None]]:
    """Yield each leaf of a block and which of its elements are selected; None: all."""
    leaves = chunks(block.stop - block.start, LEAF_ELEMENTS)
    selection = state.selections.get(block.tensor_index)
    if selection is None:
        for leaf in leaves:
            yield leaf, None
        return
    place = state.places.get(block.tensor_index)
    for leaf, variances in zip(leaves, _variances(context, block), strict=True):
        stays = variances >= selection.magnitude
        number = (block.start + leaf.start) // LEAF_ELEMENTS
        if place is not None and number >= place[0]:
            equal = np.flatnonzero(variances == selection.magnitude)
            stays[equal[place[1] if number == place[0] else 0 :]] = False
        yield leaf, stays


def _squares(context: MergeContext, state: SceState, block: Block) -> Float64Array:
    """Return the leaf sums of the squares of what is selected, ``(voters, leaves)`` float64."""
    assert block.base is not None
    voters = voters_of(context)
    rows: list[list[float]] = [[] for _ in voters]
    with np.errstate(over="ignore", under="ignore"):
        for part, selected in _selected(context, state, block):
            for row, i in zip(rows, voters, strict=True):
                change = block.inputs[i][part] - block.base[part]
                if selected is not None:
                    change *= selected
                row.extend(leaf_products(change, change))
    return np.array(rows, np.float64)


def _weigh(context: MergeContext, state: SceState, groups: dict[int, list[tuple[Key, Any]]]) -> SceState:
    voters = voters_of(context)
    given = _plain(context, voters)
    weights, unweighed = {}, set()
    for index, group in groups.items():
        rows = np.concatenate([partial for _, partial in group], axis=1)
        with np.errstate(over="ignore"):
            means = [add_leaves(row) / context.specs[index].numel for row in rows]
        weights[index] = given
        if not math.isfinite(math.fsum(min(mean, 1e300) for mean in means)) or max(means) > 1e300:
            unweighed.add(index)
        elif math.fsum(means) >= (_LEAST if context.params["profile"] == MERGEKIT else 5e-324):
            raw = [mean * share for mean, share in zip(means, given, strict=True)]
            total = math.fsum(raw)
            weights[index] = tuple(each / total for each in raw) if total else given
    return replace(state, weights=weights, unweighed=frozenset(unweighed))


def _plain(context: MergeContext, voters: Sequence[int]) -> tuple[float, ...]:
    total = sum(context.weights[i] for i in voters)
    return tuple(float(context.weights[i] / total) for i in voters)


def _place(selection: Selection, group: list[tuple[Key, Any]]) -> tuple[int, int]:
    """Return the leaf where the last element equal to the threshold stays, and how many stay there."""
    left = selection.rank
    for (_, start), per_leaf in group:
        for leaf, count in enumerate(per_leaf, start // LEAF_ELEMENTS):
            if left <= count:
                return leaf, left
            left -= count
    raise AssertionError("fewer elements equal the threshold than were counted")


def _by_tensor(partials: Sequence[tuple[Key, Any]]) -> dict[int, list[tuple[Key, Any]]]:
    ordered = sorted(partials, key=lambda item: item[0])
    groups = itertools.groupby(ordered, key=lambda item: item[0][0])
    return {index: list(group) for index, group in groups}


def _merge_counts(partials: Sequence[tuple[int, Tally]]) -> tuple[int, Tally]:
    return sum(varying for varying, _ in partials), merge_tallies([found for _, found in partials])
