"""Where compiled loops may take the place of the numpy ones: the same bits, sooner.

The numpy definitions are the specification. Whoever drives a merge may ``install`` an accelerator, which must
return what they return, to the bit; without one, and for anything that one declines, the definitions run.
This room compiles nothing and imports no compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, overload

import numpy as np
import numpy.typing as npt

from .contract import Block, Float64Array

Bytes = bytes | bytearray | memoryview
Stored = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Patterns = npt.NDArray[np.int64]

_TOP: Final = 1 << 63
_FIRST_BITS: Final = 15
_DIGIT_BITS: Final = 12


@dataclass(frozen=True, slots=True)
class Digits:
    """A range of bit patterns of magnitudes, and which of their bits are counted (``selection.py``)."""

    low: int
    """The least pattern in the range."""
    high: int
    """The least pattern above it."""
    shift: int
    """The digit of a pattern is its distance from ``low`` without so many of the lowest bits."""

    @property
    def width(self) -> int:
        """Number of patterns in the range."""
        return self.high - self.low

    @property
    def bins(self) -> int:
        """Number of different digits."""
        return ((self.width - 1) >> self.shift) + 1

    @property
    def is_narrow(self) -> bool:
        """Tell whether there are magnitudes outside of the range."""
        return self.low > 0 or self.high < _TOP

    def within(self, digit: int) -> Digits:
        """Return the range of one digit, with digits of its own."""
        low = self.low + (digit << self.shift)
        return Digits(low, min(low + (1 << self.shift), self.high), max(self.shift - _DIGIT_BITS, 0))

    def above(self) -> Digits:
        """Return the range of all that is above."""
        return Digits.between(self.high, _TOP, _FIRST_BITS)

    def below(self) -> Digits:
        """Return the range of all that is below."""
        return Digits.between(0, self.low, _FIRST_BITS)

    @staticmethod
    def between(low: int, high: int, bits: int = _DIGIT_BITS) -> Digits:
        """Return a range with digits of so many bits at most."""
        return Digits(low, high, max((high - low - 1).bit_length() - bits, 0))


@dataclass(frozen=True, slots=True)
class Draw:
    """Which elements of a contribution stay: those whose word of a stream is below a bound."""

    key: bytes
    """Of the stream."""
    bound: int
    """0 <= bound < 2^64."""


@dataclass(frozen=True, slots=True)
class ScaledDifferences:
    """Writes (input - base), times a mask, times a scale: what most elections are about."""

    block: Block
    masks: Sequence[Mask | None] = ()
    """Per contribution what is kept of it, ``(n,)``; None, or empty for all: everything."""
    scales: Sequence[float] = ()
    """Per contribution; empty: one."""

    def __call__(self, contribution: int, part: slice, out: Float64Array) -> None:
        """Write the differences of a contribution in a range of the block."""
        assert self.block.base is not None, "differences are from a base"
        np.subtract(self.block.inputs[contribution][part], self.block.base[part], out=out)
        mask = self.mask(contribution)
        if mask is not None:
            out *= mask[part]
        scale = self.scale(contribution)
        if scale != 1.0:
            out *= scale

    def mask(self, contribution: int) -> Mask | None:
        """Return what is kept of a contribution."""
        return self.masks[contribution] if self.masks else None

    def scale(self, contribution: int) -> float:
        """Return what a contribution is multiplied by."""
        return self.scales[contribution] if self.scales else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """An election over one block, all of it in numbers (``election.py`` says what they mean)."""

    voting: Sequence[int]
    """Contributions with a vote."""
    weights: Sequence[float]
    """One per vote, positive."""
    is_weighted: bool
    by_count: bool
    merge: Literal["mean", "sum", "max"]
    thresholds: Sequence[float]
    """One per vote: the magnitude that is kept at least; below zero: all is."""
    beyond: Sequence[int]
    """One per vote: the element of the block from which on what equals the threshold goes too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """What a Fisher diagonal is turned into: weight * (min(scale * F, cap)^power + floor)."""

    scale: float
    cap: float
    """Infinite: none."""
    power: Literal["0.5", "1", "2"]
    floor: float
    weight: float


class Accelerator(Protocol):
    """The loops that can be replaced. None writes to its inputs; all tell if they decline."""

    def decode(self, dtype: str, stored: Stored, out: Float64Array) -> bool:
        """Decode stored elements: ``dtypes.decode_into``."""
        ...

    def encode(self, dtype: str, values: Float64Array, out: Stored) -> bool:
        """Round as ``dtypes.encode_into`` does; False also where something does not fit."""
        ...

    def combine(self, block: Block, coefficients: Sequence[float], out: Float64Array) -> bool:
        """Write the sum of coefficient times input: ``kernels.combine``."""
        ...

    def combine_stored(
        self,
        rows: StoredRows,
        base: Bytes | None,
        coefficients: Sequence[float],
        out_dtype: str,
        out: Stored,
    ) -> bool:
        """Decode, combine and encode in one go; False also where something does not fit.

        Args:
            rows: The inputs.
            base: Of the same element type.
            coefficients: One per input.
            out_dtype: Element type of ``out``.
            out: The stored elements, ``(n,)``.
        """
        ...

    def leaf_sums(self, first: Float64Array, second: Float64Array | None, out: Float64Array) -> bool:
        """Write the sums over leaves of the products, or of ``first``: ``reductions.leaf_sums``."""
        ...

    def count(
        self,
        differences: ScaledDifferences,
        contributions: Sequence[int],
        digits: Sequence[Digits],
        histograms: Sequence[Patterns],
        gathered: Sequence[Patterns],
    ) -> list[tuple[int, int]] | None:
        """Count candidates for K-th magnitudes: ``selection.tally``.

        Args:
            differences: Whose magnitudes are ranked.
            contributions: Of which contributions.
            digits: Per contribution, which are candidates and the digits by which they are counted.
            histograms: The same; added to where there are more candidates than are gathered.
            gathered: The same, all of one size; filled with the first candidates.

        Returns:
            Per contribution the numbers of candidates and of what is above them; None: declined.
        """
        ...

    def count_values(
        self, values: Float64Array, digits: Digits, histogram: Patterns, gathered: Patterns
    ) -> tuple[int, int]:
        """Count candidates as :meth:`count` does, among magnitudes that somebody has written."""
        ...

    def elect(
        self,
        contest: Contest,
        differences: ScaledDifferences,
        majority: float,
        scale: float,
        out: Float64Array,
    ) -> bool:
        """Write base + scale * merged differences: ``Trim``, ``Booth.merge``."""
        ...

    def balance(self, contest: Contest, differences: ScaledDifferences) -> int | None:
        """Return how many more elements are elected positive than negative; None: declined."""
        ...

    def drop(
        self, block: Block, draws: Sequence[Draw | None], coefficients: Sequence[float], out: Float64Array
    ) -> bool:
        """Write the base plus the sum of coefficient times what is kept of each difference: ``dare.py``.

        Args:
            block: With a base.
            draws: One per contribution; None: all of it is kept.
            coefficients: One per contribution; those with a zero are not looked at.
            out: ``(n,)``.
        """
        ...

    def add_gain(
        self, values: Float64Array, fisher: Float64Array, gain: Gain, total: Float64Array, out: Float64Array
    ) -> bool:
        """Add the gains to ``total``, and their products with the values to ``out``: ``fisher.py``."""
        ...

    def agree(
        self,
        inputs: Sequence[Float64Array],
        base: Float64Array,
        weights: Sequence[float],
        least: int,
        out: Float64Array,
    ) -> bool:
        """Write the weighted mean changes of the majorities of at least so many: ``unlearning.py``."""
        ...

    def keep(self, key: bytes, start: int, bound: int, out: Mask) -> bool:
        """Write which words of a stream are below ``bound``: ``randomness.keep_mask``."""
        ...

    def uniform(self, key: bytes, start: int, out: Float64Array) -> bool:
        """Write the numbers of a stream: ``randomness.uniform``."""
        ...


class StoredRows(Sequence[Float64Array]):
    """The inputs of a block as they are stored; decoded when somebody looks at the numbers."""

    def __init__(
        self, dtype: str, raw: Sequence[Bytes], decode: Callable[[int, Bytes], Float64Array]
    ) -> None:
        self.dtype: Final = dtype
        self.raw: Final = raw
        self._decode = decode
        self._decoded: list[Float64Array | None] = [None] * len(raw)

    def __len__(self) -> int:
        return len(self.raw)

    @overload
    def __getitem__(self, index: int) -> Float64Array: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Float64Array]: ...

    def __getitem__(self, index: int | slice) -> Float64Array | Sequence[Float64Array]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        found = self._decoded[index]
        if found is None:
            position = range(len(self))[index]
            found = self._decoded[index] = self._decode(position, self.raw[position])
        return found

    def __iter__(self) -> Iterator[Float64Array]:
        return (self[i] for i in range(len(self)))


@dataclass(slots=True)
class _Installed:
    accelerator: Accelerator | None = None


_INSTALLED: Final = _Installed()


def install(accelerator: Accelerator | None) -> None:
    """Use an accelerator in this process from now on; None: the definitions."""
    _INSTALLED.accelerator = accelerator


def current() -> Accelerator | None:
    """Return the accelerator of this process, if there is one."""
    return _INSTALLED.accelerator
