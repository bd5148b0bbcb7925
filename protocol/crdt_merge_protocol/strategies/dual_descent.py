"""Dual projections as published: model after model, by steps of Adam, the shares of two losses adapting.

What was merged so far and the next model are averaged; from there every step weighs the gradients of both
losses so that their sum is short (multiple-gradient descent), follows that choice slowly, and lets Adam go a
little way. Who comes first weighs differently from who comes last, so the canonical order is part of the
result.

Source: Yang et al., NeurIPS 2025, zD5cUX67b9; the shares: Desideri, C. R. Math. 350 (2012) 313-318, as Sener
and Koltun, NeurIPS 2018, use them; the steps: Kingma, Ba, Adam, ICLR 2015.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from .contract import Float64Array
from .reductions import add_leaves, leaf_products
from .star import multiply

_BETAS: Final = (0.9, 0.999)
_FLOOR: Final = 1e-8
"""Of Adam: what its divisor is at least."""
_LEAST_SHARE: Final = 0.001
"""Of a gradient that is longer and points the same way."""


@dataclass(frozen=True, slots=True)
class Descent:
    """How the steps are done."""

    steps: int
    rate: float
    """How far Adam goes in one."""
    share: float
    """Of the loss of what was merged before, at the first step with each model."""
    inertia: float
    """How much of the shares stays from step to step."""
    is_exact: bool
    """The same bits on every machine, slowly."""

    def fold(
        self, deltas: Sequence[Float64Array], leading: Callable[[Float64Array], Float64Array]
    ) -> Float64Array:
        """Return the change from the base after all models, ``(m, n)``.

        Args:
            deltas: Differences from the base, ``(m, n)``, in canonical order, at least one.
            leading: Returns a difference cut to its leading directions.
        """
        merged = deltas[0]
        for delta in deltas[1:]:
            merged = self._descend([_Loss(x, leading(x), self.is_exact) for x in (merged, delta)])
        return merged

    def _descend(self, losses: Sequence[_Loss]) -> Float64Array:
        """Return where the steps end that start at the mean of two models."""
        change = 0.5 * losses[0].delta + 0.5 * losses[1].delta
        share = self.share
        momentum, energy = np.zeros_like(change), np.zeros_like(change)
        fading = [1.0, 1.0]
        for _ in range(self.steps):
            found = [loss.at(change) for loss in losses]
            share = self.inertia * share + (1.0 - self.inertia) * _shortest(found)
            gradient = share * found[0][1] + (1.0 - share) * found[1][1]
            momentum = _BETAS[0] * momentum + (1.0 - _BETAS[0]) * gradient
            energy = _BETAS[1] * energy + (1.0 - _BETAS[1]) * (gradient * gradient)
            # One product after the other: a power is not the same everywhere.
            fading = [left * beta for left, beta in zip(fading, _BETAS, strict=True)]
            root = np.sqrt(energy) / math.sqrt(1.0 - fading[1]) + _FLOOR
            change = change - (self.rate / (1.0 - fading[0])) * (momentum / root)
        return change


class _Loss:
    """The distance from one model on the directions that its difference from the base uses."""

    def __init__(self, delta: Float64Array, used: Float64Array, is_exact: bool) -> None:
        self.delta = delta
        self._is_exact = is_exact
        self._left = multiply(used, used.T, is_exact)
        self._right = multiply(used.T, used, is_exact)

    def at(self, change: Float64Array) -> tuple[float, Float64Array]:
        """Return the loss at a place and its gradient there."""
        apart = change - self.delta
        pull = multiply(self._left, apart, self._is_exact)
        pull += multiply(apart, self._right, self._is_exact)
        return _inner(apart, pull), 2.0 * pull


def _shortest(found: Sequence[tuple[float, Float64Array]]) -> float:
    """Return the share of the first gradient in the shortest point between both, each over its loss."""
    (first, g), (second, h) = found
    squares = _inner(g, g), _inner(h, h)
    across = _inner(g, h)
    over = [1.0 / loss if loss > 0.0 else 0.0 for loss in (first, second)]
    long, between, other = (
        squares[0] * over[0] * over[0],
        across * over[0] * over[1],
        squares[1] * over[1] * over[1],
    )
    if between >= long:
        return 1.0 - _LEAST_SHARE
    if between >= other:
        return _LEAST_SHARE
    return (other - between) / (long + other - 2.0 * between)


def _inner(first: Float64Array, second: Float64Array) -> float:
    return add_leaves(leaf_products(first.reshape(-1), second.reshape(-1)))
