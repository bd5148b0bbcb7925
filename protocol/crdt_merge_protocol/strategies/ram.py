"""Reinforced Agent Merging: what only one model changed stays whole, what several changed is averaged.

Models tuned by reinforcement learning change few elements, and mostly different ones. An average divides
even a change that no other model disputes; here only models that changed an element share it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, ClassVar, cast

import numpy as np

from .contract import BaseUse, Block, Float64Array, Key, MergeContext, Strategy
from .dependence import Dependence, depends
from .kernels import CHUNK_ELEMENTS, chunks
from .parameters import Parameter
from .trimming import voters as voters_of

_EPSILON = Parameter(
    name="epsilon", type="decimal", default="0.00001", low="0", high="1",
    doc="A difference from the base of at most this much is no change. Not relative to anything.",
)  # fmt: skip


class Ram(Strategy):
    """The base plus, for each element, the mean difference of the models that changed it.

    The published method knows no weights; here they weigh that mean, and a model of weight zero changes
    nothing.
    """

    id = "ram"
    title = "Reinforced Agent Merging"
    paper = "Reinforced Agent Merging, arXiv:2601.13572"
    doc = "Averages each change among the models that made it; a change of one model stays whole."
    formula = (
        "n_i = |X_i - B| > epsilon, out = B + sum n_i w_i (X_i - B) / sum n_i w_i, B where no model changed"
    )
    base: ClassVar[BaseUse] = "required"
    is_extra = True
    parameters: ClassVar[tuple[Parameter, ...]] = (_EPSILON,)

    def factors(
        self,
        context: MergeContext,  # noqa: ARG002
        state: Any,  # noqa: ARG002
        tensor_index: int,  # noqa: ARG002
    ) -> dict[int, float]:
        """Return what to multiply the unshared changes of each model by; empty: nothing."""
        return {}

    def nanoseconds(self, context: MergeContext, tensor_index: int) -> float:
        """Return the time of comparing and adding each difference."""
        return 8.0 * context.k * context.specs[tensor_index].numel

    def dependence(self, context: MergeContext, tensor_index: int) -> Dependence | None:
        """Return what decides a tensor: that tensor alone."""
        return depends(self, context, tensor_index)

    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:
        """Return a block of the base plus the shared means."""
        assert block.base is not None
        voters = voters_of(context)
        weights = _weights(context, voters)
        factors = self.factors(context, state, block.tensor_index)
        out = np.empty(block.stop - block.start, np.float64)
        step = min(CHUNK_ELEMENTS, out.size)
        term, total = np.empty(step, np.float64), np.empty(step, np.float64)
        count, scale = np.empty(step, np.int64), np.empty(step, np.float64)
        for part in chunks(out.size):
            size = part.stop - part.start
            merged, base = out[part], block.base[part]
            merged[:] = total[:size] = scale[:size] = 0.0
            count[:size] = 0
            for i, weight in zip(voters, weights, strict=True):
                values = term[:size]
                np.subtract(block.inputs[i][part], base, out=values)
                changed = _changed(context, values)
                values *= changed
                count[:size] += changed
                total[:size] += changed * weight
                if factors:
                    scale[:size] += changed * factors[i]
                values *= weight
                merged += values
            merged /= np.where(count[:size] > 0, total[:size], 1.0)
            if factors:
                # Where one model changed the element, the sum of the factors is that model's.
                np.multiply(merged, scale[:size], out=merged, where=count[:size] == 1)
            merged += base
        return out


class RamPlus(Ram):
    """RAM with unshared changes amplified, the more so the more of a model's changes are shared."""

    id = "ramplus_tl"
    title = "Reinforced Agent Merging plus, by tensor"
    doc = "As ram, with changes of one model alone amplified where most of its changes are averaged."
    formula = (
        "as ram, where one model alone changed an element times 1 + r clip(shared_i / alone_i, 0, alpha),\n"
        "shared_i and alone_i: how many elements of the tensor model i changed with others and alone"
    )
    parameters: ClassVar[tuple[Parameter, ...]] = (
        _EPSILON,
        Parameter(
            name="r", type="decimal", default="0.1", low="0", high="10",
            doc="How much dilution is made up for.",
        ),
        Parameter(
            name="alpha", type="decimal", default="0.2", low="0", high="10",
            doc="Greatest ratio of shared to unshared changes that counts.",
        ),
    )  # fmt: skip

    def pass_count(self, context: MergeContext) -> int:  # noqa: ARG002
        """Return 1 for the counts."""
        return 1

    def observe(self, context: MergeContext, state: Any, pass_no: int, block: Block) -> Any:  # noqa: ARG002
        """Return how many elements each voter changed with others and alone, ``(voters, 2)`` int64."""
        assert block.base is not None
        voters = voters_of(context)
        counts = np.zeros((len(voters), 2), np.int64)
        for part in chunks(block.stop - block.start):
            changed = [_changed(context, block.inputs[i][part] - block.base[part]) for i in voters]
            together = np.zeros(part.stop - part.start, np.int64)
            for each in changed:
                together += each
            is_alone = together == 1
            for row, each in zip(counts, changed, strict=True):
                alone = int(np.count_nonzero(each & is_alone))
                row[:] = row[0] + int(np.count_nonzero(each)) - alone, row[1] + alone
        return counts

    def compact(
        self,
        context: MergeContext,  # noqa: ARG002
        pass_no: int,  # noqa: ARG002
        partials: list[tuple[Key, Any]],
    ) -> list[tuple[Key, Any]]:
        """Add up the counts of each tensor."""
        ordered = sorted(partials, key=lambda item: item[0])
        groups = [list(group) for _, group in itertools.groupby(ordered, key=lambda item: item[0][0])]
        return [(group[0][0], sum(partial for _, partial in group)) for group in groups]

    def end_pass(
        self,
        context: MergeContext,
        state: Any,  # noqa: ARG002
        pass_no: int,
        partials: Sequence[tuple[Key, Any]],
    ) -> dict[int, tuple[float, ...]]:
        """Return the factor of each voter in every tensor."""
        merged = self.compact(context, pass_no, list(partials))
        r, alpha = (cast(Fraction, context.params[name]) for name in ("r", "alpha"))
        return {
            key[0]: tuple(
                float(1 + r * min(Fraction(int(shared), int(alone)), alpha)) if alone else 1.0
                for shared, alone in counts
            )
            for key, counts in merged
        }

    def factors(self, context: MergeContext, state: Any, tensor_index: int) -> dict[int, float]:
        """Return what to multiply the unshared changes of each model by."""
        voters = voters_of(context)
        found = (state or {}).get(tensor_index, (1.0,) * len(voters))
        return dict(zip(voters, found, strict=True))


def _changed(context: MergeContext, values: Float64Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
    epsilon = float(cast(Fraction, context.params["epsilon"]))
    found: np.ndarray[Any, np.dtype[np.bool_]] = np.abs(values) > epsilon
    return found


def _weights(context: MergeContext, voters: Sequence[int]) -> list[float]:
    """Return the weights of the voters. Equal ones cancel out of a mean, so they are ones, exactly."""
    exact = [context.weights[i] for i in voters]
    if len(set(exact)) == 1:
        return [1.0] * len(exact)
    return [float(weight) for weight in exact]
