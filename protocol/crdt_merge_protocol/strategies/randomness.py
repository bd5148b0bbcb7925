"""Random numbers that depend on what they are for, never on who draws them or when.

Every mask has its own Philox key, made from the seed of the resolve (PROTOCOL R17), the strategy, the tensor
and the contribution. Element ``i`` takes word ``i`` of that stream, so any block can be drawn alone and a
contribution's mask does not depend on its position. Raw words are used: they are frozen, while numpy may
change how its generators turn them into numbers (NEP 19).
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from crdt_merge_protocol.canonical import digest

from .acceleration import current
from .contract import Float64Array

Words = npt.NDArray[np.uint64]

_WORDS_PER_COUNTER = 4
_MANTISSA_BITS = 53


def stream_key(seed: bytes, strategy: str, tensor: str, contribution: bytes, purpose: str) -> bytes:
    """Return the 16-byte Philox key of one stream."""
    fields = (seed, strategy.encode(), tensor.encode(), contribution, purpose.encode())
    return digest("crdt-merge-node/rng/1", *fields)[:16]


def words(key: bytes, start: int, count: int) -> Words:
    """Return words ``start .. start + count`` of a stream, ``(count,)`` uint64."""
    counter, offset = divmod(start, _WORDS_PER_COUNTER)
    halves = np.frombuffer(key, "<u8").astype(np.uint64)
    raw: Words = np.random.Philox(key=halves, counter=[counter, 0, 0, 0]).random_raw(offset + count)
    return raw[offset:]


def uniform(key: bytes, start: int, count: int) -> Float64Array:
    """Return exact uniforms in [0, 1) with 53 bits, ``(count,)`` float64."""
    accelerator = current()
    drawn = np.empty(count, np.float64) if accelerator is not None else None
    if accelerator is not None and drawn is not None and accelerator.uniform(key, start, drawn):
        return drawn
    high: Float64Array = (words(key, start, count) >> (64 - _MANTISSA_BITS)).astype(np.float64)
    high *= 2.0**-_MANTISSA_BITS
    return high


def keep_bound(probability: Fraction) -> int | None:
    """Return the least word whose uniform is not below ``probability``; None: there is none."""
    bound = math.ceil(probability * 2**_MANTISSA_BITS) << (64 - _MANTISSA_BITS)
    return None if bound >> 64 else bound


def keep_mask(key: bytes, start: int, count: int, probability: Fraction) -> npt.NDArray[np.bool_]:
    """Return which elements a draw keeps, ``(count,)`` bool: those whose uniform is below ``probability``.

    The comparison is exact and in integers, without making the uniforms.
    """
    bound = keep_bound(probability)
    if bound is None:
        return np.ones(count, np.bool_)
    accelerator = current()
    if accelerator is not None:
        drawn = np.empty(count, np.bool_)
        if accelerator.keep(key, start, bound, drawn):
            return drawn
    kept: npt.NDArray[np.bool_] = words(key, start, count) < np.uint64(bound)
    return kept
