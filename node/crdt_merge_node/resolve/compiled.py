"""The accelerator made of compiled loops: addresses and flags for the entries of ``compiled_code``.

Imported by :func:`accelerate.install_compiled` alone, because LLVM takes a tenth of a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from crdt_merge_protocol.strategies.acceleration import (
    Bytes,
    Contest,
    Digits,
    Draw,
    Gain,
    Mask,
    Patterns,
    ScaledDifferences,
    Stored,
    StoredRows,
)
from crdt_merge_protocol.strategies.contract import Block, Float64Array

from .compiled_code import CompiledCode

_KINDS: Final = {"F64": 0, "F32": 1, "BF16": 2, "F16": 3}
_WIDTHS: Final = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
_MERGES: Final = {"mean": 1, "sum": 2, "max": 3}
_MEAN_COUNTED: Final = 0
_POWERS: Final = {"0.5": 0, "1": 1, "2": 2}
_LOW: Final = 0xFFFFFFFF
_HIGHEST: Final = (1 << 63) - 1
_CHUNK: Final = 512
_SCRATCH: Final = 65_536
"""Elements of float64 that every loop may write to."""
_DRAWN_MAX: Final = 1 << 26
"""Elements whose masks are remembered: 8 MiB."""
_VOTERS_MAX: Final = _SCRATCH // _CHUNK - 3

Addresses = npt.NDArray[np.int64]


class CompiledAccelerator:
    """Same bits as the numpy definitions; see ``acceleration.Accelerator``. One thread at a time."""

    def __init__(self, code: CompiledCode) -> None:
        self._code = code
        self._kept = np.empty(_SCRATCH)
        self._drawn: dict[tuple[bytes, int, int, int], npt.NDArray[np.uint8]] = {}
        """The masks that were drawn last, one bit per element: to unpack one takes a tenth of the time."""
        self._scratch = _address(self._kept)
        self._decodes = {dtype: code[f"decode_{dtype}"] for dtype in _KINDS if f"decode_{dtype}" in code}
        self._combines = {dtype: code[f"combine_{dtype}"] for dtype in self._decodes}

    def check(self) -> None:
        """Run one small loop and compare.

        Raises:
            ArithmeticError: It is wrong; then nothing of this may be used.
        """
        values = np.array([1.0 + 2.0**-24, 5e-324, -0.0, 3.0 * 2.0**-149])
        out, expected = np.empty(4, np.float32), values.astype(np.float32)
        if not self.encode("F32", values, out) or out.tobytes() != expected.tobytes():
            raise ArithmeticError("compiled loops round differently")

    def decode(self, dtype: str, stored: Stored, out: Float64Array) -> bool:
        """Decode stored elements."""
        if dtype not in self._decodes or not (_is_plain(stored) and _is_plain(out)):
            return False
        self._decodes[dtype](_address(stored), out.size, _address(out))
        return True

    def encode(self, dtype: str, values: Float64Array, out: Stored) -> bool:
        """Round to a narrower element type."""
        if dtype == "F64" or dtype not in self._decodes or not (_is_plain(values) and _is_plain(out)):
            return False
        return bool(self._code["encode"](_address(values), values.size, _KINDS[dtype], _address(out)))

    def combine(self, block: Block, coefficients: Sequence[float], out: Float64Array) -> bool:
        """Write the sum of coefficient times input."""
        inputs = block.inputs
        if isinstance(inputs, StoredRows) and block.base is None:
            return self._combine(inputs.dtype, inputs.raw, None, coefficients, "F64", out)
        return self._combine("F64", inputs, block.base, coefficients, "F64", out)

    def combine_stored(
        self,
        rows: StoredRows,
        base: Bytes | None,
        coefficients: Sequence[float],
        out_dtype: str,
        out: Stored,
    ) -> bool:
        """Decode, combine and encode."""
        return out_dtype != "F64" and self._combine(rows.dtype, rows.raw, base, coefficients, out_dtype, out)

    def _combine(  # noqa: PLR0917 - two names behind.
        self,
        dtype: str,
        rows: Sequence[Any],
        base: Any,
        coefficients: Sequence[float],
        out_dtype: str,
        out: Stored,
    ) -> bool:
        if dtype not in self._combines or out_dtype not in self._decodes:
            return False
        wanted = [number for number, factor in enumerate(coefficients) if factor != 0.0]
        arrays = [_bytes_of(rows[number], dtype) for number in wanted]
        origin = None if base is None else _bytes_of(base, dtype)
        if not all(map(_is_plain, [*arrays, out, *([] if origin is None else [origin])])):
            return False
        addresses = np.array([_address(array) for array in arrays], np.int64)
        factors = np.array([coefficients[number] for number in wanted], np.float64)
        loop = self._combines[dtype]
        return bool(
            loop(
                _address(addresses),
                len(wanted),
                0 if origin is None else _address(origin),
                _address(factors),
                out.nbytes // _WIDTHS[out_dtype],
                _KINDS[out_dtype],
                _address(out),
                self._scratch,
            )
        )

    def leaf_sums(self, first: Float64Array, second: Float64Array | None, out: Float64Array) -> bool:
        """Write the sums over leaves of the products, or of ``first`` alone."""
        if not _is_plain(first) or not (second is None or _is_plain(second)):
            return False
        other = 0 if second is None else _address(second)
        self._code["leaf_sums"](_address(first), other, first.size, _address(out), self._scratch)
        return True

    def count(
        self,
        differences: ScaledDifferences,
        contributions: Sequence[int],
        digits: Sequence[Digits],
        histograms: Sequence[Patterns],
        gathered: Sequence[Patterns],
    ) -> list[tuple[int, int]] | None:
        """Count candidates for K-th magnitudes."""
        found = self._rows(differences.block, contributions)
        base = differences.block.base
        if found is None or base is None or not _is_plain(base):
            return None
        dtype, rows, _keepers = found
        masks = [differences.mask(i) for i in contributions]
        dropped = [0 if mask is None else _address(mask) for mask in masks]
        scales = [differences.scale(i) for i in contributions]
        where = rows, _address(base), dropped, scales, base.size
        return self._count(dtype, where, digits, histograms, gathered)

    def count_values(
        self, values: Float64Array, digits: Digits, histogram: Patterns, gathered: Patterns
    ) -> tuple[int, int]:
        """Count candidates among magnitudes."""
        where = [_address(values)], 0, [0], [1.0], values.size
        return self._count("F64", where, [digits], [histogram], [gathered])[0]

    def _count(
        self,
        dtype: str,
        where: tuple[list[int], int, list[int], list[float], int],
        digits: Sequence[Digits],
        histograms: Sequence[Patterns],
        gathered: Sequence[Patterns],
    ) -> list[tuple[int, int]]:
        rows, base, dropped, scales, size = where
        places = [list(map(_address, histograms)), list(map(_address, gathered))]
        addresses = np.array([rows, dropped, *places], np.int64)
        factors = np.array(scales, np.float64)
        ranges = np.array([(d.low, min(d.high, _HIGHEST), d.shift, d.bins) for d in digits], np.int64)
        results = np.zeros((len(rows), 2), np.int64)
        self._code[f"count_{dtype}"](
            _address(addresses[0]),
            len(rows),
            base,
            _address(addresses[1]),
            _address(factors),
            size,
            _address(ranges),
            _address(addresses[2]),
            _address(addresses[3]),
            min(each.size for each in gathered),
            _address(results),
            self._scratch,
        )
        return [(found, above) for found, above in results.tolist()]

    def elect(
        self,
        contest: Contest,
        differences: ScaledDifferences,
        majority: float,
        scale: float,
        out: Float64Array,
    ) -> bool:
        """Write base + scale * merged differences."""
        return self._elect(contest, differences, majority, scale, out) is not None

    def balance(self, contest: Contest, differences: ScaledDifferences) -> int | None:
        """Return how many more elements are elected positive than negative."""
        return self._elect(contest, differences, 1.0, 1.0, None)

    def _elect(
        self,
        contest: Contest,
        differences: ScaledDifferences,
        majority: float,
        scale: float,
        out: Float64Array | None,
    ) -> int | None:
        voting = contest.voting
        found = self._rows(differences.block, voting)
        base = differences.block.base
        if found is None or base is None or not _is_plain(base) or len(voting) > _VOTERS_MAX:
            return None
        dtype, rows, _keepers = found
        masks = [differences.mask(i) for i in voting]
        integers = np.array(
            [rows, [0 if mask is None else _address(mask) for mask in masks], contest.beyond], np.int64
        )
        numbers = np.array(
            [[differences.scale(i) for i in voting], contest.thresholds, contest.weights], np.float64
        )
        is_counted = contest.merge == "mean" and set(contest.weights) == {1.0}
        return self._code[f"elect_{dtype}"](
            _address(integers[0]),
            len(voting),
            _address(base),
            _address(integers[1]),
            _address(numbers[0]),
            _address(numbers[1]),
            _address(integers[2]),
            _address(numbers[2]),
            contest.is_weighted,
            contest.by_count,
            _MEAN_COUNTED if is_counted else _MERGES[contest.merge],
            float(majority),
            float(scale),
            out is None,
            0 if out is None else _address(out),
            base.size,
            self._scratch,
        )

    def drop(
        self, block: Block, draws: Sequence[Draw | None], coefficients: Sequence[float], out: Float64Array
    ) -> bool:
        """Write the base plus the sum of what is kept."""
        wanted = [i for i, coefficient in enumerate(coefficients) if coefficient != 0.0]
        found, base = self._rows(block, wanted), block.base
        if found is None or base is None or not _is_plain(base):
            return False
        dtype, rows, _keepers = found
        chosen = [draws[i] for i in wanted]
        keys = np.frombuffer(b"".join(bytes(16) if each is None else each.key for each in chosen), "<i8")
        bounds = np.array([0 if each is None else each.bound for each in chosen], np.uint64)
        addresses = np.array([rows, [each is not None for each in chosen]], np.int64)
        factors = np.array([coefficients[i] for i in wanted], np.float64)
        self._code[f"drop_{dtype}"](
            _address(addresses[0]),
            len(rows),
            _address(base),
            _address(keys),
            _address(bounds),
            _address(addresses[1]),
            _address(factors),
            block.start,
            out.size,
            _address(out),
            self._scratch,
            _LOW,
        )
        return True

    def add_gain(
        self, values: Float64Array, fisher: Float64Array, gain: Gain, total: Float64Array, out: Float64Array
    ) -> bool:
        """Add the gains and the weighted values."""
        if not all(map(_is_plain, (values, fisher, total, out))):
            return False
        self._code["add_gain"](
            _address(values),
            _address(fisher),
            gain.scale,
            gain.cap,
            gain.floor,
            _POWERS[gain.power],
            gain.weight,
            out.size,
            _address(total),
            _address(out),
        )
        return True

    def agree(
        self,
        inputs: Sequence[Float64Array],
        base: Float64Array,
        weights: Sequence[float],
        least: int,
        out: Float64Array,
    ) -> bool:
        """Write the mean changes of those who agree."""
        if not inputs or not all(map(_is_plain, (*inputs, base, out))):
            return False
        rows = np.array([_address(values) for values in inputs], np.int64)
        factors = np.array(weights, np.float64)
        self._code["agree"](
            _address(rows),
            len(rows),
            _address(base),
            _address(factors),
            float(least),
            out.size,
            _address(out),
            self._scratch,
        )
        return True

    def keep(self, key: bytes, start: int, bound: int, out: Mask) -> bool:
        """Write which words of a stream are below ``bound``."""
        if not 0 < bound < 1 << 64:
            return False
        name = key, start, bound, out.size
        if (drawn := self._drawn.get(name)) is not None:
            np.copyto(out, np.unpackbits(drawn, count=out.size).view(np.bool_))
            return True
        low, high = np.frombuffer(key, "<i8").tolist()
        self._code["draw"](low, high, start, bound, out.size, _address(out), self._scratch, _LOW)
        if (len(self._drawn) + 1) * out.size > _DRAWN_MAX:  # All but the last of a tensor are of one size.
            self._drawn.clear()
        self._drawn[name] = np.packbits(out)
        return True

    def uniform(self, key: bytes, start: int, out: Float64Array) -> bool:
        """Write exact uniforms."""
        low, high = np.frombuffer(key, "<i8").tolist()
        self._code["draw"](low, high, start, 0, out.size, _address(out), self._scratch, _LOW)
        return True

    def _rows(self, block: Block, wanted: Sequence[int]) -> tuple[str, list[int], list[Any]] | None:
        """Return the element type of inputs, their addresses, and what keeps them alive."""
        inputs = block.inputs
        if isinstance(inputs, StoredRows) and f"elect_{inputs.dtype}" in self._code:
            dtype, arrays = inputs.dtype, [_bytes_of(inputs.raw[i], inputs.dtype) for i in wanted]
        else:
            dtype, arrays = "F64", [inputs[i] for i in wanted]
        if not all(map(_is_plain, arrays)):
            return None
        return dtype, [_address(array) for array in arrays], arrays


def _bytes_of(row: Any, dtype: str) -> npt.NDArray[Any]:
    """Return stored elements as an array of elements as wide as theirs."""
    if isinstance(row, np.ndarray):
        return row
    return np.frombuffer(row, f"<i{_WIDTHS[dtype]}")


def _is_plain(array: npt.NDArray[Any]) -> bool:
    """Tell whether elements follow each other, aligned as the processor likes it."""
    return array.flags.c_contiguous and array.flags.aligned


def _address(array: npt.NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
