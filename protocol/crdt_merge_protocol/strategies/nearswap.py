"""Strategies that change a base, or a copy, element by element: nearswap and passthrough."""

from __future__ import annotations

from typing import Any, ClassVar, Final

import numpy as np

from .averages import check_weights, weight_parameter, weight_warnings
from .averages import shares as shares_in
from .contract import BaseUse, Block, Float64Array, MergeContext, Strategy
from .delegation import fallback_parameter
from .dependence import Dependence, depends
from .kernels import CHUNK_ELEMENTS, chunks
from .parameters import Parameter

_NEAREST: Final = 1e-6
"""Differences are taken for at least this much when divided by."""


class NearSwap(Strategy):
    """Takes over what is near the base whole, and of what is far only a step of length ``t``.

    As published for one model; here several are averaged, each after its steps were shortened.
    """

    id = "nearswap"
    title = "nearswap"
    paper = "none; a community method, as in mergekit"
    doc = "Moves every element of the base at most t towards the model; the mean of several models' moves."
    formula = "out = B + sum s_i min(t / max(|X_i - B|, 1e-6), 1) (X_i - B), s_i = w_i / sum w"
    base: ClassVar[BaseUse] = "required"
    is_extra = True
    parameters = (
        weight_parameter(),
        Parameter(
            name="t", type="decimal", default="0.0001", low="0", high="1000000", per=frozenset({"tensor"}),
            doc="Longest step of an element.",
        ),
    )  # fmt: skip

    def check(self, context: MergeContext) -> None:
        """Refuse as every strategy, and offline weights that vanish in a tensor."""
        super().check(context)
        check_weights(context)

    def warnings(self, context: MergeContext, state: Any) -> list[str]:  # noqa: ARG002
        """Say where the weights could not be used."""
        return weight_warnings(context)

    def nanoseconds(self, context: MergeContext, tensor_index: int) -> float:
        """Return the time of one division and a few steps for each element."""
        return 7.0 * context.k * context.specs[tensor_index].numel

    def dependence(self, context: MergeContext, tensor_index: int) -> Dependence | None:
        """Return what decides a tensor: that tensor alone."""
        return depends(self, context, tensor_index)

    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:  # noqa: ARG002
        """Return a block of the base plus the mean of the shortened steps."""
        assert block.base is not None
        length = float(context.number("t", block.tensor_index))
        shares = [float(share) for share in shares_in(context, block.tensor_index)]
        out = np.empty(block.stop - block.start, np.float64)
        step, ratio = (np.empty(min(CHUNK_ELEMENTS, out.size), np.float64) for _ in range(2))
        for part in chunks(out.size):
            merged, base = out[part], block.base[part]
            here, size = step[: merged.size], ratio[: merged.size]
            merged[:] = 0.0
            for values, share in zip(block.inputs, shares, strict=True):
                np.subtract(values[part], base, out=here)
                np.abs(here, out=size)
                np.maximum(size, _NEAREST, out=size)
                np.divide(length, size, out=size)
                np.minimum(size, 1.0, out=size)
                here *= size
                here *= share
                merged += here
            merged += base
        return out


class Passthrough(Strategy):
    """One model as it is, scaled if asked for: what exports and recipes of parts are made of."""

    id = "passthrough"
    title = "passthrough"
    paper = "none; as in mergekit"
    doc = "Copies one model, times a scale."
    formula = "out = scale X, X the only model or the one whose digest begins with origin"
    base: ClassVar[BaseUse] = "unused"
    is_extra = True
    parameters = (
        Parameter(
            name="origin", type="text", default="",
            doc="First hex digits of the contribution digest to copy; may be empty if there is one only.",
        ),
        Parameter(
            name="scale", type="decimal", default="1", low="-1000", high="1000", per=frozenset({"tensor"}),
            doc="What its tensors are multiplied by.",
        ),
        fallback_parameter(),
    )  # fmt: skip

    def unmet(self, context: MergeContext) -> str | None:
        """Return what keeps it from working: it must be clear which model is meant."""
        if len(_origins(context)) == 1:
            return super().unmet(context)
        origin = context.params["origin"]
        which = f"have a digest that begins with {origin}" if origin else "are here; origin says which"
        return f"{self.id} copies one model and {len(_origins(context))} {which}"

    def divides_by_weights(self, context: MergeContext) -> bool:  # noqa: ARG002
        """Weights do not matter."""
        return False

    def nanoseconds(self, context: MergeContext, tensor_index: int) -> float:
        """Return the time of one multiplication."""
        return 1.0 * context.specs[tensor_index].numel

    def dependence(self, context: MergeContext, tensor_index: int) -> Dependence | None:
        """Return what decides a tensor: that of the one model, whoever else contributes."""
        origin = _origins(context)[:1]
        return depends(self, context, tensor_index, reads=origin, ignored=("origin",))

    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:  # noqa: ARG002
        """Return a block of the one model, scaled."""
        scale = float(context.number("scale", block.tensor_index))
        return block.inputs[_origins(context)[0]] * scale


def _origins(context: MergeContext) -> list[int]:
    origin = str(context.params["origin"]).lower()
    return [i for i, digest in enumerate(context.digests) if digest.hex().startswith(origin)]
