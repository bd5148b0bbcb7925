"""Work that many daemons of one process need do only once, beyond what engines share (``sharing.py``).

Frames, messages, manifests and certificates are values: what one daemon made of the same bytes, the next one
may have. Daemons do not notice, nor does a trace. Errors are never remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final
from unittest.mock import patch

from crdt_merge_node.transport import greeting, lanes
from crdt_merge_node.transport.certificates import PeerCertificate, read_peer_certificate
from crdt_merge_protocol.blobs import Manifest, Schema
from crdt_merge_protocol.messages.base import ControlMessage, Message
from crdt_merge_protocol.wire import encode_frame

from .sharing import shared_work

REMEMBERED_MAX: Final = 1 << 14


@contextmanager
def shared_daemon_work() -> Iterator[None]:
    """Decode, encode and verify equal things once, in all daemons of this process."""
    with ExitStack() as stack:
        stack.enter_context(shared_work())
        for owner in (ControlMessage, Manifest, Schema):
            name = "from_body" if owner is ControlMessage else "decode"
            stack.enter_context(patch.object(owner, name, classmethod(_by_bytes(getattr(owner, name)))))
        stack.enter_context(patch.object(lanes, "encode_frame", _by_message()))
        stack.enter_context(patch.object(greeting, "read_peer_certificate", _certificates()))
        yield


def _by_bytes(method: Any) -> Callable[[type, bytes], object]:
    """Return a class method that remembers what bytes stand for."""
    function = method.__func__
    known: dict[tuple[type, bytes], object] = {}

    def decode_once(cls: type, data: bytes) -> object:
        found = known.get((cls, data))
        if found is None:
            if len(known) >= REMEMBERED_MAX:
                known.clear()
            found = known[cls, data] = function(cls, data)
        return found

    return decode_once


def _by_message() -> Callable[[Message], bytes]:
    """Return an encoder that remembers the frame of a message object: most go to several peers."""
    known: dict[int, tuple[Message, bytes]] = {}

    def encode_once(message: Message) -> bytes:
        found = known.get(id(message))
        if found is None:
            if len(known) >= REMEMBERED_MAX:
                known.clear()
            # Kept with the message, so no other one can get its id.
            found = known[id(message)] = message, encode_frame(message)
        return found[1]

    return encode_once


def _certificates() -> Callable[[bytes, bytes], PeerCertificate]:
    known: dict[tuple[bytes, bytes], PeerCertificate] = {}

    def read_once(der: bytes, cluster: bytes) -> PeerCertificate:
        found = known.get((der, cluster))
        if found is None:
            found = known[der, cluster] = read_peer_certificate(der, cluster)
        return found

    return read_once
