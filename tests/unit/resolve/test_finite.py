"""NaN, infinity and impossible booleans are found wherever they stand (SCENARIOS T23, B51, B55)."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from crdt_merge_node.resolve.finite import scan_finite

BITS = {"F64": ("<u8", 52, 11), "F32": ("<u4", 23, 8), "F16": ("<u2", 10, 5), "BF16": ("<u2", 7, 8)}
COUNT = 300_000


def poisons(dtype: str) -> dict[str, int]:
    width, fraction, exponent = BITS[dtype]
    ones = ((1 << exponent) - 1) << fraction
    sign = 1 << (8 * int(width[-1]) - 1)
    return {
        "infinity": ones,
        "minus infinity": sign | ones,
        "quiet NaN": ones | 1 << (fraction - 1),
        "signalling NaN": ones | 1,
        "minus NaN": sign | ones | 1,
    }


@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("position", [0, 65_535, 65_536, 131_071, 131_072, COUNT - 1])
def test_poison_is_found_at_every_edge(dtype: str, position: int):
    for bits in poisons(dtype).values():
        elements = np.zeros(COUNT, BITS[dtype][0])
        elements[position] = bits

        assert not scan_finite(dtype, elements.tobytes())


@pytest.mark.parametrize("dtype", BITS)
def test_extreme_but_finite_numbers_pass(dtype: str):
    """Largest, smallest, minus zero and denormals are numbers."""
    width, fraction, exponent = BITS[dtype]
    sign = 1 << (8 * int(width[-1]) - 1)
    largest = (((1 << exponent) - 2) << fraction) | ((1 << fraction) - 1)
    elements = np.array([0, sign, 1, sign | 1, largest, sign | largest, 1 << fraction], width)

    assert scan_finite(dtype, elements.tobytes())


@pytest.mark.parametrize(
    ("flags", "expected"), [(b"", True), (b"\0\1\1", True), (b"\0\2", False), (b"\xff", False)]
)
def test_a_boolean_is_zero_or_one(flags: bytes, expected: bool):
    assert scan_finite("BOOL", flags) is expected


@pytest.mark.parametrize("dtype", ["I64", "U8", "I32"])
def test_integers_always_pass(dtype: str):
    assert scan_finite(dtype, b"\xff" * 64)


@pytest.mark.parametrize("dtype", BITS)
def test_nothing_at_all_is_finite(dtype: str):
    assert scan_finite(dtype, b"")


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_every_code_of_eight_bits_is_judged_by_its_value(dtype: str) -> None:
    reader = ml_dtypes.float8_e4m3fn if dtype == "F8_E4M3" else ml_dtypes.float8_e5m2
    codes = np.arange(256, dtype=np.uint8)
    is_finite = np.isfinite(codes.view(reader).astype(np.float32))

    assert [scan_finite(dtype, bytes([code])) for code in range(256)] == is_finite.tolist()
    assert scan_finite(dtype, codes[is_finite].tobytes())
