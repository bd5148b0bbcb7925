"""EMR-Merging: one model for all tasks, and for each task a bit mask and one number that make it the task's.

The elected model keeps, per element, the largest difference in the direction of the sum. A task's mask tells
where its own difference points the same way; its rescaler restores its sum of magnitudes over the whole
model. The common model alone is not what the method claims anything for: ``task`` asks for that of one task.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from .contract import BaseUse, Block, Float64Array, Key, MergeContext, Output, Strategy
from .kernels import CHUNK_ELEMENTS, chunks
from .parameters import Parameter
from .reductions import add_leaves, leaf_sums
from .trimming import voters

_NANOSECONDS: Final = 12.0
"""Per element of a contribution."""


@dataclass(frozen=True, slots=True)
class Rescalers:
    """What restores the sums of magnitudes."""

    gammas: tuple[float, ...]
    """One per contribution; 0 where a task was out-voted everywhere or changes nothing, 1 beyond float64."""


class EmrMerging(Strategy):
    """Elect, mask and rescale: a unified difference, and per task a mask and a rescaler."""

    id = "emr_merging"
    title = "EMR-Merging"
    paper = "Huang et al., EMR-Merging, NeurIPS 2024, arXiv:2405.17461"
    doc = (
        "Elects one difference from the base for all tasks; each task gets a bit mask and a rescaler that "
        "turn the common model into its own. Without them the common model is not what the method is about."
    )
    formula = (
        "t_i = X_i - B; f = +1 where sum_i t_i > 0, else -1; u = f max_i |t_i| over the i with t_i f > 0\n"
        "m_i = 1 where t_i f > 0, else 0; gamma_i = sum |t_i| / sum |m_i u| over the whole model\n"
        "common model: B + u; of task i: B + gamma_i m_i u"
    )
    base: ClassVar[BaseUse] = "required"
    output: ClassVar[Output] = "modulators"
    parameters = (
        Parameter(
            name="rescale_scope", type="choice", default="elements", choices=("elements", "tensor_means"),
            doc="elements: sums over all elements (the paper). tensor_means: of tensors' means (its code).",
        ),
    )  # fmt: skip

    def divides_by_weights(self, context: MergeContext) -> bool:  # noqa: ARG002
        """Tell that weights are no divisor: they only tell who votes."""
        return False

    def nanoseconds(self, context: MergeContext, tensor_index: int) -> float:
        """Return the estimate for one pass and the merge."""
        return _NANOSECONDS * context.k * context.specs[tensor_index].numel

    def pass_count(self, context: MergeContext) -> int:  # noqa: ARG002
        """Return 1, for the sums of magnitudes."""
        return 1

    def observe(self, context: MergeContext, state: Any, pass_no: int, block: Block) -> Float64Array:  # noqa: ARG002
        """Return leaf sums of |t_i| and of |m_i u|, ``(k, 2, leaves)``."""
        unified = _unified(context, block)
        magnitudes = np.abs(unified)
        whole, masked = np.empty_like(unified), np.empty_like(unified)
        sums = []
        for i in range(context.k):
            for part, difference, mask in _masks(unified, block, i):
                np.abs(difference, out=whole[part])
                np.multiply(magnitudes[part], mask, out=masked[part])
            sums.append(np.stack([leaf_sums(whole), leaf_sums(masked)]))
        return np.stack(sums)

    def end_pass(
        self,
        context: MergeContext,
        state: Any,  # noqa: ARG002
        pass_no: int,  # noqa: ARG002
        partials: Sequence[tuple[Key, Any]],
    ) -> Rescalers:
        """Return the rescaler of every task."""
        per_tensor = []
        for index, group in itertools.groupby(partials, key=lambda item: item[0][0]):
            leaves = np.concatenate([sums for _, sums in group], axis=2)
            is_mean = context.params["rescale_scope"] == "tensor_means"
            divisor = context.specs[index].numel if is_mean else 1
            per_tensor.append([[add_leaves(row) / divisor for row in pair] for pair in leaves])
        gammas = []
        for i in range(context.k):
            whole, masked = (add_leaves([sums[i][which] for sums in per_tensor]) for which in (0, 1))
            gamma = whole / masked if masked else 0.0
            gammas.append(gamma if math.isfinite(gamma) else 1.0)
        return Rescalers(tuple(gammas))

    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:
        """Return a block of the common model, or of the model of the context's task."""
        assert block.base is not None
        out = _unified(context, block)
        if context.task is not None:
            gamma = _gamma(state, context.task)
            for part, _, mask in _masks(out, block, context.task):
                out[part] *= mask
                out[part] *= gamma
        out += block.base
        return out

    def modulate(self, context: MergeContext, state: Any, block: Block, contribution: int) -> bytes:  # noqa: ARG002
        """Return the mask of a task, one bit per element of the block, the first one highest."""
        unified = _unified(context, block)
        bits = np.empty(unified.size, np.bool_)
        for part, _, mask in _masks(unified, block, contribution):
            bits[part] = mask
        return np.packbits(bits).tobytes()

    def decisions(self, context: MergeContext, state: Any) -> dict[str, Any]:
        """Return the rescalers as well."""
        gammas = {digest.hex(): _gamma(state, i) for i, digest in enumerate(context.digests)}
        return {**super().decisions(context, state), "gamma": gammas}

    def warnings(self, context: MergeContext, state: Any) -> list[str]:  # noqa: ARG002
        """Say that weights do not count."""
        if len({context.weights[i] for i in voters(context)}) > 1:
            return ["emr_merging has no weights: only whether one is zero was looked at."]
        return []


def _gamma(state: Rescalers | None, contribution: int) -> float:
    return 0.0 if state is None else state.gammas[contribution]


def _unified(context: MergeContext, block: Block) -> Float64Array:
    """Return the elected differences of a block, ``(n,)`` in a new array. Who has no weight has no vote."""
    assert block.base is not None
    out = np.empty(block.stop - block.start, np.float64)
    buffers = [np.empty(min(CHUNK_ELEMENTS, out.size), np.float64) for _ in range(3)]
    voting = voters(context)
    for part in chunks(out.size):
        highest = out[part]
        total, difference, lowest = (buffer[: highest.size] for buffer in buffers)
        highest[:] = lowest[:] = total[:] = 0.0
        for i in voting:
            total += np.subtract(block.inputs[i][part], block.base[part], out=difference)
            np.maximum(highest, difference, out=highest)
            np.minimum(lowest, difference, out=lowest)
        np.copyto(highest, lowest, where=total <= 0)
    return out


def _masks(
    unified: Float64Array, block: Block, contribution: int
) -> Iterator[tuple[slice, Float64Array, npt.NDArray[np.bool_]]]:
    """Yield, chunk by chunk, a contribution's differences and where they point with the unified ones.

    The differences are in a buffer that is used again.
    """
    assert block.base is not None
    buffer = np.empty(min(CHUNK_ELEMENTS, unified.size), np.float64)
    for part in chunks(unified.size):
        difference = buffer[: part.stop - part.start]
        np.subtract(block.inputs[contribution][part], block.base[part], out=difference)
        elected = unified[part]
        yield part, difference, ((difference > 0) & (elected > 0)) | ((difference < 0) & (elected < 0))


EMR_STRATEGIES: Final = (EmrMerging(),)
