"""KnOTS: express all task vectors of a matrix in one set of singular directions, then merge them there.

The task vectors of a matrix stand side by side, [T_1 | ... | T_k] = U S [V_1 | ... | V_k]^T, and each becomes
P_i = S V_i^T, its coordinates in the common directions U. An elementwise method that is not linear, TIES or
DARE-TIES, merges the P_i; U turns the result back. (A linear one would give plain task arithmetic:
U sum P_i = sum T_i.) Trimming and majorities cover the P_i of all matrices.

A decomposition does not fit what passes may remember, so each pass repeats it, and with the scope ``model``
the inner method has several; small decompositions are remembered as long as there is room. The first pass
only finds how many directions every matrix has, because that decides how many elements are ranked.

Source: STRATEGIES 2.25. Differs from the authors' code: a bias is not merged as a further column of its
matrix nor a gain as a diagonal, but as ``others`` says (decision 0004); the cut-off may be relative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, ClassVar, Final

import numpy as np

from crdt_merge_protocol.blobs import TensorSpec
from crdt_merge_protocol.errors import ParameterError

from .averages import weight_parameter
from .contract import BaseUse, Block, Float64Array, Key, MergeContext
from .dare import DareTies
from .delegation import INNER, inner_parameter, parameters_of, strategy_named
from .linear_algebra import fits_exact, singular_values
from .matrices import (
    MatrixStrategy,
    are_finite,
    is_remembered,
    matrix_shape,
    mean_change,
    remembered_directions,
    remembered_svd,
    sentence,
    svd_nanoseconds,
    task_matrices,
)
from .parameters import Parameter, Value
from .star import multiply
from .task_vectors import LAMBDA
from .ties import SignElection, Ties

_LINEAR: Final = frozenset({"linear", "task_arithmetic", "weight_average", "dare"})
_CLOSE: Final = 1e-9
"""Singular values nearer to each other than this share of the largest have directions that rounding turns."""


@dataclass(frozen=True, slots=True)
class Spectrum:
    """What the first pass finds of one matrix."""

    rank: int
    """How many directions are kept; 0 where nothing differs from the base."""
    is_degenerate: bool = False
    is_bounded: bool = True
    """False: the differences leave the range of float64."""


@dataclass(frozen=True, slots=True)
class Knots:
    """What passes found."""

    spectra: dict[int, Spectrum]
    """By tensor index."""
    inner: Any = None
    """The state of the inner method."""


class SvdKnotTying(MatrixStrategy):
    """Task vectors in common singular directions, merged there by TIES or DARE-TIES."""

    id = "svd_knot_tying"
    title = "KnOTS"
    paper = "Stoica et al., Model merging with SVD to tie the Knots, ICLR 2025, arXiv:2410.19735"
    doc = (
        "Expresses the differences from the base in common singular directions and merges them there by an "
        "elementwise method; made for LoRA models, whose differences hardly overlap otherwise. Vectors and "
        "embeddings stay as in the base, or are averaged."
    )
    formula = (
        "[X_1 - B | ... | X_k - B] = U S [V_1 | ... | V_k]^T, directions with s > eps_rank;  P_i = S V_i^T\n"
        "out = B + lambda U inner(P_1, ..., P_k), trimming over all matrices together"
    )
    base: ClassVar[BaseUse] = "required"
    parameters = (
        inner_parameter("ties", "What merges the coordinates: ties or dare_ties."),
        Parameter(
            name=LAMBDA, type="decimal", default="1.0", low="-3", high="3", doc="Scale of the result."
        ),
        Parameter(
            name="eps_rank", type="decimal", default="0.00001", low="0", high="1",
            doc="Directions whose singular value is not greater are dropped.",
        ),
        Parameter(
            name="eps_rule", type="choice", default="absolute", choices=("absolute", "relative"),
            doc="relative: eps_rank is a share of the largest singular value of the matrix.",
        ),
        Parameter(
            name="others", type="choice", default="base", choices=("base", "average"),
            doc="What becomes of vectors and embeddings.",
        ),
        weight_parameter(),
    )  # fmt: skip

    def validate(self, params: Mapping[str, str]) -> dict[str, Value]:
        """Return all parameters, typed; a linear inner method is refused, it would do nothing.

        Raises:
            ParameterError: As every strategy, or ``inner`` is neither ties nor dare_ties.
        """
        _refuse_linear(params.get(INNER))
        return super().validate(params)

    def normalise(self, params: Mapping[str, str]) -> dict[str, str]:
        """Return the given parameters spelled canonically; refuses what ``validate`` does."""
        _refuse_linear(params.get(INNER))
        return super().normalise(params)

    def determinism_in(self, context: MergeContext) -> Any:
        """Return ``bitwise`` if [T_1 | ... | T_k] of every matrix is small."""
        return "bitwise" if all(map(fits_exact, *_sides(context))) else "fp_tolerant"

    def scratch_bytes(self, context: MergeContext, tensor_index: int) -> int:
        """Return the stacked differences, their factors, the coordinates and the inner method's copies."""
        shape = matrix_shape(context.specs[tensor_index])
        if shape is None:
            return 0
        small = min(shape[0], shape[1] * context.k)
        return 8 * (10 * shape[0] * shape[1] * context.k + 4 * small * shape[1] * context.k + 12 * small**2)

    def nanoseconds(self, context: MergeContext, tensor_index: int) -> float:
        """Return an estimate: one decomposition of all differences side by side per pass, and one more."""
        shape = matrix_shape(context.specs[tensor_index])
        if shape is None:
            return super().nanoseconds(context, tensor_index)
        # The radix select of the inner method usually ends after three of its five passes.
        is_small = _is_small(context, tensor_index)
        is_once = is_remembered(shape[0], shape[1] * context.k if is_small else 0)
        passes = 1 if is_once else min(self.pass_count(context), 5) + 1
        longer = min(shape[0], shape[1] * context.k) / min(shape)
        return svd_nanoseconds(context, tensor_index, passes * context.k * longer)

    def pass_count(self, context: MergeContext) -> int:
        """Return one pass for the ranks and those of the inner method."""
        inner, within = _inner(context, {})
        return 1 + inner.pass_count(within)

    def needs(self, context: MergeContext, state: Any, pass_no: int, tensor_index: int) -> bool:
        """Tell whether a matrix has directions that the inner method still has to see."""
        if matrix_shape(context.specs[tensor_index]) is None:
            return False
        if pass_no == 0:
            return True
        found: Knots = state
        place = _place(found.spectra, tensor_index)
        if place is None:
            return False
        inner, within = _inner(context, found.spectra)
        return inner.needs(within, found.inner, pass_no - 1, place)

    def observe(self, context: MergeContext, state: Any, pass_no: int, block: Block) -> Any:
        """Return how many directions a matrix has, or what the inner method has to know of it."""
        if matrix_shape(context.specs[block.tensor_index]) is None:
            return None
        if pass_no == 0:
            return _measure(context, block)
        found: Knots = state
        if _place(found.spectra, block.tensor_index) is None:
            return None
        inner, within = _inner(context, found.spectra)
        _, coordinates = _tie(context, found.spectra, block)
        return inner.observe(within, found.inner, pass_no - 1, coordinates)

    def compact(
        self, context: MergeContext, pass_no: int, partials: list[tuple[Key, Any]]
    ) -> list[tuple[Key, Any]]:
        """Return fewer partial results where the inner method counts over the whole model."""
        present = [(key, partial) for key, partial in partials if partial is not None]
        inner, within = _inner(context, {})
        if pass_no == 0 or within.params["scope"] != "model":
            return present
        return inner.compact(within, pass_no - 1, present)

    def end_pass(
        self, context: MergeContext, state: Any, pass_no: int, partials: Sequence[tuple[Key, Any]]
    ) -> Knots:
        """Return the state with the ranks, or with what the inner method makes of its pass."""
        present = [(key, partial) for key, partial in partials if partial is not None]
        if pass_no == 0:
            return Knots({index: spectrum for (index, _), spectrum in present})
        found: Knots = state
        inner, within = _inner(context, found.spectra)
        placed = [((_place(found.spectra, index) or 0, start), part) for (index, start), part in present]
        return replace(found, inner=inner.end_pass(within, found.inner, pass_no - 1, placed))

    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:
        """Return the base plus the merged coordinates, turned back."""
        assert block.base is not None
        found: Knots = state
        spectrum = found.spectra.get(block.tensor_index)
        scale = float(context.number(LAMBDA))
        if spectrum is None:
            return (
                block.base.copy()
                if context.params["others"] == "base"
                else mean_change(context, block, scale)
            )
        if not spectrum.is_bounded:
            return mean_change(context, block, scale)
        if spectrum.rank == 0:
            return block.base.copy()
        inner, within = _inner(context, found.spectra)
        directions, coordinates = _tie(context, found.spectra, block)
        merged = inner.merge(within, found.inner, coordinates).reshape(spectrum.rank, -1)
        is_small = _is_small(context, block.tensor_index)
        out: Float64Array = multiply(directions, merged, is_small).reshape(-1) * scale + block.base
        return out

    def decisions(self, context: MergeContext, state: Any) -> dict[str, Any]:
        """Return the number of directions of every matrix and the decisions of the inner method as well."""
        found: Knots = state
        inner, within = _inner(context, found.spectra)
        ranks = {context.specs[index].name: s.rank for index, s in sorted(found.spectra.items())}
        return {
            **super().decisions(context, state),
            "ranks": ranks,
            "inner": inner.decisions(within, found.inner),
        }

    def warnings(self, context: MergeContext, state: Any) -> list[str]:
        """Name matrices whose directions are not well defined, or whose differences overflow."""
        spectra = sorted(state.spectra.items())
        notes = {
            "degenerate_spectrum: some singular values are as good as equal, their directions arbitrary": [
                context.specs[index].name for index, s in spectra if s.is_degenerate
            ],
            "differences from the base leave the range of float64; they were averaged": [
                context.specs[index].name for index, s in spectra if not s.is_bounded
            ],
        }
        return super().warnings(context, state) + [
            sentence(names, note) for note, names in notes.items() if names
        ]


def _refuse_linear(inner: str | None) -> None:
    if inner is None:
        return
    strategy = strategy_named(inner)
    if strategy.id in _LINEAR:
        raise ParameterError(
            f"inner={inner} is linear: in common directions it gives what task_arithmetic gives anyway.",
            hint="Use inner=ties or inner=dare_ties, or the strategy task_arithmetic itself.",
        )
    if not isinstance(strategy, (Ties, DareTies)):
        raise ParameterError(f"inner is ties or dare_ties, not {inner}.", hint="Leave it out for ties.")


def _inner(context: MergeContext, spectra: Mapping[int, Spectrum]) -> tuple[SignElection, MergeContext]:
    """Return the inner method and its context, whose tensors are the coordinates of matrices with any."""
    inner = strategy_named(str(context.params[INNER]))
    assert isinstance(inner, SignElection)
    params = parameters_of(context.params, INNER)
    if context.params["weight"] != 1:
        params["weight"] = context.params["weight"]
    specs = tuple(_coordinate_spec(context.specs[i], spectra[i].rank) for i in _placed(spectra))
    return inner, replace(context, strategy=inner.id, params=params, specs=specs)


def _placed(spectra: Mapping[int, Spectrum]) -> list[int]:
    return [index for index, spectrum in sorted(spectra.items()) if spectrum.rank and spectrum.is_bounded]


def _place(spectra: Mapping[int, Spectrum], tensor_index: int) -> int | None:
    """Return the position of a matrix among those that the inner method sees."""
    placed = _placed(spectra)
    return placed.index(tensor_index) if tensor_index in placed else None


def _coordinate_spec(spec: TensorSpec, rank: int) -> TensorSpec:
    return TensorSpec(name=spec.name, dtype="F64", shape=(rank, spec.numel // spec.shape[0]))


def _sides(context: MergeContext) -> tuple[list[int], list[int]]:
    shapes = [matrix_shape(spec) or (1, 1) for spec in context.specs]
    return [rows for rows, _ in shapes], [columns * context.k for _, columns in shapes]


def _is_small(context: MergeContext, tensor_index: int) -> bool:
    shape = matrix_shape(context.specs[tensor_index])
    assert shape is not None
    return fits_exact(shape[0], shape[1] * context.k)


def _stack(context: MergeContext, block: Block) -> Float64Array:
    return np.concatenate(task_matrices(context, block, block.base), axis=1)


def _measure(context: MergeContext, block: Block) -> Spectrum:
    stacked = _stack(context, block)
    if not are_finite([stacked]):
        return Spectrum(0, is_bounded=False)
    if _is_small(context, block.tensor_index):
        values = remembered_svd(stacked, is_exact=True).s
    else:
        values = singular_values(stacked, is_exact=False)
    if not np.isfinite(values).all():  # Finite numbers may have an infinite length.
        return Spectrum(0, is_bounded=False)
    bound = context.number("eps_rank")
    if context.params["eps_rule"] == "relative":
        bound *= Fraction(float(values[0]))
    rank = int(np.count_nonzero(values > float(bound)))
    gaps = values[:rank] - np.append(values[1:rank], values[rank : rank + 1] if rank < values.size else 0.0)
    return Spectrum(rank, is_degenerate=bool((gaps <= _CLOSE * values[0]).any()) if rank else False)


def _tie(context: MergeContext, spectra: Mapping[int, Spectrum], block: Block) -> tuple[Float64Array, Block]:
    """Return the common directions ``(m, r)`` and the coordinates of all task vectors as a block."""
    index = block.tensor_index
    rank, place = spectra[index].rank, _place(spectra, index)
    assert place is not None
    stacked = _stack(context, block)
    if _is_small(context, index):
        found = remembered_svd(stacked, is_exact=True)
        directions, coordinates = found.u[:, :rank], found.s[:rank, None] * found.vt[:rank]
    else:
        directions = remembered_directions(stacked)[:, :rank]
        coordinates = directions.T @ stacked
    inputs = [np.ascontiguousarray(part).reshape(-1) for part in np.split(coordinates, context.k, axis=1)]
    size = inputs[0].size
    tied = Block(tensor_index=place, start=0, stop=size, inputs=inputs, base=np.zeros(size, np.float64))
    return directions, tied


KNOTS_STRATEGIES: Final = (SvdKnotTying(),)
