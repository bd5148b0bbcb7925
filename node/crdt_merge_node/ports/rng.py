"""The port for randomness."""

from __future__ import annotations

import builtins
import os
import random
from collections.abc import MutableSequence, Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Rng(Protocol):
    """Randomness. A subset of ``random.Random``, so that either fits, plus :meth:`bytes` for secrets."""

    def bytes(self, n: int, /) -> builtins.bytes:
        """Return ``n`` unpredictable bytes: keys, nonces, log ids, tokens."""
        ...

    def random(self) -> float:
        """Return a number in ``0 <= x < 1``."""
        ...

    def uniform(self, a: float, b: float) -> float:
        """Return a number between ``a`` and ``b``."""
        ...

    def randrange(self, start: int, stop: int | None = None, /) -> int:
        """Return an integer of ``range(start, stop)``, or of ``range(start)``."""
        ...

    def choice(self, seq: Sequence[T], /) -> T:
        """Return one element."""
        ...

    def sample(self, population: Sequence[T], /, k: int) -> list[T]:
        """Return ``k`` different elements in random order."""
        ...

    def shuffle(self, x: MutableSequence[Any], /) -> None:
        """Shuffle in place."""
        ...


class SystemRng(random.SystemRandom):
    """The kernel's random numbers, for every purpose."""

    def bytes(self, n: int, /) -> builtins.bytes:
        """Return ``n`` unpredictable bytes."""
        return os.urandom(n)


class SeededRng(random.Random):
    """Reproducible numbers for tests and simulations; never for secrets."""

    def bytes(self, n: int, /) -> builtins.bytes:
        """Return ``n`` bytes of this seed's sequence."""
        return self.randbytes(n)
