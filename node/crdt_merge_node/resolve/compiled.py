"""The accelerator made of compiled loops: addresses and flags for ``compiled_kernels``.

Imported by :func:`accelerate.install_compiled` alone, because numba takes a second and a hundred mebibytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from crdt_merge_protocol.strategies.acceleration import (
    Bytes,
    Contest,
    Mask,
    Patterns,
    ScaledDifferences,
    Stored,
    StoredRows,
)
from crdt_merge_protocol.strategies.contract import Block, Float64Array

from . import compiled_kernels as kernels

_LIKE: Final[dict[str, npt.NDArray[Any]]] = {
    "F64": np.empty(0, np.float64),
    "F32": np.empty(0, np.float32),
    "BF16": np.empty(0, np.uint16),
}
"""An empty array per element type that the kernels read; float16 is left to numpy."""
_NO_DOUBLES, _NO_SINGLES, _NO_BRAINS = np.empty(0), np.empty(0, np.int32), np.empty(0, np.uint16)
_MASK_LIKE: Final = np.empty(0, np.uint8)
_ALL: Final = 63
_MERGES: Final = {"mean": kernels.MEAN_WEIGHTED, "sum": kernels.SUM, "max": kernels.MAX}


class CompiledAccelerator:
    """Same bits as the numpy definitions; see ``acceleration.Accelerator``."""

    def check(self) -> None:
        """Run one small loop and compare.

        Raises:
            ArithmeticError: It is wrong; then nothing of this may be used.
        """
        values = np.array([1.0 + 2.0**-24, 5e-324, -0.0, 3.0 * 2.0**-149])
        out, expected = np.empty(4, np.float32), values.astype(np.float32)
        if not self.encode("F32", values, out) or out.tobytes() != expected.tobytes():
            raise ArithmeticError("compiled loops round differently")

    def widen(self, stored: Stored, out: Float64Array) -> bool:
        """Decode bfloat16."""
        if not _is_plain(stored) or not _is_plain(out):
            return False
        kernels.widen(_address(stored), _LIKE["BF16"], out)
        return True

    def encode(self, dtype: str, values: Float64Array, out: Stored) -> bool:
        """Round to float32 or bfloat16."""
        if dtype not in ("F32", "BF16") or not _is_plain(values) or not _is_plain(out):
            return False
        if dtype == "F32":
            return kernels.round_all(values, kernels.AS_F32, out.view(np.int32), _NO_BRAINS)
        return kernels.round_all(values, kernels.AS_BF16, _NO_SINGLES, out.view(np.uint16))

    def combine(self, block: Block, coefficients: Sequence[float], out: Float64Array) -> bool:
        """Write the sum of coefficient times input."""
        found = _rows(block, [number for number, factor in enumerate(coefficients) if factor != 0.0])
        if found is None or not (block.base is None or _is_plain(block.base)):
            return False
        addresses, like, _keepers = found
        return kernels.combine(
            addresses,
            like,
            0 if block.base is None else _address(block.base),
            _LIKE["F64"],
            _nonzero(coefficients),
            out.size,
            kernels.AS_F64,
            out,
            _NO_SINGLES,
            _NO_BRAINS,
        )

    def combine_stored(
        self,
        rows: StoredRows,
        base: Bytes | None,
        coefficients: Sequence[float],
        out_dtype: str,
        out: Stored,
    ) -> bool:
        """Decode, combine and encode."""
        if rows.dtype not in _LIKE or out_dtype not in ("F32", "BF16"):
            return False
        like = _LIKE[rows.dtype]
        pairs = zip(rows.raw, coefficients, strict=True)
        arrays = [np.frombuffer(row, like.dtype) for row, factor in pairs if factor != 0.0]
        origin = None if base is None else np.frombuffer(base, like.dtype)
        if not all(map(_is_plain, [*arrays, out, *([] if origin is None else [origin])])):
            return False
        is_single = out_dtype == "F32"
        return kernels.combine(
            np.array([_address(array) for array in arrays], np.int64),
            like,
            0 if origin is None else _address(origin),
            like,
            _nonzero(coefficients),
            out.size,
            kernels.AS_F32 if is_single else kernels.AS_BF16,
            _NO_DOUBLES,
            out.view(np.int32) if is_single else _NO_SINGLES,
            _NO_BRAINS if is_single else out.view(np.uint16),
        )

    def count(
        self,
        differences: ScaledDifferences,
        contribution: int,
        digits: tuple[int, int, int],
        histogram: Patterns,
        gathered: Patterns,
    ) -> int | None:
        """Count candidates for a K-th magnitude."""
        found = _rows(differences.block, [contribution])
        base = differences.block.base
        if found is None or base is None or not _is_plain(base):
            return None
        addresses, like, _keepers = found
        mask = differences.mask(contribution)
        prefix, above, shift = digits
        return kernels.count_digits(
            int(addresses[0]),
            like,
            _address(base),
            0 if mask is None else _address(mask),
            _MASK_LIKE,
            float(differences.scale(contribution)),
            base.size,
            prefix,
            above,
            shift,
            histogram,
            gathered,
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
        return _elect(contest, differences, majority, scale, out) is not None

    def balance(self, contest: Contest, differences: ScaledDifferences) -> int | None:
        """Return how many more elements are elected positive than negative."""
        return _elect(contest, differences, 1.0, 1.0, None)

    def keep(self, key: bytes, start: int, bound: int, out: Mask) -> bool:
        """Write which words of a stream are below ``bound``."""
        low, high = np.frombuffer(key, "<u8").astype(np.uint64)
        kernels.keep(low, high, np.uint64(start), np.uint64(bound), out)
        return True


def _elect(
    contest: Contest, differences: ScaledDifferences, majority: float, scale: float, out: Float64Array | None
) -> int | None:
    found = _rows(differences.block, contest.voting)
    base = differences.block.base
    if found is None or base is None or not _is_plain(base):
        return None
    addresses, like, _keepers = found
    masks = [differences.mask(i) for i in contest.voting]
    is_counted = contest.merge == "mean" and set(contest.weights) == {1.0}
    return kernels.elect(
        addresses,
        like,
        _address(base),
        np.array([0 if mask is None else _address(mask) for mask in masks], np.int64),
        _MASK_LIKE,
        np.array([differences.scale(i) for i in contest.voting], np.float64),
        np.array(contest.thresholds, np.float64),
        np.array(contest.beyond, np.int64),
        np.array(contest.weights, np.float64),
        contest.is_weighted,
        contest.by_count,
        kernels.MEAN_COUNTED if is_counted else _MERGES[contest.merge],
        float(majority),
        float(scale),
        out is None,
        _NO_DOUBLES if out is None else out,
        base.size,
    )


def _rows(
    block: Block, wanted: Sequence[int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any], list[npt.NDArray[Any]]] | None:
    """Return the addresses of inputs, an array of their element type, and what keeps them alive."""
    inputs = block.inputs
    if isinstance(inputs, StoredRows) and inputs.dtype in _LIKE:
        like = _LIKE[inputs.dtype]
        arrays = [np.frombuffer(inputs.raw[i], like.dtype) for i in wanted]
    else:
        like = _LIKE["F64"]
        arrays = [inputs[i] for i in wanted]
    if not all(_is_plain(array) for array in arrays):
        return None
    return np.array([_address(array) for array in arrays], np.int64), like, arrays


def _nonzero(coefficients: Sequence[float]) -> Float64Array:
    return np.array([factor for factor in coefficients if factor != 0.0], np.float64)


def _is_plain(array: npt.NDArray[Any]) -> bool:
    """Tell whether elements follow each other, aligned as the processor likes it."""
    return array.flags.c_contiguous and array.flags.aligned


def _address(array: npt.NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
