"""LED-Merging: each contribution changes only the parameters that matter to its task, and to no other's.

Location: a parameter matters by its SNIP score, |parameter * gradient| on the data of the task, and counts if
it is among the largest both at the base and at the contribution's own weights. Election keeps that
intersection; disjoint drops what two contributions elected. Scores come as artefacts. A score of zero, or
none, never counts. Equal scores go by flat index, exactly, as in ``trimming.py``.

The passes: up to five to find the K-th scores, one to place those equal to it, one to count what is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from crdt_merge_protocol.errors import ParameterError

from .artefacts import ArtefactNeed
from .contract import LEAF_ELEMENTS, BaseUse, Block, Float64Array, Key, MergeContext, Strategy, Wanted
from .delegation import fallback_parameter
from .dependence import Dependence, depends
from .kernels import CHUNK_ELEMENTS, chunks
from .parameters import Parameter, Table, Value
from .selection import LEVELS, Selection, Tally, advance, kept_count, merge_tallies, tally
from .task_vectors import LAMBDA
from .trimming import (
    ElectionState,
    Trim,
    has_ties,
    magnitudes_of,
    scope_of,
    selection_of,
    trim_of,
)

SNIP: Final = "snip_score"
_SIDES: Final = ("base", "self")
_PLACE: Final = LEVELS
_COUNT: Final = LEVELS + 1

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class LedState:
    """What the passes found out."""

    election: ElectionState = field(default_factory=ElectionState)
    """Searches for K-th scores; the key's second number is a column, not a contribution."""
    kept: dict[tuple[int, int], int] | None = None
    """By (tensor index, contribution): elements that it changes. None: nobody has counted."""

    def changed(self, count: int) -> list[int]:
        """Return how many elements each of so many contributions changes, over the whole model."""
        totals = [0] * count
        for (_, i), changed in (self.kept or {}).items():
            totals[i] += changed
        return totals


class LedMerge(Strategy):
    """The base plus, of each contribution, the differences at parameters that matter to it alone."""

    id = "led_merge"
    title = "LED-Merging"
    paper = "Ma et al., LED-Merging: Location-Election-Disjoint, ACL 2025, arXiv:2502.16770"
    doc = (
        "The base plus each difference from it where the parameter matters to that task and to no other, by "
        "scores from gradients on its data. There is no version without data."
    )
    formula = (
        "N_i = top-r(score of i at the base) and top-r(score of i at its own weights)\n"
        "m_i = N_i without all N_j, j /= i;   out = B + lambda sum_i w_i m_i (X_i - B)"
    )
    base: ClassVar[BaseUse] = "required"
    artefacts = (ArtefactNeed(SNIP),)
    parameters = (
        Parameter(
            name="ratio", type="decimal", default="0.3", low="0", high="1",
            per=frozenset({"tensor", "contribution"}),
            doc="Share of the parameters that scores locate; by tensor only with scope tensor.",
        ),
        Parameter(
            name=LAMBDA, type="decimal", default="1.0", low="-3", high="3",
            per=frozenset({"tensor", "contribution"}), doc="Scale of the differences.",
        ),
        Parameter(
            name="scope", type="choice", default="tensor", choices=("tensor", "model"),
            doc="Rank scores within each tensor or over the whole model.",
        ),
        fallback_parameter(),
    )  # fmt: skip

    def validate(self, params: Mapping[str, str]) -> dict[str, Value]:
        """Return all parameters, typed; a share of the whole model cannot differ by tensor.

        Raises:
            ParameterError: As every strategy, and for such a share.
        """
        values = super().validate(params)
        ratio = values["ratio"]
        if values["scope"] == "model" and isinstance(ratio, Table) and any(row.glob for row in ratio.rows):
            raise ParameterError(
                "ratio cannot differ by tensor while the whole model is ranked at once.",
                hint="Set scope=tensor.",
            )
        return values

    def divides_by_weights(self, context: MergeContext) -> bool:  # noqa: ARG002 - for none.
        """Tell that it does not."""
        return False

    def wants(self, context: MergeContext, tensor_index: int) -> tuple[Wanted, ...]:
        """Return the scores of a tensor, two per contribution that has some."""
        name = context.specs[tensor_index].name
        return tuple(
            Wanted(_position(context, column // 2), f"{_SIDES[column % 2]}/{name}", True)
            for column in _columns(context, tensor_index)
        )

    def nanoseconds(self, context: MergeContext, tensor_index: int) -> float:
        """Return an estimate: two passes over all scores at 6 ns, the others over few, and the masks."""
        return 40.0 * context.specs[tensor_index].numel * context.k

    def pass_count(self, context: MergeContext) -> int:  # noqa: ARG002 - the same for all.
        """Return the passes to select, to place equal scores and to count."""
        return _COUNT + 1

    def reads_models(self, context: MergeContext, pass_no: int) -> bool:  # noqa: ARG002 - the same for all.
        """Tell that scores decide what is kept."""
        return False

    def needs(self, context: MergeContext, state: Any, pass_no: int, tensor_index: int) -> bool:
        """Tell whether a pass can still learn from a tensor."""
        known, scope = state or LedState(), scope_of(context, tensor_index)
        columns = _columns(context, tensor_index)
        if pass_no == _COUNT:
            return bool(columns)
        searches = [
            selection_of(known.election, scope, column)
            for column in columns
            if _is_ranked(context, tensor_index, column)
        ]
        if pass_no == _PLACE:
            return any(has_ties(search) for search in searches)
        return not all(search.is_done for search in searches)

    def observe(self, context: MergeContext, state: Any, pass_no: int, block: Block) -> dict[int, Any]:
        """Return counts of scores or of equal scores by column, or of kept elements by contribution."""
        known = state or LedState()
        if pass_no == _COUNT:
            return _count_kept(context, known, block)
        scope = scope_of(context, block.tensor_index)
        found: dict[int, Any] = {}
        write = _Scores(context, block).write
        for column in _columns(context, block.tensor_index):
            if not _is_ranked(context, block.tensor_index, column):
                continue
            search = selection_of(known.election, scope, column)
            if pass_no < _PLACE and not search.is_done:
                found[column] = tally(search, magnitudes_of(block, write, column))
            elif pass_no == _PLACE and has_ties(search):
                threshold = search.magnitude
                parts = magnitudes_of(block, write, column)
                found[column] = [int(np.count_nonzero(part == threshold)) for part in parts]
        return found

    def compact(
        self, context: MergeContext, pass_no: int, partials: list[tuple[Key, Any]]
    ) -> list[tuple[Key, Any]]:
        """Add up counts of scores, which would otherwise grow with the model."""
        if pass_no >= _PLACE:
            return partials
        first: dict[int, Key] = {}
        for key, _ in partials:
            scope = scope_of(context, key[0])
            first[scope] = min(first.get(scope, key), key)
        merged: dict[int, dict[int, Tally]] = {scope: {} for scope in first}
        for (scope, column), tallies in _gather(context, partials).items():
            merged[scope][column] = merge_tallies(tallies)
        return [(first[scope], columns) for scope, columns in sorted(merged.items())]

    def end_pass(
        self, context: MergeContext, state: Any, pass_no: int, partials: Sequence[tuple[Key, Any]]
    ) -> LedState:
        """Return the state with what this pass found."""
        known: LedState = state or LedState()
        if pass_no == _COUNT:
            kept: dict[tuple[int, int], int] = {}
            for (tensor_index, _), counts in partials:
                for i, count in counts.items():
                    kept[tensor_index, i] = kept.get((tensor_index, i), 0) + count
            return replace(known, kept=kept)
        election = known.election
        if pass_no == _PLACE:
            places = dict(_find_places(context, election, partials))
            return replace(known, election=replace(election, places=places))
        searches = dict(election.selections)
        for (scope, column), tallies in _gather(context, partials).items():
            start = searches.get((scope, column)) or Selection(rank=_rank(context, scope, column))
            if not start.is_done:
                searches[scope, column] = advance(start, tallies)
        return replace(known, election=replace(election, selections=searches))

    def dependence(self, context: MergeContext, tensor_index: int) -> Dependence | None:
        """Return what decides a tensor that is ranked alone."""
        return None if context.params["scope"] == "model" else depends(self, context, tensor_index)

    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:
        """Return a block of the base plus the differences that are one contribution's alone."""
        assert block.base is not None
        out = block.base.copy()
        scratch = np.empty(min(CHUNK_ELEMENTS, out.size), np.float64)
        scales = {
            i: float(context.number(LAMBDA, block.tensor_index, i) * context.weights[i])
            for i in range(context.k)
        }
        for part, masks in _disjoint(context, state or LedState(), block):
            term = scratch[: part.stop - part.start]
            for i, mask in masks.items():
                np.subtract(block.inputs[i][part], block.base[part], out=term)
                term *= scales[i]
                term *= mask
                out[part] += term
        return out

    def decisions(self, context: MergeContext, state: Any) -> dict[str, Any]:
        """Return the share of the model that each contribution changes as well."""
        known: LedState = state or LedState()
        shares = {
            digest.hex(): count / max(context.numel, 1)
            for digest, count in zip(context.digests, known.changed(context.k), strict=True)
        }
        return {**super().decisions(context, state), "kept": shares if known.kept is not None else {}}

    def warnings(self, context: MergeContext, state: Any) -> list[str]:
        """Name the contributions of which nothing is left."""
        known: LedState = state or LedState()
        if known.kept is None:
            return []
        return [
            f"Nothing of contribution {digest.hex()[:12]} is in the result."
            for digest, count in zip(context.digests, known.changed(context.k), strict=True)
            if not count
        ]


class _Scores:
    """The scores of one block, by column."""

    def __init__(self, context: MergeContext, block: Block) -> None:
        columns = _columns(context, block.tensor_index)
        self._values = dict(zip(columns, block.artefacts, strict=True))

    def write(self, column: int, part: slice, out: Float64Array) -> None:
        """Write a range of the block's scores."""
        np.copyto(out, self._values[column][part])


def _position(context: MergeContext, contribution: int) -> int:
    position = context.artefact(SNIP, contribution)
    assert position is not None, "unmet was asked"
    return position


def _columns(context: MergeContext, tensor_index: int) -> list[int]:
    """Return 2 i and 2 i + 1, for the base and itself, of each contribution with scores of a tensor."""
    name = context.specs[tensor_index].name
    columns = []
    for i in range(context.k):
        artefact = context.artefacts[_position(context, i)]
        if context.weights[i] and artefact.spec(f"base/{name}") and artefact.spec(f"self/{name}"):
            columns += [2 * i, 2 * i + 1]
    return columns


def _is_ranked(context: MergeContext, tensor_index: int, column: int) -> bool:
    """Tell whether a column needs a threshold: it is no mask, and the ratio keeps some of it."""
    form = context.artefacts[_position(context, column // 2)].header.get("form", "score")
    scope = scope_of(context, tensor_index)
    return form == "score" and 0 < _ratio(context, scope, column // 2) < 1


def _ratio(context: MergeContext, scope: int, contribution: int) -> Fraction:
    return context.number("ratio", None if scope < 0 else scope, contribution)


def _rank(context: MergeContext, scope: int, column: int) -> int:
    """Return how many scores count: of all elements, but not more than have one."""
    contribution = column // 2
    if scope >= 0:
        return kept_count(_ratio(context, scope, contribution), context.specs[scope].numel)
    scored = sum(spec.numel for index, spec in enumerate(context.specs) if column in _columns(context, index))
    return min(kept_count(_ratio(context, scope, contribution), context.numel), scored)


def _gather(
    context: MergeContext, partials: Sequence[tuple[Key, Mapping[int, Tally]]]
) -> dict[tuple[int, int], list[Tally]]:
    """Return the non-empty counts by scope and column."""
    found: dict[tuple[int, int], list[Tally]] = {}
    for (tensor_index, _), columns in partials:
        for column, counts in columns.items():
            found.setdefault((scope_of(context, tensor_index), column), []).append(counts)
    return {key: tallies for key, tallies in found.items() if any(part.values.size for part in tallies)}


def _find_places(
    context: MergeContext, election: ElectionState, partials: Sequence[tuple[Key, Mapping[int, list[int]]]]
) -> Iterator[tuple[tuple[int, int], tuple[int, int, int]]]:
    """Yield, for every search with ties, the leaf where the last of them stays and how many stay there."""
    left: dict[tuple[int, int], int] = {}
    for (tensor_index, start), columns in partials:
        for column, counts in columns.items():
            key = scope_of(context, tensor_index), column
            left.setdefault(key, election.selections[key].rank)
            for leaf, count in enumerate(counts, start // LEAF_ELEMENTS):
                if 0 < left[key] <= count:
                    yield key, (tensor_index, leaf, left[key])
                left[key] -= count


def _disjoint(
    context: MergeContext, state: LedState, block: Block
) -> Iterator[tuple[slice, dict[int, Mask]]]:
    """Yield each chunk of a block with the elements that each contribution alone elected."""
    columns = _columns(context, block.tensor_index)
    scores = _Scores(context, block)
    trims = {column: _trim(context, state, block, scores, column) for column in columns}
    values, scratch = (np.empty(min(CHUNK_ELEMENTS, block.stop - block.start)) for _ in range(2))
    for part in chunks(block.stop - block.start):
        size = part.stop - part.start
        elected: dict[int, Mask] = {}
        for column in columns:
            scores.write(column, part, values[:size])
            trim = trims[column]
            if trim is not None:
                trim.apply(values[:size], block.start + part.start, scratch[:size])
            here = values[:size] > 0
            elected[column // 2] = here & elected[column // 2] if column % 2 else here
        once, twice = np.zeros(size, np.bool_), np.zeros(size, np.bool_)
        for mask in elected.values():
            twice |= once & mask
            once |= mask
        yield part, {i: mask & ~twice for i, mask in elected.items()}


def _trim(context: MergeContext, state: LedState, block: Block, scores: _Scores, column: int) -> Trim | None:
    """Return which scores of a column count; None: all above zero."""
    if not _ratio(context, scope_of(context, block.tensor_index), column // 2):
        return Trim(np.inf, -1)
    if not _is_ranked(context, block.tensor_index, column):
        return None
    return trim_of(context, state.election, block, scores.write, column)


def _count_kept(context: MergeContext, state: LedState, block: Block) -> dict[int, int]:
    """Return how many elements of a block each contribution changes."""
    kept: dict[int, int] = {}
    for _, masks in _disjoint(context, state, block):
        for i, mask in masks.items():
            kept[i] = kept.get(i, 0) + int(np.count_nonzero(mask))
    return kept


LED_STRATEGIES: Final = (LedMerge(),)
