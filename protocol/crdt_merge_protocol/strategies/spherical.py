"""Interpolation along the sphere, for any number of models, independent of their order.

Two models: Shoemake's slerp. More: the Karcher mean, the point with the least weighted sum of squared angles;
folding pairs instead would give the model with the greatest digest half of the say. Both are sums of the
inputs with coefficients that depend on nothing but the inner products of the inputs, so one pass collects
those and the whole iteration runs on a few numbers per tensor.

Rules for what has no direction, so that no set of contributions can fail (SCENARIOS S16): a zero vector keeps
its share in the length and none in the direction; vectors that cancel out, or whose inner products overflow,
are averaged instead and the manifest says so.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Final

import numpy as np

from .averages import shares
from .contract import BaseUse, Block, Float64Array, Key, MergeContext, Strategy
from .kernels import combine, differences
from .parameters import Parameter, profile_parameter
from .reductions import add_leaves, leaf_products
from .trigonometry import acos, cos, sin

_ANTIPODAL: Final = 1e-12
"""Closer than this to the cosine -1 there is no shortest arc."""
_VANISHING: Final = 1e-6
"""Unit vectors with a shorter mean than this cancel out."""
_NAMED_MAX: Final = 3
_CANCELLED: Final = "the models cancel out; they were averaged instead"
_UNBOUNDED: Final = "the lengths leave the range of float64; the models were averaged instead"
_AMBIGUOUS: Final = "some models are 90 degrees or more apart; the mean on the sphere may not be the only one"
_UNFINISHED: Final = "the mean on the sphere did not settle within max_iter"


@dataclass(frozen=True, slots=True)
class Arc:
    """What was decided for one tensor."""

    rule: str
    """How: "single", "linear", "slerp" or "karcher"."""
    coefficients: tuple[float, ...]
    """The merged tensor is the sum of coefficient times input."""
    note: str = ""
    """A warning."""


@dataclass(frozen=True, slots=True)
class Sphere:
    """Inner products of one tensor's inputs."""

    norms: tuple[float, ...]
    cosines: tuple[tuple[float, ...], ...]
    """0 where either is a zero vector."""


class Slerp(Strategy):
    """Spherical linear interpolation; the weighted Karcher mean for more than two models."""

    id = "slerp"
    title = "spherical linear interpolation"
    paper = "Shoemake, SIGGRAPH 1985; many models: Karcher 1977, arXiv:2603.04972"
    doc = (
        "Interpolates directions on the sphere and lengths linearly; with a base, of the differences from it."
    )
    base: ClassVar[BaseUse] = "optional"
    parameters = (
        profile_parameter(),
        Parameter(
            name="magnitude",
            type="choice",
            default="interp",
            mergekit_default="raw",
            choices=("interp", "raw"),
            doc="interp: unit vectors times the mean length. raw: the vectors themselves, two models only.",
        ),
        Parameter(
            name="dot_threshold",
            type="decimal",
            default="0.9995",
            low="0.9",
            high="1",
            doc="Two models whose cosine is beyond this, either way, are interpolated linearly.",
        ),
        Parameter(
            name="max_iter", type="integer", default="50", mergekit_default="10", low="1", high="1000",
            doc="Steps towards the mean of more than two models.",
        ),
        Parameter(
            name="tol", type="decimal", default="1e-13", mergekit_default="1e-5", low="1e-15", high="1e-2",
            unit="rad", doc="A step shorter than this is the last.",
        ),
        Parameter(
            name="norms", type="choice", default="slerp", choices=("slerp", "linear"),
            doc="linear: average tensors of one dimension or none, such as norm gains.",
        ),
    )  # fmt: skip

    def pass_count(self, context: MergeContext) -> int:
        """Return 1 for the inner products, 0 for a single model."""
        return 0 if context.k == 1 else 1

    def needs(self, context: MergeContext, state: Any, pass_no: int, tensor_index: int) -> bool:  # noqa: ARG002
        """Tell whether a tensor's inner products matter."""
        return not _is_averaged(context, tensor_index)

    def observe(self, context: MergeContext, state: Any, pass_no: int, block: Block) -> Any:  # noqa: ARG002
        """Return the leaf sums of all pairwise products, ``(k (k + 1) / 2, leaves)`` float64."""
        if _is_averaged(context, block.tensor_index):
            return None
        vectors = differences(block)
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            return np.stack([leaf_products(vectors[i], vectors[j]) for i, j in _pairs(context.k)])

    def end_pass(
        self,
        context: MergeContext,
        state: Any,  # noqa: ARG002
        pass_no: int,  # noqa: ARG002
        partials: Sequence[tuple[Key, Any]],
    ) -> dict[int, Arc]:
        """Return the coefficients of every tensor."""
        arcs: dict[int, Arc] = {}
        for index, group in itertools.groupby(partials, key=lambda item: item[0][0]):
            sums = [partial for _, partial in group if partial is not None]
            if sums:
                arcs[index] = _decide(context, _measure(context.k, np.concatenate(sums, axis=1)))
        return arcs

    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:
        """Return a block of the point on the sphere, scaled."""
        return combine(block, _arc(context, state, block.tensor_index).coefficients)

    def decisions(self, context: MergeContext, state: Any) -> dict[str, Any]:
        """Return rule and coefficients of every tensor as well."""
        arcs = [(spec.name, _arc(context, state, index)) for index, spec in enumerate(context.specs)]
        tensors = {name: {"rule": arc.rule, "coefficients": list(arc.coefficients)} for name, arc in arcs}
        return {**super().decisions(context, state), "tensors": tensors}

    def warnings(self, context: MergeContext, state: Any) -> list[str]:
        """Return one sentence per kind of trouble, with the first tensors that have it."""
        named: dict[str, list[str]] = {}
        for index, spec in enumerate(context.specs):
            named.setdefault(_arc(context, state, index).note, []).append(spec.name)
        return [_sentence(note, named[note]) for note in sorted(named) if note]


def _sentence(note: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED_MAX} more" if len(names) > _NAMED_MAX else ""
    return f"{', '.join(names[:_NAMED_MAX])}{more}: {note}."


def _pairs(k: int) -> Iterable[tuple[int, int]]:
    return itertools.combinations_with_replacement(range(k), 2)


def _is_averaged(context: MergeContext, tensor_index: int) -> bool:
    return context.params["norms"] == "linear" and len(context.specs[tensor_index].shape) <= 1


def _arc(context: MergeContext, state: dict[int, Arc] | None, tensor_index: int) -> Arc:
    return (state or {}).get(tensor_index) or _average(context)


def _average(context: MergeContext, note: str = "") -> Arc:
    rule = "single" if context.k == 1 else "linear"
    return Arc(rule, tuple(float(share) for share in shares(context)), note)


def _measure(k: int, sums: Float64Array) -> Sphere:
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        products = {pair: add_leaves(row) for pair, row in zip(_pairs(k), sums, strict=True)}
    norms = tuple(math.sqrt(products[i, i]) for i in range(k))

    def cosine(i: int, j: int) -> float:
        if not norms[i] or not norms[j]:
            return 0.0
        return 1.0 if i == j else _clip(products[min(i, j), max(i, j)] / norms[i] / norms[j])

    return Sphere(norms, tuple(tuple(cosine(i, j) for j in range(k)) for i in range(k)))


def _clip(cosine: float) -> float:
    return max(-1.0, min(1.0, cosine))


def _decide(context: MergeContext, sphere: Sphere) -> Arc:
    """Return the coefficients of one tensor from its inner products."""
    if not all(map(math.isfinite, itertools.chain(sphere.norms, *sphere.cosines))):
        return _average(context, _UNBOUNDED)
    if context.k == 2 and context.params["magnitude"] == "raw":
        return _slerp_raw(context, sphere)
    all_shares = shares(context)
    active = [i for i, share in enumerate(all_shares) if share and sphere.norms[i]]
    if len(active) < 2:
        # One direction: its own share of its own length. None: everything is zero.
        return _average(context)
    total = sum(all_shares[i] for i in active)
    alphas = [all_shares[i] / total for i in active]
    cosines = [[sphere.cosines[i][j] for j in active] for i in active]
    if len(active) == 2:
        found = _slerp(context, alphas[1], cosines[0][1])
    else:
        found = _karcher(context, alphas, cosines)
    if isinstance(found, str):
        return _average(context, found)
    length = math.fsum(float(share) * norm for share, norm in zip(all_shares, sphere.norms, strict=True))
    coefficients = [0.0] * context.k
    for i, weight in zip(active, found.coefficients, strict=True):
        coefficients[i] = length * weight / sphere.norms[i]
    return Arc(found.rule, tuple(coefficients), found.note)


def _slerp(context: MergeContext, t: Fraction, cosine: float) -> Arc | str:
    """Return the coefficients of two unit vectors, or why there are none ("": they are parallel)."""
    if 1 + cosine < _ANTIPODAL:
        return _CANCELLED
    if abs(cosine) > _threshold(context):
        return "" if cosine > 0 else _CANCELLED
    first, second = _arc_weights(t, cosine)
    return Arc("slerp", (first, second))


def _slerp_raw(context: MergeContext, sphere: Sphere) -> Arc:
    """Return the coefficients of two vectors taken as they are, zero vectors at a right angle to all."""
    t, cosine = shares(context)[1], sphere.cosines[0][1]
    if 1 + cosine < _ANTIPODAL or cosine < -_threshold(context):
        return _average(context, _CANCELLED)
    if cosine > _threshold(context):
        return _average(context)
    return Arc("slerp", _arc_weights(t, cosine))


def _threshold(context: MergeContext) -> float:
    """Return the cosine beyond which an arc is a line. 1 itself divides by the sine of nothing."""
    threshold = context.params["dot_threshold"]
    assert isinstance(threshold, Fraction)
    return min(float(threshold), 1 - 2.0**-53)


def _arc_weights(t: Fraction, cosine: float) -> tuple[float, float]:
    angle = acos(cosine)
    whole = sin(angle)
    return sin(float(1 - t) * angle) / whole, sin(float(t) * angle) / whole


def _karcher(context: MergeContext, alphas: Sequence[Fraction], cosines: list[list[float]]) -> Arc | str:
    """Return the mean of unit vectors as coefficients of them, or why there is none.

    Gradient descent on the sphere, every vector written as coefficients ``c`` of the inputs, so that
    ``<x, y> = sum x_i C_ij y_j``.

    Source: Karcher 1977. Unique if all inputs lie within 90 degrees of one point.
    """
    weights = [float(alpha) for alpha in alphas]
    tolerance, steps = context.params["tol"], context.params["max_iter"]
    assert isinstance(tolerance, Fraction)
    assert isinstance(steps, int)
    mean = weights
    if _norm(mean, cosines) < _VANISHING:
        return _CANCELLED
    note = _AMBIGUOUS if min(min(row) for row in cosines) <= 0 else ""
    mean = _unit(mean, cosines)
    for _ in range(steps):
        towards = [_clip(math.fsum(map(_product, row, mean))) for row in cosines]
        if 1 + min(towards) < _ANTIPODAL:
            return _CANCELLED
        pulls = [w * _stretch(d, float(tolerance)) for w, d in zip(weights, towards, strict=True)]
        along = math.fsum(map(_product, pulls, towards))
        gradient = [f - along * c for f, c in zip(pulls, mean, strict=True)]
        step = _norm(gradient, cosines)
        if step < float(tolerance):
            return Arc("karcher", tuple(mean), note)
        forward, sideways = cos(step), sin(step) / step
        mean = _unit([forward * c + sideways * g for c, g in zip(mean, gradient, strict=True)], cosines)
    return Arc("karcher", tuple(mean), note or _UNFINISHED)


def _stretch(cosine: float, tolerance: float) -> float:
    """Return angle / sine, which is 1 for no angle."""
    angle = acos(cosine)
    return 1.0 if angle < tolerance or angle == 0.0 else angle / sin(angle)


def _product(x: float, y: float) -> float:
    return x * y


def _norm(vector: Sequence[float], cosines: list[list[float]]) -> float:
    square = math.fsum(
        x * c * y for x, row in zip(vector, cosines, strict=True) for c, y in zip(row, vector, strict=True)
    )
    return math.sqrt(max(square, 0.0))


def _unit(vector: Sequence[float], cosines: list[list[float]]) -> list[float]:
    norm = _norm(vector, cosines)
    return [x / norm for x in vector]
