"""TIES: trim small changes, elect a sign for every element, merge what agrees with it.

Profile ``paper`` ranks magnitudes over the whole model, keeps K + 1 as the authors' code does and whatever
equals the last of them, elects signs without weights and lets the majority of the model decide where votes
cancel out. Profile ``mergekit`` ranks within each tensor, keeps exactly K, weighs the votes and lets plus
decide.

The passes: a look at a few leaves, usually one and at most six to find the K-th magnitudes, one to place
the elements equal to them if exactly K are wanted, one for the majority. A pass that has nothing left to find
says so (``needs``).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, ClassVar, Final, Literal

import numpy as np

from crdt_merge_protocol.errors import ParameterError

from .acceleration import Contest, ScaledDifferences, current
from .averages import weight_parameter
from .contract import BaseUse, Block, Float64Array, Key, MergeContext, Strategy
from .dependence import Dependence, depends
from .election import Ballot, Booth, ballot_of, majority_sign
from .kernels import chunks
from .parameters import MERGEKIT, PAPER, Parameter, Scalar, Table, Value, possible, profile_parameter
from .remembering import remembered
from .sampling import is_sampled, sampled_leaves
from .selection import LEVELS, Selection, advance, kept_count, merge_tallies
from .task_vectors import LAMBDA
from .trimming import (
    WHOLE_MODEL,
    Differences,
    ElectionState,
    by_scope,
    count_equal,
    find_places,
    has_ties,
    numel_of,
    sample_of,
    scope_of,
    selection_of,
    starts_from,
    tally_of_each,
    trim_of,
    voters,
)

Stage = Literal["factors", "crumbs", "sample", "select", "place", "majority"]
_SELECT: Final = tuple[Stage, ...](["select"] * (LEVELS + 1))
_OVER_SCOPE: Final[frozenset[Stage]] = frozenset({"select", "place", "majority"})
"""What passes find over all tensors together if ``scope`` says so."""


class SignElection(Strategy):
    """The common course of TIES and what elects like it; they differ in what the differences are."""

    base: ClassVar[BaseUse] = "required"
    trim_parameter: ClassVar[str] = "density"
    """What says how much of the differences trimming keeps; empty: all of them."""

    def validate(self, params: Mapping[str, str]) -> dict[str, Value]:
        """Return all parameters, typed; a share of the whole model cannot differ by tensor."""
        values = super().validate(params)
        density = values.get(self.trim_parameter)
        if (
            values["scope"] == "model"
            and isinstance(density, Table)
            and any(row.glob for row in density.rows)
        ):
            raise ParameterError(
                f"{self.trim_parameter} cannot differ by tensor while the whole model is ranked at once.",
                hint="Set scope=tensor.",
            )
        return values

    def divides_by_weights(self, context: MergeContext) -> bool:  # noqa: ARG002
        """Tell that where no weight is left, the base stays."""
        return False

    def trim_density(self, context: MergeContext, tensor_index: int, contribution: int) -> Fraction:
        """Return the share of a contribution's elements that trimming keeps, in a tensor or in all."""
        if not self.trim_parameter:
            return Fraction(1)
        return context.number(self.trim_parameter, tensor_index, contribution)

    def first_stages(self, context: MergeContext) -> tuple[Stage, ...]:  # noqa: ARG002 - a default
        """Return the passes that come before the common ones."""
        return ()

    @abstractmethod
    def differences(self, context: MergeContext, state: ElectionState, block: Block) -> Differences:
        """Return what writes the untrimmed differences of a block."""

    def keeps_nothing(self, context: MergeContext) -> bool:
        """Tell whether the result is the base."""
        return self._trim_densities(context) == {0}

    @remembered
    def votes(self, context: MergeContext, tensor_index: int) -> list[int]:
        """Return the contributions that have a say in a tensor and keep something of it."""
        weights = context.weights_in(tensor_index)
        return [i for i in voters(context) if weights[i] and self.trim_density(context, tensor_index, i)]

    def pass_count(self, context: MergeContext) -> int:
        """Return the greatest number of passes."""
        return len(self.stages(context))

    @remembered
    def stages(self, context: MergeContext) -> tuple[Stage, ...]:
        """Return what each pass is for."""
        if self.keeps_nothing(context):
            return ()
        stages = self.first_stages(context)
        if _is_selective(self._trim_densities(context)):
            stages += ("sample", *_SELECT)
            if context.params["profile"] == MERGEKIT:
                stages += ("place",)
        if context.params["profile"] == PAPER and len(voters(context)) > 1:
            stages += ("majority",)
        return stages

    def needs(self, context: MergeContext, state: Any, pass_no: int, tensor_index: int) -> bool:
        """Tell whether a pass can still learn from a tensor."""
        stage, scope = self.stages(context)[pass_no], scope_of(context, tensor_index)
        known = state or ElectionState()
        if stage == "sample":
            return is_sampled(numel_of(context, scope)) and bool(self._trimmed_voters(context, tensor_index))
        if stage == "select":
            trimmed = self._trimmed_voters(context, tensor_index)
            return any(not selection_of(known, scope, i).is_done for i in trimmed)
        if stage == "place":
            return any(has_ties(selection_of(known, scope, i)) for i in voters(context))
        return True

    def looks_at(
        self,
        context: MergeContext,
        state: Any,
        pass_no: int,
        tensor_index: int,
        span: tuple[int, int],
    ) -> Iterable[tuple[int, int]]:
        """Yield a few leaves for the sample, else all."""
        if self.stages(context)[pass_no] != "sample":
            return super().looks_at(context, state, pass_no, tensor_index, span)
        numel = numel_of(context, scope_of(context, tensor_index))
        return sampled_leaves(numel, tensor_index, span)

    def observe(self, context: MergeContext, state: Any, pass_no: int, block: Block) -> Any:
        """Return, per voter, magnitudes of a sample or counts of them; or the majority of a block's signs."""
        known = state or ElectionState()
        stage, scope = self.stages(context)[pass_no], scope_of(context, block.tensor_index)
        if stage == "majority":
            return self._count_signs(context, known, block)
        if stage == "sample":
            trimmed = self._trimmed_voters(context, block.tensor_index)
            return sample_of(context, block, trimmed, lambda: self.differences(context, known, block))
        write = self.differences(context, known, block)
        searched = {
            i: selection_of(known, scope, i) for i in self._trimmed_voters(context, block.tensor_index)
        }
        if stage == "select":
            found: Mapping[int, Any] = tally_of_each(searched, block, write)
        else:
            tied = {i: search.magnitude for i, search in searched.items() if has_ties(search)}
            found = {i: count_equal(block, write, i, tied[i]) for i in tied}
        return [found.get(i) for i in voters(context)]

    def compact(
        self, context: MergeContext, pass_no: int, partials: list[tuple[Key, Any]]
    ) -> list[tuple[Key, Any]]:
        """Add up counts of magnitudes, which would otherwise grow with the model."""
        stages = self.stages(context)
        if stages[pass_no] != "select":
            return partials
        merged = []
        for _, group in by_scope(context, partials):
            columns = zip(*(partial for _, partial in group), strict=True)
            merged.append((group[0][0], [_merge_column(column) for column in columns]))
        return merged

    def end_pass(
        self,
        context: MergeContext,
        state: Any,
        pass_no: int,
        partials: Sequence[tuple[Key, Any]],
    ) -> ElectionState:
        """Return the state with what this pass found."""
        known, stage = state or ElectionState(), self.stages(context)[pass_no]
        groups = by_scope(context, partials)
        if stage == "majority":
            signs = {scope: majority_sign([total for _, total in group]) for scope, group in groups}
            return replace(known, majority=signs)
        if stage == "place":
            return replace(known, places=dict(find_places(context, known, groups)))
        found = dict(known.selections)
        if stage == "sample":
            for scope, group in groups:
                firsts = {i: self._first_selection(context, scope, i) for i in voters(context)}
                found.update(starts_from(context, scope, firsts, group))
            return replace(known, selections=found)
        for scope, group in groups:
            for column, i in enumerate(voters(context)):
                tallies = [partial[column] for _, partial in group if partial[column] is not None]
                if tallies:
                    start = found.get((scope, i)) or self._first_selection(context, scope, i)
                    found[scope, i] = advance(start, tallies)
        return replace(known, selections=found)

    def draws(self, context: MergeContext, tensor_index: int) -> bool:  # noqa: ARG002 - a default
        """Tell whether random numbers decide what a tensor loses."""
        return False

    def dependence(self, context: MergeContext, tensor_index: int) -> Dependence | None:
        """Return what decides a tensor that is ranked, and has its majority, alone."""
        is_joint = not _OVER_SCOPE.isdisjoint(self.stages(context))
        if is_joint and scope_of(context, tensor_index) == WHOLE_MODEL:
            return None
        return depends(self, context, tensor_index, is_drawn=self.draws(context, tensor_index))

    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:
        """Return a block of the base plus lambda times the elected and merged differences."""
        assert block.base is not None
        if self.keeps_nothing(context) or not self.votes(context, block.tensor_index):
            return block.base.copy()
        known = state or ElectionState()
        out = np.empty(block.stop - block.start, np.float64)
        majority = known.majority.get(scope_of(context, block.tensor_index), 1.0)
        scale = float(context.number(LAMBDA, block.tensor_index))
        accelerator, write = current(), self.differences(context, known, block)
        fused = self._contest(context, known, block, write) if accelerator is not None else None
        if accelerator is not None and fused and accelerator.elect(*fused, majority, scale, out):
            return out
        for part, booth in self._trimmed(context, known, block, write):
            merged = out[part]
            booth.merge(merged.size, majority, merged)
            merged *= scale
            merged += block.base[part]
        return out

    def decisions(self, context: MergeContext, state: Any) -> dict[str, Any]:
        """Return the trimming thresholds as well."""
        known = state or ElectionState()
        thresholds: dict[str, dict[str, float]] = {}
        for (scope, i), selection in sorted(known.selections.items()):
            name = "*" if scope == WHOLE_MODEL else context.specs[scope].name
            thresholds.setdefault(name, {})[context.digests[i].hex()] = selection.magnitude
        return {**super().decisions(context, state), "thresholds": thresholds}

    def _trim_densities(self, context: MergeContext) -> set[Scalar]:
        """Return every density that trimming can have somewhere."""
        return possible(context.params[self.trim_parameter]) if self.trim_parameter else {Fraction(1)}

    @remembered
    def _trimmed_voters(self, context: MergeContext, tensor_index: int) -> list[int]:
        """Return the contributions of which trimming keeps a part, neither nothing nor all."""
        return [i for i in voters(context) if 0 < self.trim_density(context, tensor_index, i) < 1]

    @remembered
    def _ballot(self, context: MergeContext, tensor_index: int) -> Ballot:
        return ballot_of(context, tensor_index, self.votes(context, tensor_index))

    def _first_selection(self, context: MergeContext, scope: int, contribution: int) -> Selection:
        numel = numel_of(context, scope)
        density = self.trim_density(context, max(scope, 0), contribution)
        if context.params["profile"] == MERGEKIT:
            return Selection(rank=kept_count(density, numel))
        # The authors' code takes the floor(d N)-th *smallest* of the rest as threshold: one more stays.
        return Selection(rank=min(int(density * numel) + 1, numel))

    def _count_signs(self, context: MergeContext, state: ElectionState, block: Block) -> int:
        """Return how many more elements of a block were elected positive than negative."""
        if not self.votes(context, block.tensor_index):
            return 0
        accelerator, write = current(), self.differences(context, state, block)
        fused = self._contest(context, state, block, write) if accelerator is not None else None
        if accelerator is not None and fused:
            counted = accelerator.balance(*fused)
            if counted is not None:
                return counted
        balance = 0
        for part, booth in self._trimmed(context, state, block, write):
            votes = booth.tally(part.stop - part.start)
            balance += int(np.count_nonzero(votes > 0)) - int(np.count_nonzero(votes < 0))
        return balance

    def _contest(
        self, context: MergeContext, state: ElectionState, block: Block, write: Differences
    ) -> tuple[Contest, ScaledDifferences] | None:
        """Return the election over a block in a form that can be computed in one go, if it has it."""
        if not isinstance(write, ScaledDifferences):
            return None
        voting = self.votes(context, block.tensor_index)
        ballot = self._ballot(context, block.tensor_index)
        trims = [trim_of(context, state, block, write, i) for i in voting]
        size = block.stop - block.start
        contest = Contest(
            voting=voting,
            weights=ballot.weights,
            is_weighted=ballot.is_weighted,
            by_count=ballot.by_count,
            merge=ballot.merge,
            thresholds=[-1.0 if trim is None else trim.threshold for trim in trims],
            beyond=[size if trim is None else trim.beyond(block.start, size) for trim in trims],
        )
        return contest, write

    def _trimmed(
        self, context: MergeContext, state: ElectionState, block: Block, write: Differences
    ) -> Iterator[tuple[slice, Booth]]:
        """Yield each chunk of a block with the trimmed differences of all voters."""
        voting = self.votes(context, block.tensor_index)
        booth = Booth(self._ballot(context, block.tensor_index))
        trims = [trim_of(context, state, block, write, i) for i in voting]
        scratch = np.empty_like(booth.values[0])
        for part in chunks(block.stop - block.start):
            size = part.stop - part.start
            for i, values, trim in zip(voting, booth.values, trims, strict=True):
                write(i, part, values[:size])
                if trim is not None:
                    trim.apply(values[:size], block.start + part.start, scratch[:size])
            yield part, booth


def _is_selective(densities: set[Scalar]) -> bool:
    """Tell whether some density keeps a part, neither nothing nor all."""
    return any(isinstance(density, Fraction) and 0 < density < 1 for density in densities)


def _merge_column(column: Sequence[Any]) -> Any:
    tallies = [part for part in column if part is not None]
    return merge_tallies(tallies) if tallies else None


ELECTION_PARAMETERS: Final = (
    Parameter(
        name="elect",
        type="choice",
        default="sum",
        choices=("sum", "count"),
        doc="Votes are the values, or one each.",
    ),
    Parameter(
        name="merge_func",
        type="choice",
        default="mean",
        choices=("mean", "sum", "max"),
        profile=PAPER,
        doc="How agreeing differences are merged.",
    ),
)


class Ties(SignElection):
    """Trim, elect signs, merge what agrees: out = B + lambda * merged."""

    id = "ties"
    title = "TIES-Merging"
    paper = "Yadav et al., TIES-Merging, NeurIPS 2023, arXiv:2306.01708"
    doc = "Keeps the largest differences from the base, elects a sign per element, averages what agrees."
    formula = (
        "t_i = X_i - B, all but the largest |t_i| zeroed\n"
        "s = sign(sum_i t_i), the majority of the model where that is 0\n"
        "out = B + lambda * weighted mean of the t_i whose sign is s"
    )
    parameters = (
        profile_parameter(),
        weight_parameter(),
        Parameter(
            name="density", type="decimal", default="0.2", mergekit_default="1.0", low="0", high="1",
            per=frozenset({"tensor", "contribution"}),
            doc="Share of the differences that is kept, by magnitude.",
        ),
        Parameter(
            name=LAMBDA, type="decimal", default="1.0", low="0", high="3", per=frozenset({"tensor"}),
            doc="Scale of the result.",
        ),
        Parameter(
            name="scope", type="choice", default="model", mergekit_default="tensor",
            choices=("model", "tensor"),
            doc="Rank magnitudes, and find majorities, over the whole model or each tensor.",
        ),
        *ELECTION_PARAMETERS,
        Parameter(
            name="normalize", type="boolean", default="true", profile=MERGEKIT,
            doc="Divide by the weights of what agrees.",
        ),
    )  # fmt: skip

    def differences(self, context: MergeContext, state: ElectionState, block: Block) -> Differences:  # noqa: ARG002
        """Return what writes input minus base."""
        return plain_differences(block)


def plain_differences(block: Block) -> Differences:
    """Return what writes input minus base."""
    return ScaledDifferences(block)
