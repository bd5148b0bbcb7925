"""Work that a thousand nodes of one process need do only once.

The same bytes reach node after node. Encoding, decoding and verifying them gives the same answer each time,
and the answers are immutable, so within :func:`shared_work` they are remembered by the bytes. The engines do
not notice; each still asks. What is remembered is bounded, and forgotten at the end of the run.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final
from unittest.mock import patch

from crdt_merge_protocol import identity, operations
from crdt_merge_protocol.errors import BadSignatureError
from crdt_merge_protocol.messages.base import Message
from crdt_merge_protocol.operations import SignedOperation
from crdt_merge_protocol.wire import FrameDecoder, encode_frame

REMEMBERED_MAX: Final = 1 << 16
FRAMES_MAX: Final = 1 << 12


class Codec:
    """Frames encoded once per message object, and decoded once per frame."""

    def __init__(self) -> None:
        self._frames: dict[int, tuple[Message, bytes]] = {}
        self._messages: dict[bytes, Message] = {}

    def encode(self, message: Message) -> bytes:
        """Return the frame of a message."""
        found = self._frames.get(id(message))
        if found is not None and found[0] is message:
            return found[1]
        if len(self._frames) >= FRAMES_MAX:
            self._frames.clear()
        frame = encode_frame(message)
        self._frames[id(message)] = message, frame
        return frame

    def decode(self, frame: bytes) -> Message:
        """Return the message of a whole frame."""
        message = self._messages.get(frame)
        if message is None:
            if len(self._messages) >= FRAMES_MAX:
                self._messages.clear()
            [message] = FrameDecoder().feed(frame)
            self._messages[frame] = message
        return message


@contextmanager
def shared_work() -> Iterator[None]:
    """Load and verify equal operations once, in all engines of this process."""
    load: Callable[[bytes], SignedOperation] = SignedOperation.load
    check: Callable[[bytes, bytes, bytes], None] = identity.verify
    loaded: dict[bytes, SignedOperation] = {}
    verdicts: dict[tuple[bytes, bytes, bytes], str] = {}

    def load_once(_cls: Any, data: bytes) -> SignedOperation:
        found = loaded.get(data)
        if found is None:
            if len(loaded) >= REMEMBERED_MAX:
                loaded.clear()
            found = loaded[data] = load(data)
        return found

    def verify_once(public: bytes, signature: bytes, message: bytes) -> None:
        key = (public, signature, message)
        verdict = verdicts.get(key)
        if verdict is None:
            if len(verdicts) >= REMEMBERED_MAX:
                verdicts.clear()
            try:
                check(public, signature, message)
                verdict = ""
            except BadSignatureError as error:
                verdict = error.message
            verdicts[key] = verdict
        if verdict:
            raise BadSignatureError(verdict)

    with (
        patch.object(SignedOperation, "load", classmethod(load_once)),
        patch.object(operations, "verify", verify_once),
    ):
        yield


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
