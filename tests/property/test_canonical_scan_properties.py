"""The scan before decoding goes by a table; it says what the definition of every type byte says."""

from __future__ import annotations

from unittest.mock import patch

from crdt_merge_protocol import canonical
from crdt_merge_protocol.canonical import encode
from crdt_merge_protocol.errors import RemoteProtocolError
from hypothesis import given
from hypothesis import strategies as st
from support.profile import examples

PROFILE = examples(300)

values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(1 << 63), (1 << 64) - 1),
        st.binary(max_size=300),
        st.text(max_size=40),
    ),
    lambda inner: st.lists(inner, max_size=20),
    max_leaves=40,
)


def scanned(data: bytes) -> type[RemoteProtocolError] | None:
    try:
        canonical._check_nesting(data)
    except RemoteProtocolError as error:
        return type(error)
    return None


def defined(data: bytes) -> type[RemoteProtocolError] | None:
    """Return what comes out if every type byte is looked up by its definition."""
    with patch.object(canonical, "_SKIPS", (0,) * 256), patch.object(canonical, "_SHORT_BYTES", -1):
        return scanned(data)


@PROFILE
@given(values, st.data())
def test_values_and_what_is_left_of_them_are_scanned_alike(value: object, data: st.DataObject) -> None:
    try:
        encoded = bytearray(encode(value))
    except TypeError:
        return  # Nested too deep to be encoded.
    if data.draw(st.booleans()):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(encoded[: data.draw(st.integers(0, len(encoded)))])

    assert scanned(bytes(encoded)) == defined(bytes(encoded))
    assert scanned(cut) == defined(cut)


@PROFILE
@given(st.binary(max_size=60))
def test_any_bytes_are_scanned_alike(data: bytes) -> None:
    assert scanned(data) == defined(data)


def test_every_type_byte_is_scanned_alike_however_little_follows() -> None:
    for tag in range(256):
        for tail in (b"", b"\x00", b"\x01\x00", b"\xff" * 3, bytes(20), b"\x91" * 12):
            data = b"\x92" + bytes((tag,)) + tail
            assert scanned(data) == defined(data), data.hex()
