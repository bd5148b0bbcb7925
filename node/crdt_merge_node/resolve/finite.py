"""Finding NaN, infinity and impossible booleans in raw tensor bytes (SCENARIOS T23, B51, B55).

Works on the bits: an IEEE number is NaN or infinite if its exponent is all ones, that is, if the number
without its sign bit is at least the bit pattern of infinity. No floating point unit is asked, so signalling
NaNs raise nothing and a process that flushes denormals is right, too.
"""

from __future__ import annotations

from typing import Final

import numpy as np

_INFINITY: Final[dict[str, tuple[str, int]]] = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}
_BLOCK_BYTES: Final = 256 * 1024
"""Temporaries of this size stay in the cache of one core."""


def scan_finite(dtype: str, chunk: bytes | bytearray | memoryview) -> bool:
    """Tell whether all elements in ``chunk`` are numbers a merge may see.

    Args:
        dtype: Element type under its safetensors name. Integers are always acceptable.
        chunk: Whole elements, little-endian.
    """
    if dtype == "BOOL":
        flags = np.frombuffer(chunk, dtype=np.uint8)
        return flags.size == 0 or int(flags.max()) <= 1
    if dtype not in _INFINITY:
        return True
    view, infinity = _INFINITY[dtype]
    bits = np.frombuffer(chunk, dtype=view)
    step = _BLOCK_BYTES // bits.itemsize
    without_sign = (1 << (8 * bits.itemsize - 1)) - 1
    return all(
        int((bits[start : start + step] & bits.dtype.type(without_sign)).max()) < infinity
        for start in range(0, bits.size, step)
    )
