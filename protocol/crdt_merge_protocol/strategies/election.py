"""The election of signs and the merge of what agrees: the elementwise half of TIES and its variants.

A contribution of weight zero has no vote: otherwise it could flip a sign and silence the others
(SCENARIOS S15). What was trimmed or dropped is zero and abstains. With the sum of the votes exactly zero the
majority of the whole scope decides (the paper), or plus does (mergekit).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, cast

import numpy as np
import numpy.typing as npt

from .contract import Float64Array, MergeContext
from .kernels import CHUNK_ELEMENTS
from .parameters import MERGEKIT


@dataclass(frozen=True, slots=True, kw_only=True)
class Ballot:
    """How signs are elected and agreeing elements merged."""

    weights: tuple[float, ...]
    """One per voter, positive."""
    is_weighted: bool
    """Weights count in the election (mergekit), not only in the merge (the paper)."""
    by_count: bool
    """Every element has one vote, instead of its value."""
    merge: Literal["mean", "sum", "max"]


def ballot_of(context: MergeContext, tensor_index: int, voting: Sequence[int]) -> Ballot:
    """Return how some contributions elect and merge in a tensor."""
    is_mergekit = context.params["profile"] == MERGEKIT
    merge = (
        ("mean" if context.params["normalize"] else "sum") if is_mergekit else context.params["merge_func"]
    )
    everyone = context.weights_in(tensor_index)
    weights = [everyone[i] for i in voting]
    if merge == "mean" and len(set(weights)) == 1:
        weights = [Fraction(1)] * len(weights)  # Equal weights cancel out of a mean.
    return Ballot(
        weights=tuple(float(weight) for weight in weights),
        is_weighted=is_mergekit,
        by_count=context.params["elect"] == "count",
        merge=cast(Literal["mean", "sum", "max"], merge),
    )


class Booth:
    """Buffers for one ballot at a time, used again for every chunk."""

    def __init__(self, ballot: Ballot) -> None:
        self.values = [np.empty(CHUNK_ELEMENTS, np.float64) for _ in ballot.weights]
        """Filled by the caller: one array of trimmed differences per voter."""
        self._ballot = ballot
        self._is_counted = ballot.merge == "mean" and set(ballot.weights) == {1.0}
        count_type = np.uint8 if len(ballot.weights) < 256 else np.uint32
        self._heads = np.empty(CHUNK_ELEMENTS, count_type)
        self._total, self._term, self._count = (np.empty(CHUNK_ELEMENTS, np.float64) for _ in range(3))

    def tally(self, size: int) -> Float64Array:
        """Return the sum of the votes on the first ``size`` values; it is overwritten by the next call."""
        total, term = self._total[:size], self._term[:size]
        plain = None if self._ballot.is_weighted or self._ballot.by_count else self.values
        if plain is not None and len(plain) > 1:
            np.add(plain[0][:size], plain[1][:size], out=total)
            for buffer in plain[2:]:
                total += buffer[:size]
            return total
        for number, (buffer, weight) in enumerate(zip(self.values, self._ballot.weights, strict=True)):
            values = buffer[:size]
            if self._ballot.is_weighted and weight != 1.0:
                values *= weight
            vote: Float64Array = np.sign(values, out=term) if self._ballot.by_count else values
            if number:
                total += vote
            else:
                total[:] = vote
        return total

    def merge(self, size: int, majority: float, out: Float64Array) -> None:
        """Write the merged differences of the first ``size`` values into ``out``, ``(size,)``."""
        total = self.tally(size)
        is_positive = total >= 0 if majority > 0 else total > 0
        is_negative = ~is_positive
        heads, count = self._heads[:size], self._count[:size]
        heads[:] = 0
        out[:] = 0.0
        if not self._is_counted:
            count[:] = 0.0
        for buffer, weight in zip(self.values, self._ballot.weights, strict=True):
            values = buffer[:size]
            agrees = ((values > 0) & is_positive) | ((values < 0) & is_negative)
            if self._is_counted:
                np.add(heads, agrees, out=heads)
            elif self._ballot.merge == "mean":
                count += np.multiply(agrees, weight)
            self._add(values, agrees, weight, out)
        if self._is_counted:
            np.maximum(heads, 1, out=heads)
            count[:] = heads
        elif self._ballot.merge == "mean":
            count += count == 0
        if self._ballot.merge == "mean":
            out /= count

    def _add(
        self, values: Float64Array, agrees: npt.NDArray[np.bool_], weight: float, out: Float64Array
    ) -> None:
        term = self._term[: values.size]
        np.multiply(values, agrees, out=term)
        if self._ballot.merge == "max":
            np.copyto(out, term, where=np.abs(term) > np.abs(out))
            return
        if weight != 1.0 and not self._ballot.is_weighted:
            term *= weight
        out += term


def majority_sign(totals: Sequence[int]) -> float:
    """Return the sign of a sum of signs; plus if it is zero."""
    return -1.0 if sum(totals) < 0 else 1.0
