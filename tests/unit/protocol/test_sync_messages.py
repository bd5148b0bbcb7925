"""The bytes of sync messages: one encoding each, everything else refused."""

from __future__ import annotations

import pytest
from crdt_merge_protocol.canonical import encode
from crdt_merge_protocol.errors import RemoteProtocolError
from crdt_merge_protocol.limits import DATA_BODY_BYTES_MAX, SYNC_PAGE_IDS_MAX
from crdt_merge_protocol.messages.sync import (
    SYNC_MESSAGES,
    Ack,
    Busy,
    End,
    Lack,
    List,
    Nodes,
    Open,
    Operations,
    SyncMessage,
)
from crdt_merge_protocol.messages.walk import (
    Children,
    Entry,
    Halved,
    Leaf,
    Wanted,
    decode_entries,
    encode_entries,
)
from crdt_merge_protocol.wire import FrameDecoder, encode_frame

SESSION = b"sess"
ID = b"i" * 32
SHORTS = tuple(bytes([n]) * 8 for n in range(16))

ENTRIES: tuple[Entry, ...] = (
    Children(b"", 0xFFFF, SHORTS),
    Children(b"\x01\x02\x03", 0x8001, SHORTS[:2]),
    Halved(b"\x0f" * 62, 1, SHORTS[:8]),
    Leaf(b"\x0a" * 63, SHORTS),
    Leaf(b"", ()),
    Wanted(SHORTS[:3]),
)
MESSAGES: tuple[SyncMessage, ...] = (
    Open(session=SESSION, group=ID, root=ID, count=2**32 - 1, nonce=bytes(8), after=ID),
    Open(session=b"s" * 16, group=ID, root=ID, count=0, nonce=bytes(8)),
    Nodes(session=SESSION, nonce=bytes(8), entries=ENTRIES),
    Nodes(session=SESSION, is_last=False, entries=()),
    Operations(session=SESSION, left_count=7, operations=(b"one", b"two")),
    Ack(session=SESSION, count=1),
    End(session=SESSION, root=ID),
    End(session=SESSION, root=None),
    Busy(session=SESSION, reason="at most 3 sessions", retry_after_ms=500),
    List(session=SESSION, left_count=3, ids=(ID, bytes(32))),
    List(session=SESSION, left_count=0, ids=()),
    Lack(session=SESSION, bitmap=b"\x01\x00", after=None),
    Lack(session=SESSION, bitmap=b"", after=ID),
)


@pytest.mark.parametrize("message", MESSAGES, ids=[f"{type(m).__name__}{n}" for n, m in enumerate(MESSAGES)])
def test_every_message_survives_the_wire(message: SyncMessage) -> None:
    assert isinstance(message, SYNC_MESSAGES)
    assert FrameDecoder().feed(encode_frame(message)) == [message]


def test_the_numbers_on_the_wire_are_fixed() -> None:
    assert [message.TYPE for message in SYNC_MESSAGES] == [48, 49, 50, 51, 52, 53, 54, 55]


def test_a_full_page_and_the_widest_entries_fit_a_frame() -> None:
    ids = tuple(n.to_bytes(32, "big") for n in range(SYNC_PAGE_IDS_MAX))
    assert encode_frame(List(session=b"s" * 16, left_count=2**32 - 1, ids=ids))
    shorts = tuple(n.to_bytes(8, "big") for n in range(SYNC_PAGE_IDS_MAX))
    assert encode_frame(Nodes(session=b"s" * 16, entries=(Wanted(shorts),)))


def test_an_entry_has_the_layout_that_the_format_names() -> None:
    assert Children(b"\x01\x02\x03", 0x8001, SHORTS[:2]).encode() == (
        bytes([0 << 6 | 3]) + b"\x12\x30" + b"\x80\x01" + SHORTS[0] + SHORTS[1]
    )
    assert Leaf(b"\x0c", SHORTS[1:2]).encode() == bytes([2 << 6 | 1]) + b"\xc0" + b"\x01" + SHORTS[1]
    assert Wanted(SHORTS[:1]).encode() == b"\xc0" + b"\x00\x01" + SHORTS[0]


BAD_ENTRIES = {
    "cut off": encode_entries(ENTRIES)[:-1],
    "bits behind the prefix": b"\x01\x01" + b"\x00\x01" + SHORTS[0],
    "no children": b"\x00" + b"\x00\x00",
    "no halved children": b"\x40" + b"\x00\x00" + b"".join(SHORTS[:8]),
    "children below any branching": b"\x3f" + bytes(32) + b"\x00\x01" + SHORTS[0],
    "a leaf of 17": b"\x80\x11" + b"".join(bytes([n]) * 8 for n in range(17)),
    "unsorted": b"\x80\x02" + SHORTS[1] + SHORTS[0],
    "twice": b"\x80\x02" + SHORTS[1] + SHORTS[1],
    "wants nothing": b"\xc0\x00\x00",
    "wants with a prefix": b"\xc1\x10\x00\x01" + SHORTS[0],
    "wants too many": b"\xc0\xff\xff" + SHORTS[0],
    "wants more than there is": b"\xc0\x04\x00" + SHORTS[0],
}


@pytest.mark.parametrize("data", BAD_ENTRIES.values(), ids=BAD_ENTRIES.keys())
def test_entries_that_are_not_canonical_are_refused(data: bytes) -> None:
    """SCENARIOS B40, B41: unsorted, duplicate, a million ids, nonsense prefixes."""
    with pytest.raises(RemoteProtocolError):
        decode_entries(data)


BAD_BODIES: dict[str, tuple[type[SyncMessage], list[object]]] = {
    "root of 31": (Open, [SESSION, ID, bytes(31), 0, bytes(8), None]),
    "root of 33": (Open, [SESSION, ID, bytes(33), 0, bytes(8), None]),
    "session of 3": (Open, [b"ses", ID, ID, 0, bytes(8), None]),
    "session of 17": (Open, [bytes(17), ID, ID, 0, bytes(8), None]),
    "nonce of 7": (Open, [SESSION, ID, ID, 0, bytes(7), None]),
    "count beyond 32 bits": (Open, [SESSION, ID, ID, 2**32, bytes(8), None]),
    "short nonce of the responder": (Nodes, [SESSION, b"\x01", True, 0, b""]),
    "a number for a boolean": (Nodes, [SESSION, b"", 1, 0, b""]),
    "no operations": (Operations, [SESSION, 0, []]),
    "513 operations": (Operations, [SESSION, 0, [b""] * 513]),
    "an operation that is text": (Operations, [SESSION, 0, ["op"]]),
    "an ack of nothing": (Ack, [SESSION, 0]),
    "end with half a root": (End, [SESSION, bytes(16)]),
    "a page that is cut off": (List, [SESSION, 0, bytes(33)]),
    "a page with an id twice": (List, [SESSION, 0, bytes(64)]),
    "an empty page before others": (List, [SESSION, 1, b""]),
    "a page of 1025": (List, [SESSION, 0, b"".join(n.to_bytes(32, "big") for n in range(1025))]),
    "an answer to more than a page": (Lack, [SESSION, bytes(129), None]),
    "too many fields": (Ack, [SESSION, 1, 1]),
    "too few fields": (Ack, [SESSION]),
}


@pytest.mark.parametrize(("kind", "fields"), BAD_BODIES.values(), ids=BAD_BODIES.keys())
def test_bodies_outside_the_limits_are_refused(kind: type[SyncMessage], fields: list[object]) -> None:
    """SCENARIOS B39, B41."""
    with pytest.raises(RemoteProtocolError):
        kind.from_body(encode(fields))


@pytest.mark.parametrize("kind", SYNC_MESSAGES)
def test_a_claimed_length_beyond_a_control_body_is_refused_at_the_header(kind: type[SyncMessage]) -> None:
    header = DATA_BODY_BYTES_MAX.to_bytes(4, "big") + bytes([kind.TYPE, 1])
    with pytest.raises(RemoteProtocolError):
        FrameDecoder().feed(header)
