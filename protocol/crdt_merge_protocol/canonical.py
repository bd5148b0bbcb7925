"""Canonical bytes: one encoding per value, one value per encoding.

msgpack has no canonical form of its own, so the rules are ours (PROTOCOL R1):

* values are None, bool, int (64 bit), bytes, str, list; never a float, never an extension, never a map;
* integers and lengths use their shortest form, which is what the packer emits;
* text is well-formed UTF-8, compared as bytes and never normalised: Unicode tables differ between releases;
* decoding re-encodes and compares, so trailing bytes and every non-minimal form are refused.

Hash inputs are built by :func:`digest`: a domain tag and every field are framed by length, so that no two
different tuples of fields give the same bytes (SCENARIOS S8).
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, Final

import msgpack

from .errors import LimitExceededError, MalformedMessageError
from .limits import CONTROL_BODY_BYTES_MAX, DEPTH_MAX, ELEMENTS_MAX, NAME_CHARS_MAX

NAME_PATTERN: Final = re.compile(rf"[A-Za-z0-9._/-]{{1,{NAME_CHARS_MAX}}}")


def encode(value: Any) -> bytes:
    """Return the canonical bytes of a value made of None, bool, int, bytes, str and lists (or tuples).

    Raises:
        TypeError: The value holds anything else; that is a bug of the caller.
    """
    _check_encodable(value, DEPTH_MAX)
    return _pack(value)


def decode(data: bytes, *, bytes_max: int = CONTROL_BODY_BYTES_MAX, elements_max: int = ELEMENTS_MAX) -> Any:
    """Return the value whose canonical encoding is ``data``; arrays come back as lists.

    Raises:
        LimitExceededError: More bytes, elements or nesting than allowed.
        MalformedMessageError: Not canonical, or not one whole value.
    """
    if len(data) > bytes_max:
        raise LimitExceededError(f"{len(data)} bytes of canonical value, at most {bytes_max} are read.")
    _check_nesting(data)
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            use_list=True,
            strict_map_key=True,
            max_str_len=bytes_max,
            max_bin_len=bytes_max,
            max_array_len=elements_max,
            max_map_len=0,
            max_ext_len=0,
        )
        # What the scan let through and the unpacker made are values of ours: no need to look again.
        is_canonical = _pack(value) == data
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise MalformedMessageError(f"not a canonical value: {error}") from None
    if not is_canonical:
        raise MalformedMessageError("a value is not in its shortest form, or bytes follow it")
    return value


def digest(domain: str, *fields: bytes) -> bytes:
    """Return SHA-256 over a domain tag and length-framed fields, 32 bytes."""
    state = hashlib.sha256()
    for part in (domain.encode(), *fields):
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.digest()


def is_name(text: object) -> bool:
    """Tell whether ``text`` is a name that groups, slots, types and tensors may have (SCENARIOS T21)."""
    return (
        isinstance(text, str)
        and NAME_PATTERN.fullmatch(text) is not None
        and ".." not in text
        and text[0] not in "/."
    )


def _pack(value: object) -> bytes:
    return bytes(msgpack.packb(value, use_bin_type=True, strict_types=False))


_SCALARS: Final = (bytes, bytearray, memoryview, str, int, type(None))


def _check_encodable(value: object, depth: int) -> None:
    if depth < 0:
        raise TypeError(f"nested deeper than {DEPTH_MAX}")
    if isinstance(value, list | tuple):
        for item in value:
            if type(item) not in _SCALARS:  # Most are, and need no call.
                _check_encodable(item, depth - 1)
            elif depth < 1:
                raise TypeError(f"nested deeper than {DEPTH_MAX}")
    elif not isinstance(value, _SCALARS):
        raise TypeError(f"{type(value).__name__} has no canonical form")


def _check_nesting(data: bytes) -> None:
    """Refuse nesting beyond the cap, floats, maps and extensions, by one pass over the type bytes.

    Before the unpacker recurses, and before it allocates.
    """
    pending: list[int] = []
    position, end = 0, len(data)
    while position < end:
        tag = data[position]
        count, skip = 0, _SKIPS[tag]
        if tag == _SHORT_BYTES and position + 1 < end:
            skip = 2 + data[position + 1]
        elif not skip:
            count, skip = _measure(data, position, tag)
        position += skip
        if count:
            pending.append(count)
            if len(pending) > DEPTH_MAX:
                raise LimitExceededError(f"nested deeper than {DEPTH_MAX}")
            continue
        while pending:
            pending[-1] -= 1
            if pending[-1]:
                break
            pending.pop()


_FIXED_BYTES: Final = {0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9}
_LENGTH_BYTES: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}


def _measure(data: bytes, position: int, tag: int) -> tuple[int, int]:
    """Return (elements that follow, bytes to skip) for the value that starts at ``position``."""
    if tag & 0xF0 == 0x90:
        return tag & 0x0F, 1
    if tag in (0xDC, 0xDD):
        width = 2 if tag == 0xDC else 4
        return int.from_bytes(data[position + 1 : position + 1 + width], "big"), 1 + width
    if tag & 0xE0 == 0xA0:
        return 0, 1 + (tag & 0x1F)
    if tag in _LENGTH_BYTES:
        width = _LENGTH_BYTES[tag]
        return 0, 1 + width + int.from_bytes(data[position + 1 : position + 1 + width], "big")
    if tag & 0xF0 == 0x80 or tag in (0xDE, 0xDF) or 0xC7 <= tag <= 0xC9 or 0xD4 <= tag <= 0xD8:
        raise MalformedMessageError("maps and extensions are not part of the canonical form")
    if tag in (0xCA, 0xCB):
        raise MalformedMessageError("floating point numbers are not part of the canonical form")
    return 0, _FIXED_BYTES.get(tag, 1)


_PLAIN: Final = frozenset((*range(0x80), *range(0xA0, 0xC1), 0xC2, 0xC3, *_FIXED_BYTES, *range(0xE0, 0x100)))
"""Type bytes that tell by themselves how long the value is: numbers, short text, truth values, nothing."""
_SKIPS: Final = tuple(_measure(bytes((tag,)), 0, tag)[1] if tag in _PLAIN else 0 for tag in range(256))
"""By type byte, the size of such a value; 0 if more has to be looked at."""
_SHORT_BYTES: Final = 0xC4
