"""Element types: every pattern of the small ones, against an independent reader."""

import ml_dtypes
import numpy as np
import pytest
from crdt_merge_protocol.errors import DTypeMismatchError, NonFiniteError, OverflowRefusedError
from crdt_merge_protocol.strategies.dtypes import (
    decode_block,
    decode_into,
    encode_array,
    encode_block,
    encode_into,
    output_dtype,
)

PATTERNS = np.arange(65_536, dtype=np.uint16)
TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_all_patterns_decode_as_an_independent_reader_says(dtype):
    with np.errstate(invalid="ignore"):
        expected = PATTERNS.view(TYPES[dtype]).astype(np.float64)

    actual = decode_block(dtype, PATTERNS.tobytes())

    assert np.array_equal(expected, actual, equal_nan=True)
    assert (np.signbit(expected) == np.signbit(actual))[~np.isnan(expected)].all()


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_all_finite_patterns_survive_a_round_trip(dtype):
    finite = PATTERNS[np.isfinite(decode_block(dtype, PATTERNS.tobytes()))]

    assert finite.tobytes() == encode_block(dtype, decode_block(dtype, finite.tobytes()))


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_rounding_goes_through_float32_to_nearest_even(dtype):
    """Neighbours, midpoints and points just off them, of all finite patterns."""
    values = decode_block(dtype, PATTERNS.tobytes())
    values = np.sort(values[np.isfinite(values)])
    middles = (values[1:] + values[:-1]) / 2
    with np.errstate(over="ignore", under="ignore"):
        probes = np.concatenate(
            [middles, middles * (1 + 2**-30), middles * (1 - 2**-20), middles * (1 + 2**-10)]
        )
        probes = probes[np.abs(probes) < np.abs(values).max()]
        expected = probes.astype(np.float32).astype(TYPES[dtype]).view(np.uint16)

    assert (expected == np.frombuffer(encode_block(dtype, probes), np.uint16)).all()


@pytest.mark.parametrize("dtype", TYPES)
def test_wide_types_round_trip(dtype):
    raw = np.random.default_rng(0).normal(size=40_000).astype(TYPES[dtype]).tobytes()

    assert raw == encode_block(dtype, decode_block(dtype, raw))


@pytest.mark.parametrize(("dtype", "limit"), [("F16", 65504.0), ("F32", float(np.finfo(np.float32).max))])
def test_overflow_is_refused_saturated_or_infinite_as_asked(dtype, limit):
    values = np.array([1.0, 1e300, -1e300, limit])

    with pytest.raises(OverflowRefusedError, match=f"2 merged values are too large for {dtype}"):
        encode_block(dtype, values)

    saturated, count = encode_array(dtype, values, "saturate")
    assert (saturated.tolist(), count) == ([1.0, limit, -limit, limit], 2)
    assert encode_array(dtype, values, "inf")[0].tolist() == [1.0, np.inf, -np.inf, limit]


def test_bf16_overflow_by_rounding_is_seen():
    """The largest float32 lies above the middle between the largest BF16 and infinity."""
    values = np.array([float(np.finfo(np.float32).max), -1e300])

    with pytest.raises(OverflowRefusedError):
        encode_block("BF16", values)

    assert encode_array("BF16", values, "saturate")[0].tolist() == [0x7F7F, 0xFF7F]
    assert encode_array("BF16", values, "inf")[0].tolist() == [0x7F80, 0xFF80]


@pytest.mark.parametrize(
    ("dtype", "bits"), [("F64", 0x7FF8 << 48), ("F32", 0x7FC00000), ("F16", 0x7E00), ("BF16", 0x7FC0)]
)
def test_there_is_one_nan(dtype, bits):
    values = np.array([np.nan, -np.nan, 1.0])

    with pytest.raises(NonFiniteError):
        encode_block(dtype, values)

    stored, count = encode_array(dtype, values, "saturate")
    assert count == 2
    assert [bits, bits] == stored.view(f"u{stored.itemsize}")[:2].tolist()


def test_float64_infinity_saturates():
    assert encode_array("F64", np.array([np.inf]), "saturate")[0][0] == np.finfo(np.float64).max


def test_buffers_can_be_used_again():
    raw = np.arange(20_000, dtype=np.float32).tobytes()
    values, stored = np.empty(20_000), bytearray(80_000)

    decode_into("F32", memoryview(raw), values)

    assert encode_into("F32", values, stored) == 0
    assert raw == bytes(stored)


def test_unknown_types_are_refused():
    with pytest.raises(DTypeMismatchError, match="I64"):
        decode_block("I64", b"\0" * 8)
    with pytest.raises(DTypeMismatchError, match="Q4"):
        encode_block("Q4", np.zeros(1))


@pytest.mark.parametrize(
    ("requested", "base", "inputs", "expected"),
    [
        ("", None, ["BF16", "BF16"], "BF16"),
        ("", None, ["BF16", "F16"], "F32"),
        ("", None, ["BF16", "F64", "F32"], "F64"),
        ("", None, ["F16", "F32"], "F32"),
        ("", "F16", ["F32"], "F16"),
        ("F32", "F16", ["BF16"], "F32"),
    ],
)
def test_the_output_type_is_the_requested_the_bases_or_the_widest(requested, base, inputs, expected):
    assert expected == output_dtype(requested, base, inputs)


def test_an_integer_output_type_is_refused():
    with pytest.raises(DTypeMismatchError, match="I8"):
        output_dtype("I8", None, ["F32"])


CODES = np.arange(256, dtype=np.uint8)
EIGHT_BITS = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}


@pytest.mark.parametrize("dtype", EIGHT_BITS)
def test_all_codes_of_eight_bits_decode_as_an_independent_reader_says(dtype):
    expected = CODES.view(EIGHT_BITS[dtype]).astype(np.float64)

    actual = decode_block(dtype, CODES.tobytes())

    assert np.array_equal(expected, actual, equal_nan=True)
    assert (np.signbit(expected) == np.signbit(actual))[~np.isnan(expected)].all()


@pytest.mark.parametrize("dtype", EIGHT_BITS)
@pytest.mark.parametrize("wide", ["F16", "BF16"])
def test_two_bytes_hold_every_number_of_eight_bits(dtype, wide):
    values = decode_block(dtype, CODES.tobytes())
    values = values[np.isfinite(values)]

    assert decode_block(wide, encode_block(wide, values)).tobytes() == values.tobytes()


@pytest.mark.parametrize("dtype", EIGHT_BITS)
def test_eight_bits_are_never_written(dtype):
    with pytest.raises(DTypeMismatchError, match="never written"):
        encode_block(dtype, np.zeros(1))
    with pytest.raises(DTypeMismatchError, match="cannot hold merged values"):
        output_dtype(dtype, None, ["F32"])


@pytest.mark.parametrize(
    ("base", "inputs", "expected"),
    [
        (None, ["F8_E4M3"], "BF16"),
        (None, ["F8_E4M3", "F8_E5M2"], "BF16"),
        (None, ["F8_E4M3", "F16"], "F16"),
        (None, ["F8_E5M2", "BF16", "F16"], "F32"),
        ("F8_E4M3", ["F8_E4M3"], "BF16"),
        ("F8_E4M3", ["F32", "F8_E5M2"], "F32"),
        ("F16", ["F8_E4M3"], "F16"),
    ],
)
def test_the_output_of_eight_bits_is_the_narrowest_that_holds_them(base, inputs, expected):
    assert output_dtype("", base, inputs) == expected
