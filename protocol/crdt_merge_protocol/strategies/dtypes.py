"""Element types at the border of a merge: stored bytes to float64 and back.

Decoding is exact. Encoding rounds to nearest, ties to even, in two steps, float64 to float32 to the target:
that is what the usual tensor libraries do, so it is normative. One NaN exists, the positive quiet one: a
NaN's sign differs between CPUs and must not reach a hash. The types of eight bits, F8_E4M3 (without infinity)
and F8_E5M2, are only read: Micikevicius et al., FP8 Formats for Deep Learning, 2022, arXiv:2209.05433.

Work goes through chunks that stay in the cache; whole-block temporaries would cost three times as much.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from crdt_merge_protocol.blobs import DTYPE_BYTES, FLOAT_DTYPES, OUTPUT_DTYPES
from crdt_merge_protocol.errors import DTypeMismatchError, NonFiniteError, OverflowRefusedError

from .acceleration import current
from .contract import Float64Array

Overflow = Literal["error", "saturate", "inf"]
Bytes = bytes | bytearray | memoryview
Stored = npt.NDArray[Any]

CHUNK_ELEMENTS: Final = 16_384
_STORED: Final = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "u1", "F8_E5M2": "u1"}
_LARGEST_FINITE: Final = {"F32": 0x7F7FFFFF, "F16": 0x7BFF, "BF16": 0x7F7F}
_QUIET_NAN: Final = {"F64": 0x7FF8 << 48, "F32": 0x7FC0 << 16, "F16": 0x7E00, "BF16": 0x7FC0}
_INFINITY: Final = {"F64": 0x7FF0 << 48, "F32": 0x7F80 << 16, "F16": 0x7C00, "BF16": 0x7F80}


def output_dtype(requested: str, base: str | None, inputs: Iterable[str]) -> str:
    """Return the element type of a merged tensor: as requested, else the base's, else the widest input's.

    BF16 and F16 together need F32: neither holds the other. Each holds both types of eight bits, which are
    not written: alone those give BF16.

    Raises:
        DTypeMismatchError: The type is no floating point type.
    """
    chosen = requested or (base if base in OUTPUT_DTYPES else _widest({*inputs, *([base] if base else [])}))
    if chosen not in OUTPUT_DTYPES:
        raise DTypeMismatchError(
            f"Element type {chosen!r} cannot hold merged values.",
            hint=f"Choose one of {', '.join(sorted(OUTPUT_DTYPES))}.",
        )
    return chosen


def _widest(dtypes: set[str]) -> str:
    for wide in ("F64", "F32"):
        if wide in dtypes:
            return wide
    written = dtypes & OUTPUT_DTYPES
    if dtypes and not written and dtypes <= FLOAT_DTYPES:
        return "BF16"
    return "F32" if len(written) > 1 else next(iter(written or dtypes), "")


def decode_block(dtype: str, raw: Bytes) -> Float64Array:
    """Return the exact float64 values of stored little-endian elements, ``(n,)``, in a new array.

    Raises:
        DTypeMismatchError: Not a floating point type.
    """
    out = np.empty(len(memoryview(raw).cast("B")) // DTYPE_BYTES[_checked(dtype)], np.float64)
    decode_into(dtype, raw, out)
    return out


def decode_into(dtype: str, raw: Bytes, out: Float64Array) -> None:
    """Write the exact float64 values of stored elements into ``out``, ``(n,)``. For buffers used again."""
    stored = np.frombuffer(raw, np.dtype(_STORED[_checked(dtype)]))
    accelerator = current()
    if accelerator is not None and accelerator.decode(dtype, stored, out):
        return
    if dtype in _CODES:
        _CODES[dtype].take(stored, out=out, mode="clip")  # No code is out of range; to check costs a copy.
        return
    if dtype != "BF16":
        with np.errstate(invalid="ignore"):  # Widening a signalling NaN raises a flag; admission judges it.
            np.copyto(out, stored)
        return
    widened = np.zeros((min(CHUNK_ELEMENTS, stored.size), 2), "<u2")
    values = widened.reshape(-1).view("<f4")
    with np.errstate(invalid="ignore"):
        for start in range(0, stored.size, CHUNK_ELEMENTS):
            chunk = stored[start : start + CHUNK_ELEMENTS]
            widened[: chunk.size, 1] = chunk
            out[start : start + chunk.size] = values[: chunk.size]


def encode_block(dtype: str, values: Float64Array, overflow: Overflow = "error") -> bytes:
    """Return the stored little-endian bytes of float64 values.

    Raises:
        OverflowRefusedError: A value is too large for the type, and ``overflow`` is "error".
        NonFiniteError: A value is NaN, and ``overflow`` is "error".
        DTypeMismatchError: Not a floating point type.
    """
    stored, _ = encode_array(dtype, values, overflow)
    return stored.tobytes()


def encode_array(dtype: str, values: Float64Array, overflow: Overflow = "error") -> tuple[Stored, int]:
    """Return the stored elements, ``(n,)``, in an array whose buffer is the bytes, and how many did not fit.

    Raises as :func:`encode_block`.
    """
    out = np.empty(values.size * DTYPE_BYTES[_writable(dtype)], np.uint8)
    return out.view(np.dtype(_STORED[dtype])), encode_into(dtype, values, out, overflow)


def encode_into(
    dtype: str, values: Float64Array, out: bytearray | memoryview | Stored, overflow: Overflow = "error"
) -> int:
    """Write the stored bytes of float64 values into the buffer ``out``; return how many did not fit.

    With ``saturate`` what does not fit becomes the largest finite value, with ``inf`` infinity; NaN becomes
    the one quiet NaN. Raises as :func:`encode_block`.
    """
    stored: Stored = np.frombuffer(out, np.dtype(_STORED[_writable(dtype)]))
    misfits = 0
    accelerator = current()
    if accelerator is not None and accelerator.encode(dtype, values, stored):
        return 0
    for start in range(0, values.size, CHUNK_ELEMENTS):
        chunk = values[start : start + CHUNK_ELEMENTS]
        target = stored[start : start + chunk.size]
        if not _encode_chunk(dtype, chunk, target):
            misfits += _repair(dtype, target, overflow)
    return misfits


def _encode_chunk(dtype: str, values: Float64Array, out: Stored) -> bool:
    """Round one chunk into ``out`` and tell whether all of it is finite."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if dtype == "F64":
            out[:] = values
            return bool(np.isfinite(out).all())
        if dtype == "F32":
            np.copyto(out, values, casting="same_kind")
            return bool(np.isfinite(out).all())
        single = values.astype(np.float32)
        if dtype == "F16":
            np.copyto(out, single, casting="same_kind")
            return bool(np.isfinite(out).all())
    bits = single.view(np.uint32)
    rounding = bits >> 16
    rounding &= 1
    rounding += 0x7FFF
    is_nan = np.isnan(single)
    with np.errstate(over="ignore"):  # A NaN's bits may wrap; they are replaced below.
        rounding += bits
    rounding >>= 16
    np.copyto(out, rounding, casting="unsafe")
    if is_nan.any():
        out[is_nan] = _QUIET_NAN[dtype]
        return False
    return not bool(((out & 0x7F80) == _INFINITY[dtype]).any())


def _repair(dtype: str, out: Stored, overflow: Overflow) -> int:
    """Replace what did not fit, in place, and return how many elements that were."""
    width = DTYPE_BYTES[dtype]
    bits = out.view(f"<u{width}")
    sign_bit = 1 << (8 * width - 1)
    magnitudes = bits & (sign_bit - 1)
    is_nan, is_infinite = magnitudes > _INFINITY[dtype], magnitudes == _INFINITY[dtype]
    if overflow == "error":
        _refuse(dtype, int(is_nan.sum()), int(is_infinite.sum()))
    bits[is_nan] = _QUIET_NAN[dtype]
    if overflow == "saturate":
        largest = _LARGEST_FINITE.get(dtype, _INFINITY["F64"] - 1)
        bits[is_infinite] = (bits[is_infinite] & sign_bit) | largest
    return int(is_nan.sum()) + int(is_infinite.sum())


def _refuse(dtype: str, nans: int, infinities: int) -> None:
    if nans:
        raise NonFiniteError(f"{nans} merged values are NaN.", hint="Look for huge values in the inputs.")
    raise OverflowRefusedError(
        f"{infinities} merged values are too large for {dtype}.",
        hint="Choose a wider output type with --dtype, or a smaller lambda.",
    )


def _codes(exponent_bits: int, *, has_infinity: bool) -> Float64Array:
    """Return the value of each of the 256 codes of a type of eight bits, ``(256,)``; every one is exact."""
    fraction_bits = 7 - exponent_bits
    bias, top = (1 << exponent_bits - 1) - 1, (1 << exponent_bits) - 1
    values = []
    for code in range(128):
        exponent, fraction = code >> fraction_bits, code & (1 << fraction_bits) - 1
        if has_infinity and exponent == top:
            values.append(math.nan if fraction else math.inf)
        elif code == 127:
            values.append(math.nan)
        else:
            whole = fraction if exponent == 0 else fraction + (1 << fraction_bits)
            values.append(math.ldexp(whole, max(exponent, 1) - bias - fraction_bits))
    return np.array([*values, *(-value for value in values)])


_CODES: Final = {"F8_E4M3": _codes(4, has_infinity=False), "F8_E5M2": _codes(5, has_infinity=True)}


def _writable(dtype: str) -> str:
    if dtype in _CODES:
        raise DTypeMismatchError(
            f"Element type {dtype} is read and never written.",
            hint=f"Choose one of {', '.join(sorted(OUTPUT_DTYPES))}.",
        )
    return _checked(dtype)


def _checked(dtype: str) -> str:
    if dtype not in FLOAT_DTYPES:
        raise DTypeMismatchError(f"Element type {dtype!r} is not a floating point type; it is never merged.")
    return dtype
