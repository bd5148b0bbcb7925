"""The elementwise loops that strategies share.

Each works in chunks that stay in the second-level cache, with buffers used again. The order of operations
per element is fixed and nothing is contracted, so chunks do not show in the bits.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Final

import numpy as np

from .acceleration import current
from .contract import Block, Float64Array

CHUNK_ELEMENTS: Final = 16_384
"""128 KiB of float64: overhead of a numpy call below a tenth, buffers of eight inputs in 1 MiB of cache."""


def as_float(value: Fraction) -> float:
    """Return the nearest float64 of an exact number; of one beyond them all, the largest of its sign.

    In a group nobody's numbers may end a resolve (STRATEGIES 1.12); what they make of the output is warned of
    where it is encoded.
    """
    try:
        return float(value)
    except OverflowError:
        return sys.float_info.max if value > 0 else -sys.float_info.max


def chunks(size: int, step: int = CHUNK_ELEMENTS) -> Iterator[slice]:
    """Yield consecutive ranges that cover ``size`` elements."""
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))


def combine(block: Block, coefficients: Sequence[float]) -> Float64Array:
    """Return the sum of coefficient times input, in canonical order.

    Args:
        block: With a base, the result is base + sum of coefficient * (input - base).
        coefficients: One per input. Inputs with a zero are not read.

    Returns:
        ``(n,)`` float64, a new array.
    """
    out = np.empty(block.stop - block.start, np.float64)
    accelerator = current()
    if accelerator is not None and accelerator.combine(block, coefficients, out):
        return out
    scratch = np.empty(min(CHUNK_ELEMENTS, out.size), np.float64)
    terms = [(x, c) for x, c in zip(block.inputs, coefficients, strict=True) if c != 0.0]
    for part in chunks(out.size):
        total = out[part]
        base = None if block.base is None else block.base[part]
        if not terms:
            total[:] = 0.0
        for number, (values, coefficient) in enumerate(terms):
            term = scratch[: total.size] if number else total
            _scale(values[part], base, coefficient, term)
            if number:
                total += term
        if base is not None:
            total += base
    return out


def _scale(values: Float64Array, base: Float64Array | None, coefficient: float, out: Float64Array) -> None:
    if base is None:
        np.multiply(values, coefficient, out=out)
        return
    np.subtract(values, base, out=out)
    if coefficient != 1.0:
        out *= coefficient


def differences(block: Block) -> list[Float64Array]:
    """Return the inputs minus the base, or the inputs themselves if there is none. Not to be written to."""
    if block.base is None:
        return list(block.inputs)
    return [np.subtract(values, block.base) for values in block.inputs]
