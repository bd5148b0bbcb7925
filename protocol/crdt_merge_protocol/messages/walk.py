"""What a NODES message is made of: entries about prefixes of the trie, in a compact binary form.

A head byte holds the kind (2 bits) and the number of nibbles in the prefix (6 bits); the prefix follows, two
nibbles a byte, then what the kind needs. All numbers are big-endian, lists of short ids ascend strictly, and
nothing is optional, so that an entry has one encoding. Short digests and short ids are 8 bytes, keyed by the
nonces of both sides.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from crdt_merge_protocol.errors import LimitExceededError, MalformedMessageError
from crdt_merge_protocol.limits import SHORT_DIGEST_BYTES, SYNC_PAGE_IDS_MAX, TRIE_LEAF_IDS_MAX

PREFIX_NIBBLES_MAX: Final = 63
"""A longer one names a single id, and a single id is in a leaf."""
BRANCHING_NIBBLES_MAX: Final = 62
"""At most 16 ids share more, and those make a leaf."""
HALVES: Final = 8
_CHILDREN, _HALVED, _LEAF, _WANTED = range(4)


@dataclass(frozen=True, slots=True)
class Children:
    """Short digests of the children at ``prefix``, which is as long as all the sender's ids there share."""

    prefix: bytes
    bitmap: int
    """Bit n: the sender has ids whose next nibble is n."""
    digests: tuple[bytes, ...]
    """One per set bit, ascending."""

    def encode(self) -> bytes:
        """Return the canonical bytes."""
        return _head(_CHILDREN, self.prefix) + self.bitmap.to_bytes(2, "big") + b"".join(self.digests)


@dataclass(frozen=True, slots=True)
class Halved:
    """Eight digests over half of the children each: by every bit of the nibble, the zeros, then the ones.

    A lone differing child is in exactly one half of each pair, which names it for half of the bytes of
    :class:`Children`. With more than one, some pair differs in both, and the other side asks in full.
    """

    prefix: bytes
    bitmap: int
    digests: tuple[bytes, ...]

    def encode(self) -> bytes:
        """Return the canonical bytes."""
        return _head(_HALVED, self.prefix) + self.bitmap.to_bytes(2, "big") + b"".join(self.digests)


@dataclass(frozen=True, slots=True)
class Leaf:
    """Short ids of everything the sender has at ``prefix``, at most 16; none is a request for all."""

    prefix: bytes
    short_ids: tuple[bytes, ...]

    def encode(self) -> bytes:
        """Return the canonical bytes."""
        return _head(_LEAF, self.prefix) + bytes([len(self.short_ids)]) + b"".join(self.short_ids)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Short ids out of the other side's leaves that the sender lacks."""

    short_ids: tuple[bytes, ...]

    def encode(self) -> bytes:
        """Return the canonical bytes."""
        return _head(_WANTED, b"") + len(self.short_ids).to_bytes(2, "big") + b"".join(self.short_ids)


Entry = Children | Halved | Leaf | Wanted


def encode_entries(entries: Iterable[Entry]) -> bytes:
    """Return the bytes of entries one after another."""
    return b"".join(entry.encode() for entry in entries)


def decode_entries(data: bytes) -> tuple[Entry, ...]:
    """Return the entries in ``data``.

    Raises:
        RemoteProtocolError: Not a sequence of whole, canonical entries.
    """
    reader = _Reader(data)
    entries: list[Entry] = []
    while reader.position < len(data):
        head = reader.take(1)[0]
        prefix = reader.prefix(head & 0x3F)
        entries.append(_READERS[head >> 6](reader, prefix))
    return tuple(entries)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def take(self, size: int) -> bytes:
        part = self._data[self.position : self.position + size]
        if len(part) != size:
            raise MalformedMessageError("an entry about the trie is cut off.")
        self.position += size
        return part

    def prefix(self, length: int) -> bytes:
        packed = self.take((length + 1) // 2)
        nibbles = bytes(nibble for byte in packed for nibble in (byte >> 4, byte & 15))
        if length % 2 and nibbles[-1]:
            raise MalformedMessageError("a prefix of the trie has bits behind its end.")
        return nibbles[:length]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def bitmap(self, prefix: bytes) -> int:
        bitmap = self.number(2)
        if not bitmap or len(prefix) > BRANCHING_NIBBLES_MAX:
            raise MalformedMessageError("a node of the trie has no children, or cannot have them.")
        return bitmap

    def digests(self, count: int) -> tuple[bytes, ...]:
        data = self.take(SHORT_DIGEST_BYTES * count)
        return tuple(
            data[start : start + SHORT_DIGEST_BYTES] for start in range(0, len(data), SHORT_DIGEST_BYTES)
        )

    def short_ids(self, count: int, *, count_max: int) -> tuple[bytes, ...]:
        if count > count_max:
            raise LimitExceededError(f"{count} short ids in an entry about the trie, at most {count_max}.")
        short_ids = self.digests(count)
        if any(second <= first for first, second in pairwise(short_ids)):
            raise MalformedMessageError("short ids must ascend strictly.")
        return short_ids


def _read_children(reader: _Reader, prefix: bytes) -> Children:
    bitmap = reader.bitmap(prefix)
    return Children(prefix, bitmap, reader.digests(bitmap.bit_count()))


def _read_halved(reader: _Reader, prefix: bytes) -> Halved:
    return Halved(prefix, reader.bitmap(prefix), reader.digests(HALVES))


def _read_leaf(reader: _Reader, prefix: bytes) -> Leaf:
    return Leaf(prefix, reader.short_ids(reader.number(1), count_max=TRIE_LEAF_IDS_MAX))


def _read_wanted(reader: _Reader, prefix: bytes) -> Wanted:
    count = reader.number(2)
    if prefix or not count:
        raise MalformedMessageError("a list of wanted ids has a prefix, or wants none.")
    return Wanted(reader.short_ids(count, count_max=SYNC_PAGE_IDS_MAX))


_READERS: Final = (_read_children, _read_halved, _read_leaf, _read_wanted)


def _head(kind: int, prefix: bytes) -> bytes:
    assert len(prefix) <= PREFIX_NIBBLES_MAX, "more than 16 ids cannot share 64 nibbles"
    even = prefix if len(prefix) % 2 == 0 else prefix + b"\x00"
    packed = bytes(even[n] << 4 | even[n + 1] for n in range(0, len(even), 2))
    return bytes([kind << 6 | len(prefix)]) + packed
