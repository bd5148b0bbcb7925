"""Fisher diagonals from per-example gradients.

F = mean over samples of (d log p(y | x) / d parameter)^2. Which y is up to whoever computes the gradients
and goes into the header: every class, weighted by its probability (``expected``); one drawn from the model
(``sampled``); the true label (``empirical``). The gradient has to be that of one example: the square of a
mean over a batch is not the mean of the squares.

Source: Matena and Raffel, arXiv:2111.09832, section 3; Kunstner et al., arXiv:1905.12558, on label modes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from crdt_merge_protocol.blobs import FLOAT_DTYPES, Schema, TensorSpec
from crdt_merge_protocol.errors import ArtefactInvalidError, ShapeMismatchError

from .files import Blocks
from .samples import Float64Array, Samples, SampleTensor

WEIGHT: Final = "weight"
"""Tensor of a gradient file, (n,): weight of each sample, such as its label's probability. Without it: 1."""
BLOCK_ELEMENTS: Final = 1 << 20


class FisherSum:
    """Sums of squared gradients of a model that fits memory, for a training loop of one's own."""

    def __init__(self) -> None:
        self._sums: dict[str, Float64Array] = {}
        self.samples = 0
        """Calls of :meth:`add` that began a new sample."""

    def add(
        self, gradients: Mapping[str, npt.NDArray[Any]], *, weight: float = 1.0, is_new: bool = True
    ) -> None:
        """Add the gradients of one example and one label.

        Args:
            gradients: By tensor name, each of its parameter's shape.
            weight: Probability of the label, for ``expected``; else 1.
            is_new: False for a further label of the same example.
        """
        for name, gradient in gradients.items():
            squares = np.square(np.asarray(gradient, np.float64)) * weight
            if name in self._sums:
                self._sums[name] += squares
            else:
                self._sums[name] = squares
        self.samples += is_new

    def means(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return the Fisher diagonal by tensor name, float32."""
        return {name: (total / max(self.samples, 1)).astype(np.float32) for name, total in self._sums.items()}


def fisher_tensors(
    files: Sequence[Samples], schema: Schema, *, samples: int | None = None, dtype: str = "F32"
) -> tuple[dict[str, Any], list[tuple[TensorSpec, Blocks]]]:
    """Return the header's ``n_samples`` and the tensors of a ``fisher_diag``, block by block.

    Args:
        files: Gradients: tensors named and shaped as the model's, or with one more axis of n examples; and
            perhaps :data:`WEIGHT`.
        schema: Of the model.
        samples: Divisor; as many as there are gradients unless given. Needed where an example has several.
        dtype: Element type of the artefact.

    Raises:
        ShapeMismatchError: A tensor is not of the model's shape.
        ArtefactInvalidError: There are no gradients of any tensor of the model.
    """
    model = [spec for spec in schema.specs if spec.dtype in FLOAT_DTYPES]
    held = [(spec, [file for file in files if spec.name in file]) for spec in model]
    found = [(spec, within) for spec, within in held if within]
    if not found:
        raise ArtefactInvalidError(
            "The files hold gradients of no tensor of the model.", hint="Name the tensors as the model does."
        )
    counts = {spec.name: sum(file[spec.name].count(spec.shape) for file in within) for spec, within in found}
    if samples is None and len(set(counts.values())) > 1:
        raise ArtefactInvalidError(
            f"The numbers of gradients differ by tensor: {min(counts.values())} to {max(counts.values())}.",
            hint="Say how many samples there are.",
        )
    divisor = samples or next(iter(counts.values()))
    if divisor < 1:
        raise ArtefactInvalidError("The files hold gradients of no example.")
    tensors = [
        (TensorSpec(name=spec.name, dtype=dtype, shape=spec.shape), _Squares(spec, within, divisor).blocks)
        for spec, within in found
    ]
    return {"n_samples": divisor}, tensors


class _Squares:
    """The mean of the squared gradients of one tensor."""

    def __init__(self, spec: TensorSpec, files: Sequence[Samples], divisor: int) -> None:
        self._spec = spec
        self._sources = [
            (file[spec.name], file[spec.name].count(spec.shape), _weights(file, file[spec.name], spec))
            for file in files
        ]
        self._divisor = divisor

    def blocks(self) -> Iterator[Float64Array]:
        """Yield the mean, block by block."""
        numel = self._spec.numel
        for start in range(0, numel, BLOCK_ELEMENTS):
            stop = min(start + BLOCK_ELEMENTS, numel)
            total = np.zeros(stop - start, np.float64)
            for source, count, weights in self._sources:
                for number in range(count):
                    values = source.read(number * numel + start, number * numel + stop)
                    values *= values
                    if weights is not None:
                        values *= weights[number]
                    total += values
            total /= self._divisor
            yield total


def _weights(file: Samples, gradients: SampleTensor, spec: TensorSpec) -> Float64Array | None:
    tensor = file.get(WEIGHT)
    if tensor is None or spec.name == WEIGHT:
        return None
    count = gradients.count(spec.shape)
    if tensor.numel != count:
        raise ShapeMismatchError(
            f"{tensor.path}: {tensor.numel} weights for {count} gradients of {spec.name}.",
            hint=f"Tensor `{WEIGHT}` has one number per gradient.",
        )
    weights = tensor.read(0, count)
    if (weights < 0).any():
        raise ArtefactInvalidError(f"{tensor.path}: weights of samples are not negative.")
    return weights
