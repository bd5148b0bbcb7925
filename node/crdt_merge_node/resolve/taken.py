"""What a plan takes over from earlier outputs instead of computing it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from crdt_merge_protocol.strategies.contract import MergeContext, Strategy
from crdt_merge_protocol.strategies.findings import findings_of, with_findings

from .job import KeptTensor

if TYPE_CHECKING:
    from .steps import TensorPlan

_UNREADABLE: Final = (ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError)
"""What reading findings can raise, or a strategy that is given them, if this node did not write them."""


class EarlierChangedError(Exception):
    """An earlier output is not what its account says. Never leaves this package: one goes on without it."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A tensor that is taken over."""

    index: int
    """Position in ``MergeContext.specs``: what the state of the passes knows it by."""
    kept: KeptTensor


@dataclass(frozen=True, slots=True)
class Reuse:
    """The names that tensors have before they are computed, and those whose bytes are there already."""

    keys: tuple[bytes, ...] = ()
    """One per tensor of the plan; empty where other tensors decide it, too, and for copies of inputs."""
    indices: tuple[int, ...] = ()
    """Position in ``MergeContext.specs`` of each, or -1."""
    taken: Mapping[int, Taken] = field(default_factory=dict)
    """By position in the plan."""

    @property
    def nbytes(self) -> int:
        """Of all tensors that are taken over."""
        return sum(each.kept.source.nbytes for each in self.taken.values())

    def misfits(self, tensors: Sequence[TensorPlan], found: Mapping[str, int]) -> dict[str, int]:
        """Return how many elements did not fit, by tensor in the order of the plan, then and now."""
        counts = {
            tensor.spec.name: self.taken[number].kept.misfits
            if number in self.taken
            else found.get(tensor.spec.name, 0)
            for number, tensor in enumerate(tensors)
        }
        return {name: count for name, count in counts.items() if count}

    def complete(self, state: Any) -> Any:
        """Return the state of the passes with what earlier ones found of what was taken over.

        Raises:
            EarlierChangedError: An account does not say what passes find.
        """
        try:
            for each in self.taken.values():
                state = with_findings(state, each.index, each.kept.findings)
        except _UNREADABLE as error:
            raise EarlierChangedError from error
        return state

    def decisions(self, strategy: Strategy, context: MergeContext, state: Any) -> dict[str, Any]:
        """Return what was decided, from a completed state.

        Raises:
            EarlierChangedError: What an account says of an earlier state makes no sense.
        """
        try:
            return strategy.decisions(context, state)
        except _UNREADABLE as error:
            if not self.taken:
                raise
            raise EarlierChangedError from error

    def account(
        self, tensors: Sequence[TensorPlan], blobs: Sequence[bytes], misfits: Mapping[str, int], state: Any
    ) -> Iterator[dict[str, Any]]:
        """Yield what the account says of each tensor, so that a later merge can take it over."""
        for number, (tensor, blob) in enumerate(zip(tensors, blobs, strict=True)):
            said: dict[str, Any] = {"name": tensor.spec.name, "blob": blob.hex()}
            if self.keys[number]:
                said["key"] = self.keys[number].hex()
                if (found := findings_of(state, self.indices[number])) is not None:
                    said["findings"] = found
            if count := misfits.get(tensor.spec.name):
                said["misfits"] = count
            if number in self.taken:
                said["reused"] = True
            yield said
