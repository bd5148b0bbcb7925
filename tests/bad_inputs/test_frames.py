"""Streams that are no sequence of frames, or not in the order of the protocol (SCENARIOS 6.2: B1-B12)."""

import os
import zlib

import pytest
from crdt_merge_protocol.limits import (
    CONTROL_BODY_BYTES_MAX,
    DATA_BODY_BYTES_MAX,
)
from crdt_merge_protocol.messages.base import REGISTRY
from crdt_merge_protocol.messages.bulk import HaveQuery
from crdt_merge_protocol.messages.membership import Hello, Ping, Pong
from crdt_merge_protocol.wire import FLAG_CRITICAL, encode_frame
from support.hostile import HEADER
from support.siege import Siege

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONTROL, DATA = 50, 81
UNKNOWN = next(kind for kind in range(255, 0, -1) if kind not in REGISTRY)


def frame(kind: int, body: bytes, *, flags: int = FLAG_CRITICAL, length: int | None = None) -> bytes:
    return HEADER.pack(len(body) if length is None else length, kind, flags) + body


@pytest.mark.parametrize("kind", [1, 3, CONTROL, DATA, 83, UNKNOWN])
async def test_b01_a_length_of_four_gibibytes_is_refused_before_a_byte_of_it_is_read(siege: Siege, kind):
    async with siege.unharmed(), siege.hostile() as hostile:
        hostile.raw(b"\xff\xff\xff\xff" + bytes([kind, 1]))

        assert "4294967295 bytes" in await hostile.is_sent_away()


@pytest.mark.parametrize(("kind", "cap"), [(CONTROL, CONTROL_BODY_BYTES_MAX), (DATA, DATA_BODY_BYTES_MAX)])
async def test_b01_one_byte_more_than_the_cap_is_refused(siege: Siege, kind, cap):
    async with siege.unharmed(), siege.hostile() as hostile:
        hostile.raw(frame(kind, b"", length=cap + 1))

        assert f"at most {cap} are read" in await hostile.is_sent_away()


@pytest.mark.parametrize("body", [b"", b"\x00", b"\x90", b"\xc1"], ids=["none", "0", "empty list", "never"])
@pytest.mark.parametrize("kind", [1, 3, 16, CONTROL, DATA, 85])
async def test_b02_a_body_of_no_byte_or_one_is_refused(siege: Siege, kind, body):
    async with siege.unharmed(), siege.hostile() as hostile:
        hostile.raw(frame(kind, body))

        assert "broke the protocol" in await hostile.is_sent_away()


async def test_b03_a_frame_that_never_ends_holds_back_nobody_else(siege: Siege):
    """That it is ended for going too slowly is in ``test_sockets``, in virtual time."""
    async with siege.unharmed(is_offence=False), siege.hostile() as hostile:
        hostile.raw(frame(DATA, bytes(1000), length=DATA_BODY_BYTES_MAX))
        async with siege.hostile() as other:
            await other.is_still_heard()


@pytest.mark.parametrize("cut", range(1, 10))
async def test_b05_a_frame_cut_anywhere_in_its_header_is_the_same_frame(siege: Siege, cut):
    data = encode_frame(Ping(nonce=77_000 + cut))
    async with siege.unharmed(is_offence=False), siege.hostile() as hostile:
        hostile.raw(data[:cut])
        await siege.turns()
        hostile.raw(data[cut:])

        assert await hostile.hears(Pong) == Pong(nonce=77_000 + cut)


async def test_b06_two_frames_at_once_are_two_frames(siege: Siege):
    async with siege.unharmed(is_offence=False), siege.hostile() as hostile:
        hostile.raw(encode_frame(Ping(nonce=1)) + encode_frame(Ping(nonce=2)))

        assert await hostile.hears(Pong, count=2) == Pong(nonce=2)


@pytest.mark.parametrize("garbage", [b"\xff", b"\x00" * 7, b"\n\n\n\n\n\n", os.urandom(64) + b"\xff" * 8])
async def test_b06_garbage_between_two_frames_ends_the_connection(siege: Siege, garbage):
    """Not even what stood whole before it has an effect that another peer would see."""
    async with siege.unharmed(), siege.hostile() as hostile:
        hostile.raw(encode_frame(Ping(nonce=1)) + garbage + encode_frame(Ping(nonce=2)) * 40)

        assert "broke the protocol" in await hostile.is_sent_away()
        assert Pong(nonce=2) not in hostile.messages


@pytest.mark.parametrize(
    "greeting",
    [
        b"GET / HTTP/1.1\r\nHost: node\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(505),
        b"EHLO mail.example\r\n",
        b"*1\r\n$4\r\nPING\r\n",
    ],
    ids=["http", "ssh", "http2", "tls", "smtp", "redis"],
)
@pytest.mark.parametrize("is_greeted", [True, False], ids=["later", "first"])
async def test_b07_another_protocol_inside_of_the_tls_ends_the_connection(siege: Siege, greeting, is_greeted):
    async with (
        siege.unharmed(is_offence=None),
        siege.hostile(is_greeted=is_greeted) as hostile,
    ):
        hostile.raw(greeting)
        if is_greeted and int.from_bytes(greeting[:4], "big") < DATA_BODY_BYTES_MAX:
            hostile.raw(bytes(64))

        assert await hostile.is_sent_away()


ALL_UNKNOWN = [kind for kind in range(256) if kind not in REGISTRY]


@pytest.mark.parametrize("kind", ALL_UNKNOWN[::12])
async def test_b08_an_unknown_type_that_is_critical_closes(siege: Siege, kind):
    async with siege.unharmed(), siege.hostile() as hostile:
        hostile.raw(frame(kind, b"what"))

        assert "unknown and critical" in await hostile.is_sent_away()


async def test_b08_every_unknown_type_that_is_not_critical_is_skipped(siege: Siege):
    assert len(ALL_UNKNOWN) > 150
    async with siege.unharmed(is_offence=False), siege.hostile() as hostile:
        for kind in ALL_UNKNOWN:
            hostile.raw(frame(kind, b"what", flags=0))
        await hostile.is_still_heard()


@pytest.mark.parametrize("flags", [2, 3, 4, 0x80, 0xFF])
async def test_b08_unknown_flags_are_refused(siege: Siege, flags):
    async with siege.unharmed(), siege.hostile() as hostile:
        hostile.raw(frame(3, b"\x91\x01", flags=flags))

        assert "flags" in await hostile.is_sent_away()


async def test_b08_what_is_skipped_is_not_kept(siege: Siege):
    """A mebibyte of an unknown type, forty times: none of it is buffered."""
    blob = frame(UNKNOWN, bytes(DATA_BODY_BYTES_MAX), flags=0)
    async with siege.unharmed(is_offence=False), siege.hostile() as hostile:
        for _ in range(40):
            await hostile.writable()
            hostile.raw(blob)
        await hostile.is_still_heard()


@pytest.mark.parametrize(
    "say",
    [
        lambda hostile: hostile.send(hostile.hello()),
        lambda hostile: hostile.send(hostile.hello(node=bytes(32))),
        lambda hostile: hostile.send(hostile.hello(version_min=2, version_max=2)),
    ],
    ids=["the same", "of another node", "of another version"],
)
async def test_b09_a_second_hello_ends_the_connection(siege: Siege, say):
    async with siege.unharmed(), siege.hostile() as hostile:
        say(hostile)

        assert "second hello" in await hostile.is_sent_away()


@pytest.mark.parametrize("message", [Ping(nonce=1), HaveQuery(blob=bytes(32))], ids=["ping", "question"])
async def test_b09_data_before_the_hello_is_refused_and_a_hello_after_it_not_heard(siege: Siege, message):
    async with siege.unharmed(is_offence=None), siege.hostile(is_greeted=False) as hostile:
        hostile.send(message, hostile.hello())

        assert "before a hello" in await hostile.is_sent_away()
        assert not [heard for heard in hostile.messages if isinstance(heard, Hello)]


@pytest.mark.parametrize(
    ("low", "high"), [(0, 0), (0, 1), (2, 1), (2, 2), (7, 2**32 - 1), (2**32 - 1, 2**32 - 1)]
)
async def test_b10_wire_versions_that_are_no_range_or_none_of_ours_are_refused(siege: Siege, low, high):
    async with siege.unharmed(is_offence=None), siege.hostile(is_greeted=False) as hostile:
        hostile.send(hostile.hello(version_min=low, version_max=high))

        assert "wire versions" in await hostile.is_sent_away()


BOMB = zlib.compress(bytes(60 << 20), 9)
COMPRESSED = {
    "bomb": BOMB,
    "cut off": BOMB[: len(BOMB) // 2],
    "with a tail": BOMB[:1000] + zlib.compress(b"tail"),
    "nested": zlib.compress(BOMB, 9),
}


@pytest.mark.parametrize("shape", COMPRESSED)
@pytest.mark.parametrize("kind", [16, CONTROL, 81, 83])
async def test_b11_b12_what_is_compressed_is_garbage_because_nothing_is_ever_inflated(
    siege: Siege, kind, shape
):
    async with siege.unharmed(), siege.hostile() as hostile:
        hostile.raw(frame(kind, COMPRESSED[shape][:CONTROL_BODY_BYTES_MAX]))

        assert "broke the protocol" in await hostile.is_sent_away()


async def test_who_sends_garbage_is_left_alone_for_a_while_like_any_offender(siege: Siege):
    """T17: without it a member could make the node shake hands with it without end."""
    identity = siege.member()
    async with siege.unharmed(), siege.hostile(identity=identity) as hostile:
        hostile.raw(b"\xff" * 6)
        await hostile.is_sent_away()
    async with siege.unharmed(is_offence=None), siege.hostile(identity=identity, is_greeted=False) as again:
        assert "it broke the protocol; it may come back in" in await again.is_sent_away()
