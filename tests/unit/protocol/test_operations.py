"""The envelope of an operation and what its bodies say (PROTOCOL R1, R2, R5; SCENARIOS T3-T5, B21-B31)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from crdt_merge_protocol.canonical import encode
from crdt_merge_protocol.errors import (
    BadSignatureError,
    LimitExceededError,
    LocalProtocolError,
    MalformedMessageError,
    RemoteProtocolError,
)
from crdt_merge_protocol.identity import NodeKey
from crdt_merge_protocol.operations import (
    Add,
    Hold,
    Kind,
    Operation,
    Remove,
    SignedOperation,
    read_body,
    sign_operation,
)
from support.authors import KEYS, Author, hash_of, make_genesis

KEY = KEYS[0]
OPERATION = Operation(
    group=hash_of("group"),
    author=KEY.node_id,
    log=bytes(16),
    seq=0,
    prev=None,
    deps=(),
    refs=(),
    kind=Kind.ADD,
    body=b"\x01",
)
SORTED = tuple(number.to_bytes(32, "big") for number in range(2000))


def fields_of(operation: Operation) -> list[object]:
    return [
        1,
        operation.group,
        operation.author,
        operation.log,
        operation.seq,
        operation.prev,
        list(operation.deps),
        list(operation.refs),
        operation.kind,
        operation.body,
    ]


def signed_wire(fields: list[object], key: NodeKey = KEY) -> bytes:
    """Return a correctly signed wire form of any fields, so that only their own check can refuse them."""
    from crdt_merge_protocol.operations import _SIGNATURE_DOMAIN, operation_id

    encoded = encode(fields)
    return encode([encoded, key.sign(_SIGNATURE_DOMAIN + operation_id(encoded))])


def test_the_helper_of_these_tests_makes_acceptable_operations() -> None:
    assert SignedOperation.parse(signed_wire(fields_of(OPERATION))).operation == OPERATION


@pytest.mark.parametrize(
    ("index", "value"),
    [
        pytest.param(0, 2, id="another envelope version"),
        pytest.param(1, bytes(31), id="short group"),
        pytest.param(2, bytes(33), id="long author"),
        pytest.param(3, bytes(15), id="short log"),
        pytest.param(4, 1, id="B23 seq without prev"),
        pytest.param(4, -1, id="B23 negative seq"),
        pytest.param(4, False, id="a boolean for a number"),
        pytest.param(5, bytes(32), id="B23 prev at seq 0"),
        pytest.param(6, [SORTED[1], SORTED[0]], id="B22 deps not sorted"),
        pytest.param(6, [SORTED[0], SORTED[0]], id="B22 deps twice"),
        pytest.param(6, list(SORTED[:65]), id="B22 65 deps"),
        pytest.param(6, [bytes(31)], id="a short dep"),
        pytest.param(7, [SORTED[1], SORTED[0]], id="B22 refs not sorted"),
        pytest.param(7, [SORTED[0], SORTED[0]], id="B22 refs twice"),
        pytest.param(7, list(SORTED[:1025]), id="B22 1,025 refs"),
        pytest.param(8, 256, id="kind above 255"),
        pytest.param(8, -1, id="negative kind"),
        pytest.param(9, "text", id="a body of text"),
        pytest.param(9, bytes(60 * 1024), id="B21 more than 60 KiB"),
    ],
)
def test_a_well_signed_operation_with_a_bad_field_is_refused(index: int, value: object) -> None:
    fields = fields_of(OPERATION)
    fields[index] = value

    with pytest.raises((MalformedMessageError, LimitExceededError)):
        SignedOperation.parse(signed_wire(fields))


@pytest.mark.parametrize("change", [lambda f: f[:-1], lambda f: [*f, None]], ids=["missing", "extra"])
def test_a_missing_or_extra_field_is_refused(change: object) -> None:
    with pytest.raises(MalformedMessageError):
        SignedOperation.parse(signed_wire(change(fields_of(OPERATION))))


def test_b21_the_largest_operation_fits_and_one_byte_more_does_not() -> None:
    overhead = len(replace(OPERATION, body=bytes(60_000)).encode()) - 60_000
    largest = replace(OPERATION, body=bytes(60 * 1024 - overhead))

    assert SignedOperation.parse(sign_operation(largest, KEY).wire()).operation == largest
    with pytest.raises(LocalProtocolError):
        sign_operation(replace(largest, body=largest.body + b"\x00"), KEY)


@pytest.mark.parametrize("size", [0, 63, 65])
def test_b27_a_signature_of_another_length_is_refused(size: int) -> None:
    signed = sign_operation(OPERATION, KEY)

    with pytest.raises(RemoteProtocolError):
        SignedOperation.parse(encode([signed.encoded, bytes(size)]))


def test_b27_a_signature_of_zeros_is_refused() -> None:
    with pytest.raises(BadSignatureError):
        SignedOperation.parse(encode([sign_operation(OPERATION, KEY).encoded, bytes(64)]))


def test_b27_a_signature_with_the_group_order_added_is_refused() -> None:
    signed = sign_operation(OPERATION, KEY)
    order = 2**252 + 27742317777372353535851937790883648493
    scalar = int.from_bytes(signed.signature[32:], "little") + order
    malleated = signed.signature[:32] + scalar.to_bytes(32, "little")

    with pytest.raises(BadSignatureError):
        SignedOperation.parse(encode([signed.encoded, malleated]))


def test_t4_an_author_of_small_order_is_refused_whatever_the_signature() -> None:
    """Under the identity point the signature (R = identity, S = 0) verifies every message in OpenSSL."""
    identity = b"\x01" + bytes(31)
    encoded = replace(OPERATION, author=identity).encode()

    with pytest.raises(BadSignatureError):
        SignedOperation.parse(encode([encoded, identity + bytes(32)]))


def test_b27_another_author_signature_is_refused() -> None:
    with pytest.raises(BadSignatureError):
        SignedOperation.parse(signed_wire(fields_of(OPERATION), KEYS[1]))
    with pytest.raises(LocalProtocolError):
        sign_operation(OPERATION, KEYS[1])


def test_an_operation_that_others_would_refuse_is_not_signed() -> None:
    with pytest.raises(LocalProtocolError):
        sign_operation(replace(OPERATION, refs=(SORTED[1], SORTED[0])), KEY)
    with pytest.raises(LocalProtocolError):
        sign_operation(replace(OPERATION, seq=1), KEY)


def test_trailing_bytes_are_refused() -> None:
    with pytest.raises(MalformedMessageError):
        SignedOperation.parse(sign_operation(OPERATION, KEY).wire() + b"\x00")


def test_loading_a_stored_row_skips_the_signature_only() -> None:
    signed = sign_operation(OPERATION, KEY)
    wire = encode([signed.encoded, bytes(64)])

    assert SignedOperation.load(wire).id == signed.id
    with pytest.raises(MalformedMessageError):
        SignedOperation.load(encode([signed.encoded + b"\x00", bytes(64)]))


def test_parents_are_prev_deps_and_refs() -> None:
    operation = replace(OPERATION, seq=1, prev=SORTED[0], deps=SORTED[0:2], refs=SORTED[2:4])

    assert operation.parents == frozenset(SORTED[:4])


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(["main", "model", bytes(32), 1, None, None], id="an extra field"),
        pytest.param(["main", "model", bytes(32), 1], id="a field missing"),
        pytest.param(["../main", "model", bytes(32), 1, None], id="a slot that is no name"),
        pytest.param(["main", "", bytes(32), 1, None], id="an empty type"),
        pytest.param(["main", "model", bytes(31), 1, None], id="a short content id"),
        pytest.param(["main", "model", bytes(32), 1 << 63, None], id="B59 a weight of 2^63"),
        pytest.param(["main", "model", bytes(32), "1", None], id="a weight as text"),
        pytest.param(["main", "model", bytes(32), 1, bytes(8)], id="a short payload hash"),
        pytest.param("main", id="not a list"),
    ],
)
def test_an_add_outside_its_ranges_is_unreadable_and_not_an_error(values: object) -> None:
    assert read_body(replace(OPERATION, body=b"\x01" + encode(values))) is None


@pytest.mark.parametrize("body", [b"", b"\x01", b"\x02\x90", b"\xff", b"\x01\xc1", b"\x01" + b"\x91" * 100])
@pytest.mark.parametrize("kind", [*Kind, 0, 10, 255])
def test_b30_bodies_of_other_versions_and_other_kinds_are_unreadable(kind: int, body: bytes) -> None:
    assert read_body(replace(OPERATION, kind=kind, body=body)) is None


@pytest.mark.parametrize("kind", [Kind.REMOVE, Kind.HOLD])
@pytest.mark.parametrize(
    "tags",
    [[], [SORTED[1], SORTED[0]], [SORTED[0]] * 2, list(SORTED[:1025])],
    ids=["none", "order", "twice", "many"],
)
def test_b31_tags_must_be_a_sorted_set_of_at_most_1024(kind: Kind, tags: list[bytes]) -> None:
    assert read_body(replace(OPERATION, kind=kind, body=b"\x01" + encode([tags]))) is None


@pytest.mark.parametrize(
    "said",
    [
        Add(slot="a b", type="model", content=bytes(32), weight=1, payload=None),
        Add(slot="main", type="model", content=bytes(32), weight=1 << 63, payload=None),
        Remove(targets=()),
        Remove(targets=(SORTED[1], SORTED[0])),
        Hold(tags=(bytes(31),)),
    ],
)
def test_a_body_that_no_node_could_read_is_not_encoded(said: Add | Remove | Hold) -> None:
    with pytest.raises(LocalProtocolError):
        said.encode()


def test_the_digest_of_a_contribution_ignores_slot_payload_and_author() -> None:
    """PROTOCOL R9: who sent a contribution, where and with which notes never changes an output."""
    add = Add(slot="main", type="model", content=hash_of("c"), weight=1, payload=None)

    assert add.digest == replace(add, slot="other", payload=bytes(32)).digest
    assert add.digest != replace(add, weight=2).digest
    assert add.digest != replace(add, type="fisher").digest
    assert add.digest != replace(add, content=hash_of("d")).digest


def test_t3_an_operation_of_one_group_is_refused_by_another() -> None:
    ours, theirs = Author(make_genesis(strategy="linear")), Author(make_genesis(strategy="ties"))
    foreign = SignedOperation.parse(theirs.add().wire())
    before = ours.state.sync_root

    with pytest.raises(MalformedMessageError, match="group"):
        ours.state.apply(foreign)
    assert ours.state.sync_root == before
    assert len(ours.state) == 0
