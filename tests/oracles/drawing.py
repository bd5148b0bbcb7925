"""Tensors on which two correct implementations of one method agree, whatever they compute in.

A selection among equal magnitudes, an election whose votes cancel out and an angle between vectors that are
almost at right angles hang on the last bit. Those are tested elsewhere, against loops; here none occurs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Tensors = tuple[Array, list[Array]]
"""A base and models."""
DTYPES: Final = ("f64", "f32", "bf16")
ROUNDING: Final[Mapping[str, float]] = {"f64": 2.0**-53, "f32": 2.0**-24, "bf16": 2.0**-9}
"""Greatest relative error of rounding to an element type."""
_MANTISSAS: Final = 64
"""Values of 8 bits from 1 to 1.5."""
_BINADES: Final = 4
_APART: Final = 6
"""Binades between two models at an element: more than weights of 0.5 to 2 and rescaling make up for."""


def rounded(values: Array, dtype: str) -> Array:
    """Return the nearest numbers with the precision of an element type, as float64."""
    mantissas, exponents = np.frexp(values)
    bits = 0.5 / ROUNDING[dtype]
    return np.ldexp(np.rint(mantissas * bits) / bits, exponents) if dtype != "f64" else values


def fine(rng: np.random.Generator, shape: Sequence[int], k: int) -> Tensors:
    """Return multiples of 2^-12; differences from the base have distinct magnitudes within a tensor."""
    size = int(np.prod(shape))
    base = rng.integers(-4096, 4097, size) / 4096
    inputs = []
    for _ in range(k):
        magnitudes = (rng.permutation(4 * size)[:size] + 1) / 4096
        inputs.append((base + rng.choice([-1, 1], size) * magnitudes).reshape(shape))
    return base.reshape(shape), inputs


def coarse(rng: np.random.Generator, shape: Sequence[int], k: int) -> Tensors:
    """Return values and differences that bf16 holds exactly: few bits, so magnitudes repeat."""
    size = int(np.prod(shape))
    base = rng.integers(-8, 9, size) / 8
    return base.reshape(shape), [
        (base + rng.choice([-1, 1], size) * rng.integers(1, 9, size) / 16).reshape(shape) for _ in range(k)
    ]


def apart(rng: np.random.Generator, shape: Sequence[int], k: int) -> Tensors:
    """Return models of 8 bits around a base of zeros, for selections and elections in bf16.

    Magnitudes are distinct within a tensor. At every element one model outvotes all smaller ones together,
    whichever of them take part, so rounding turns no election.
    """
    size = int(np.prod(shape))
    scale = rng.integers(0, _BINADES, size)
    ranks = np.array([rng.permutation(k) for _ in range(size)]).T
    inputs = []
    for rank in ranks:
        exponents = scale + _APART * rank
        mantissas = np.empty(size)
        for exponent in np.unique(exponents):
            here = np.flatnonzero(exponents == exponent)
            mantissas[here] = 1 + rng.permutation(_MANTISSAS)[: here.size] / (2 * _MANTISSAS)
        inputs.append((rng.choice([-1, 1], size) * np.ldexp(mantissas, exponents - 12)).reshape(shape))
    return np.zeros(shape), inputs


def near(rng: np.random.Generator, shape: Sequence[int], k: int) -> Tensors:
    """Return models of 8 bits at about 30 degrees from one another around a base of zeros."""
    size = int(np.prod(shape))
    return np.zeros(shape), [(rng.integers(64, 256, size) / 256).reshape(shape) for _ in range(k)]


DRAWS: Final[Mapping[str, Callable[[np.random.Generator, Sequence[int], int], Tensors]]] = {
    "fine": fine,
    "coarse": coarse,
    "apart": apart,
    "near": near,
}
