"""Reads the canonical bytes of the two values that are read most: the envelope of an operation, and an ADD.

The general decoder (``canonical.py``) looks at every type byte, unpacks, and packs again to compare. An
operation has ten fields of known types, so its canonical form can be recognised in one pass from the left;
the body of an ADD has five. What is not recognised here is not wrong yet: the caller then asks the general
decoder, whose word counts, also on what is wrong. Whatever is recognised is read alike by both
(``test_envelope_properties.py``).
"""

from __future__ import annotations

import itertools
from typing import Final, NamedTuple

from .canonical import is_name
from .limits import DEPS_MAX, OPERATION_BYTES_MAX, REFS_MAX, WEIGHT_MAX

_HEAD: Final = b"\x9a\x01\xc4\x20"
"""A list of ten; envelope version 1; then 32 bytes."""
_ID: Final = b"\xc4\x20"
_LOG: Final = b"\xc4\x10"
_SIGNATURE: Final = b"\xc4\x40"
_SIGNATURE_BYTES: Final = 64
_SIGNED_HEAD: Final = 0x92
"""A list of two."""
_SEQ_AT: Final = 88
"""Everything before the place in the log has a fixed size."""
_ADD_HEAD: Final = b"\x01\x95"
"""Body version 1; then a list of five."""
_NOTHING: Final = b"\xc0"


class EnvelopeFields(NamedTuple):
    """The fields of an operation, each of its type and within its limits."""

    group: bytes
    author: bytes
    log: bytes
    seq: int
    prev: bytes | None
    deps: tuple[bytes, ...]
    refs: tuple[bytes, ...]
    kind: int
    body: bytes


def signed_wire(encoded: bytes, signature: bytes) -> bytes:
    """Return the canonical list of an encoded operation and its signature.

    Args:
        encoded: At most 60 KiB.
        signature: 64 bytes.
    """
    size = len(encoded)
    head = (
        bytes((_SIGNED_HEAD, 0xC4, size)) if size < 256 else bytes((_SIGNED_HEAD, 0xC5, *divmod(size, 256)))
    )
    return b"".join((head, encoded, _SIGNATURE, signature))


def split_wire(wire: bytes) -> tuple[bytes, bytes] | None:
    """Return (encoded, signature) of a signed operation, or None if the general decoder must look."""
    end = len(wire) - len(_SIGNATURE) - _SIGNATURE_BYTES
    if end < 3 or wire[0] != _SIGNED_HEAD or wire[end : end + 2] != _SIGNATURE:
        return None
    begin = _blob_at(wire, 1)
    if begin is None or begin[1] != end or end - begin[0] > OPERATION_BYTES_MAX:
        return None
    return wire[begin[0] : end], wire[end + 2 :]


def read_envelope(data: bytes) -> EnvelopeFields | None:
    """Return the fields of an operation, or None if the general decoder must look."""
    if len(data) > OPERATION_BYTES_MAX or data[:4] != _HEAD or data[36:38] != _ID or data[70:72] != _LOG:
        return None
    try:
        seq, at = _integer_at(data, _SEQ_AT)
        prev: bytes | None = None
        if data[at] == 0xC0:
            at += 1
        elif data[at : at + 2] == _ID:
            prev, at = data[at + 2 : at + 34], at + 34
        else:
            return None
        deps, at = _ids_at(data, at, DEPS_MAX)
        refs, at = _ids_at(data, at, REFS_MAX)
        kind, at = _integer_at(data, at)
        body = _blob_at(data, at)
    except (IndexError, _Unrecognised):
        return None
    if body is None or body[1] != len(data) or kind > 255 or (seq == 0) != (prev is None):
        return None
    return EnvelopeFields(data[4:36], data[38:70], data[72:88], seq, prev, deps, refs, kind, data[body[0] :])


def read_add(body: bytes) -> tuple[str, str, bytes, int, bytes | None] | None:
    """Return (slot, type, content, weight, payload) of an ADD, or None if the general decoder must look."""
    if body[:2] != _ADD_HEAD:
        return None
    try:
        slot, at = _name_at(body, 2)
        type_, at = _name_at(body, at)
        content = body[at + 2 : at + 34]
        if body[at : at + 2] != _ID:
            return None
        weight, at = _integer_at(body, at + 34)
    except (IndexError, UnicodeDecodeError, _Unrecognised):
        return None
    rest = body[at:]
    if weight > WEIGHT_MAX or (rest != _NOTHING and (len(rest) != 34 or rest[:2] != _ID)):
        return None
    return slot, type_, content, weight, None if rest == _NOTHING else rest[2:]


class _Unrecognised(Exception):  # noqa: N818 - nobody outside sees it, and nothing need be wrong.
    pass


def _integer_at(data: bytes, at: int) -> tuple[int, int]:
    """Return the integer in its shortest form that begins here, and where it ends."""
    tag = data[at]
    if tag < 0x80:
        return tag, at + 1
    if not 0xCC <= tag <= 0xCF:
        raise _Unrecognised
    width = 1 << (tag - 0xCC)
    value = int.from_bytes(data[at + 1 : at + 1 + width], "big")
    if value < (0x80 if width == 1 else 1 << 4 * width):
        raise _Unrecognised
    return value, at + 1 + width


def _name_at(data: bytes, at: int) -> tuple[str, int]:
    """Return the name whose length is in its shortest form that begins here, and where it ends."""
    tag = data[at]
    if tag & 0xE0 == 0xA0:
        begin, size = at + 1, tag & 0x1F
    elif tag == 0xD9 and data[at + 1] >= 32:
        begin, size = at + 2, data[at + 1]
    else:
        raise _Unrecognised
    name = data[begin : begin + size].decode("ascii")
    if not is_name(name):
        raise _Unrecognised
    return name, begin + size


def _ids_at(data: bytes, at: int, count_max: int) -> tuple[tuple[bytes, ...], int]:
    """Return the ascending ids of the list that begins here, and where it ends."""
    count = data[at]
    if count & 0xF0 == 0x90:
        count, at = count & 0x0F, at + 1
    elif count == 0xDC:
        count, at = data[at + 1] << 8 | data[at + 2], at + 3
        if count < 16:
            raise _Unrecognised
    else:
        raise _Unrecognised
    end = at + 34 * count
    if count > count_max or end > len(data):
        raise _Unrecognised
    ids = []
    for place in range(at, end, 34):
        if data[place : place + 2] != _ID:
            raise _Unrecognised
        ids.append(data[place + 2 : place + 34])
    if count > 1 and any(first >= second for first, second in itertools.pairwise(ids)):
        raise _Unrecognised
    return tuple(ids), end


def _blob_at(data: bytes, at: int) -> tuple[int, int] | None:
    """Return where the bytes that a length in its shortest form announces here begin and end."""
    tag = data[at]
    if tag == 0xC4:
        return at + 2, at + 2 + data[at + 1]
    if tag == 0xC5 and data[at + 1]:
        return at + 3, at + 3 + (data[at + 1] << 8 | data[at + 2])
    return None
