"""Merkle trie over 32-byte ids: one root per set, whatever the order of insertion (PROTOCOL 1).

Theory of operation. Radix 16. A subtree of at most 16 ids is a *leaf*; a node with a single child does not
exist, its nibbles are hashed into the node below. So the shape depends on the set alone, and ids ground to
share a prefix lengthen a hash input instead of the tree (SCENARIOS T11).

    leaf  = SHA-256(0x00 | count | sorted ids)
    inner = SHA-256(0x01 | number of skipped nibbles | skipped nibbles, a byte each | bitmap16 | children)

The first byte keeps a leaf from ever being read as an inner node (second preimage, as in RFC 6962, 2.1).
Digests are never combined by XOR or sums: with those, unequal sets of equal fingerprint take milliseconds
to find (SCENARIOS T10).

Nodes are immutable except for their cached digest, and an insertion copies the path it touches only. Hence
:meth:`Trie.copy` is free, and an anti-entropy session walks a snapshot while the original grows.

A *prefix* is a sequence of nibbles, 0..15 each. It may end at any depth, also within a skipped run or below
a leaf: ``digest(prefix)`` is always the digest of the subtree that the ids under ``prefix`` make when the
nibbles behind ``prefix`` are the first that can be skipped.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from .errors import LocalProtocolError
from .limits import TRIE_LEAF_IDS_MAX

ID_BYTES: Final = 32
NIBBLES_MAX: Final = 2 * ID_BYTES
_RADIX: Final = 16
_LEAF_TAG: Final = b"\x00"
_INNER_TAG: Final = b"\x01"
_NIBBLE_OF_HEX: Final = bytes.maketrans(b"0123456789abcdef", bytes(range(_RADIX)))

Prefix = Sequence[int]
"""Nibbles from the most significant on, as ``bytes`` or any sequence of integers 0..15."""


def nibbles_of(identifier: bytes) -> bytes:
    """Return the 64 nibbles of a 32-byte id, one byte each."""
    return identifier.hex().encode("ascii").translate(_NIBBLE_OF_HEX)


class _Leaf:
    """At most 16 ids in ascending order."""

    __slots__ = ("_digest", "count", "ids")

    def __init__(self, ids: tuple[bytes, ...]) -> None:
        self.ids = ids
        self.count = len(ids)
        self._digest: bytes | None = None

    def digest(self, start: int) -> bytes:  # noqa: ARG002  (the signature of an inner node)
        """Return the digest; whole ids are hashed, so the depth does not matter."""
        if self._digest is None:
            self._digest = hashlib.sha256(_LEAF_TAG + bytes([self.count]) + b"".join(self.ids)).digest()
        return self._digest


class _Inner:
    """A branching: more than 16 ids that share ``path`` and differ in the nibble behind it."""

    __slots__ = ("_digest", "_start", "children", "count", "path")

    def __init__(self, path: bytes, children: tuple[_Node | None, ...], count: int) -> None:
        self.path = path
        self.children = children
        self.count = count
        self._digest = b""
        self._start = -1

    def digest(self, start: int) -> bytes:
        """Return the digest as seen from depth ``start``: the nibbles from there on count as skipped."""
        if self._start == start:
            return self._digest
        skipped = self.path[start:]
        below = len(self.path) + 1
        bitmap = 0
        parts = [_INNER_TAG, bytes([len(skipped)]), skipped, b""]
        for nibble, child in enumerate(self.children):
            if child is not None:
                bitmap |= 1 << nibble
                parts.append(child.digest(below))
        parts[3] = bitmap.to_bytes(2, "big")
        self._digest = hashlib.sha256(b"".join(parts)).digest()
        self._start = start
        return self._digest


_Node = _Leaf | _Inner
_EMPTY: Final = _Leaf(())


class Trie:
    """A set of 32-byte ids with a root digest, kept incrementally. Iterates in ascending order."""

    __slots__ = ("_top",)

    def __init__(self, ids: Iterable[bytes] = ()) -> None:
        unique = sorted(set(ids))
        for identifier in unique:
            _check_id(identifier)
        self._top: _Node = _built(unique)

    def insert(self, identifier: bytes) -> bool:
        """Add an id and return whether it is new; cost grows with the logarithm of the size."""
        _check_id(identifier)
        top = _inserted(self._top, identifier, nibbles_of(identifier))
        is_new = top is not self._top
        self._top = top
        return is_new

    def discard(self, identifier: bytes) -> bool:
        """Take an id out and return whether it was there."""
        _check_id(identifier)
        top = _discarded(self._top, identifier, nibbles_of(identifier))
        was_there = top is not self._top
        self._top = top
        return was_there

    def copy(self) -> Trie:
        """Return an independent trie with the same ids, at no cost."""
        twin = Trie()
        twin._top = self._top
        return twin

    def __contains__(self, identifier: object) -> bool:
        if not isinstance(identifier, bytes) or len(identifier) != ID_BYTES:
            return False
        node = self._top
        if isinstance(node, _Inner):
            nibbles = nibbles_of(identifier)
            while isinstance(node, _Inner):
                # The path itself needs no look: the leaf compares whole ids.
                node = node.children[nibbles[len(node.path)]] or _EMPTY
        return identifier in node.ids

    def __len__(self) -> int:
        return self._top.count

    def __iter__(self) -> Iterator[bytes]:
        return _ids_below(self._top)

    @property
    def root(self) -> bytes:
        """The 32-byte digest of the whole set."""
        return self._top.digest(0)

    def count(self, prefix: Prefix) -> int:
        """Return how many ids begin with ``prefix``."""
        return self._below(_checked(prefix)).count

    def digest(self, prefix: Prefix) -> bytes:
        """Return the 32-byte digest of the ids that begin with ``prefix``."""
        checked = _checked(prefix)
        return self._below(checked).digest(len(checked))

    def ids(self, prefix: Prefix) -> list[bytes]:
        """Return the ids that begin with ``prefix``, ascending."""
        return list(_ids_below(self._below(_checked(prefix))))

    def children(self, prefix: Prefix) -> tuple[int, ...]:
        """Return the nibbles that follow ``prefix`` in some id, ascending."""
        checked = _checked(prefix)
        depth = len(checked)
        if depth == NIBBLES_MAX:
            return ()
        node = self._below(checked)
        if isinstance(node, _Leaf):
            return tuple(sorted({nibbles_of(identifier)[depth] for identifier in node.ids}))
        if depth < len(node.path):
            return (node.path[depth],)
        return tuple(nibble for nibble, child in enumerate(node.children) if child is not None)

    def _below(self, prefix: bytes) -> _Node:
        """Return the node that holds exactly the ids that begin with ``prefix``."""
        node = self._top
        while isinstance(node, _Inner):
            depth = len(node.path)
            if depth >= len(prefix):
                return node if node.path.startswith(prefix) else _EMPTY
            if not prefix.startswith(node.path):
                return _EMPTY
            node = node.children[prefix[depth]] or _EMPTY
        matching = tuple(i for i in node.ids if nibbles_of(i).startswith(prefix)) if prefix else node.ids
        return node if len(matching) == node.count else _Leaf(matching)


def root_of(ids: Iterable[bytes]) -> bytes:
    """Return the root of a set, computed from the definition alone: the oracle that :class:`Trie` must equal.

    Source: PROTOCOL 1. Slow on purpose; it shares no code with the trie but the constants.
    """
    return _defined_digest(sorted(set(ids)), 0)


def _defined_digest(ids: list[bytes], depth: int) -> bytes:
    if len(ids) <= TRIE_LEAF_IDS_MAX:
        return hashlib.sha256(_LEAF_TAG + bytes([len(ids)]) + b"".join(ids)).digest()
    skipped: list[int] = []
    while True:
        groups: dict[int, list[bytes]] = {}
        for identifier in ids:
            byte = identifier[depth // 2]
            groups.setdefault(byte & 15 if depth % 2 else byte >> 4, []).append(identifier)
        depth += 1
        if len(groups) > 1:
            break
        skipped.extend(groups)
    bitmap = sum(1 << nibble for nibble in groups)
    digests = [_defined_digest(groups[nibble], depth) for nibble in sorted(groups)]
    head = _INNER_TAG + bytes([len(skipped), *skipped]) + bitmap.to_bytes(2, "big")
    return hashlib.sha256(head + b"".join(digests)).digest()


def _built(ids: Sequence[bytes]) -> _Node:
    """Return the node over ascending, distinct ids."""
    if len(ids) <= TRIE_LEAF_IDS_MAX:
        return _Leaf(tuple(ids)) if ids else _EMPTY
    first = nibbles_of(ids[0])
    depth = _shared(first, nibbles_of(ids[-1]))
    groups: list[list[bytes]] = [[] for _ in range(_RADIX)]
    for identifier in ids:
        byte = identifier[depth >> 1]
        groups[byte & 15 if depth & 1 else byte >> 4].append(identifier)
    children = tuple(_built(group) if group else None for group in groups)
    return _Inner(first[:depth], children, len(ids))


def _inserted(node: _Node, identifier: bytes, nibbles: bytes) -> _Node:
    """Return the node with the id in it; the same object if the id was there."""
    if isinstance(node, _Leaf):
        position = bisect_left(node.ids, identifier)
        if position < node.count and node.ids[position] == identifier:
            return node
        return _built((*node.ids[:position], identifier, *node.ids[position:]))
    depth = len(node.path)
    if not nibbles.startswith(node.path):
        depth = _shared(nibbles, node.path)
        split: list[_Node | None] = [None] * _RADIX
        split[node.path[depth]] = node
        split[nibbles[depth]] = _Leaf((identifier,))
        return _Inner(nibbles[:depth], tuple(split), node.count + 1)
    slot = nibbles[depth]
    child = node.children[slot]
    changed = _Leaf((identifier,)) if child is None else _inserted(child, identifier, nibbles)
    if changed is child:
        return node
    return _Inner(node.path, _replaced(node.children, slot, changed), node.count + 1)


def _discarded(node: _Node, identifier: bytes, nibbles: bytes) -> _Node:
    """Return the node without the id; the same object if the id was not there."""
    if isinstance(node, _Leaf):
        if identifier not in node.ids:
            return node
        return _built([kept for kept in node.ids if kept != identifier])
    slot = nibbles[len(node.path)]
    child = node.children[slot]
    changed = child if child is None else _discarded(child, identifier, nibbles)
    if changed is None or changed is child:
        return node
    children = _replaced(node.children, slot, changed if changed.count else None)
    smaller = _Inner(node.path, children, node.count - 1)
    if smaller.count <= TRIE_LEAF_IDS_MAX:
        return _Leaf(tuple(_ids_below(smaller)))
    remaining = [below for below in children if below is not None]
    # A lone child takes its parent's place: its own path already starts at the root.
    return remaining[0] if len(remaining) == 1 else smaller


def _replaced(children: tuple[_Node | None, ...], slot: int, child: _Node | None) -> tuple[_Node | None, ...]:
    return (*children[:slot], child, *children[slot + 1 :])


def _ids_below(node: _Node) -> Iterator[bytes]:
    pending: list[_Node] = [node]
    while pending:
        current = pending.pop()
        if isinstance(current, _Leaf):
            yield from current.ids
        else:
            pending.extend(child for child in reversed(current.children) if child is not None)


def _shared(first: bytes, second: bytes) -> int:
    """Return how many leading nibbles two paths share."""
    length = min(len(first), len(second))
    for position in range(length):
        if first[position] != second[position]:
            return position
    return length


def _check_id(identifier: bytes) -> None:
    if type(identifier) is not bytes or len(identifier) != ID_BYTES:
        raise LocalProtocolError(f"a trie holds ids of {ID_BYTES} bytes, got {identifier!r}.")


def _checked(prefix: Prefix) -> bytes:
    if len(prefix) > NIBBLES_MAX or any(not 0 <= nibble < _RADIX for nibble in prefix):
        raise LocalProtocolError(f"a prefix is at most {NIBBLES_MAX} nibbles, got {tuple(prefix)}.")
    return bytes(prefix)
