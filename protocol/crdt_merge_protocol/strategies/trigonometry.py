"""Sine, cosine and arc cosine of single numbers, the same on every machine.

The platform's libm differs from the next one's in the last bit. Slerp needs a handful of values per tensor,
so they are computed in decimal arithmetic with 40 digits, which Python fixes exactly, and rounded once.
"""

from __future__ import annotations

import decimal
from decimal import Decimal
from typing import Final

_DIGITS: Final = 40
_PI: Final = Decimal("3.1415926535897932384626433832795028841971693993751")
_SMALL: Final = Decimal("0.03")
"""Below this the series of the arc tangent gains more than three digits per term."""


def sin(x: float) -> float:
    """Return the sine of ``x`` radians."""
    with decimal.localcontext(_context()):
        return float(_sin(Decimal(x)))


def cos(x: float) -> float:
    """Return the cosine of ``x`` radians."""
    with decimal.localcontext(_context()):
        return float(_sin(Decimal(x) + _PI / 2))


def acos(x: float) -> float:
    """Return the angle in 0..pi whose cosine is ``x``, which lies in -1..1."""
    with decimal.localcontext(_context()):
        cosine = Decimal(x)
        if cosine <= -1:
            return float(_PI)
        return float(2 * _atan(((1 - cosine) / (1 + cosine)).sqrt()))


def _context() -> decimal.Context:
    """Return our own context: the ambient one belongs to the program around us."""
    return decimal.Context(
        prec=_DIGITS,
        rounding=decimal.ROUND_HALF_EVEN,
        Emin=-9999,
        Emax=9999,
        clamp=0,
        traps=[decimal.InvalidOperation, decimal.DivisionByZero, decimal.Overflow],
    )


def _sin(x: Decimal) -> Decimal:
    turns = (x / _PI).to_integral_value()
    x -= turns * _PI
    square = x * x
    term = total = x
    n = 1
    while total and abs(term) > abs(total).scaleb(-_DIGITS):
        n += 2
        term = -term * square / (n * (n - 1))
        total += term
    return total if turns % 2 == 0 else -total


def _atan(y: Decimal) -> Decimal:
    """Return the arc tangent of ``y >= 0``, halving the angle until the series is quick."""
    halvings = 0
    while y > _SMALL:
        y /= 1 + (1 + y * y).sqrt()
        halvings += 1
    square = y * y
    power = total = y
    n = 1
    while total and abs(power) > total.scaleb(-_DIGITS):
        power = -power * square
        n += 2
        total += power / n
    return total * Decimal(2**halvings)
