"""Operations that only their own checks can refuse: correctly signed, whatever they say."""

from __future__ import annotations

import os
from typing import Any

from crdt_merge_protocol.canonical import encode
from crdt_merge_protocol.identity import NodeKey
from crdt_merge_protocol.operations import Operation, SignedOperation, operation_id, sign_operation

UNKNOWN_KIND = 201


def random_key() -> NodeKey:
    """Return the key of somebody new."""
    return NodeKey(os.urandom(32))


def operation(group: bytes, key: NodeKey, **changes: Any) -> Operation:
    """Return the first operation of a fresh log, acceptable but for the changes."""
    fields: dict[str, Any] = {
        "group": group,
        "author": key.node_id,
        "log": os.urandom(16),
        "seq": 0,
        "prev": None,
        "deps": (),
        "refs": (),
        "kind": UNKNOWN_KIND,
        "body": b"\x01",
    }
    return Operation(**fields | changes)


def fields_of(found: Operation) -> list[Any]:
    """Return the fields of an operation in wire order."""
    return [
        *(1, found.group, found.author, found.log, found.seq, found.prev),
        *(list(found.deps), list(found.refs), found.kind, found.body),
    ]


def sign_fields(fields: list[Any], key: NodeKey) -> bytes:
    """Return the signed wire form of any fields."""
    encoded = encode(fields)
    return encode([encoded, key.sign(b"crdt-merge/sig/1" + operation_id(encoded))])


def signed_wire(found: Operation, key: NodeKey) -> bytes:
    """Return the signed wire form of an operation, acceptable or not."""
    return sign_fields(fields_of(found), key)


def chain(group: bytes, count: int, *, prev: bytes | None = None) -> list[SignedOperation]:
    """Return operations of one log of somebody new; behind ``prev``, if given, which need not exist."""
    key, log = random_key(), os.urandom(16)
    made: list[SignedOperation] = []
    for seq in range(count):
        place = {"seq": seq + (prev is not None), "prev": made[-1].id if made else prev}
        made.append(sign_operation(operation(group, key, log=log, **place), key))
    return made
