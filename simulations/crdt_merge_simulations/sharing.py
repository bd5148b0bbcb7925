"""Work that a thousand nodes of one process need do only once.

The same bytes reach node after node. Encoding and verifying them gives the same answer each time, and the
answers are immutable, so within :func:`shared_work` they are remembered by the bytes. The engines do
not notice; each still asks. What is remembered is bounded, and forgotten at the end of the run.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from struct import Struct
from typing import Any, Final
from unittest.mock import patch
from zlib import crc32

import msgpack
from crdt_merge_protocol import identity, operations
from crdt_merge_protocol.errors import BadSignatureError
from crdt_merge_protocol.genesis import Genesis
from crdt_merge_protocol.messages.base import ControlMessage, Message
from crdt_merge_protocol.operations import SignedOperation
from crdt_merge_protocol.wire import FLAG_CRITICAL, FrameDecoder, encode_frame

REMEMBERED_MAX: Final = 1 << 16
FRAMES_MAX: Final = 1 << 12
CHECKED_EVERY: Final = 64
HEADER: Final = Struct(">IBB")
"""Of a frame (PROTOCOL 4): body length, type, flags."""


@dataclass(slots=True)
class Frame:
    """Bytes on their way, and what they say."""

    data: bytes
    mark: int
    """CRC-32 of the bytes, for the trace."""
    message: Message | None = None
    """None: the receiver must decode the bytes to know."""


class Codec:
    """Frames written once per message object, and handed over with what they say.

    A receiver would decode what the sender encoded; that this gives the same message is checked for one
    frame in :data:`CHECKED_EVERY`, and the frame is compared with the one of the real encoder.
    """

    def __init__(self) -> None:
        self._frames: dict[int, Frame] = {}
        self._count = 0

    def frame(self, message: Message) -> Frame:
        """Return the frame of a message."""
        found = self._frames.get(id(message))
        if found is not None:
            return found
        if len(self._frames) >= FRAMES_MAX:
            self._frames.clear()
        data = _encoded(message)
        self._count += 1
        if self._count % CHECKED_EVERY == 1:
            assert data == encode_frame(message), f"{message} has two encodings"
            assert FrameDecoder().feed(data) == [message], f"{message} is decoded as something else"
        # The frame keeps its message alive, so no other one can get its id.
        frame = self._frames[id(message)] = Frame(data, crc32(data), message)
        return frame


def _encoded(message: Message) -> bytes:
    """Return the frame of a message, without asking again whether its fields are of permitted types."""
    if not isinstance(message, ControlMessage):
        return encode_frame(message)
    body: bytes = msgpack.packb(message.to_fields())
    return HEADER.pack(len(body), message.TYPE, FLAG_CRITICAL if message.CRITICAL else 0) + body


class _Remembered:
    """What was answered before, forgotten all at once when it is too much."""

    def __init__(self, answer: Callable[..., Any], *, key: Callable[..., Any], count_max: int) -> None:
        self._answer = answer
        self._key = key
        self._count_max = count_max
        self._answers: dict[Any, tuple[Any, Any]] = {}

    def __call__(self, *args: Any) -> Any:
        """Return the answer. The arguments are kept with it, so that what is named by its id stays."""
        key = self._key(*args)
        found = self._answers.get(key)
        if found is None:
            if len(self._answers) >= self._count_max:
                self._answers.clear()
            found = self._answers[key] = self._answer(*args), args
        return found[0]


@contextmanager
def shared_work() -> Iterator[None]:
    """Load and verify equal operations and groups once, in all engines of this process."""
    load = _Remembered(SignedOperation.load, key=lambda data: data, count_max=REMEMBERED_MAX)
    decode = _Remembered(Genesis.decode, key=lambda data: data, count_max=FRAMES_MAX)
    encode = _Remembered(Genesis.encode, key=id, count_max=FRAMES_MAX)
    judge = _Remembered(_verdict(identity.verify), key=lambda *call: call, count_max=REMEMBERED_MAX)

    def verify_once(public: bytes, signature: bytes, message: bytes) -> None:
        if verdict := judge(public, signature, message):
            raise BadSignatureError(verdict)

    def encode_once(genesis: Genesis) -> bytes:
        return bytes(encode(genesis))

    with (
        patch.object(SignedOperation, "load", classmethod(lambda _cls, data: load(data))),
        patch.object(Genesis, "decode", classmethod(lambda _cls, data: decode(data))),
        patch.object(Genesis, "encode", encode_once),
        patch.object(operations, "verify", verify_once),
    ):
        yield


def _verdict(check: Callable[[bytes, bytes, bytes], None]) -> Callable[[bytes, bytes, bytes], str]:
    def judge(public: bytes, signature: bytes, message: bytes) -> str:
        """Return what is wrong with a signature; empty if nothing is."""
        try:
            check(public, signature, message)
        except BadSignatureError as error:
            return error.message
        return ""

    return judge


@contextmanager
def no_collector() -> Iterator[None]:
    """Keep the cycle collector from walking through all nodes again and again: a third of the time of a run.

    What engines drop is freed by its reference count; the few cycles wait for the end of the run.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
