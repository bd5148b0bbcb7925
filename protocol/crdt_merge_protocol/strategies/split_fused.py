"""Another strategy's merge, in which fused tensors are the tensors that they are made of (``fused.py``).

Everything that the inner strategy sees is about the parts: their names, shapes, norms, ranks and masks. A
fused tensor comes as one block, is handed on part by part, and what comes back is put together again.

Source: STRATEGIES 1.5 and C.3.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

import numpy as np

from crdt_merge_protocol.blobs import TensorSpec
from crdt_merge_protocol.errors import ParameterError

from .contract import BaseUse, Block, Float64Array, Granularity, Key, MergeContext, Strategy
from .delegation import INNER, inner_parameter, parameters_of, strategy_named
from .dependence import Dependence
from .fused import Cuts, parse_rule, specs_of_parts
from .inner import Delegating
from .matrices import sentence
from .parameters import Parameter, Value, possible

_PARTS: Final = "parts"
_WHOLE: Final = "1"
_NO_FIT: Final = "not divisible as parts says; left whole"
_TAKEN: Final = "a part would have the name of another tensor; left whole"


@dataclass(frozen=True, slots=True)
class _Layout:
    """The tensors of the outer merge in the inner one."""

    strategy: Strategy
    context: MergeContext
    """Of the inner merge."""
    firsts: tuple[int, ...]
    """By tensor: the position of its first part, or of itself, in the inner merge."""
    cuts: tuple[Cuts | None, ...]
    """By tensor: None if it is whole."""
    misfits: Mapping[str, tuple[str, ...]]
    """Names of tensors that are whole for a reason."""

    def places(self, tensor_index: int) -> range:
        """Return the positions of a tensor's parts in the inner merge."""
        cuts, first = self.cuts[tensor_index], self.firsts[tensor_index]
        return range(first, first + (1 if cuts is None else len(cuts.shares)))


_latest: Final[list[tuple[MergeContext, _Layout]]] = []
"""The layout of one context: blocks come one after the other."""


class SplitFused(Delegating):
    """The merge of the inner strategy, of tensors as they are before a family fuses them."""

    id = "split_fused"
    title = "split fused tensors"
    paper = "A view, no method: what the inner strategy's paper says of a layer holds for each part."
    doc = (
        "Merges by an inner strategy that sees fused tensors, such as queries, keys and values in one, as "
        "what they are made of. Norms, ranks and shares of a fused tensor are not those of its layers."
    )
    formula = "out = fuse(inner merge of split(X_1), ..., split(X_k))"
    base: ClassVar[BaseUse] = "optional"
    is_extra = True
    allows_negative_weights = True
    parameters = (
        inner_parameter("ties", "Strategy that merges; one that needs models alone."),
        Parameter(
            name=_PARTS, type="text", default=_WHOLE, per=frozenset({"tensor"}),
            doc="How tensors are fused: 3, or shares as 4-1-1; HEADS/3: each head is; columns/3. 1: whole.",
        ),
    )  # fmt: skip

    def validate(self, params: Mapping[str, str]) -> dict[str, Value]:
        """Return all parameters, typed.

        Raises:
            ParameterError: As every strategy, a rule that is none, or an inner strategy that needs more than
                models or makes more than one.
        """
        from .registry import plain_names  # Late: this module's strategy is in the registry.

        values = super().validate(params)
        inner = strategy_named(str(values[INNER]))
        is_plain = inner.id in plain_names() and inner.output == "model" and inner.is_symmetric
        if not is_plain or inner.id == self.id:
            raise ParameterError(
                f"{inner.id} cannot be an inner strategy.", hint="Name one that needs models alone."
            )
        for text in sorted(map(str, possible(values[_PARTS]))):
            try:
                parse_rule(text)
            except ValueError as error:
                raise ParameterError(f"{_PARTS}: {error}.") from error
        return values

    def check(self, context: MergeContext) -> None:
        """Refuse as every strategy and as the inner one, and offline rules that do not fit.

        Raises:
            ParameterError: A tensor cannot be cut as its rule says.
        """
        super().check(context)
        layout = _layout(context)
        layout.strategy.check(layout.context)
        told = _told(layout)
        if context.is_strict and told:
            raise ParameterError(told[0], hint=f"Name the tensors that are fused: {_PARTS}=GLOB=RULE;1.")

    def inner(self, context: MergeContext) -> tuple[Strategy, MergeContext]:
        """Return the strategy that merges the parts."""
        layout = _layout(context)
        return layout.strategy, layout.context

    def granularity(self, context: MergeContext, tensor_index: int) -> Granularity:
        """Return whole tensors where they are cut, else what the inner strategy says."""
        layout = _layout(context)
        if layout.cuts[tensor_index] is not None:
            return "tensor"
        return layout.strategy.granularity(layout.context, layout.firsts[tensor_index])

    def scratch_bytes(self, context: MergeContext, tensor_index: int) -> int:
        """Return what the inner strategy takes for the dearest part, and a copy of that part's inputs."""
        layout = _layout(context)
        parts = layout.places(tensor_index)
        dearest = max(layout.strategy.scratch_bytes(layout.context, place) for place in parts)
        if layout.cuts[tensor_index] is None:
            return dearest
        largest = max(layout.context.specs[place].numel for place in parts)
        return dearest + 8 * largest * (context.k + 3)

    def nanoseconds(self, context: MergeContext, tensor_index: int) -> float:
        """Return the inner strategy's estimates, added."""
        layout = _layout(context)
        return sum(
            layout.strategy.nanoseconds(layout.context, place) for place in layout.places(tensor_index)
        )

    def needs(self, context: MergeContext, state: Any, pass_no: int, tensor_index: int) -> bool:
        """Tell whether a pass of the inner merge has to see a part."""
        layout = _layout(context)
        places = layout.places(tensor_index)
        return any(layout.strategy.needs(layout.context, state, pass_no, place) for place in places)

    def observe(self, context: MergeContext, state: Any, pass_no: int, block: Block) -> list[tuple[Key, Any]]:
        """Return what the inner strategy has to know of each part."""
        layout = _layout(context)
        return [
            (part.key, layout.strategy.observe(layout.context, state, pass_no, part))
            for part in _parts(layout, block)
            if layout.strategy.needs(layout.context, state, pass_no, part.tensor_index)
        ]

    def compact(
        self, context: MergeContext, pass_no: int, partials: list[tuple[Key, Any]]
    ) -> list[tuple[Key, Any]]:
        """Return one partial result that stands for these."""
        if not partials:
            return partials
        layout = _layout(context)
        fewer = layout.strategy.compact(layout.context, pass_no, _flattened(partials))
        return [(partials[0][0], fewer)]

    def end_pass(
        self, context: MergeContext, state: Any, pass_no: int, partials: Sequence[tuple[Key, Any]]
    ) -> Any:
        """Return what the inner strategy makes of a pass."""
        layout = _layout(context)
        return layout.strategy.end_pass(layout.context, state, pass_no, _flattened(partials))

    def linear_form(self, context: MergeContext, state: Any, tensor_index: int) -> Sequence[float] | None:
        """Return the inner strategy's coefficients of a tensor that is whole."""
        layout = _layout(context)
        if layout.cuts[tensor_index] is not None:
            return None
        return layout.strategy.linear_form(layout.context, state, layout.firsts[tensor_index])

    def dependence(self, context: MergeContext, tensor_index: int) -> Dependence | None:  # noqa: ARG002
        """Return nothing: a state is about parts, which have other positions."""
        return None

    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:
        """Return the merged parts, put together."""
        layout = _layout(context)
        cuts = layout.cuts[block.tensor_index]
        parts = _parts(layout, block)
        if cuts is None:
            return layout.strategy.merge(layout.context, state, next(parts))
        out = np.empty(block.stop, np.float64)
        for part, target in zip(parts, cuts.views(out), strict=True):
            target[:] = layout.strategy.merge(layout.context, state, part).reshape(target.shape)
        return out

    def decisions(self, context: MergeContext, state: Any) -> dict[str, Any]:
        """Return which tensors were cut into which as well."""
        layout = _layout(context)
        split = {
            context.specs[index].name: [layout.context.specs[place].name for place in layout.places(index)]
            for index, cuts in enumerate(layout.cuts)
            if cuts is not None
        }
        return {**super().decisions(context, state), "split": split}

    def warnings(self, context: MergeContext, state: Any) -> list[str]:
        """Name tensors that their rule does not fit as well."""
        return _told(_layout(context)) + super().warnings(context, state)


def _told(layout: _Layout) -> list[str]:
    return [sentence(names, note) for note, names in layout.misfits.items() if names]


def _layout(context: MergeContext) -> _Layout:
    if not _latest or _latest[0][0] is not context:
        _latest[:] = [(context, _lay_out(context))]
    return _latest[0][1]


def _lay_out(context: MergeContext) -> _Layout:
    strategy = strategy_named(str(context.params[INNER]))
    params = parameters_of(context.params, INNER)
    given = {spec.name for spec in context.specs}
    specs: list[TensorSpec] = []
    firsts, every = [], []
    misfits: dict[str, list[str]] = {_NO_FIT: [], _TAKEN: []}
    for index, spec in enumerate(context.specs):
        rule = parse_rule(str(context.value(_PARTS, index)))
        is_fused = len(rule.shares) > 1 and spec.numel > 0
        cuts = rule.cuts(spec.shape) if is_fused else None
        parts = [spec] if cuts is None else specs_of_parts(spec, cuts)
        if is_fused and cuts is None:
            misfits[_NO_FIT].append(spec.name)
        elif cuts is not None and not given.isdisjoint(part.name for part in parts):
            misfits[_TAKEN].append(spec.name)
            cuts, parts = None, [spec]
        firsts.append(len(specs))
        every.append(cuts)
        specs += parts
    inside = replace(context, strategy=strategy.id, params=params, specs=tuple(specs))
    told = {note: tuple(names) for note, names in misfits.items()}
    return _Layout(strategy, inside, tuple(firsts), tuple(every), told)


def _parts(layout: _Layout, block: Block) -> Iterator[Block]:
    """Yield the blocks of the inner merge that a block stands for."""
    first, cuts = layout.firsts[block.tensor_index], layout.cuts[block.tensor_index]
    if cuts is None:
        yield replace(block, tensor_index=first)
        return
    inputs = [cuts.views(values) for values in block.inputs]
    base = None if block.base is None else cuts.views(block.base)
    for j in range(len(cuts.shares)):
        yield Block(
            tensor_index=first + j,
            start=0,
            stop=inputs[0][j].size,
            inputs=[_contiguous(views[j]) for views in inputs],
            base=None if base is None else _contiguous(base[j]),
        )


def _contiguous(view: Float64Array) -> Float64Array:
    flat = np.ascontiguousarray(view).reshape(-1)
    flat.flags.writeable = False
    return flat


def _flattened(partials: Iterable[tuple[Key, Any]]) -> list[tuple[Key, Any]]:
    """Return the partial results of the inner merge in the order of their keys."""
    return sorted((inner for _, found in partials for inner in found or ()), key=lambda item: item[0])


SPLIT_FUSED_STRATEGIES: Final = (SplitFused(),)
