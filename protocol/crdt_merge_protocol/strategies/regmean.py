"""RegMean: the linear layer that is nearest to every model's on that model's own inputs.

For each linear layer the merged matrix minimises the sum of the squared differences between its outputs and
each model's on the inputs that model saw. Only the Gram matrix of those inputs is needed, which every
contributor computes. It can tell of the data; whoever publishes one should know.

Everything that is no linear layer with a Gram matrix of every contribution is averaged. A ridge pulls towards
the average, so that directions no input ever took are averaged too; where a system is still not positive
definite the ridge grows tenfold until it is, which a pass finds out and the manifest says.

Source: STRATEGIES 2.20. Differs from the authors' code: contributions are normalised per token, so that size
does not dominate, and the ridge is not zero by default.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from .artefact_fields import triangle_of
from .artefacts import ArtefactNeed
from .averages import shares, weight_parameter
from .contract import BaseUse, Block, Determinism, Float64Array, Granularity, Key, MergeContext, Wanted
from .delegation import fallback_parameter
from .dependence import Dependence, depends
from .linear_algebra import NotPositiveError, cholesky, solve_positive
from .linear_algebra.sums import exponent_of
from .matrices import MatrixStrategy, matrix_shape, mean_change
from .parameters import Parameter
from .reductions import tree_sum
from .star import multiply

GRAM: Final = "gram"
EXACT_SIDE_MAX: Final = 1024
"""Largest number of inputs of a layer whose system is solved exactly to the bit: a second there."""
_EXACT_NS: Final = 0.3
_LAPACK_NS: Final = 0.1
"""Per n^2 (n + right-hand sides) of a solve: 0.6 and 0.13 s at 1,024."""
_LEAST_RIDGE: Final = 1e-12
_LEAST_PIVOT: Final = 2.0**-500
"""Smaller ones come near to where products underflow."""
_GROWTH: Final = 10.0
"""Each further attempt at a singular system has a ridge so much larger."""


class RegMean(MatrixStrategy):
    """Linear layers merged by regression on the inputs of every model, the rest averaged."""

    id = "regmean"
    title = "RegMean"
    paper = "Jin et al., Dataless Knowledge Fusion, ICLR 2023, arXiv:2212.09849"
    doc = (
        "Merges linear layers so that their outputs stay near each model's on that model's inputs, of which "
        "every contributor computes a Gram matrix; averages the rest. There is no version without data: "
        "equal Gram matrices give weight_average."
    )
    formula = (
        "G'_i = a G_i + (1 - a) diag(G_i);  r = ridge * mean(diag(sum_i w_i G'_i))\n"
        "(sum_i w_i G'_i + r) W^T = sum_i w_i G'_i W_i^T + r mean(W_i)^T"
    )
    base: ClassVar[BaseUse] = "unused"
    artefacts = (ArtefactNeed(GRAM),)
    parameters = (
        Parameter(
            name="a", type="decimal", default="0.9", low="0", high="1", per=frozenset({"tensor"}),
            doc="What is kept of the elements off the diagonal; 0 is a weighted mean of every column.",
        ),
        Parameter(
            name="gram_norm", type="choice", default="per_token", choices=("per_token", "trace", "none"),
            doc="What the scale of each Gram matrix is taken out by; none counts every token.",
        ),
        Parameter(
            name="ridge", type="decimal", default="0.00000001", low="0", high="1000",
            doc="Pull towards the average, relative to the mean of the diagonal.",
        ),
        weight_parameter(),
        fallback_parameter(),
    )  # fmt: skip

    def determinism_in(self, context: MergeContext) -> Determinism:
        """Return ``bitwise`` if every system is small enough, or there is none because a is 0."""
        sides = (self._side(context, i) for i in range(len(context.specs)) if self._is_solved(context, i))
        return "bitwise" if all(side <= EXACT_SIDE_MAX for side in sides) else "fp_tolerant"

    def granularity(self, context: MergeContext, tensor_index: int) -> Granularity:
        """Return whole tensors for linear layers, elements for the rest."""
        return "tensor" if self.wants(context, tensor_index) else "elements"

    def wants(self, context: MergeContext, tensor_index: int) -> tuple[Wanted, ...]:
        """Return the triangles of a linear layer, one per contribution with a say, if all have one.

        None either if they do not agree on which axis the inputs are: then no regression is meant by all, and
        whoever disagrees must not turn the layer for the others.
        """
        spec = context.specs[tensor_index]
        if matrix_shape(spec) is None:
            return ()
        found, axes = [], set()
        for i in self._voters(context, tensor_index):
            position = context.artefact(GRAM, i)
            triangle = None if position is None else triangle_of(context.artefacts[position], spec.name)
            if position is None or triangle is None:
                return ()
            found.append(Wanted(position, triangle.name, False))
            axes.add(spec.name in context.artefacts[position].header.get("transposed", ()))
        return tuple(found) if len(found) > 1 and len(axes) == 1 else ()

    def scratch_bytes(self, context: MergeContext, tensor_index: int) -> int:
        """Return two systems, right-hand sides and slices."""
        side = self._side(context, tensor_index)
        return 8 * (8 * side * side + 10 * context.specs[tensor_index].numel)

    def nanoseconds(self, context: MergeContext, tensor_index: int) -> float:
        """Return an estimate: one product per contribution and one solve."""
        spec = context.specs[tensor_index]
        if not self._is_solved(context, tensor_index):
            return super().nanoseconds(context, tensor_index)
        side = self._side(context, tensor_index)
        cost = _EXACT_NS if side <= EXACT_SIDE_MAX else _LAPACK_NS
        return cost * side * (side * side + spec.numel * (1 + 0.5 * context.k))

    def pass_count(self, context: MergeContext) -> int:
        """Return the pass that finds the ridges, if a system is to be solved."""
        return 1 if any(self._is_solved(context, i) for i in range(len(context.specs))) else 0

    def needs(self, context: MergeContext, state: Any, pass_no: int, tensor_index: int) -> bool:  # noqa: ARG002
        """Tell whether a system is to be solved."""
        return self._is_solved(context, tensor_index)

    def observe(self, context: MergeContext, state: Any, pass_no: int, block: Block) -> float | None:  # noqa: ARG002
        """Return the ridge with which the system is positive definite; infinity for the plain average."""
        if not self._is_solved(context, block.tensor_index):
            return None
        system = _unpacked(_sum(self._triangles(context, block)), self._side(context, block.tensor_index))
        level = _level(system)
        if not 0.0 < level < math.inf:
            return math.inf
        ridge = float(context.number("ridge"))
        is_small = self._side(context, block.tensor_index) <= EXACT_SIDE_MAX
        while not _is_positive(_with_ridge(system, ridge * level), is_small):
            ridge = max(ridge * _GROWTH, _LEAST_RIDGE)
        return ridge

    def end_pass(
        self,
        context: MergeContext,  # noqa: ARG002
        state: Any,  # noqa: ARG002
        pass_no: int,  # noqa: ARG002
        partials: Sequence[tuple[Key, Any]],
    ) -> dict[int, float]:
        """Return the ridge of every system."""
        return {index: ridge for (index, _), ridge in partials if ridge is not None}

    def dependence(self, context: MergeContext, tensor_index: int) -> Dependence | None:
        """Return what decides a tensor: that tensor alone, where its system is solved exactly."""
        is_solved = self._is_solved(context, tensor_index)
        is_bitwise = not is_solved or self._side(context, tensor_index) <= EXACT_SIDE_MAX
        return depends(self, context, tensor_index, is_bitwise=is_bitwise)

    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:
        """Return the solution, or the average."""
        voters = self._voters(context, block.tensor_index)
        if len(voters) == 1:
            return block.inputs[voters[0]].copy()
        ridge = (state or {}).get(block.tensor_index, float(context.number("ridge")))
        if not block.artefacts or ridge == math.inf:
            return mean_change(context, block)
        if not self._is_solved(context, block.tensor_index):
            return self._by_columns(context, block, ridge)
        is_small = self._side(context, block.tensor_index) <= EXACT_SIDE_MAX
        index, side = block.tensor_index, self._side(context, block.tensor_index)
        triangles = self._triangles(context, block)
        system = _unpacked(_sum(triangles), side)
        pull = ridge * _level(system)
        right = pull * self._inputs_last(context, index, mean_change(context, block))
        for i, triangle in zip(voters, triangles, strict=True):
            right += multiply(
                self._inputs_last(context, index, block.inputs[i]), _unpacked(triangle, side), is_small
            )
        solution = _solve(_with_ridge(system, pull), np.ascontiguousarray(right.T), is_small)
        return self._flat(context, index, solution)

    def decisions(self, context: MergeContext, state: Any) -> dict[str, Any]:
        """Return the ridges that had to grow and the layers that were solved as well."""
        asked = float(context.number("ridge"))
        names = [spec.name for i, spec in enumerate(context.specs) if self.wants(context, i)]
        grown = {
            context.specs[index].name: None if ridge == math.inf else ridge
            for index, ridge in sorted((state or {}).items())
            if ridge != asked
        }
        return {**super().decisions(context, state), "layers": names, "ridges": grown}

    def warnings(self, context: MergeContext, state: Any) -> list[str]:
        """Say how many systems were singular, and where Gram matrices said nothing."""
        grown = [r for r in (state or {}).values() if r not in (math.inf, float(context.number("ridge")))]
        empty = [r for r in (state or {}).values() if r == math.inf]
        found = super().warnings(context, state)
        if grown:
            found.append(f"{len(grown)} systems were singular; their ridge was raised, see the decisions.")
        if empty:
            found.append(f"{len(empty)} layers have Gram matrices of zeros and were averaged.")
        return found

    def _voters(self, context: MergeContext, tensor_index: int) -> list[int]:
        return [i for i, share in enumerate(shares(context, tensor_index)) if share]

    def _is_solved(self, context: MergeContext, tensor_index: int) -> bool:
        return bool(context.number("a", tensor_index)) and bool(self.wants(context, tensor_index))

    def _is_transposed(self, context: MergeContext, tensor_index: int) -> bool:
        """Tell whether a layer is stored as [in, out]; of one that is solved all say the same."""
        wanted = self.wants(context, tensor_index)
        header = context.artefacts[wanted[0].artefact].header if wanted else {}
        return context.specs[tensor_index].name in header.get("transposed", ())

    def _side(self, context: MergeContext, tensor_index: int) -> int:
        """Return the number of inputs of a layer."""
        rows, columns = matrix_shape(context.specs[tensor_index]) or (0, 0)
        return rows if self._is_transposed(context, tensor_index) else columns

    def _inputs_first(self, context: MergeContext, tensor_index: int, values: Float64Array) -> Float64Array:
        """Return flat elements as [in, out]."""
        side = self._side(context, tensor_index)
        if self._is_transposed(context, tensor_index):
            return values.reshape(side, -1)
        return values.reshape(-1, side).T

    def _inputs_last(self, context: MergeContext, tensor_index: int, values: Float64Array) -> Float64Array:
        """Return flat elements as [out, in]."""
        return self._inputs_first(context, tensor_index, values).T

    def _flat(self, context: MergeContext, tensor_index: int, matrix: Float64Array) -> Float64Array:
        """Return the elements of [in, out] in the order they are stored."""
        turned = matrix if self._is_transposed(context, tensor_index) else matrix.T
        return np.ascontiguousarray(turned).reshape(-1)

    def _scales(self, context: MergeContext, block: Block) -> list[float]:
        """Return what each Gram matrix is multiplied by: its share, over its norm."""
        index, side = block.tensor_index, self._side(context, block.tensor_index)
        every, scales = shares(context, index), []
        for i, triangle in zip(self._voters(context, index), block.artefacts, strict=True):
            scale = float(every[i])
            position = context.artefact(GRAM, i)
            assert position is not None
            if context.params["gram_norm"] == "none":
                scale *= float(context.artefacts[position].header["n_tokens"])
            elif context.params["gram_norm"] == "trace":
                trace = tree_sum(np.ascontiguousarray(triangle[_diagonal(side)]))
                scale = scale * side / trace if trace > 0.0 else 0.0
            scales.append(scale)
        return scales

    def _triangles(self, context: MergeContext, block: Block) -> list[Float64Array]:
        """Return a G + (1 - a) diag(G), scaled, of every contribution with a say: lower triangles, packed."""
        diagonal = _diagonal(self._side(context, block.tensor_index))
        a = float(context.number("a", block.tensor_index))
        found = []
        for triangle, scale in zip(block.artefacts, self._scales(context, block), strict=True):
            packed = triangle * (scale * a)
            packed += 0.0  # A zero has no sign here.
            packed[diagonal] = triangle[diagonal] * scale
            found.append(packed)
        return found

    def _by_columns(self, context: MergeContext, block: Block, ridge: float) -> Float64Array:
        """Return the mean of every input's column, weighted by how much that input was used."""
        index, side = block.tensor_index, self._side(context, block.tensor_index)
        mean = self._inputs_first(context, index, mean_change(context, block))
        diagonals = [
            triangle[_diagonal(side)] * scale
            for triangle, scale in zip(block.artefacts, self._scales(context, block), strict=True)
        ]
        used = np.zeros(side, np.float64)
        for diagonal in diagonals:
            used += diagonal
        pull = ridge * tree_sum(used) / side
        total = pull * mean
        for i, diagonal in zip(self._voters(context, index), diagonals, strict=True):
            total += diagonal[:, None] * self._inputs_first(context, index, block.inputs[i])
        divisor = (used + pull)[:, None]
        # An input that nobody used, and no ridge: the average.
        out = np.where(divisor > 0.0, total / np.where(divisor > 0.0, divisor, 1.0), mean)
        return self._flat(context, index, out)


def _diagonal(side: int) -> npt.NDArray[np.int64]:
    """Return where the diagonal of a packed lower triangle is."""
    rows = np.arange(side, dtype=np.int64)
    places: npt.NDArray[np.int64] = rows * (rows + 3) // 2
    return places


def _unpacked(triangle: Float64Array, side: int) -> Float64Array:
    """Return the symmetric matrix of a packed lower triangle."""
    matrix = np.empty((side, side), np.float64)
    start = 0
    for row in range(side):
        part = triangle[start : start + row + 1]
        matrix[row, : row + 1] = part
        matrix[: row + 1, row] = part
        start += row + 1
    return matrix


def _sum(matrices: Sequence[Float64Array]) -> Float64Array:
    total = matrices[0].copy()
    for matrix in matrices[1:]:
        total += matrix
    return total


def _level(system: Float64Array) -> float:
    """Return the mean of the diagonal."""
    return tree_sum(np.ascontiguousarray(np.diagonal(system))) / len(system)


def _with_ridge(system: Float64Array, pull: float) -> Float64Array:
    out = system.copy()
    np.fill_diagonal(out, np.diagonal(system) + pull)
    return out


def _is_positive(system: Float64Array, is_small: bool) -> bool:
    scaled = np.ldexp(system, -exponent_of(system))
    try:
        if not is_small:
            np.linalg.cholesky(scaled)
        elif not _is_far_from_singular(scaled):
            cholesky(scaled)
    except (NotPositiveError, np.linalg.LinAlgError):
        return False
    return True


def _is_far_from_singular(system: Float64Array) -> bool:
    """Tell of some systems that every order of rounding finds them positive, as most are; soon.

    With a diagonal of ones, elimination succeeds where no eigenvalue is below n^2 2^-52 (Higham, Accuracy and
    Stability of Numerical Algorithms, SIAM 2002, theorem 10.7). LAPACK is asked for eight times as much.
    """
    diagonal = np.diagonal(system)
    if not diagonal.min() > _LEAST_PIVOT:
        return False
    roots = np.sqrt(diagonal)
    unit = system / roots[:, None]
    unit /= roots
    np.fill_diagonal(unit, 1.0 - 8.0 * len(system) * len(system) * 2.0**-52)
    try:
        np.linalg.cholesky(unit)
    except np.linalg.LinAlgError:
        return False
    return True


def _solve(system: Float64Array, right: Float64Array, is_small: bool) -> Float64Array:
    shift = exponent_of(system)
    scaled, target = np.ldexp(system, -shift), np.ldexp(right, -shift)
    if is_small:
        return solve_positive(scaled, target)
    solution: Float64Array = np.linalg.solve(scaled, target)
    return solution


REGMEAN_STRATEGIES: Final = (RegMean(),)
