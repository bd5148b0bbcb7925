"""Sums whose bits do not depend on block size, thread count, SIMD width or library.

A *leaf* is 65,536 consecutive elements. Inside it the upper half is added to the lower until one number is
left; the leaf sums are added up the same way, padded with zeros. Only elementwise additions are used, which
every IEEE 754 machine does alike; ``np.sum``, ``dot`` and ``norm`` differ between machines.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crdt_merge_protocol.errors import ResolveError

from .acceleration import current
from .contract import LEAF_ELEMENTS, Float64Array


def leaf_sums(values: Float64Array) -> Float64Array:
    """Return the sum of each leaf of ``values``, ``(ceil(n / 65536),)`` float64."""
    out = np.empty(-(-values.size // LEAF_ELEMENTS), np.float64)
    accelerator = current()
    if accelerator is not None and accelerator.leaf_sums(values, None, out):
        return out
    scratch = np.empty(LEAF_ELEMENTS // 2, np.float64)
    for leaf in range(out.size):
        out[leaf] = _halve(values[leaf * LEAF_ELEMENTS : (leaf + 1) * LEAF_ELEMENTS], scratch)
    return out


def leaf_products(first: Float64Array, second: Float64Array) -> Float64Array:
    """Return the sum over each leaf of the elementwise products, ``(ceil(n / 65536),)`` float64."""
    out = np.empty(-(-first.size // LEAF_ELEMENTS), np.float64)
    accelerator = current()
    if accelerator is not None and accelerator.leaf_sums(first, second, out):
        return out
    product = np.empty(LEAF_ELEMENTS, np.float64)
    for leaf in range(out.size):
        part = slice(leaf * LEAF_ELEMENTS, (leaf + 1) * LEAF_ELEMENTS)
        size = first[part].size
        np.multiply(first[part], second[part], out=product[:size])
        out[leaf] = _halve(product[:size], product)
    return out


def add_leaves(sums: Sequence[float] | Float64Array) -> float:
    """Return the sum of leaf sums that are given in order."""
    values = np.asarray(sums, np.float64)
    width = 1 << max(values.size - 1, 0).bit_length()
    return _halve(values, np.empty(width, np.float64))


def tree_sum(values: Float64Array) -> float:
    """Return the sum of all elements."""
    return add_leaves(leaf_sums(values))


def _halve(values: Float64Array, scratch: Float64Array) -> float:
    """Return the sum by repeated halving; ``values`` may be the start of ``scratch``, nothing else shared."""
    if values.size == 0:
        return 0.0
    half = (1 << (values.size - 1).bit_length()) // 2
    if half == 0:
        return float(values[0])
    upper = values.size - half
    np.add(values[:upper], values[half:], out=scratch[:upper])
    scratch[upper:half] = values[upper:half]
    while half > 1:
        half //= 2
        np.add(scratch[:half], scratch[half : 2 * half], out=scratch[:half])
    return float(scratch[0])


def check_arithmetic() -> None:
    """Refuse to merge where arithmetic is not plain IEEE 754. Call it once in every process that merges.

    Libraries built with ``-ffast-math`` switch the whole process to flush-to-zero when they are loaded.

    Raises:
        ResolveError: Subnormal numbers vanish, or rounding is not to nearest.
    """
    tiny = np.full(8, 5e-324)
    small = np.full(8, 2.3e-308)
    with np.errstate(all="ignore"):
        keeps_subnormals = bool((tiny * 1.0 != 0).all() and (small / 2.0 != 0).all())
        rounds_to_nearest = bool(
            (np.ones(8) + 2.0**-53 == 1.0).all() and (-np.ones(8) - 2.0**-53 == -1.0).all()
        )
        rounds_up = bool((np.ones(8) + 1.5 * 2.0**-53 > 1.0).all())
    if not (keeps_subnormals and rounds_to_nearest and rounds_up):
        raise ResolveError(
            "This process does not compute by IEEE 754; its outputs would differ from every other node's.",
            hint="A loaded library switched on fast math: find and remove it.",
        )
