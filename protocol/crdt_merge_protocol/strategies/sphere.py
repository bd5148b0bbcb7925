"""The mathematics of directions: models as points on a sphere, every vector as coefficients of the inputs.

All that a mean on the sphere depends on are the inner products of the inputs, so the iterations run on a few
numbers per tensor, in sums that are correctly rounded (``math.fsum``) and trigonometry that is exact.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np

from .contract import Block, Float64Array
from .kernels import differences
from .reductions import add_leaves, leaf_products
from .trigonometry import acos, cos, sin

ANTIPODAL: Final = 1e-12
"""Closer than this to the cosine -1 there is no shortest arc."""
VANISHING: Final = 1e-6
"""Unit vectors with a shorter mean than this cancel out."""
CANCELLED: Final = "the models cancel out; they were averaged instead"
UNBOUNDED: Final = "the lengths leave the range of float64; the models were averaged instead"
AMBIGUOUS: Final = "some models are 90 degrees or more apart; the mean on the sphere may not be the only one"
UNFINISHED: Final = "the mean on the sphere did not settle within max_iter"

Cosines = Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True)
class Arc:
    """What was decided for one tensor."""

    rule: str
    """How: "single", "linear", "slerp", "karcher" or "nlerp"."""
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

    @property
    def is_finite(self) -> bool:
        """Tell whether no inner product left the range of float64."""
        return all(map(math.isfinite, itertools.chain(self.norms, *self.cosines)))


def pairs(k: int) -> Iterable[tuple[int, int]]:
    """Yield all pairs of inputs, each with itself included, in the order in which products are kept."""
    return itertools.combinations_with_replacement(range(k), 2)


def inner_products(block: Block) -> Float64Array:
    """Return the leaf sums of the products of all pairs, ``(k (k + 1) / 2, leaves)`` float64."""
    vectors = differences(block)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        return np.stack([leaf_products(vectors[i], vectors[j]) for i, j in pairs(len(vectors))])


def measure(k: int, sums: Float64Array) -> Sphere:
    """Return lengths and cosines from the leaf sums of all products, ``(k (k + 1) / 2, leaves)`` float64."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        products = {pair: add_leaves(row) for pair, row in zip(pairs(k), sums, strict=True)}
    norms = tuple(math.sqrt(products[i, i]) for i in range(k))

    def cosine(i: int, j: int) -> float:
        if not norms[i] or not norms[j]:
            return 0.0
        return 1.0 if i == j else clip(products[min(i, j), max(i, j)] / norms[i] / norms[j])

    return Sphere(norms, tuple(tuple(cosine(i, j) for j in range(k)) for i in range(k)))


def clip(cosine: float) -> float:
    """Return a cosine that rounding cannot have left the range of."""
    return max(-1.0, min(1.0, cosine))


def arc_weights(t: Fraction, cosine: float) -> tuple[float, float]:
    """Return the coefficients of two vectors at the share ``t`` of the angle between them."""
    angle = acos(cosine)
    whole = sin(angle)
    return sin(float(1 - t) * angle) / whole, sin(float(t) * angle) / whole


def karcher(alphas: Sequence[Fraction], cosines: Cosines, *, steps: int, tolerance: float) -> Arc | str:
    """Return the mean of unit vectors as coefficients of them, or why there is none.

    Gradient descent on the sphere, every vector written as coefficients ``c`` of the inputs, so that
    ``<x, y> = sum x_i C_ij y_j``.

    Args:
        alphas: Shares of the vectors, positive, with sum 1.
        cosines: ``C``, between all of them.
        steps: At most so many.
        tolerance: A step shorter than this, in rad, is the last.

    Source: Karcher 1977. Unique if all inputs lie within 90 degrees of one point.
    """
    weights = [float(alpha) for alpha in alphas]
    mean = weights
    if norm(mean, cosines) < VANISHING:
        return CANCELLED
    note = AMBIGUOUS if min(min(row) for row in cosines) <= 0 else ""
    mean = unit(mean, cosines)
    for _ in range(steps):
        towards = [clip(math.fsum(map(_product, row, mean))) for row in cosines]
        if 1 + min(towards) < ANTIPODAL:
            return CANCELLED
        pulls = [w * _stretch(d, tolerance) for w, d in zip(weights, towards, strict=True)]
        along = math.fsum(map(_product, pulls, towards))
        gradient = [f - along * c for f, c in zip(pulls, mean, strict=True)]
        step = norm(gradient, cosines)
        if step < tolerance:
            return Arc("karcher", tuple(mean), note)
        forward, sideways = cos(step), sin(step) / step
        mean = unit([forward * c + sideways * g for c, g in zip(mean, gradient, strict=True)], cosines)
    return Arc("karcher", tuple(mean), note or UNFINISHED)


def norm(vector: Sequence[float], cosines: Cosines) -> float:
    """Return the length of a vector that is given as coefficients of unit vectors."""
    square = math.fsum(
        x * c * y for x, row in zip(vector, cosines, strict=True) for c, y in zip(row, vector, strict=True)
    )
    return math.sqrt(max(square, 0.0))


def unit(vector: Sequence[float], cosines: Cosines) -> list[float]:
    """Return a vector of length 1 in the direction of one that is not zero."""
    length = norm(vector, cosines)
    return [x / length for x in vector]


def _stretch(cosine: float, tolerance: float) -> float:
    """Return angle / sine, which is 1 for no angle."""
    angle = acos(cosine)
    return 1.0 if angle < tolerance or angle == 0.0 else angle / sin(angle)


def _product(x: float, y: float) -> float:
    return x * y
