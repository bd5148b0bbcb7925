"""Sine, cosine and arc cosine of arrays, the same bits on every machine.

``trigonometry.py`` gives single numbers exactly rounded, at tens of microseconds each; a matrix merged row
by row has an angle per row. These are series in additions, multiplications, divisions and square roots of
whole arrays, a few units in the last place off the true value.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from .contract import Float64Array

PI: Final = math.pi
_PI_REST: Final = float.fromhex("0x1.1a62633145c07p-53")
"""What the float64 nearest to pi lacks."""
_HALVINGS: Final = 5
"""Of at most 90 degrees: the series of the arc tangent starts below 0.05."""
_ARC_TANGENT: Final = tuple((-1.0) ** n / (2 * n + 1) for n in range(8, -1, -1))
_SINE: Final = tuple((-1.0) ** n / math.factorial(2 * n + 1) for n in range(11, -1, -1))


def acos(cosines: Float64Array) -> Float64Array:
    """Return the angle in 0..pi of each cosine in -1..1, float64 of the same shape."""
    below = 1.0 + cosines
    tangent = np.sqrt((1.0 - cosines) / np.where(below > 0, below, 1.0))
    for _ in range(_HALVINGS):
        tangent /= 1.0 + np.sqrt(1.0 + tangent * tangent)
    square = tangent * tangent
    series = _horner(square, _ARC_TANGENT)
    series *= tangent
    series *= 2.0 ** (_HALVINGS + 1)
    return np.where(below > 0, series, PI)


def sin(angles: Float64Array) -> Float64Array:
    """Return the sine of each angle in 0..pi, float64 of the same shape."""
    return _sine(np.where(angles > PI / 2, (PI - angles) + _PI_REST, angles))


def cos(angles: Float64Array) -> Float64Array:
    """Return the cosine of each angle in 0..pi, float64 of the same shape."""
    return _sine((PI / 2 - angles) + _PI_REST / 2)


def _sine(angles: Float64Array) -> Float64Array:
    """Return the sine of angles of at most 90 degrees either way."""
    series = _horner(angles * angles, _SINE)
    series *= angles
    return series


def _horner(x: Float64Array, coefficients: tuple[float, ...]) -> Float64Array:
    out = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        out *= x
        out += coefficient
    return out
