"""Finding NaN, infinity and impossible booleans in raw tensor bytes (SCENARIOS T23, B51, B55).

Works on the bits: an IEEE number is NaN or infinite if its exponent is all ones, that is, if the number
without its sign bit is at least the bit pattern of infinity. As signed integers, those without the sign bit
are the largest; as unsigned integers, those with it: two maxima tell, and nothing is written. No floating
point unit is asked, so signalling NaNs raise nothing and a process that flushes denormals is right, too.
"""

from __future__ import annotations

from typing import Final

import numpy as np

_INFINITY: Final[dict[str, tuple[int, int]]] = {
    "F64": (8, 0x7FF0_0000_0000_0000),
    "F32": (4, 0x7F80_0000),
    "F16": (2, 0x7C00),
    "BF16": (2, 0x7F80),
    "F8_E4M3": (1, 0x7F),
    "F8_E5M2": (1, 0x7C),
}
"""Bytes of an element, and the bits of infinity; of NaN, where there is no infinity."""


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
    width, infinity = _INFINITY[dtype]
    bits = np.frombuffer(chunk, f"<u{width}")
    if not bits.size:
        return True
    sign = 1 << (8 * width - 1)
    return int(bits.view(f"<i{width}").max()) < infinity and int(bits.max()) < sign | infinity
