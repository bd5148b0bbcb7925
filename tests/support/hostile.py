"""Frames that no honest peer sends: valid ones, damaged in every way that SCENARIOS B1-B20 and S12 list.

:func:`sample_messages` gives at least one valid message of every registered type. :class:`Mutator` takes the
frame of a message and returns a damaged one: on the level of bits, of the frame header, of the msgpack
encoding, and of single fields, also inside operations and geneses. The same seed gives the same frames.
"""

from __future__ import annotations

import functools
import struct
import zlib
from collections.abc import Callable
from random import Random
from typing import Any, Final

import msgpack
from crdt_merge_protocol.blobs import chunk_bytes, chunk_count
from crdt_merge_protocol.limits import CHUNK_BYTES, MIB
from crdt_merge_protocol.messages import bulk, gossip, join, membership, overlay, sync
from crdt_merge_protocol.messages.base import Message
from crdt_merge_protocol.messages.walk import Children, Halved, Leaf, Wanted
from crdt_merge_protocol.operations import SignedOperation
from crdt_merge_protocol.wire import encode_frame

from .authors import KEYS, Author, make_genesis

HEADER: Final = struct.Struct(">IBB")
_ID: Final = bytes(range(32))
_NONCE: Final = bytes(range(16))
_AGAIN_BYTES_MAX: Final = 4096
"""Larger frames are damaged once only: most of the bytes should carry a damage, not be one."""


@functools.cache
def sample_operations() -> list[SignedOperation]:
    """Return the operations that the samples carry, honestly signed."""
    author = Author(make_genesis())
    return [
        author.add(slot="main"),
        author.hold(*author.state.heads()),
        author.change_policy([author.key], strategy="ties"),
    ]


def _overlay_messages(group: bytes) -> list[Message]:
    contacts = ((_ID, ("127.0.0.1:7946",)), (KEYS[1].node_id, ("[::1]:7946", "n1.example:7946")))
    return [
        overlay.Join(),
        overlay.ForwardJoin(contact=contacts[0], steps=6),
        overlay.Neighbor(is_urgent=True),
        overlay.Accepted(peers=contacts),
        overlay.Leave(peers=contacts[:1]),
        overlay.Shuffle(nonce=_NONCE[:8], population=100, steps=3, peers=contacts),
        overlay.ShuffleReply(nonce=_NONCE[:8], peers=contacts),
        overlay.View(population=100),
        overlay.IHave(group=group, ids=(_ID, KEYS[1].node_id)),
        overlay.Graft(group=group, ids=(_ID,)),
        overlay.Prune(),
    ]


def sample_messages(*, group: bytes = _ID, session: bytes = b"sess") -> list[Message]:
    """Return valid messages, every registered type among them."""
    wires = tuple(signed.wire() for signed in sample_operations())
    shorts = tuple(bytes([n]) * 8 for n in range(1, 6))
    entries = (
        Children(b"\x01\x02", 0b11111, shorts),
        Halved(b"\x03", 0b101, (*shorts, *shorts[:3])),
        Leaf(b"\x04\x05\x06", shorts),
        Leaf(b"\x07", ()),
        Wanted(shorts),
    )
    return [
        membership.Hello(
            version_min=1,
            version_max=1,
            cluster=_ID,
            node=KEYS[0].node_id,
            nonce=_NONCE,
            agent="crdt-merge-node/0.1.0",
            addresses=("127.0.0.1:7946", "[::1]:7946"),
            features=("relay",),
        ),
        membership.Refuse(code="E1203", reason="another cluster", retry_after_ms=500),
        membership.Ping(nonce=7),
        membership.Pong(nonce=7),
        membership.Peers(peers=((_ID, ("127.0.0.1:7946",)), (KEYS[1].node_id, ()))),
        membership.Goodbye(reason="shutting down"),
        membership.Departed(node=_ID, signature=bytes(64)),
        membership.Roots(roots=((group, _ID, 12), (_ID, bytes(32), 0))),
        *_overlay_messages(group),
        gossip.Gossip(group=group, operations=wires),
        gossip.WantGenesis(groups=(group, _ID)),
        gossip.GenesisFound(genesis=make_genesis().encode()),
        gossip.Attest(group=group, resolve_key=_ID, output_digest=_ID, profile=""),
        sync.Open(session=session, group=group, root=_ID, count=40, nonce=_NONCE[:8]),
        sync.Open(session=session, group=group, root=_ID, count=40, nonce=_NONCE[:8], after=_ID),
        sync.Nodes(session=session, nonce=_NONCE[:8], entries=entries),
        sync.Nodes(session=session, left_count=3, entries=entries[4:]),
        sync.Operations(session=session, left_count=0, operations=wires),
        sync.Ack(session=session, count=2),
        sync.End(session=session, root=_ID),
        sync.End(session=session, root=None),
        sync.Busy(session=session, reason="3 sessions are the cap", retry_after_ms=500),
        sync.List(session=session, left_count=9, ids=(_ID, bytes(32))),
        sync.Lack(session=session, bitmap=b"\x05"),
        sync.Lack(session=session, bitmap=b"", after=_ID),
        bulk.WantObject(id=_ID),
        bulk.Object(id=_ID, nbytes=5, offset=0, data=b"hello"),
        bulk.WantChunks(blob=_ID, indices=(0, 5, 32767)),
        bulk.Chunk(blob=_ID, nbytes=MIB + 4, index=1, data=b"tail"),
        bulk.HaveQuery(blob=_ID),
        bulk.Have(blob=_ID, nbytes=9 * MIB, chunks=0b1_0000_0001),
        bulk.Absent(id=_ID, indices=(3,)),
        bulk.WantChunkList(blob=_ID),
        bulk.ChunkList(blob=_ID, nbytes=2 * MIB, digests=(_ID, bytes(32))),
        bulk.CancelChunks(blob=_ID, indices=(1, 2)),
        join.JoinOffer(ca=b"\x30\x82" + bytes(40), cluster_name="prod"),
        join.JoinRequest(secret=_NONCE, node=_ID, request=b"\x30\x82" + bytes(40), proof=bytes(64)),
        join.JoinGrant(certificate=b"\x30\x82" + bytes(40), introducers=("127.0.0.1:7946",)),
        join.RenewRequest(request=b"\x30\x82" + bytes(40)),
        join.RenewGrant(certificate=b"\x30\x82" + bytes(40), ca=b"\x30\x82" + bytes(41)),
    ]


class Mutator:
    """Damages frames, reproducibly."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.damages: tuple[Callable[[bytes], bytes], ...] = (
            self._flip_bits,
            self._cut_off,
            self._lie_about_length,
            self._change_header,
            self._garbage_between,
            self._other_protocol,
            self._count_bomb,
            self._nest,
            self._empty_containers,
            self._foreign_msgpack,
            self._compress,
            self._longer_form,
            self._append,
            self._swap_body,
            self._change_field,
            self._change_field,
            self._change_field,
            self._change_field,
        )

    def damage(self, frame: bytes) -> bytes:
        """Return the frame, damaged in one way or, now and then, in several."""
        for _ in range(1 if self.rng.random() < 0.8 else self.rng.randrange(2, 5)):
            frame = self.rng.choice(self.damages)(frame)
            if not HEADER.size <= len(frame) <= _AGAIN_BYTES_MAX:
                break
        return frame

    def pieces(self, frame: bytes) -> list[bytes]:
        """Return the frame in the segments in which it may arrive (B5)."""
        if len(frame) > 4096 or self.rng.random() < 0.7:
            return [frame]
        cuts = sorted(self.rng.randrange(len(frame) + 1) for _ in range(self.rng.randrange(1, 8)))
        return [frame[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(frame)], strict=True)]

    # --- bits and headers -------------------------------------------------------------------------------

    def _flip_bits(self, frame: bytes) -> bytes:
        damaged = bytearray(frame)
        for _ in range(self.rng.randrange(1, 9)):
            damaged[self.rng.randrange(len(damaged))] ^= 1 << self.rng.randrange(8)
        return bytes(damaged)

    def _cut_off(self, frame: bytes) -> bytes:
        """The end is missing (B3); what follows is the next frame."""
        return frame[: self.rng.randrange(len(frame))] + self.rng.choice((b"", frame))

    def _lie_about_length(self, frame: bytes) -> bytes:
        """B1, B2, B3."""
        length = len(frame) - HEADER.size
        claimed = self.rng.choice(
            (0, 1, length - 1, length + 1, 2 * length, 1 << 16, 1 << 20, 1 << 31, 0xFFFF_FFFF)
        )
        return max(0, claimed).to_bytes(4, "big") + frame[4:]

    def _change_header(self, frame: bytes) -> bytes:
        """Another type or other flags (B8)."""
        kind, flags = self.rng.choice(
            ((self.rng.randrange(256), frame[5]), (frame[4], self.rng.randrange(256)))
        )
        return frame[:4] + bytes((kind, flags)) + frame[6:]

    def _garbage_between(self, frame: bytes) -> bytes:
        """B6."""
        return frame + self.rng.randbytes(self.rng.randrange(1, 64)) + frame

    def _other_protocol(self, frame: bytes) -> bytes:
        """B7."""
        return self.rng.choice(
            (
                b"GET / HTTP/1.1\r\nHost: node\r\n\r\n",
                b"SSH-2.0-OpenSSH_9.2\r\n",
                b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03" + frame,
                self.rng.randbytes(self.rng.randrange(1, 2000)),
            )
        )

    # --- bodies as bytes --------------------------------------------------------------------------------

    def _with_body(self, frame: bytes, body: bytes) -> bytes:
        return HEADER.pack(len(body), frame[4], frame[5]) + body

    def _count_bomb(self, frame: bytes) -> bytes:
        """Heads that claim far more elements or bytes than follow (B13)."""
        head = self.rng.choice((b"\xdd", b"\xc6", b"\xdb", b"\xdf", b"\xc9"))
        count = self.rng.choice((0xFFFF_FFFF, 1 << 31, 1 << 20, 1 << 17))
        body = bytearray(frame[HEADER.size :])
        position = self.rng.randrange(len(body) + 1)
        body[position : position + self.rng.randrange(6)] = head + count.to_bytes(4, "big")
        if self.rng.random() < 0.3:
            body = bytearray(b"\xdc\xff\xff" * self.rng.randrange(1, 20))  # Counts that multiply.
        return self._with_body(frame, bytes(body))

    def _nest(self, frame: bytes) -> bytes:
        """B14."""
        depth = self.rng.choice((8, 9, 10, 500, 500, 500, 5_000, 60_000))
        return self._with_body(frame, self.rng.choice((b"\x91" * depth, b"\x91" * depth + b"\xc0")))

    def _empty_containers(self, frame: bytes) -> bytes:
        """Elements that cost a byte on the wire and far more in memory (B15), up to the cap of a body."""
        is_large = self.rng.random() < 0.05  # Slow to read: a few are enough.
        count = self.rng.choice((16_384, 16_385, 65_000) if is_large else (15, 100, 256, 257, 1_024, 1_025))
        element = self.rng.choice((b"\x80", b"\x90", b"\xc0", b"\xa0", b"\x00"))
        body = b"\x91\xdc" + count.to_bytes(2, "big") + element * count
        return self._with_body(frame, body)

    def _foreign_msgpack(self, frame: bytes) -> bytes:
        """Values of msgpack that the canonical form does not have, and text that is none (B16-B19)."""
        odd = self.rng.choice(
            (
                b"\x82\x01\x02\x01\x03",  # The same key twice.
                b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",  # NaN.
                b"\xca\x3f\x80\x00\x00",  # 1.0, where an integer belongs.
                b"\xd4\x05\x00",
                b"\xd6\xff\x00\x00\x00\x01",  # A timestamp.
                b"\xc7\x0c\xff" + bytes(12),
                b"\xa2\xff\xfe",
                b"\xa3\xed\xa0\x80",  # A lone surrogate.
                b"\xa3e\xcc\x81",  # Well formed, not NFC.
                b"\xc1",
            )
        )
        body = bytearray(frame[HEADER.size :])
        position = self.rng.randrange(1, len(body) + 1) if body else 0
        body[position : position + self.rng.choice((0, 1, len(odd)))] = odd
        return self._with_body(frame, bytes(body))

    def _compress(self, frame: bytes) -> bytes:
        """Nothing is ever inflated (B11, B12)."""
        body = zlib.compress(frame[HEADER.size :] + bytes(self.rng.choice((0, 100_000))), 1)
        return self._with_body(frame, body)

    def _longer_form(self, frame: bytes) -> bytes:
        """The same value in more bytes than needed (B17)."""
        body = frame[HEADER.size :]
        if body and body[0] & 0xF0 == 0x90:
            count = body[0] & 0x0F
            head = self.rng.choice((b"\xdc" + bytes((0, count)), b"\xdd" + bytes((0, 0, 0, count))))
            return self._with_body(frame, head + body[1:])
        return self._append(frame)

    def _append(self, frame: bytes) -> bytes:
        """B20."""
        return self._with_body(frame, frame[HEADER.size :] + self.rng.choice((b"\x00", b"\xc0", b"\x90" * 9)))

    def _swap_body(self, frame: bytes) -> bytes:
        """The body of one type under the number of another."""
        other = self.rng.choice(_samples())
        return encode_frame(other)[:4] + frame[4:6] + other.to_body()

    # --- fields -----------------------------------------------------------------------------------------

    def _change_field(self, frame: bytes) -> bytes:
        """A well-formed list in which one value is another one: only who reads the fields can refuse it."""
        try:
            fields = msgpack.unpackb(frame[HEADER.size :], strict_map_key=False)
            return self._with_body(frame, msgpack.packb(self._changed(fields), use_bin_type=True))
        except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException):
            return self._change_data(frame)

    def _changed(self, value: Any) -> Any:
        match value:
            case list() if value and self.rng.random() < 0.85:
                index = self.rng.randrange(len(value))
                return [*value[:index], self._changed(value[index]), *value[index + 1 :]]
            case list():
                many = [0] * self.rng.choice((1_025, 16_385)) if self.rng.random() < 0.05 else []
                return self.rng.choice(([], value[:-1], value[::-1], [*value, None], value + value, many))
            case bytes() if value and self.rng.random() < 0.6:
                return self._changed_bytes(value)
            case int() if self.rng.random() < 0.4:
                return value + self.rng.choice((-1, 1))
            case _:
                return self.rng.choice(_ODD_VALUES)

    def _changed_bytes(self, value: bytes) -> bytes:
        if value[0] & 0xF0 == 0x90:  # An operation, a genesis: lists inside of bytes.
            try:
                inner = msgpack.unpackb(value)
                return bytes(msgpack.packb(self._changed(inner), use_bin_type=True))
            except (ValueError, TypeError, OverflowError, msgpack.UnpackException):
                pass
        damaged = bytearray(value)
        damaged[self.rng.randrange(len(damaged))] ^= 1 << self.rng.randrange(8)
        return bytes(self.rng.choice((damaged, value[:-1], value + b"\x00", value + value)))

    def _change_data(self, frame: bytes) -> bytes:
        """The same for data messages, whose header is binary: sizes and positions that lie (B45)."""
        damaged = bytearray(frame)
        place = self.rng.choice((38, 42, 46))
        damaged[place : place + 4] = self.rng.choice(
            (bytes(4), b"\xff" * 4, b"\x80" + bytes(3), b"\x00\x10\x00\x00")
        )
        body = bytes(damaged[HEADER.size :]) + bytes(self.rng.choice((0, 0, 0, 0, 0, 0, 1, 65_536)))
        return self._with_body(frame, body)


_ODD_VALUES: Final[tuple[Any, ...]] = (
    None,
    True,
    -1,
    0,
    1,
    (1 << 31),
    (1 << 32) - 1,
    1 << 32,
    (1 << 63) - 1,
    (1 << 64) - 1,
    float("nan"),
    1.0,
    b"",
    bytes(31),
    bytes(32),
    bytes(33),
    bytes(65),
    bytes(4096),
    "",
    "../../etc/passwd",
    "line\nline\x00",
    "x" * 1025,
    "\u202e\u0301\ud7ff",
    [],
    [[]] * 1025,
    [bytes(32)] * 1025,
    [[[[[[[[[]]]]]]]]],
    {},
    {1: 2},
)


@functools.cache
def _samples() -> list[Message]:
    return sample_messages()


def large_messages() -> list[Message]:
    """Return messages that fill their frames."""
    count = chunk_count(1 << 30)
    return [
        bulk.Chunk(blob=_ID, nbytes=3 * CHUNK_BYTES, index=1, data=bytes(chunk_bytes(3 * CHUNK_BYTES, 1))),
        bulk.Object(id=_ID, nbytes=2 * MIB, offset=MIB, data=bytes(MIB)),
        bulk.ChunkList(blob=_ID, nbytes=1 << 30, digests=(_ID,) * count),
        sync.List(session=b"sess", left_count=0, ids=tuple(n.to_bytes(32, "big") for n in range(1024))),
        gossip.WantGenesis(groups=(_ID,) * 1024),
    ]
