"""Differentiable adaptive merging: a learnt coefficient per input column and model, applied.

Learning them needs data; that is the business of whoever makes the artefact. Here they are applied.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Final

import numpy as np

from crdt_merge_protocol.blobs import TensorSpec

from .artefact_fields import input_axis
from .artefacts import Artefact, ArtefactNeed
from .contract import BaseUse, Block, Float64Array, MergeContext, Wanted
from .delegation import fallback_parameter
from .dependence import Dependence, depends
from .kernels import CHUNK_ELEMENTS, chunks
from .set_bound import SetBound, artefact_parameter

DAM: Final = "dam_coeff"
Writer = Callable[[int, Float64Array], None]
"""Writes the coefficients of the elements from a flat index of the tensor on into an array."""


class Dam(SetBound):
    """A sum of the models, each input column of each with its own learnt coefficient."""

    id = "dam"
    title = "Differentiable Adaptive Merging"
    paper = "Gauthier-Caron et al., Merging in a Bottle, 2024, arXiv:2410.08371"
    doc = (
        "A sum of the models with a learnt coefficient per input column. Learning needs data, so there is no "
        "version without: equal coefficients are weight_average. Weights do not enter; they were learnt."
    )
    formula = (
        "out[o, j] = sum_i c_i[j] X_i[o, j]   (linear layers, embeddings)\n"
        "out = sum_i c_i X_i   (biases: one number; gains of norms: one per element)"
    )
    base: ClassVar[BaseUse] = "unused"
    artefacts = (ArtefactNeed(DAM),)
    parameters = (artefact_parameter(), fallback_parameter())

    def misfit(self, context: MergeContext, artefact: Artefact) -> str | None:
        """Return which tensor has no coefficients."""
        for spec in context.specs:
            for i in range(context.k):
                if artefact.spec(f"{i}/{spec.name}") is None:
                    return f"the {DAM} has no coefficients of tensor {spec.name}"
        return None

    def divides_by_weights(self, context: MergeContext) -> bool:  # noqa: ARG002 - for none.
        """Tell that it does not."""
        return False

    def wants(self, context: MergeContext, tensor_index: int) -> tuple[Wanted, ...]:
        """Return the coefficients of every contribution."""
        position = self.position(context)
        assert position is not None, "unmet was asked"
        spec, artefact = context.specs[tensor_index], context.artefacts[position]
        names = [f"{i}/{spec.name}" for i in range(context.k)]
        return tuple(Wanted(position, name, _shape_of(artefact, name) == spec.shape) for name in names)

    def dependence(self, context: MergeContext, tensor_index: int) -> Dependence | None:
        """Return what decides a tensor: that tensor alone."""
        return depends(self, context, tensor_index)

    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:  # noqa: ARG002
        """Return the sum of a block."""
        spec = context.specs[block.tensor_index]
        transposed = self.header(context).get("transposed", ())
        writers = [
            _writer(spec, wanted, values, block.start, transposed)
            for wanted, values in zip(self.wants(context, block.tensor_index), block.artefacts, strict=True)
        ]
        out = np.zeros(block.stop - block.start, np.float64)
        scratch = np.empty(min(CHUNK_ELEMENTS, out.size), np.float64)
        for part in chunks(out.size):
            total = out[part]
            term = scratch[: total.size]
            for write, values in zip(writers, block.inputs, strict=True):
                write(block.start + part.start, term)
                term *= values[part]
                total += term
        return out


def _shape_of(artefact: Artefact, name: str) -> tuple[int, ...] | None:
    spec = artefact.spec(name)
    return None if spec is None else spec.shape


def _writer(
    spec: TensorSpec, wanted: Wanted, values: Float64Array, start: int, transposed: tuple[str, ...]
) -> Writer:
    """Return what writes a contribution's coefficients, one per element.

    Args:
        values: The coefficients: of this block if they are aligned, else all of the tensor's.
        start: First flat element of the block.
    """
    if wanted.is_aligned:
        return lambda first, out: np.copyto(out, values[first - start : first - start + out.size])
    if values.size == 1:
        return lambda first, out: out.fill(values[0])  # noqa: ARG005 - the same everywhere.
    inner = math.prod(spec.shape[input_axis(spec, transposed) + 1 :])
    if inner > 1:
        return lambda first, out: np.copyto(
            out, values[(np.arange(first, first + out.size) // inner) % values.size]
        )
    rows = np.resize(values, values.size + CHUNK_ELEMENTS)

    def write(first: int, out: Float64Array) -> None:
        column = first % values.size
        out[:] = rows[column : column + out.size]

    return write


DAM_STRATEGIES: Final = (Dam(),)
