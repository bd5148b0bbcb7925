"""What somebody would write first: each strategy as one formula over whole float32 arrays.

Rivals in speed, not oracles: they sum in float32, draw from a stream instead of by position, and need several
times the memory of the models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


def weight_average(models: Sequence[Array], _base: Array) -> Array:
    """The mean of a stack."""
    return np.mean(np.stack(models), axis=0)


def linear(models: Sequence[Array], base: Array) -> Array:
    """The same, with equal weights."""
    return weight_average(models, base)


def task_arithmetic(models: Sequence[Array], base: Array) -> Array:
    """The base and the sum of all differences."""
    return base + np.sum([model - base for model in models], axis=0)


def coordinate_median(models: Sequence[Array], _base: Array) -> Array:
    """The median of a stack."""
    return np.median(np.stack(models), axis=0)


def ties(models: Sequence[Array], base: Array, density: float = 0.2) -> Array:
    """Trim by magnitude, elect a sign by mass, average what agrees."""
    deltas = np.stack([model - base for model in models])
    for delta in deltas:
        magnitude = np.abs(delta)
        threshold = np.partition(magnitude, -max(1, int(density * delta.size)))[
            -max(1, int(density * delta.size))
        ]
        delta[magnitude < threshold] = 0
    sign = np.sign(deltas.sum(axis=0))
    agrees = (np.sign(deltas) == sign) & (deltas != 0)
    count = np.maximum(agrees.sum(axis=0), 1)
    return base + (deltas * agrees).sum(axis=0) / count


def dare(models: Sequence[Array], base: Array, density: float = 0.5) -> Array:
    """Drop at random, rescale, average."""
    rng = np.random.default_rng(1)
    total = np.zeros_like(base)
    for model in models:
        total += (model - base) * (rng.random(base.size, dtype=np.float32) < density) / density
    return base + total / len(models)


def slerp(models: Sequence[Array], _base: Array) -> Array:
    """Fold pair by pair; the result depends on the order, which ours does not."""
    merged = models[0]
    for number, model in enumerate(models[1:], start=1):
        share = 1 / (number + 1)
        cosine = np.dot(merged / np.linalg.norm(merged), model / np.linalg.norm(model))
        angle = np.arccos(np.clip(cosine, -1, 1))
        merged = (np.sin((1 - share) * angle) * merged + np.sin(share * angle) * model) / np.sin(angle)
    return merged.astype(np.float32)
