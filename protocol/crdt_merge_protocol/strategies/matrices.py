"""What strategies share that see tensors as matrices.

A tensor of two axes or more is a matrix [first axis, all others]: of a kernel [out, in, h, w] the rows are
the outputs. Embeddings are tables and no linear maps, so they, vectors and scalars follow a *companion rule*:
usually the weighted mean of the differences from the base, element by element. So do matrices whose
differences leave the range of float64.

Matrices whose shorter side has at most ``EXACT_MAX`` elements are decomposed exactly to the bit; if one is
larger, LAPACK decomposes it and the merge is ``fp_tolerant``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final

import numpy as np

from crdt_merge_protocol.blobs import TensorSpec

from .averages import check_weights, shares, weight_warnings
from .contract import Block, Determinism, Float64Array, Granularity, MergeContext, Strategy
from .kernels import combine
from .linear_algebra import Svd, fits_exact, svd

_EMBEDDINGS: Final = ("embed", "lm_head")
"""Parts of the names of embeddings and of the output layers that may be tied to them."""
_NAMED_MAX: Final = 3
_REMEMBERED_BYTES_MAX: Final = 64 << 20
_remembered: Final[dict[bytes, tuple[Float64Array, ...]]] = {}
"""Factors found lately, by what was decomposed. Only time depends on what is in here."""
_EXACT_NS: Final = 40.0
"""Per m n min(m, n) of an exact decomposition: 5.7 s at 512."""
_LAPACK_NS: Final = 0.4
"""Of one by LAPACK: 0.3 s at 1,024."""


def matrix_shape(spec: TensorSpec) -> tuple[int, int] | None:
    """Return rows and columns of a tensor that is a linear map, None for what follows the companion rule."""
    if len(spec.shape) < 2 or spec.numel == 0 or is_embedding(spec.name):
        return None
    return spec.shape[0], math.prod(spec.shape[1:])


def is_embedding(name: str) -> bool:
    """Tell whether a tensor's name is that of an embedding or of an output layer."""
    return any(part in name.lower() for part in _EMBEDDINGS)


def as_matrix(context: MergeContext, tensor_index: int, values: Float64Array) -> Float64Array:
    """Return flat elements of a linear map in its shape."""
    shape = matrix_shape(context.specs[tensor_index])
    assert shape is not None
    return values.reshape(shape)


def is_exact(context: MergeContext, tensor_index: int) -> bool:
    """Tell whether a tensor is decomposed exactly to the bit."""
    shape = matrix_shape(context.specs[tensor_index])
    return shape is None or fits_exact(*shape)


def task_matrices(context: MergeContext, block: Block, origin: Float64Array | None) -> list[Float64Array]:
    """Return the difference of every contribution from ``origin``, as matrices."""
    with np.errstate(over="ignore"):
        flat = [values if origin is None else values - origin for values in block.inputs]
    return [as_matrix(context, block.tensor_index, values) for values in flat]


def are_finite(matrices: Sequence[Float64Array]) -> bool:
    """Tell whether all elements are; inputs are, their differences need not be."""
    return all(bool(np.isfinite(matrix).all()) for matrix in matrices)


def mean_change(context: MergeContext, block: Block, scale: float = 1.0) -> Float64Array:
    """Return base + scale * weighted mean of the differences: the companion rule."""
    return combine(block, [scale * float(share) for share in shares(context, block.tensor_index)])


def is_remembered(rows: int, columns: int) -> bool:
    """Tell whether the factors of a matrix take no more than a quarter of the room for them."""
    return 4 * 8 * (rows + columns + 1) * min(rows, columns or rows) <= _REMEMBERED_BYTES_MAX


def remembered_svd(matrix: Float64Array, *, is_exact: bool) -> Svd:
    """Return what ``svd`` does, at once if it was asked for the same lately: passes repeat decompositions."""
    if not is_remembered(*matrix.shape):
        return svd(matrix, is_exact=is_exact)

    def decompose() -> tuple[Float64Array, ...]:
        found = svd(matrix, is_exact=is_exact)
        return found.u, found.s, found.vt

    return Svd(*_remember(f"svd {is_exact}", matrix, decompose))


def remembered_directions(matrix: Float64Array) -> Float64Array:
    """Return the left singular vectors by LAPACK, at once if it was asked for the same lately."""
    if not is_remembered(matrix.shape[0], 0):
        return svd(matrix, is_exact=False).u
    return _remember("directions", matrix, lambda: (svd(matrix, is_exact=False).u,))[0]


def _remember(
    what: str, matrix: Float64Array, find: Callable[[], tuple[Float64Array, ...]]
) -> tuple[Float64Array, ...]:
    name = f"{what} {matrix.shape}".encode()
    key = hashlib.sha256(name + np.ascontiguousarray(matrix).tobytes()).digest()
    found = _remembered.get(key)
    if found is None:
        found = find()
        for factor in found:
            factor.flags.writeable = False
        _remembered[key] = found
        held = 0
        for old, kept in reversed(list(_remembered.items())):
            held += sum(factor.nbytes for factor in kept)
            if held > _REMEMBERED_BYTES_MAX:
                _remembered.pop(old, None)
    return found


def svd_nanoseconds(context: MergeContext, tensor_index: int, decompositions: float) -> float:
    """Return an estimate of so many decompositions of a tensor, beside one pass over it."""
    spec = context.specs[tensor_index]
    shape = matrix_shape(spec)
    passes = 2.0 * spec.numel * (context.k + 1)
    return passes if shape is None else passes + decompositions * decomposition_nanoseconds(shape)


def decomposition_nanoseconds(shape: tuple[int, int]) -> float:
    """Return an estimate of one decomposition of a matrix of this shape."""
    cost = _EXACT_NS if fits_exact(*shape) else _LAPACK_NS
    return cost * shape[0] * shape[1] * min(shape)


def sentence(names: Sequence[str], note: str) -> str:
    """Return a warning about some tensors."""
    more = f" and {len(names) - _NAMED_MAX} more" if len(names) > _NAMED_MAX else ""
    return f"{', '.join(names[:_NAMED_MAX])}{more}: {note}."


class MatrixStrategy(Strategy):
    """A strategy that needs whole matrices; everything else comes in blocks of elements."""

    determinism: ClassVar[Determinism] = "bitwise_small"

    def check(self, context: MergeContext) -> None:
        """Refuse as every strategy, and offline weights that vanish in a tensor."""
        super().check(context)
        if self.divides_by_weights(context):
            check_weights(context)

    def determinism_in(self, context: MergeContext) -> Determinism:
        """Return ``bitwise`` if every matrix is small enough to be decomposed exactly."""
        is_small = all(is_exact(context, index) for index in range(len(context.specs)))
        return "bitwise" if is_small else "fp_tolerant"

    def granularity(self, context: MergeContext, tensor_index: int) -> Granularity:
        """Return whole tensors for matrices, elements for the rest."""
        return "elements" if matrix_shape(context.specs[tensor_index]) is None else "tensor"

    def scratch_bytes(self, context: MergeContext, tensor_index: int) -> int:
        """Return the differences, the factors of one decomposition and the slices of its products."""
        spec = context.specs[tensor_index]
        shape = matrix_shape(spec)
        if shape is None:
            return 0
        small = min(shape)
        return 8 * (spec.numel * (context.k + 12) + 12 * small * small)

    def warnings(self, context: MergeContext, state: Any) -> list[str]:  # noqa: ARG002 - a default.
        """Say where the weights could not be used."""
        return weight_warnings(context) if self.divides_by_weights(context) else []
