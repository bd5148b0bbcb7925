"""Gram matrices of the inputs of linear layers: G = sum over tokens of x x^T / number of tokens.

One layer is in memory at a time, d^2 numbers for an input of d features, and a few thousand tokens of it.
Rounding may differ from host to host (matrix products are left to BLAS): the artefact is one contributor's
own file, and everybody else uses its bytes.

Source: Jin et al., arXiv:2212.09849, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from crdt_merge_protocol.blobs import Schema, TensorSpec
from crdt_merge_protocol.errors import ArtefactInvalidError, ShapeMismatchError
from crdt_merge_protocol.strategies.artefact_fields import input_axis

from .files import Blocks
from .samples import Float64Array, Samples, SampleTensor

TOKENS_AT_ONCE: Final = 4_096


class GramSum:
    """Sum of outer products of one layer's inputs, for a training loop of one's own."""

    def __init__(self, features: int) -> None:
        self._sum = np.zeros((features, features), np.float64)
        self.tokens = 0
        """Inputs seen."""

    def add(self, inputs: npt.NDArray[Any]) -> None:
        """Add a batch of inputs, ``(..., d)``.

        Raises:
            ShapeMismatchError: The last axis is not d.
        """
        if not inputs.shape or inputs.shape[-1] != self._sum.shape[0]:
            raise ShapeMismatchError(
                f"Inputs of shape {list(inputs.shape)} do not have {self._sum.shape[0]} features."
            )
        rows = np.asarray(inputs, np.float64).reshape(-1, inputs.shape[-1])
        self._sum += rows.T @ rows
        self.tokens += rows.shape[0]

    def triangle(self) -> Iterator[Float64Array]:
        """Yield the lower triangle of the mean, row by row."""
        for row in range(self._sum.shape[0]):
            yield self._sum[row, : row + 1] / max(self.tokens, 1)


def packed(matrix: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return the lower triangle of a symmetric matrix, row by row, ``(d (d + 1) / 2,)`` float32."""
    return np.asarray(matrix, np.float32)[np.tril_indices(matrix.shape[0])]


def gram_tensors(
    files: Sequence[Samples],
    schema: Schema,
    *,
    inputs: Mapping[str, str] | None = None,
    transposed: Sequence[str] = (),
    dtype: str = "F32",
) -> tuple[dict[str, Any], list[tuple[TensorSpec, Blocks]]]:
    """Return the header's fields and the tensors of a ``gram``, row by row.

    Args:
        files: Activations: tensors of shape (..., d) of floating point numbers.
        schema: Of the model.
        inputs: Name of the activations by weight tensor; activations not named there are of the weight of
            the same name. Weights that share activations share a matrix.
        transposed: Weight tensors stored as [in, out].
        dtype: Element type of the artefact.

    Raises:
        ShapeMismatchError: Activations do not have a layer's number of features.
        ArtefactInvalidError: No activations of any weight, or different numbers of tokens.
    """
    held = {name for file in files for name in file}
    weights = {spec.name: spec for spec in schema.specs if len(spec.shape) >= 2}
    chosen = {name: name for name in weights if name in held} | dict(inputs or {})
    for weight, name in chosen.items():
        if weight not in weights or name not in held:
            what = f"weight {weight!r} of the model" if weight not in weights else f"activations {name!r}"
            raise ArtefactInvalidError(f"There are no {what}.", hint="Weights have two axes or more.")
    if not chosen:
        raise ArtefactInvalidError(
            "The files hold activations of no weight of the model.",
            hint="Name each as the weight that it is the input of, or say which it belongs to.",
        )
    sides = {name: _features(weights[weight], transposed) for weight, name in chosen.items()}
    sources = {name: [file[name] for file in files if name in file] for name in sides}
    tokens = {name: sum(_tokens(source, side) for source in sources[name]) for name, side in sides.items()}
    if len(set(tokens.values())) > 1 or not min(tokens.values()):
        raise ArtefactInvalidError(
            f"The numbers of tokens differ by layer, or there are none: "
            f"{min(tokens.values())} to {max(tokens.values())}.",
            hint="Record the inputs of all layers in the same runs.",
        )
    header: dict[str, Any] = {"n_tokens": next(iter(tokens.values())), "inputs": chosen}
    if transposed:
        header["transposed"] = sorted(transposed)
    specs = {
        name: TensorSpec(name=name, dtype=dtype, shape=(side * (side + 1) // 2,))
        for name, side in sides.items()
    }
    return header, [(specs[name], _Triangle(sources[name], sides[name]).blocks) for name in sorted(sides)]


class _Triangle:
    """The packed Gram matrix of one layer."""

    def __init__(self, sources: Sequence[SampleTensor], features: int) -> None:
        self._sources = sources
        self._features = features

    def blocks(self) -> Iterator[Float64Array]:
        """Yield the lower triangle, row by row."""
        total = GramSum(self._features)
        for source in self._sources:
            count = _tokens(source, self._features)
            for first in range(0, count, TOKENS_AT_ONCE):
                last = min(first + TOKENS_AT_ONCE, count)
                rows = source.read(first * self._features, last * self._features)
                total.add(rows.reshape(-1, self._features))
        return total.triangle()


def _features(spec: TensorSpec, transposed: Sequence[str]) -> int:
    return spec.shape[0] if input_axis(spec, transposed) == 0 else math.prod(spec.shape[1:])


def _tokens(source: SampleTensor, features: int) -> int:
    if not source.shape or source.shape[-1] != features:
        raise ShapeMismatchError(
            f"{source.path}: activations have shape {list(source.shape)}, the layer has {features} inputs."
        )
    return math.prod(source.shape[:-1])
