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
from abc import abstractmethod
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, ClassVar, Final, cast

import numpy as np

from .averages import check_weights, weight_parameter, weight_warnings
from .averages import shares as shares_in
from .contract import BaseUse, Block, Float64Array, Key, MergeContext, Strategy
from .dependence import Dependence, depends
from .kernels import combine
from .parameters import Parameter, profile_parameter
from .sphere import (
    ANTIPODAL,
    CANCELLED,
    UNBOUNDED,
    VANISHING,
    Arc,
    Sphere,
    arc_weights,
    inner_products,
    karcher,
    measure,
    norm,
)

_NAMED_MAX: Final = 3


class OnSphere(Strategy):
    """The common course of what needs inner products first; they differ in the coefficients they make."""

    base: ClassVar[BaseUse] = "optional"

    def check(self, context: MergeContext) -> None:
        """Refuse as every strategy, and offline weights that vanish in a tensor."""
        super().check(context)
        check_weights(context)

    @abstractmethod
    def decide(self, context: MergeContext, shares: Sequence[Fraction], sphere: Sphere) -> Arc:
        """Return the coefficients of one tensor from its shares and inner products, all of them finite."""

    def is_averaged(self, context: MergeContext, tensor_index: int) -> bool:  # noqa: ARG002 - a default
        """Tell whether a tensor is averaged without looking at directions."""
        return context.k == 1

    def pass_count(self, context: MergeContext) -> int:
        """Return 1 for the inner products, 0 for a single model."""
        return 0 if context.k == 1 else 1

    def needs(self, context: MergeContext, state: Any, pass_no: int, tensor_index: int) -> bool:  # noqa: ARG002
        """Tell whether a tensor's inner products matter."""
        return not self.is_averaged(context, tensor_index)

    def observe(self, context: MergeContext, state: Any, pass_no: int, block: Block) -> Any:  # noqa: ARG002
        """Return the leaf sums of all pairwise products, ``(k (k + 1) / 2, leaves)`` float64."""
        if self.is_averaged(context, block.tensor_index):
            return None
        return inner_products(block)

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
            if not sums:
                continue
            sphere, shares = measure(context.k, np.concatenate(sums, axis=1)), shares_in(context, index)
            arcs[index] = (
                self.decide(context, shares, sphere) if sphere.is_finite else average(shares, UNBOUNDED)
            )
        return arcs

    def linear_form(self, context: MergeContext, state: Any, tensor_index: int) -> Sequence[float]:
        """Return the coefficients of the point."""
        return _arc(context, state, tensor_index).coefficients

    def dependence(self, context: MergeContext, tensor_index: int) -> Dependence | None:
        """Return what decides a tensor: that tensor alone."""
        return depends(self, context, tensor_index)

    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:
        """Return a block of the point on the sphere, scaled."""
        return combine(block, self.linear_form(context, state, block.tensor_index))

    def nanoseconds(self, context: MergeContext, tensor_index: int) -> float:
        """Return the time of all products and of one sum."""
        return (1.4 * context.k * (context.k + 1) / 2 + 2.0 * context.k) * context.specs[tensor_index].numel

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
        return weight_warnings(context) + [sentence(note, named[note]) for note in sorted(named) if note]


def sentence(note: str, names: Sequence[str]) -> str:
    """Return a warning about some tensors, with the first of them named."""
    more = f" and {len(names) - _NAMED_MAX} more" if len(names) > _NAMED_MAX else ""
    return f"{', '.join(names[:_NAMED_MAX])}{more}: {note}."


def average(shares: Sequence[Fraction], note: str = "") -> Arc:
    """Return the weighted mean as an arc."""
    rule = "single" if len(shares) == 1 else "linear"
    return Arc(rule, tuple(float(share) for share in shares), note)


def scaled(found: Arc, active: Sequence[int], shares: Sequence[Fraction], sphere: Sphere) -> Arc:
    """Return the arc of the inputs from that of the unit vectors of some of them, at the mean length."""
    length = math.fsum(float(share) * size for share, size in zip(shares, sphere.norms, strict=True))
    coefficients = [0.0] * len(shares)
    for i, weight in zip(active, found.coefficients, strict=True):
        coefficients[i] = length * weight / sphere.norms[i]
    return Arc(found.rule, tuple(coefficients), found.note)


def _arc(context: MergeContext, state: dict[int, Arc] | None, tensor_index: int) -> Arc:
    return (state or {}).get(tensor_index) or average(shares_in(context, tensor_index))


def _active(
    shares: Sequence[Fraction], sphere: Sphere
) -> tuple[list[int], list[Fraction], list[list[float]]]:
    """Return the inputs that have a weight and a direction, their shares and their cosines."""
    active = [i for i, share in enumerate(shares) if share and sphere.norms[i]]
    total = sum(shares[i] for i in active)
    return (
        active,
        [shares[i] / total for i in active],
        [[sphere.cosines[i][j] for j in active] for i in active],
    )


_STEPS: Final = (
    Parameter(
        name="max_iter", type="integer", default="50", mergekit_default="10", low="1", high="1000",
        doc="Steps towards the mean of more than two models.",
    ),
    Parameter(
        name="tol", type="decimal", default="1e-13", mergekit_default="1e-5", low="1e-15", high="1e-2",
        unit="rad", doc="A step shorter than this is the last.",
    ),
)  # fmt: skip


class Slerp(OnSphere):
    """Spherical linear interpolation; the weighted Karcher mean for more than two models."""

    id = "slerp"
    title = "spherical linear interpolation"
    paper = "Shoemake, SIGGRAPH 1985; many models: Karcher 1977, arXiv:2603.04972"
    doc = (
        "Interpolates directions on the sphere and lengths linearly; with a base, of the differences from it."
    )
    formula = (
        "two: u_i = X_i / |X_i|, a = acos <u_0, u_1>, t = w_1 / (w_0 + w_1)\n"
        "out = (sin((1 - t) a) u_0 + sin(t a) u_1) / sin a * ((1 - t) |X_0| + t |X_1|)\n"
        "more: out = m sum w_i |X_i| / sum w_i, m = argmin over the sphere of sum w_i angle(m, u_i)^2"
    )
    parameters = (
        weight_parameter(),
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
        *_STEPS,
        Parameter(
            name="norms", type="choice", default="slerp", choices=("slerp", "linear"),
            doc="linear: average tensors of one dimension or none, such as norm gains.",
        ),
    )  # fmt: skip

    def is_averaged(self, context: MergeContext, tensor_index: int) -> bool:
        """Tell whether a tensor is averaged without looking at directions."""
        is_short = len(context.specs[tensor_index].shape) <= 1
        return context.k == 1 or (context.params["norms"] == "linear" and is_short)

    def decide(self, context: MergeContext, shares: Sequence[Fraction], sphere: Sphere) -> Arc:
        """Return the coefficients of one tensor."""
        if context.k == 2 and context.params["magnitude"] == "raw":
            return _slerp_raw(context, shares, sphere)
        active, alphas, cosines = _active(shares, sphere)
        if len(active) < 2:
            # One direction: its own share of its own length. None: everything is zero.
            return average(shares)
        if len(active) == 2:
            found = _slerp(context, alphas[1], cosines[0][1])
        else:
            found = _karcher(context, alphas, cosines)
        return average(shares, found) if isinstance(found, str) else scaled(found, active, shares, sphere)


def _slerp(context: MergeContext, t: Fraction, cosine: float) -> Arc | str:
    """Return the coefficients of two unit vectors, or why there are none ("": they are parallel)."""
    if 1 + cosine < ANTIPODAL:
        return CANCELLED
    if abs(cosine) > _threshold(context):
        return "" if cosine > 0 else CANCELLED
    return Arc("slerp", arc_weights(t, cosine))


def _slerp_raw(context: MergeContext, shares: Sequence[Fraction], sphere: Sphere) -> Arc:
    """Return the coefficients of two vectors taken as they are, zero vectors at a right angle to all."""
    cosine = sphere.cosines[0][1]
    if 1 + cosine < ANTIPODAL or cosine < -_threshold(context):
        return average(shares, CANCELLED)
    if cosine > _threshold(context):
        return average(shares)
    return Arc("slerp", arc_weights(shares[1], cosine))


def _threshold(context: MergeContext) -> float:
    """Return the cosine beyond which an arc is a line. 1 itself divides by the sine of nothing."""
    return min(float(cast(Fraction, context.params["dot_threshold"])), 1 - 2.0**-53)


def _karcher(context: MergeContext, alphas: Sequence[Fraction], cosines: list[list[float]]) -> Arc | str:
    steps, tolerance = cast(int, context.params["max_iter"]), cast(Fraction, context.params["tol"])
    return karcher(alphas, cosines, steps=steps, tolerance=float(tolerance))


class Karcher(OnSphere):
    """The Karcher mean for any number of models, by the iteration even for two."""

    id = "karcher"
    title = "Karcher mean"
    paper = "Karcher, Comm. Pure Appl. Math. 30, 1977; for models: arXiv:2603.04972"
    doc = "The mean direction on the sphere times the mean length; slerp for any number of models."
    formula = (
        "u_i = X_i / |X_i|, m = argmin over the sphere of sum w_i angle(m, u_i)^2\n"
        "out = m sum w_i |X_i| / sum w_i"
    )
    is_extra = True
    parameters = (
        weight_parameter(),
        Parameter(
            name="max_iter", type="integer", default="10", low="1", high="1000",
            doc="Steps towards the mean.",
        ),
        Parameter(
            name="tol", type="decimal", default="1e-5", low="1e-15", high="1e-2", unit="rad",
            doc="A step shorter than this is the last.",
        ),
    )  # fmt: skip

    def decide(self, context: MergeContext, shares: Sequence[Fraction], sphere: Sphere) -> Arc:
        """Return the coefficients of one tensor."""
        active, alphas, cosines = _active(shares, sphere)
        if len(active) < 2:
            return average(shares)
        found = _karcher(context, alphas, cosines)
        return average(shares, found) if isinstance(found, str) else scaled(found, active, shares, sphere)


class MultiSlerp(OnSphere):
    """The normalised weighted sum of unit vectors, times the mean length: what multislerp comes to.

    As published it takes the mean of the unit vectors as a point on the sphere, adds up the tangents towards
    all of them there and walks along the sum. That sum is zero at that very point, so the walk ends where it
    begins; the method is the one usually called nlerp, and that is what is computed here.
    """

    id = "multislerp"
    title = "normalised interpolation (multislerp)"
    paper = "none; as in mergekit, equal to nlerp"
    doc = "The mean of the directions, made as long as the models on average; a cheap karcher."
    formula = "u_i = X_i / |X_i|, m = sum w_i u_i / |sum w_i u_i|, out = m sum w_i |X_i|"
    is_extra = True
    parameters = (
        weight_parameter(),
        Parameter(
            name="normalize", type="boolean", default="true",
            doc="Divide by the sum of the weights; without, they also scale the length.",
        ),
    )  # fmt: skip

    def decide(self, context: MergeContext, shares: Sequence[Fraction], sphere: Sphere) -> Arc:  # noqa: ARG002
        """Return the coefficients of one tensor."""
        active, alphas, cosines = _active(shares, sphere)
        if not active:
            return average(shares)
        weights = [float(alpha) for alpha in alphas]
        length = norm(weights, cosines)
        if length < VANISHING:
            return average(shares, CANCELLED)
        return scaled(Arc("nlerp", tuple(w / length for w in weights)), active, shares, sphere)

    def linear_form(self, context: MergeContext, state: Any, tensor_index: int) -> Sequence[float]:
        """Return the coefficients of the point, undivided without ``normalize``."""
        coefficients = _arc(context, state, tensor_index).coefficients
        if context.params["normalize"]:
            return coefficients
        total = float(sum(context.weights_in(tensor_index)))
        return tuple(total * c for c in coefficients)
