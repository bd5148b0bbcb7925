"""AdaRank: add task vectors of which only learnt singular components are kept; and its start, untrained.

Which components of which task vector help is learnt on unlabelled inputs; the masks and coefficients come as
an artefact and are applied here. Singular vectors are never shipped: everybody decomposes anew, and a mask
counts singular values in descending order. A mask that keeps one of two values which are as good as equal
therefore means nothing: a pass looks for such and the merge warns, or refuses offline.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, ClassVar, Final

import numpy as np

from crdt_merge_protocol.errors import ArtefactInvalidError

from .artefact_fields import decimal_of, row_of
from .artefacts import Artefact, ArtefactNeed
from .averages import weight_parameter
from .contract import BaseUse, Block, Determinism, Float64Array, Granularity, Key, MergeContext, Wanted
from .delegation import fallback_parameter
from .dependence import Dependence, depends
from .linear_algebra import fits_exact, singular_values
from .matrices import (
    MatrixStrategy,
    are_finite,
    decomposition_nanoseconds,
    is_exact,
    matrix_shape,
    remembered_svd,
    sentence,
    svd_nanoseconds,
)
from .parameters import Parameter
from .set_bound import SetBound, artefact_parameter
from .star import multiply
from .task_vectors import LAMBDA

RANK_MASKS: Final = "rank_masks"
CART: Final = "cart"
_AUTO: Final = "auto"
_SPLIT: Final = (
    "degenerate_spectrum: a mask keeps one of two singular values that are as good as equal, so what it "
    "keeps is arbitrary"
)


class AdaRank(SetBound, MatrixStrategy):
    """The base, or the mean, plus task vectors with the singular components that masks keep."""

    id = "adarank"
    title = "AdaRank"
    paper = "Lee et al., AdaRank: Adaptive Rank Pruning, ICLR 2026, arXiv:2503.22178"
    doc = (
        "Adds the differences from the base, each cut to singular components learnt on unlabelled inputs. "
        "There is no version without data: a fixed cut is svd_truncated_ta. Weights do not enter."
    )
    formula = (
        "X_i - O = U_i diag(s_i) V_i^T;  O = B, or mean(X_i) for masks of origin cart\n"
        "out = O + sum_i lambda_i U_i diag(mask_i s_i) V_i^T;  without masks: O + sum_i lambda_i (X_i - O)"
    )
    base: ClassVar[BaseUse] = "required"
    determinism: ClassVar[Determinism] = "bitwise_small"
    artefacts = (ArtefactNeed(RANK_MASKS),)
    parameters = (
        Parameter(
            name="gap_tol", type="decimal", default="0.000000001", low="0", high="0.1",
            doc="Singular values nearer than this share of the largest must not be told apart by a mask.",
        ),
        artefact_parameter(),
        fallback_parameter(),
    )  # fmt: skip

    def divides_by_weights(self, context: MergeContext) -> bool:  # noqa: ARG002
        """Tell that weights do not enter."""
        return False

    def misfit(self, context: MergeContext, artefact: Artefact) -> str | None:
        """Return which tensor has no coefficients."""
        rows = artefact.header["rows"]
        lacking = [spec.name for spec in context.specs if row_of(rows, spec.name) is None]
        return f"the masks have no row for tensor {lacking[0]}" if lacking else None

    def determinism_in(self, context: MergeContext) -> Determinism:
        """Return ``bitwise`` if every masked matrix is small enough to be decomposed exactly."""
        return "bitwise" if all(map(fits_exact, *self._sides(context))) else "fp_tolerant"

    def granularity(self, context: MergeContext, tensor_index: int) -> Granularity:
        """Return whole tensors where there are masks, elements for the rest."""
        return "tensor" if self.wants(context, tensor_index) else "elements"

    def wants(self, context: MergeContext, tensor_index: int) -> tuple[Wanted, ...]:
        """Return the masks of a tensor, one per contribution, or none."""
        position, spec = self.position(context), context.specs[tensor_index]
        assert position is not None
        if len(spec.shape) < 2 or spec.numel == 0:
            return ()
        names = [f"{i}/{spec.name}" for i in range(context.k)]
        if any(context.artefacts[position].spec(name) is None for name in names):
            return ()
        return tuple(Wanted(position, name, False) for name in names)

    def nanoseconds(self, context: MergeContext, tensor_index: int) -> float:
        """Return an estimate: a decomposition per contribution, and its values once before."""
        spec = context.specs[tensor_index]
        if self.position(context) is None:
            shape = matrix_shape(spec)  # Of a merge without artefacts, as `strategy explain` has it.
        else:
            shape = self._masked_shape(context, tensor_index)
        passes = 2.0 * spec.numel * (context.k + 1)
        if shape is None:
            return passes
        share = 2.0 if fits_exact(*shape) else 1.3
        return passes + share * context.k * decomposition_nanoseconds(shape)

    def pass_count(self, context: MergeContext) -> int:
        """Return the pass that looks for masks between equal singular values."""
        return 1 if any(self.wants(context, index) for index in range(len(context.specs))) else 0

    def needs(self, context: MergeContext, state: Any, pass_no: int, tensor_index: int) -> bool:  # noqa: ARG002
        """Tell whether a tensor has masks."""
        return bool(self.wants(context, tensor_index))

    def observe(self, context: MergeContext, state: Any, pass_no: int, block: Block) -> bool | None:  # noqa: ARG002
        """Return whether a mask of a matrix keeps one of two equal singular values."""
        if not block.artefacts:
            return None
        _, deltas = self._deltas(context, block)
        tolerance = float(context.number("gap_tol"))
        small = fits_exact(*deltas[0].shape)
        return any(
            _is_split(_values(delta, small), mask, tolerance)
            for delta, mask in zip(deltas, block.artefacts, strict=True)
            if are_finite([delta])
        )

    def end_pass(
        self,
        context: MergeContext,
        state: Any,  # noqa: ARG002
        pass_no: int,  # noqa: ARG002
        partials: Sequence[tuple[Key, Any]],
    ) -> tuple[int, ...]:
        """Return the tensors whose masks mean nothing.

        Raises:
            ArtefactInvalidError: There are some, offline.
        """
        found = tuple(index for (index, _), is_split in partials if is_split)
        if found and context.is_strict:
            raise ArtefactInvalidError(
                sentence([context.specs[index].name for index in found], _SPLIT),
                hint="Train the masks again, or allow more with gap_tol.",
            )
        return found

    def dependence(self, context: MergeContext, tensor_index: int) -> Dependence | None:
        """Return what decides a tensor: that tensor alone, where it is decomposed exactly."""
        shape = self._masked_shape(context, tensor_index)
        return depends(self, context, tensor_index, is_bitwise=shape is None or fits_exact(*shape))

    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:  # noqa: ARG002
        """Return the origin plus the masked and scaled differences."""
        origin, deltas = self._deltas(context, block)
        lambdas = self._lambdas(context, block.tensor_index)
        total = np.zeros(deltas[0].shape, np.float64)
        for i, delta in enumerate(deltas):
            if block.artefacts and are_finite([delta]):
                total += lambdas[i] * _keep(delta, np.flatnonzero(block.artefacts[i]))
            else:
                total += lambdas[i] * delta
        out: Float64Array = total.reshape(-1) + origin
        return out

    def decisions(self, context: MergeContext, state: Any) -> dict[str, Any]:
        """Return the origin as well."""
        return {**super().decisions(context, state), "origin": self.header(context)["origin"]}

    def warnings(self, context: MergeContext, state: Any) -> list[str]:
        """Name the tensors whose masks mean nothing."""
        names = [context.specs[index].name for index in state or ()]
        return super().warnings(context, state) + ([sentence(names, _SPLIT)] if names else [])

    def _deltas(self, context: MergeContext, block: Block) -> tuple[Float64Array, list[Float64Array]]:
        """Return the origin, flat, and the differences from it: matrices if there are masks."""
        assert block.base is not None
        is_cart = self.header(context)["origin"] == CART
        origin = _mean(block.inputs, [1.0 / context.k] * context.k) if is_cart else block.base
        return origin, _differences(context, block, origin, bool(block.artefacts))

    def _lambdas(self, context: MergeContext, tensor_index: int) -> list[float]:
        row = row_of(self.header(context)["rows"], context.specs[tensor_index].name)
        assert row is not None
        return [float(decimal_of(text) or 0) for text in row["lambda"]]

    def _masked_shape(self, context: MergeContext, tensor_index: int) -> tuple[int, int] | None:
        """Return rows and columns of a tensor that has masks, which embeddings may have, too."""
        spec = context.specs[tensor_index]
        return (spec.shape[0], spec.numel // spec.shape[0]) if self.wants(context, tensor_index) else None

    def _sides(self, context: MergeContext) -> tuple[list[int], list[int]]:
        shapes = (self._masked_shape(context, index) for index in range(len(context.specs)))
        masked = [shape for shape in shapes if shape is not None]
        return [rows for rows, _ in masked], [columns for _, columns in masked]


class SvdTruncatedTa(MatrixStrategy):
    """Task arithmetic on task vectors cut to a fixed share of their singular directions."""

    id = "svd_truncated_ta"
    title = "truncated task arithmetic"
    paper = "The starting point of Lee et al., AdaRank, ICLR 2026, arXiv:2503.22178"
    doc = (
        "Adds the differences from the base, each cut to the same share of its leading singular directions. "
        "Vectors and embeddings are added whole."
    )
    formula = "out = O + lambda sum_i w_i (U S V^T of X_i - O, first r of p);  r = max(1, floor(ratio p))"
    base: ClassVar[BaseUse] = "required"
    is_extra = True
    parameters = (
        Parameter(
            name="ratio", type="decimal", default=_AUTO, low="0", high="1", choices=(_AUTO,),
            per=frozenset({"tensor", "contribution"}),
            doc="Share of the singular directions that is kept; auto is 1 / number of models.",
        ),
        Parameter(
            name="origin", type="choice", default="base", choices=("base", CART),
            doc="What differences are taken from: the base, or the weighted mean of the models.",
        ),
        Parameter(
            name=LAMBDA, type="decimal", default="1.0", low="-3", high="3", per=frozenset({"tensor"}),
            doc="Scale of the result.",
        ),
        weight_parameter(),
    )  # fmt: skip

    def divides_by_weights(self, context: MergeContext) -> bool:
        """Tell whether a mean is taken."""
        return context.params["origin"] == CART

    def nanoseconds(self, context: MergeContext, tensor_index: int) -> float:
        """Return an estimate: a decomposition per contribution."""
        return svd_nanoseconds(context, tensor_index, context.k)

    def dependence(self, context: MergeContext, tensor_index: int) -> Dependence | None:
        """Return what decides a tensor: that tensor alone, where it is decomposed exactly."""
        return depends(self, context, tensor_index, is_bitwise=is_exact(context, tensor_index))

    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:  # noqa: ARG002
        """Return the origin plus the truncated and scaled differences."""
        assert block.base is not None
        index = block.tensor_index
        shape = matrix_shape(context.specs[index])
        origin = block.base
        if context.params["origin"] == CART:
            weights = context.weights_in(index) if any(context.weights_in(index)) else context.weights
            origin = _mean(block.inputs, [float(w / sum(weights)) for w in weights])
        total = np.zeros(block.stop - block.start, np.float64)
        for i, whole in enumerate(_differences(context, block, origin, shape is not None)):
            coefficient = float(context.number(LAMBDA, index) * context.weights_in(index)[i])
            if coefficient:
                rank = _kept(context, index, i)
                is_whole = rank is None or not are_finite([whole])
                kept = whole if is_whole else _keep(whole, np.arange(rank or 0))
                total += coefficient * kept.reshape(-1)
        total += origin
        return total


def _mean(inputs: Sequence[Float64Array], shares: Sequence[float]) -> Float64Array:
    total = np.zeros(inputs[0].size, np.float64)
    for values, share in zip(inputs, shares, strict=True):
        total += share * values
    return total


def _differences(
    context: MergeContext, block: Block, origin: Float64Array, are_matrices: bool
) -> list[Float64Array]:
    with np.errstate(over="ignore"):
        flat = [values - origin for values in block.inputs]
    if not are_matrices:
        return flat
    rows = context.specs[block.tensor_index].shape[0]
    return [values.reshape(rows, -1) for values in flat]


def _kept(context: MergeContext, tensor_index: int, contribution: int) -> int | None:
    """Return how many directions stay; None if the tensor is no matrix or keeps all."""
    shape = matrix_shape(context.specs[tensor_index])
    if shape is None:
        return None
    value = context.value("ratio", tensor_index, contribution)
    ratio = value if isinstance(value, Fraction) else Fraction(1, context.k)
    if ratio >= 1:
        return None
    return max(1, int(ratio * min(shape))) if ratio else 0


def _keep(delta: Float64Array, kept: np.ndarray) -> Float64Array:
    """Return a matrix with only some of its singular components, by position in descending order."""
    small = fits_exact(*delta.shape)
    if kept.size == 0:
        return np.zeros_like(delta)
    found = remembered_svd(delta, is_exact=small)
    return multiply(found.u[:, kept] * found.s[kept], found.vt[kept], small)


def _values(delta: Float64Array, is_small: bool) -> Float64Array:
    if is_small:
        return remembered_svd(delta, is_exact=True).s
    return singular_values(delta, is_exact=False)


def _is_split(values: Float64Array, mask: Float64Array, tolerance: float) -> bool:
    """Tell whether a mask changes between two values as good as equal, and not as good as zero."""
    least = tolerance * float(values[0])
    changes = mask[1:] != mask[:-1]
    close = (values[:-1] - values[1:] <= least) & (values[:-1] > least)
    return bool((changes & close).any())


ADARANK_STRATEGIES: Final = (AdaRank(),)
SVD_TRUNCATED_STRATEGIES: Final = (SvdTruncatedTa(),)
