"""Strategies that are another strategy's merge with something around it: everything goes to the inner one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

from .contract import Block, Determinism, Float64Array, Granularity, Key, MergeContext, Strategy, Wanted
from .dependence import Dependence, within


class Delegating(Strategy):
    """Passes every step on to the strategy that :meth:`inner` names, in the context that it gives."""

    determinism = "inherit"

    @abstractmethod
    def inner(self, context: MergeContext) -> tuple[Strategy, MergeContext]:
        """Return the strategy that does the work, and its context. Called for every block, so fast."""

    def uses_base(self, context: MergeContext) -> bool:
        """Tell what the inner strategy uses."""
        strategy, within = self.inner(context)
        return strategy.uses_base(within)

    def determinism_in(self, context: MergeContext) -> Determinism:
        """Return the class of the inner merge."""
        strategy, within = self.inner(context)
        return strategy.determinism_in(within)

    def granularity(self, context: MergeContext, tensor_index: int) -> Granularity:
        """Return what the blocks of the inner merge are made of."""
        strategy, within = self.inner(context)
        return strategy.granularity(within, tensor_index)

    def wants(self, context: MergeContext, tensor_index: int) -> tuple[Wanted, ...]:
        """Return what the inner strategy wants."""
        strategy, within = self.inner(context)
        return strategy.wants(within, tensor_index)

    def scratch_bytes(self, context: MergeContext, tensor_index: int) -> int:
        """Return what the inner strategy takes."""
        strategy, within = self.inner(context)
        return strategy.scratch_bytes(within, tensor_index)

    def nanoseconds(self, context: MergeContext, tensor_index: int) -> float:
        """Return the inner strategy's estimate."""
        strategy, within = self.inner(context)
        return strategy.nanoseconds(within, tensor_index)

    def divides_by_weights(self, context: MergeContext) -> bool:  # noqa: ARG002 - the inner one checks.
        """Tell that this strategy itself does not."""
        return False

    def pass_count(self, context: MergeContext) -> int:
        """Return the passes of the inner strategy."""
        strategy, within = self.inner(context)
        return strategy.pass_count(within)

    def needs(self, context: MergeContext, state: Any, pass_no: int, tensor_index: int) -> bool:
        """Tell what the inner strategy needs."""
        strategy, within = self.inner(context)
        return strategy.needs(within, state, pass_no, tensor_index)

    def looks_at(
        self,
        context: MergeContext,
        state: Any,
        pass_no: int,
        tensor_index: int,
        span: tuple[int, int],
    ) -> Iterable[tuple[int, int]]:
        """Return what the inner strategy looks at."""
        strategy, within = self.inner(context)
        return strategy.looks_at(within, state, pass_no, tensor_index, span)

    def observe(self, context: MergeContext, state: Any, pass_no: int, block: Block) -> Any:
        """Return what the inner strategy has to know of a block."""
        strategy, within = self.inner(context)
        return strategy.observe(within, state, pass_no, block)

    def compact(
        self, context: MergeContext, pass_no: int, partials: list[tuple[Key, Any]]
    ) -> list[tuple[Key, Any]]:
        """Return fewer partial results, as the inner strategy does."""
        strategy, within = self.inner(context)
        return strategy.compact(within, pass_no, partials)

    def end_pass(
        self, context: MergeContext, state: Any, pass_no: int, partials: Sequence[tuple[Key, Any]]
    ) -> Any:
        """Return what the inner strategy makes of a pass."""
        strategy, within = self.inner(context)
        return strategy.end_pass(within, state, pass_no, partials)

    def dependence(self, context: MergeContext, tensor_index: int) -> Dependence | None:
        """Return what decides a tensor of the inner merge."""
        strategy, inside = self.inner(context)
        return within(self, strategy.dependence(inside, tensor_index))

    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:
        """Return the inner merge of a block."""
        strategy, within = self.inner(context)
        return strategy.merge(within, state, block)

    def warnings(self, context: MergeContext, state: Any) -> list[str]:
        """Return the warnings of the inner strategy."""
        strategy, within = self.inner(context)
        return strategy.warnings(within, state)

    def decisions(self, context: MergeContext, state: Any) -> dict[str, Any]:
        """Return what the inner strategy decided as well."""
        strategy, within = self.inner(context)
        return {**super().decisions(context, state), "inner": strategy.decisions(within, state)}
