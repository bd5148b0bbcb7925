"""Asking the disk for what the next tasks read, while workers start or are busy with the present ones.

The kernel reads into its page cache, so this costs no thread, no buffer and nothing of the memory budget,
which counts anonymous and shared memory. It is a hint: whether it is taken changes no bit of the result.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

from .job import TensorSource

AHEAD_BYTES: Final = 1 << 26
"""Asked for beyond what was given out: what a disk of 200 MB/s reads while workers start."""
T = TypeVar("T")
Range = tuple[TensorSource, int, int]
"""A source, where in it something will be read, and how many bytes."""
Expect = Callable[[TensorSource, int, int], None]
"""Told of a range: ``SourceReader.expect``."""


def reading_ahead(items: Iterable[T], ranges: Callable[[T], Iterable[Range]], expect: Expect) -> Iterator[T]:
    """Yield what is read in order, having asked for its ranges and those of the next :data:`AHEAD_BYTES`.

    Args:
        items: Tasks, or what they are made of.
        ranges: What one of them reads.
        expect: Asks for a range.
    """
    asked: deque[tuple[T, int]] = deque()
    ahead = 0
    for item in items:
        nbytes = 0
        for source, offset, length in ranges(item):
            expect(source, offset, min(length, AHEAD_BYTES))
            nbytes += length
        asked.append((item, nbytes))
        ahead += nbytes
        while ahead - asked[0][1] >= AHEAD_BYTES:
            first, nbytes = asked.popleft()
            ahead -= nbytes
            yield first
    for first, _ in asked:
        yield first
