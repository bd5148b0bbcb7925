"""Operations, bodies, policies and geneses: one value, one encoding; whatever arrives, typed errors only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import pytest
from crdt_merge_protocol.canonical import encode
from crdt_merge_protocol.errors import BadSignatureError, RemoteProtocolError
from crdt_merge_protocol.genesis import Genesis
from crdt_merge_protocol.operations import (
    Add,
    Hold,
    Kind,
    Operation,
    PolicyAct,
    Remove,
    SignedOperation,
    operation_id,
    read_body,
    sign_operation,
)
from crdt_merge_protocol.policy import Policy
from hypothesis import given
from hypothesis import strategies as st
from support.authors import KEYS, Author, make_genesis
from support.profile import examples

PROFILE = examples(80)

hashes = st.binary(min_size=32, max_size=32)
sorted_hashes = st.sets(hashes, max_size=5).map(lambda drawn: tuple(sorted(drawn)))
names = st.from_regex(r"[A-Za-z0-9_-]{1,12}(/[A-Za-z0-9_-]{1,5}){0,2}", fullmatch=True)
u64 = st.integers(0, (1 << 64) - 1)
weights = st.integers(-(1 << 63) + 1, (1 << 63) - 1)

operations = st.builds(
    lambda seq, prev, **rest: Operation(seq=seq, prev=prev if seq else None, **rest),
    group=hashes,
    author=st.sampled_from(KEYS).map(lambda key: key.node_id),
    log=st.binary(min_size=16, max_size=16),
    seq=st.one_of(st.just(0), u64),
    prev=hashes,
    deps=sorted_hashes,
    refs=sorted_hashes,
    kind=st.integers(0, 255),
    body=st.binary(max_size=80),
)
adds = st.builds(
    Add, slot=names, type=names, content=hashes, weight=weights, payload=st.one_of(st.none(), hashes)
)
tag_sets = st.sets(hashes, min_size=1, max_size=5).map(lambda drawn: tuple(sorted(drawn)))
policies = st.builds(
    Policy,
    strategy=names,
    schema=hashes,
    version=st.integers(1, (1 << 64) - 1),
    strategy_version=st.integers(0, (1 << 32) - 1),
    params=st.dictionaries(names, st.text(max_size=20), max_size=4).map(lambda d: tuple(sorted(d.items()))),
    base=st.one_of(st.none(), hashes),
    dtype=st.sampled_from(("", "F32", "BF16")),
    weight_cap=st.integers(0, (1 << 63) - 1),
    holders=st.integers(0, (1 << 32) - 1),
)
acts = st.builds(
    PolicyAct,
    policy=policies,
    nonce=st.binary(min_size=16, max_size=16),
    signatures=st.lists(st.tuples(hashes, st.binary(min_size=64, max_size=64)), max_size=3).map(tuple),
)


@PROFILE
@given(operations)
def test_t5_an_operation_has_one_encoding(operation: Operation) -> None:
    encoded = operation.encode()

    assert Operation.decode(encoded) == operation
    assert Operation.decode(encoded).encode() == encoded


@PROFILE
@given(operations, operations, st.sets(st.sampled_from([field.name for field in fields(Operation)])))
def test_t5_operations_that_differ_in_any_field_differ_in_bytes_and_id(
    one: Operation, other: Operation, names_taken: set[str]
) -> None:
    two = replace(one, **{name: getattr(other, name) for name in names_taken})

    assert (one == two) == (one.encode() == two.encode()) == (one.id == two.id)


@PROFILE
@given(operations, st.data())
def test_t5_mutated_bytes_are_refused_or_are_another_operation(
    operation: Operation, data: st.DataObject
) -> None:
    encoded = bytearray(operation.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        other = Operation.decode(bytes(encoded))
    except RemoteProtocolError:
        return

    assert other.encode() == encoded


@PROFILE
@given(st.sampled_from((Operation.decode, Policy.decode, Genesis.decode, SignedOperation.parse)), st.data())
def test_arbitrary_bytes_raise_nothing_but_remote_protocol_errors(
    read: Callable[[bytes], object], data: st.DataObject
) -> None:
    values = st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(-(1 << 63), (1 << 64) - 1), st.binary(), st.text()),
        lambda inner: st.lists(inner, max_size=10),
        max_leaves=20,
    )
    candidates = st.one_of(st.binary(max_size=200), values.map(encode))
    with pytest.raises(RemoteProtocolError):
        read(data.draw(candidates))


@PROFILE
@given(operations, st.data())
def test_t4_any_flipped_bit_of_a_signed_operation_is_refused(
    operation: Operation, data: st.DataObject
) -> None:
    key = next(key for key in KEYS if key.node_id == operation.author)
    wire = bytearray(sign_operation(operation, key).wire())
    bit = data.draw(st.integers(0, 8 * len(wire) - 1))
    wire[bit // 8] ^= 1 << bit % 8

    with pytest.raises(RemoteProtocolError):
        SignedOperation.parse(bytes(wire))


def test_t4_every_flipped_bit_of_one_operation_is_refused() -> None:
    author = Author(make_genesis())
    author.add()
    wire = author.add("second").wire()
    for bit in range(8 * len(wire)):
        flipped = bytearray(wire)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RemoteProtocolError):
            SignedOperation.parse(bytes(flipped))


@PROFILE
@given(operations, operations)
def test_t4_a_signature_fits_no_other_operation(one: Operation, two: Operation) -> None:
    if one == two:
        return
    key = next(key for key in KEYS if key.node_id == one.author)
    wire = encode([two.encode(), sign_operation(one, key).signature])

    with pytest.raises(BadSignatureError):
        SignedOperation.parse(wire)


@PROFILE
@given(operations)
def test_parse_gives_back_what_was_signed(operation: Operation) -> None:
    key = next(key for key in KEYS if key.node_id == operation.author)
    signed = sign_operation(operation, key)

    assert SignedOperation.parse(signed.wire()) == signed == SignedOperation.load(signed.wire())
    assert signed.id == operation_id(signed.encoded) == operation.id


@PROFILE
@given(
    st.one_of(
        adds.map(lambda add: (Kind.ADD, add)),
        tag_sets.map(lambda tags: (Kind.REMOVE, Remove(targets=tags))),
        tag_sets.map(lambda tags: (Kind.HOLD, Hold(tags=tags))),
        acts.map(lambda act: (Kind.POLICY, act)),
    )
)
def test_a_body_reads_back(pair: tuple[Kind, Add | Remove | Hold | PolicyAct]) -> None:
    kind, said = pair
    operation = Author(make_genesis()).make(kind, said.encode()).operation

    assert read_body(operation) == said


@PROFILE
@given(st.integers(0, 255), st.binary(max_size=100), st.booleans())
def test_reading_a_body_never_raises(kind: int, body: bytes, is_version_one: bool) -> None:
    operation = Author(make_genesis()).make(kind, b"\x01" * is_version_one + body).operation
    said = read_body(operation)

    assert said is None or said.encode() == operation.body


@PROFILE
@given(policies, policies, st.sets(st.sampled_from([field.name for field in fields(Policy)])))
def test_s7_recipes_are_equal_exactly_if_all_but_the_version_is(
    one: Policy, other: Policy, names_taken: set[str]
) -> None:
    two = replace(one, **{name: getattr(other, name) for name in names_taken})

    assert Policy.decode(two.encode()) == two
    assert (one == two) == (one.encode() == two.encode())
    assert (one.recipe() == two.recipe()) == (replace(one, version=two.version) == two)


@PROFILE
@given(policies, st.integers(1, 8), st.data())
def test_a_genesis_reads_back_and_names_its_group(policy: Policy, count: int, data: st.DataObject) -> None:
    genesis = replace(
        make_genesis(admins=data.draw(st.permutations(KEYS))[:count]),
        policy=replace(policy, version=1),
        quorum=data.draw(st.integers(1, count)),
        is_open=data.draw(st.booleans()),
        nonce=data.draw(st.binary(min_size=16, max_size=16)),
    )

    assert Genesis.decode(genesis.encode()) == genesis
    assert Genesis.decode(genesis.encode()).group == genesis.group
