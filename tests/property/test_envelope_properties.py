"""The quick readers of envelopes and ADDs never say anything but what the general decoder does (R1, R2)."""

from __future__ import annotations

from unittest.mock import patch

from crdt_merge_protocol import bodies, operations
from crdt_merge_protocol.canonical import encode
from crdt_merge_protocol.envelope import read_add, read_envelope, split_wire
from crdt_merge_protocol.errors import RemoteProtocolError
from crdt_merge_protocol.operations import Operation, SignedOperation
from hypothesis import example, given
from hypothesis import strategies as st
from support.authors import hash_of
from support.profile import examples

PROFILE = examples(300)

IDS = tuple(sorted(hash_of(f"id {number}") for number in range(1100)))
# Where a length or a number takes another byte, and the greatest that is allowed, and one more.
EDGES = (0, 1, 127, 128, 255, 256, 65535, 65536, (1 << 32) - 1, 1 << 32, (1 << 64) - 1)
COUNTS = (0, 1, 2, 15, 16, 17, 64, 65, 1023, 1024, 1025)
SIZES = (0, 1, 31, 32, 255, 256, 257, 4096, 59_000, 61_440)

values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.binary(max_size=40),
    st.text(max_size=9),
)
ids = st.one_of(
    st.sampled_from(COUNTS).map(lambda count: list(IDS[:count])),
    st.lists(st.sampled_from(IDS[:4]), max_size=4),
    st.lists(values, max_size=3),
)
blobs = st.sampled_from((31, 32, 33, 16)).map(bytes)
envelopes = st.tuples(
    st.sampled_from((1, 1, 1, 2, None)),
    st.one_of(st.just(IDS[0]), blobs),
    st.one_of(st.just(IDS[1]), blobs),
    st.one_of(st.just(bytes(16)), blobs),
    st.one_of(st.sampled_from(EDGES), values),
    st.one_of(st.none(), st.just(IDS[2]), values),
    ids,
    ids,
    st.one_of(st.sampled_from(EDGES[:6]), values),
    st.one_of(st.sampled_from(SIZES).map(bytes), values),
)


def general(data: bytes) -> Operation | type[RemoteProtocolError]:
    """Return what the general decoder says."""
    with patch.object(operations, "read_envelope", lambda _data: None):
        return said(data)


def said(data: bytes) -> Operation | type[RemoteProtocolError]:
    try:
        return Operation.decode(data)
    except RemoteProtocolError as error:
        return type(error)


def good(**changes: object) -> tuple[object, ...]:
    fields = {"seq": 1, "prev": IDS[2], "deps": [], "refs": [], "kind": 1, "body": b"\x01"} | changes
    return (1, IDS[0], IDS[1], bytes(16), *fields.values())


@PROFILE
@given(envelopes)
@example(good())
@example(good(seq=0, prev=None))
@example(good(seq=(1 << 64) - 1, deps=list(IDS[:64]), refs=list(IDS[:1024]), kind=255))
@example(good(body=bytes(61_440 - 131)))
@example(good(body=bytes(61_440 - 130)))
def test_every_list_of_fields_is_read_alike_by_both(fields: tuple[object, ...]) -> None:
    data = encode(list(fields))

    assert said(data) == general(data)


def test_every_good_envelope_is_recognised() -> None:
    for seq in EDGES:
        for count in (0, 1, 15, 16, 64):
            fields = good(seq=seq, prev=IDS[2] if seq else None, deps=list(IDS[:count]), kind=count)
            data = encode(list(fields))
            found = read_envelope(data)

            assert found is not None
            assert [*found] == [tuple(field) if isinstance(field, list) else field for field in fields[1:]]


@PROFILE
@given(st.sampled_from(EDGES), st.sampled_from((0, 2, 16)), st.sampled_from((0, 1, 255, 256)), st.data())
def test_bytes_that_were_changed_cut_or_extended_are_read_alike_by_both(
    seq: int, count: int, size: int, data: st.DataObject
) -> None:
    fields = good(seq=seq, prev=IDS[2] if seq else None, deps=list(IDS[:count]), body=bytes(size))
    changed = bytearray(encode(list(fields)))
    for _ in range(data.draw(st.integers(0, 2))):
        place = data.draw(
            st.one_of(st.integers(0, len(changed) - 1), st.sampled_from((0, 2, 37, 70, 88, 89)))
        )
        changed[place] = data.draw(
            st.one_of(st.integers(0, 255), st.sampled_from((0xC4, 0xC5, 0xC6, 0xDC, 0xCC)))
        )
    end = data.draw(st.one_of(st.just(len(changed)), st.integers(0, len(changed))))
    tail = data.draw(st.one_of(st.just(b""), st.binary(max_size=3)))
    encoded = bytes(changed[:end]) + tail

    assert said(encoded) == general(encoded)


@PROFILE
@given(
    st.sampled_from((0, 1, 255, 256, 61_440, 61_441, 65_000)),
    st.sampled_from((0, 63, 64, 65)),
    st.data(),
)
def test_a_signed_operation_is_split_alike_by_both(size: int, signature: int, data: st.DataObject) -> None:
    wire = bytearray(encode([bytes(size), bytes(signature)]))
    if data.draw(st.booleans()):
        place = data.draw(st.sampled_from((0, 1, 2, 3, len(wire) - 66, len(wire) - 65, len(wire) - 1)))
        wire[max(0, place)] = data.draw(st.integers(0, 255))
    parts = split_wire(bytes(wire))

    if parts is not None:
        assert encode([*parts]) == wire
        assert (len(parts[0]) <= 61_440, len(parts[1])) == (True, 64)


@PROFILE
@given(st.binary(max_size=300), st.binary(min_size=64, max_size=64))
def test_the_wire_form_is_the_canonical_list_of_both_parts(encoded: bytes, signature: bytes) -> None:
    operation = Operation.decode(encode(list(good())))
    wire = SignedOperation(operation, encoded, signature, bytes(32)).wire()

    assert wire == encode([encoded, signature])
    assert split_wire(wire) == (encoded, signature)


NAMES = ("main", "a/b.c_d-1", "", "a..b", "/a", ".a", "n\u00e4me", "n" * 31, "n" * 32, "n" * 200, "n" * 201)
WEIGHTS = (*EDGES, -1, -33, -(1 << 63), (1 << 63) - 1, 1 << 63)
adds = st.tuples(
    st.one_of(st.sampled_from(NAMES), values),
    st.one_of(st.sampled_from(NAMES), values),
    st.one_of(st.just(IDS[0]), blobs, values),
    st.one_of(st.sampled_from(WEIGHTS), values),
    st.one_of(st.none(), st.just(IDS[1]), blobs, values),
)


def both_of(body: bytes) -> tuple[bodies.Body | None, bodies.Body | None]:
    """Return what the reader of ADDs and what the general decoder say of a body."""
    quick = bodies.read(1, body)
    with patch.object(bodies, "read_add", lambda _body: None):
        return quick, bodies.read(1, body)


@PROFILE
@given(adds)
@example(("main", "model", IDS[0], 1 << 32, None))
@example(("n" * 200, "n" * 32, IDS[0], (1 << 63) - 1, IDS[1]))
@example(("main", "model", IDS[0], -1, None))
def test_every_add_is_read_alike_by_both(fields: tuple[object, ...]) -> None:
    quick, slow = both_of(b"\x01" + encode(list(fields)))

    assert quick == slow


def test_every_good_add_whose_weight_is_not_negative_is_recognised() -> None:
    for name in ("main", "n" * 31, "n" * 32, "n" * 200):
        for weight in (weight for weight in WEIGHTS if 0 <= weight < 1 << 63):
            for payload in (None, IDS[1]):
                fields = (name, "model", IDS[0], weight, payload)

                assert read_add(b"\x01" + encode(list(fields))) == fields


@PROFILE
@given(st.sampled_from(NAMES[:2] + NAMES[8:10]), st.sampled_from(WEIGHTS), st.booleans(), st.data())
def test_adds_that_were_changed_cut_or_extended_are_read_alike_by_both(
    name: str, weight: int, has_payload: bool, data: st.DataObject
) -> None:
    fields = [name, "model", IDS[0], weight, IDS[1] if has_payload else None]
    changed = bytearray(b"\x01" + encode(fields))
    for _ in range(data.draw(st.integers(0, 2))):
        place = data.draw(st.integers(0, len(changed) - 1))
        tags = st.sampled_from((0xA1, 0xBF, 0xC0, 0xC4, 0xC5, 0xD9, 0xDA, 0xCC, 0xCF, 0xD0))
        changed[place] = data.draw(st.one_of(st.integers(0, 255), tags))
    end = data.draw(st.one_of(st.just(len(changed)), st.integers(0, len(changed))))
    quick, slow = both_of(bytes(changed[:end]) + data.draw(st.binary(max_size=2)))

    assert quick == slow
