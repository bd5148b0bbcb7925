"""SafeMERGE: where fine-tuning left the subspace of safety alignment, mix in a safety-tuned model.

What alignment changed, V = aligned - unaligned, spans a subspace of every matrix. If the change that
fine-tuning made lies mostly in it the layer counts as safe and stays; else the change of a safety-tuned model
is mixed in. Vectors and embeddings are not tested and stay as fine-tuned.

The test is a cosine of matrix products. They are made by exact slices at any size, half the digits of a
float64 being far more than the five decimals that the published code compares, so that everybody decides
alike.

Source: STRATEGIES 2.22. Our extensions: several models of one role are averaged, by weight; deltas are mixed
as wholes, not LoRA factor by LoRA factor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Final

import numpy as np

from .averages import weight_parameter
from .contract import BaseUse, Block, Determinism, Float64Array, Key, MergeContext
from .delegation import fallback_parameter
from .dependence import Dependence, depends
from .linear_algebra import exact_matmul
from .linear_algebra.gemm import HALF, exact_outer
from .linear_algebra.sums import exponent_of
from .matrices import MatrixStrategy, are_finite, matrix_shape, sentence
from .parameters import Parameter
from .randomness import keep_mask, stream_key
from .reductions import add_leaves, leaf_products
from .roles import ByRole, role_of

_NEEDED: Final = ("aligned", "unaligned", "safety", "finetuned")
_DECIMALS: Final = 5
"""As the authors round the cosine before they compare it."""
_EXACT_NS: Final = 0.25
"""Per multiplication of a product of half the digits: 0.03 s at 512."""
_NO_DIFFERENCE: Final = (
    "aligned and unaligned do not differ there, so nothing was tested and nothing mixed in"
)


class SafeMerge(ByRole, MatrixStrategy):
    """A fine-tuned model with safety mixed in, in the layers where it left the aligned subspace."""

    id = "safe_merge"
    title = "SafeMERGE"
    paper = "Djuhera et al., SafeMERGE, ICLR 2025 workshop, arXiv:2503.17239; subspace: arXiv:2405.16833"
    doc = (
        "Tests, layer by layer, whether fine-tuning stayed in the subspace of safety alignment, and mixes in "
        "a safety-tuned model where it did not. Needs models of four roles: aligned, unaligned, safety, "
        "finetuned."
    )
    formula = (
        "V = aligned - unaligned;  D_f = finetuned - B, D_s = safety - B\n"
        "rho = cos(V V^T D_f, D_f), rounded to 5 decimals\n"
        "out = B + D_f, or B + w_f D_f + w_s D_s where rho < threshold"
    )
    base: ClassVar[BaseUse] = "required"
    determinism: ClassVar[Determinism] = "bitwise"
    roles = _NEEDED
    parameters = (
        Parameter(
            name="threshold", type="decimal", default="0.35", low="-1", high="1", per=frozenset({"tensor"}),
            doc="Layers whose cosine is smaller are mixed.",
        ),
        Parameter(
            name="weight_finetuned", type="decimal", default="0.8", low="-3", high="3",
            doc="Share of the fine-tuned change in mixed layers.",
        ),
        Parameter(
            name="weight_safety", type="decimal", default="0.2", low="-3", high="3",
            doc="Share of the safety-tuned change in mixed layers.",
        ),
        Parameter(
            name="combine", type="choice", default="linear", choices=("linear", "dare_linear"),
            doc="dare_linear: drop changes at random in mixed layers and scale up the rest.",
        ),
        Parameter(
            name="density", type="decimal", default="0.5", low="0.01", high="1",
            doc="Share of the changes that dare_linear keeps.",
        ),
        Parameter(name="seed_salt", type="text", default="", doc="Any text: another one gives other masks."),
        weight_parameter(),
        fallback_parameter(),
    )  # fmt: skip

    def unmet(self, context: MergeContext) -> str | None:
        """Return which role nobody has."""
        reason = super().unmet(context)
        if reason is not None:
            return reason
        roles = [role_of(context, i) for i in range(context.k) if context.weights[i]]
        lacking = [role for role in _NEEDED if role not in roles]
        return f"{self.id}: no contribution has the role {' or '.join(lacking)}" if lacking else None

    def determinism_in(self, context: MergeContext) -> Determinism:  # noqa: ARG002
        """Return ``bitwise``: nothing is decomposed."""
        return "bitwise"

    def divides_by_weights(self, context: MergeContext) -> bool:  # noqa: ARG002
        """Tell that weights count within a role; one whose weights are all zero counts evenly."""
        return False

    def scratch_bytes(self, context: MergeContext, tensor_index: int) -> int:
        """Return the differences, the square of the shorter side and slices."""
        shape = matrix_shape(context.specs[tensor_index])
        if shape is None:
            return 0
        return 8 * (8 * shape[0] * shape[1] + 4 * min(shape) ** 2)

    def nanoseconds(self, context: MergeContext, tensor_index: int) -> float:
        """Return an estimate: two products per matrix."""
        spec = context.specs[tensor_index]
        shape = matrix_shape(spec)
        products = 0.0 if shape is None else 2.0 * _EXACT_NS * spec.numel * min(shape)
        return 3.0 * spec.numel * context.k + products

    def pass_count(self, context: MergeContext) -> int:  # noqa: ARG002
        """Return the one that tests."""
        return 1

    def needs(self, context: MergeContext, state: Any, pass_no: int, tensor_index: int) -> bool:  # noqa: ARG002
        """Tell whether a tensor is a matrix."""
        return matrix_shape(context.specs[tensor_index]) is not None

    def observe(self, context: MergeContext, state: Any, pass_no: int, block: Block) -> float | None:  # noqa: ARG002
        """Return the cosine of a matrix, NaN if there is none."""
        shape = matrix_shape(context.specs[block.tensor_index])
        if shape is None:
            return None
        assert block.base is not None
        with np.errstate(over="ignore", invalid="ignore"):
            aligned, unaligned = (_mean_of(context, block, role) for role in ("aligned", "unaligned"))
            span = (aligned - unaligned).reshape(shape)
            change = (_mean_of(context, block, "finetuned") - block.base).reshape(shape)
        return projected_cosine(span, change) if are_finite([span, change]) else math.nan

    def end_pass(
        self,
        context: MergeContext,  # noqa: ARG002
        state: Any,  # noqa: ARG002
        pass_no: int,  # noqa: ARG002
        partials: Sequence[tuple[Key, Any]],
    ) -> dict[int, float]:
        """Return the rounded cosine of every matrix."""
        return {index: round(rho, _DECIMALS) for (index, _), rho in partials if rho is not None}

    def dependence(self, context: MergeContext, tensor_index: int) -> Dependence | None:
        """Return what decides a tensor: that of the models in the roles."""
        is_drawn = context.params["combine"] == "dare_linear" and context.number("density") != 1
        return depends(self, context, tensor_index, reads=self.taken(context), is_drawn=is_drawn)

    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:
        """Return the fine-tuned model, or the mixture."""
        assert block.base is not None
        if not _is_mixed(context, state, block.tensor_index):
            return _mean_of(context, block, "finetuned")
        total = block.base.copy()
        for role in ("finetuned", "safety"):
            scale = context.number(f"weight_{role}")
            for i, share in _shares(context, block.tensor_index, role):
                total += float(scale * share) * self._change(context, block, i)
        return total

    def decisions(self, context: MergeContext, state: Any) -> dict[str, Any]:
        """Return the cosine of every matrix and whether safety was mixed in as well."""
        layers = {
            context.specs[index].name: {
                "rho": None if math.isnan(rho) else rho,
                "merged": _is_mixed(context, state, index),
            }
            for index, rho in sorted(state.items())
        }
        return {**super().decisions(context, state), "layers": layers}

    def warnings(self, context: MergeContext, state: Any) -> list[str]:
        """Name the matrices in which there was nothing to test."""
        names = [context.specs[index].name for index, rho in sorted(state.items()) if math.isnan(rho)]
        return super().warnings(context, state) + ([sentence(names, _NO_DIFFERENCE)] if names else [])

    def _change(self, context: MergeContext, block: Block, i: int) -> Float64Array:
        """Return what a contribution changed, with ``dare_linear`` thinned out."""
        assert block.base is not None
        change: Float64Array = block.inputs[i] - block.base
        density = context.number("density")
        if context.params["combine"] != "dare_linear" or density == 1:
            return change
        name, salt = context.specs[block.tensor_index].name, context.params["seed_salt"]
        key = stream_key(context.seed, self.id, name, context.digests[i], f"mask/{salt}" if salt else "mask")
        change *= keep_mask(key, block.start, block.stop - block.start, density)
        change *= float(1 / density)
        return change


def projected_cosine(span: Float64Array, change: Float64Array) -> float:
    """Return the cosine between ``span span^T change`` and ``change``; NaN if either factor is zero.

    Args:
        span: ``(m, n)`` float64, finite.
        change: ``(m, n)`` float64, finite.

    Source: Hsu et al., Safe LoRA, NeurIPS 2024, arXiv:2405.16833, whose 1 / |span| cancels out.
    """
    span, change = (np.ldexp(matrix, -exponent_of(matrix)) for matrix in (span, change))
    if not span.any() or not change.any():
        return math.nan if not span.any() else 1.0
    if span.shape[0] <= span.shape[1]:
        square = exact_outer(span, HALF)
        projected = exact_matmul(square, change, HALF)
    else:
        projected = exact_matmul(span, exact_matmul(span.T, change, HALF), HALF)
    along = _inner_product(projected, change)
    lengths = math.sqrt(_inner_product(projected, projected)) * math.sqrt(_inner_product(change, change))
    return along / lengths if lengths > 0.0 else 0.0


def _inner_product(first: Float64Array, second: Float64Array) -> float:
    return add_leaves(leaf_products(first.reshape(-1), second.reshape(-1)))


def _shares(context: MergeContext, tensor_index: int, role: str) -> list[tuple[int, Any]]:
    """Return the contributions of a role, each with its share of their weights, exact."""
    members = [i for i in range(context.k) if role_of(context, i) == role and context.weights[i]]
    weights = context.weights_in(tensor_index)
    if not any(weights[i] for i in members):
        weights = context.weights
    total = sum(weights[i] for i in members)
    return [(i, weights[i] / total) for i in members]


def _mean_of(context: MergeContext, block: Block, role: str) -> Float64Array:
    """Return the weighted mean of the models of a role, a new array."""
    assert block.base is not None
    parts = _shares(context, block.tensor_index, role)
    if len(parts) == 1:
        return block.inputs[parts[0][0]].copy()
    total = np.zeros(block.stop - block.start, np.float64)
    for i, share in parts:
        total += float(share) * (block.inputs[i] - block.base)
    total += block.base
    return total


def _is_mixed(context: MergeContext, state: Any, tensor_index: int) -> bool:
    """Tell whether a matrix failed the test. One without a cosine stays as it is."""
    rho = (state or {}).get(tensor_index, math.nan)
    return bool(rho < float(context.number("threshold", tensor_index)))


SAFE_MERGE_STRATEGIES: Final = (SafeMerge(),)
