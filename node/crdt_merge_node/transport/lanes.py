"""Messages that wait to be sent, in lanes of importance, as the bytes that will be sent.

A large frame leaves in slices, so that neither encrypting it nor what the transport holds of it is longer
than a slice; nothing overtakes the rest of a frame that has begun. The bytes of a chunk are not copied.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from enum import IntEnum
from typing import Final

from crdt_merge_protocol.limits import KIB, LANE_BYTES_MAX
from crdt_merge_protocol.messages.base import ControlMessage, Message
from crdt_merge_protocol.wire import encode_frame, encode_pieces

BATCH_BYTES: Final = 64 * KIB
"""Small frames are encrypted together up to here."""
SLICE_BYTES: Final = 256 * KIB

Pieces = Sequence[bytes | memoryview]


class Lane(IntEnum):
    """How important a message is. Lower goes first."""

    MEMBERSHIP = 0
    OPERATIONS = 1
    SYNC = 2
    BULK = 3


class Lanes:
    """One queue a lane, each bounded by ``LANE_BYTES_MAX``."""

    def __init__(self) -> None:
        self._queues: tuple[deque[tuple[int, Pieces]], ...] = tuple(deque() for _ in Lane)
        self._nbytes = [0] * len(Lane)
        self._begun: tuple[Lane, memoryview] | None = None
        """The rest of a frame whose beginning has been taken."""

    def nbytes(self, lane: Lane | None = None) -> int:
        """Return how many bytes wait in one lane, or in all."""
        return sum(self._nbytes) if lane is None else self._nbytes[lane]

    def put(self, message: Message, lane: Lane) -> bool:
        """Queue a message; False if the lane is full."""
        is_control = isinstance(message, ControlMessage)
        frame: Pieces = (encode_frame(message),) if is_control else encode_pieces(message)
        nbytes = sum(map(len, frame))
        if self._nbytes[lane] and self._nbytes[lane] + nbytes > LANE_BYTES_MAX:
            return False
        self._queues[lane].append((nbytes, frame))
        self._nbytes[lane] += nbytes
        return True

    def take(self) -> Pieces:
        """Return what to send next, at most a slice and a header; nothing if nothing waits."""
        if self._begun is not None:
            return self._slice(*self._begun)
        pieces: list[bytes | memoryview] = []
        total = 0
        for lane in Lane:
            queue = self._queues[lane]
            while queue and (not total or total + queue[0][0] <= BATCH_BYTES):
                nbytes, frame = queue.popleft()
                if nbytes > BATCH_BYTES:
                    *first, last = frame
                    self._nbytes[lane] -= sum(map(len, first))
                    return [*first, *self._slice(lane, memoryview(last))]
                self._nbytes[lane] -= nbytes
                total += nbytes
                pieces += frame
            if queue:
                break
        return pieces if len(pieces) < 2 else [b"".join(pieces)]

    def _slice(self, lane: Lane, rest: memoryview) -> Pieces:
        piece, rest = rest[:SLICE_BYTES], rest[SLICE_BYTES:]
        self._nbytes[lane] -= len(piece)
        self._begun = (lane, rest) if rest else None
        return [piece]

    def clear(self) -> Pieces:
        """Drop everything but the rest of a frame that has begun, which is returned: it must go first."""
        begun, self._begun = self._begun, None
        for queue in self._queues:
            queue.clear()
        self._nbytes = [0] * len(Lane)
        return [] if begun is None else [begun[1]]
