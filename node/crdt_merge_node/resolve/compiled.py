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
_CHUNK: Final = 2_048
_SCRATCH: Final = 65_536
"""Elements of float64 that every loop may write to."""
_VOTERS_MAX: Final = _SCRATCH // _CHUNK - 2

Addresses = npt.NDArray[np.int64]


class CompiledAccelerator:
    """Same bits as the numpy definitions; see ``acceleration.Accelerator``. One thread at a time."""

    def __init__(self, code: CompiledCode) -> None:
        self._code = code
        self._kept = np.empty(_SCRATCH)
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
        contribution: int,
        digits: tuple[int, int, int],
        histogram: Patterns,
        gathered: Patterns,
    ) -> int | None:
        """Count candidates for a K-th magnitude."""
        found = self._rows(differences.block, [contribution])
        base = differences.block.base
        if found is None or base is None or not _is_plain(base):
            return None
        kind, (row,), _keepers = found
        mask, scale = differences.mask(contribution), differences.scale(contribution)
        where = row, kind, _address(base), 0 if mask is None else _address(mask), float(scale), base.size
        return self._count(where, digits, histogram, gathered)

    def count_values(
        self, values: Float64Array, digits: tuple[int, int, int], histogram: Patterns, gathered: Patterns
    ) -> int:
        """Count candidates among magnitudes."""
        where = _address(values), _KINDS["F64"], 0, 0, 1.0, values.size
        return self._count(where, digits, histogram, gathered)

    def _count(
        self,
        where: tuple[int, int, int, int, float, int],
        digits: tuple[int, int, int],
        histogram: Patterns,
        gathered: Patterns,
    ) -> int:
        return self._code["count"](
            *where,
            *digits,
            _address(histogram),
            histogram.size,
            _address(gathered),
            gathered.size,
            self._scratch,
        )

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
        kind, rows, _keepers = found
        masks = [differences.mask(i) for i in voting]
        integers = np.array(
            [rows, [0 if mask is None else _address(mask) for mask in masks], contest.beyond], np.int64
        )
        numbers = np.array(
            [[differences.scale(i) for i in voting], contest.thresholds, contest.weights], np.float64
        )
        is_counted = contest.merge == "mean" and set(contest.weights) == {1.0}
        return self._code["elect"](
            _address(integers[0]),
            len(voting),
            kind,
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
        low, high = np.frombuffer(key, "<i8").tolist()
        self._code["draw"](low, high, start, bound, out.size, _address(out), self._scratch, _LOW)
        return True

    def uniform(self, key: bytes, start: int, out: Float64Array) -> bool:
        """Write exact uniforms."""
        low, high = np.frombuffer(key, "<i8").tolist()
        self._code["draw"](low, high, start, 0, out.size, _address(out), self._scratch, _LOW)
        return True

    def _rows(self, block: Block, wanted: Sequence[int]) -> tuple[int, list[int], list[Any]] | None:
        """Return the kind of inputs, their addresses, and what keeps them alive."""
        inputs = block.inputs
        if isinstance(inputs, StoredRows) and inputs.dtype in self._decodes:
            dtype, arrays = inputs.dtype, [_bytes_of(inputs.raw[i], inputs.dtype) for i in wanted]
        else:
            dtype, arrays = "F64", [inputs[i] for i in wanted]
        if not all(map(_is_plain, arrays)):
            return None
        return _KINDS[dtype], [_address(array) for array in arrays], arrays


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
