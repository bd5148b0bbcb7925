"""SNIP scores from per-example gradients: sum over samples of |parameter * gradient|.

Taken twice on the data of a contribution's task: at the base, with the base's parameters, and at the
contribution's own weights.

Source: Lee et al., SNIP, arXiv:1810.02340; Ma et al., LED-Merging, arXiv:2502.16770, section 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from crdt_merge_protocol.blobs import FLOAT_DTYPES, Schema, TensorSpec
from crdt_merge_protocol.errors import ArtefactInvalidError, TensorMissingError

from .files import Blocks
from .samples import Float64Array, Samples, SampleTensor

BLOCK_ELEMENTS: Final = 1 << 20


def snip_tensors(
    at_base: Sequence[Samples],
    at_self: Sequence[Samples],
    *,
    base: Samples,
    model: Samples,
    schema: Schema,
    dtype: str = "F32",
) -> tuple[dict[str, Any], list[tuple[TensorSpec, Blocks]]]:
    """Return the header's ``n_samples`` and the tensors of a ``snip_score``, block by block.

    Args:
        at_base: Gradients at the base: named and shaped as the model's tensors, or with an axis of examples.
        at_self: Gradients at the contribution's own weights, of the same examples.
        base: Parameters of the base.
        model: Parameters of the contribution.
        schema: Of both.
        dtype: Element type of the artefact.

    Raises:
        ArtefactInvalidError: No tensor of the model has both gradients, or numbers of examples differ.
        ShapeMismatchError: A tensor is not of the model's shape.
        TensorMissingError: A model lacks a tensor of which there are gradients.
    """
    specs = [spec for spec in schema.specs if spec.dtype in FLOAT_DTYPES]
    scores: list[tuple[TensorSpec, Blocks]] = []
    counts: set[int] = set()
    for spec in specs:
        pairs = [("base", at_base, base), ("self", at_self, model)]
        held = [[file[spec.name] for file in files if spec.name in file] for _, files, _ in pairs]
        if not all(held):
            continue
        for (side, _, parameters), gradients in zip(pairs, held, strict=True):
            if spec.name not in parameters:
                raise TensorMissingError(f"The {side} model has no tensor {spec.name}.")
            score = _Score(spec, gradients, parameters[spec.name])
            counts.add(score.samples)
            name = f"{side}/{spec.name}"
            scores.append((TensorSpec(name=name, dtype=dtype, shape=spec.shape), score.blocks))
    if len(counts) != 1 or not min(counts):
        raise ArtefactInvalidError(
            f"Gradients of one number of examples are needed, there are {sorted(counts) or 'none'}.",
            hint="Compute those at the base and at the model's own weights on the same examples.",
        )
    return {"n_samples": counts.pop()}, scores


class _Score:
    """The scores of one tensor at one place."""

    def __init__(self, spec: TensorSpec, gradients: Sequence[SampleTensor], parameters: SampleTensor) -> None:
        self._numel = spec.numel
        self._gradients = [(tensor, tensor.count(spec.shape)) for tensor in gradients]
        self._parameters = parameters
        self.samples = sum(count for _, count in self._gradients)
        """Examples."""

    def blocks(self) -> Iterator[Float64Array]:
        """Yield the scores, block by block."""
        for start in range(0, self._numel, BLOCK_ELEMENTS):
            stop = min(start + BLOCK_ELEMENTS, self._numel)
            total = np.zeros(stop - start, np.float64)
            for tensor, count in self._gradients:
                for number in range(count):
                    values = tensor.read(number * self._numel + start, number * self._numel + stop)
                    total += np.abs(values, out=values)
            yield np.abs(self._parameters.read(start, stop)) * total
