"""Exponential, logarithm and softmax of arrays, the same bits on every machine.

``np.exp`` and ``np.log`` differ with the SIMD level, the platform's libm with the platform. Here every step
is an addition, a multiplication or a division of whole arrays, a rounding to an integer, or the assembly of
a power of two from its bits: all of them exact or correctly rounded by IEEE 754. Nothing is contracted,
because every step is a numpy call of its own. Against the true value both are off by at most 2 units in the
last place.

The two-part logarithm of two is that of Cody and Waite, Software Manual for the Elementary Functions, 1980.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from .contract import Float64Array
from .rows import row_sums

_LN2_HIGH: Final = float.fromhex("0x1.62e42feep-1")
"""ln 2 to 32 bits: times any exponent of float64 it is exact."""
_LN2_LOW: Final = float.fromhex("0x1.a39ef35793c76p-33")
"""The rest of ln 2."""
_LOG2_E: Final = float.fromhex("0x1.71547652b82fep+0")
_REACH: Final = 800.0
"""Beyond this, either way, the exponential is infinite or zero."""
_TAYLOR: Final = tuple(1.0 / math.factorial(n) for n in range(14, -1, -1))
_ARTANH: Final = tuple(2.0 / (2 * n + 1) for n in range(12, 0, -1))
_EXPONENT_BIAS: Final = 1023
_MANTISSA_BITS: Final = 52
_SQRT2: Final = float.fromhex("0x1.6a09e667f3bcdp+0")


def exponential(values: Float64Array) -> Float64Array:
    """Return e to the power of each value, float64 of the same shape; 0 or infinity beyond the range.

    Args:
        values: Float64 without NaN, of any shape.
    """
    x = np.clip(values, -_REACH, _REACH)
    whole = np.rint(x * _LOG2_E)
    rest = x - whole * _LN2_HIGH
    rest -= whole * _LN2_LOW
    out = np.full_like(x, _TAYLOR[0])
    for coefficient in _TAYLOR[1:]:
        out *= rest
        out += coefficient
    # Two factors, because one would leave the range; only the second multiplication can round.
    powers = whole.astype(np.int64)
    half = powers >> 1
    with np.errstate(over="ignore", under="ignore"):
        out *= _power_of_two(half)
        out *= _power_of_two(powers - half)
    return out


def logarithm(values: Float64Array) -> Float64Array:
    """Return the natural logarithm of each value, float64 of the same shape.

    Args:
        values: Positive normal float64 numbers, of any shape.
    """
    bits = np.ascontiguousarray(values).view(np.int64)
    powers = (bits >> _MANTISSA_BITS) - _EXPONENT_BIAS
    mantissa = (bits & ((1 << _MANTISSA_BITS) - 1)) | (_EXPONENT_BIAS << _MANTISSA_BITS)
    x: Float64Array = mantissa.view(np.float64)
    is_large = x > _SQRT2
    x = np.where(is_large, x * 0.5, x)
    exponent = (powers + is_large).astype(np.float64)
    excess = x - 1.0
    s = excess / (x + 1.0)
    square = s * s
    series = np.full_like(s, _ARTANH[0])
    for coefficient in _ARTANH[1:]:
        series *= square
        series += coefficient
    # ln x = 2 artanh s = excess - s (excess - square * series): the first term is exact.
    tail = s * (excess - square * series) - exponent * _LN2_LOW
    return exponent * _LN2_HIGH - (tail - excess)


def softmax(matrix: Float64Array) -> Float64Array:
    """Return exp(x) over the sum of exp(x) of its row, ``(rows, columns)`` float64, columns at least 1."""
    if not matrix.size:
        return matrix.copy()
    out = exponential(matrix - matrix.max(axis=1, keepdims=True))
    out /= row_sums(out)[:, np.newaxis]
    return out


def _power_of_two(exponents: npt.NDArray[np.int64]) -> Float64Array:
    """Return 2 to the power of integers in -1022..1023."""
    powers: Float64Array = ((exponents + _EXPONENT_BIAS) << _MANTISSA_BITS).view(np.float64)
    return powers
