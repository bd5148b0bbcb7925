"""The walk: two sides compare their tries from the root down and learn who lacks what (PROTOCOL 2).

Theory of operation. The sides take turns. Whoever has the turn says, for every place where the other's
digests differ from its own, what it has there: the digests of its children (:class:`Children`), or, at 16
ids and below, their short ids (:class:`Leaf`). From each such answer the other side learns three things: what
it must send (present here, absent there), what it must ask for (:class:`Wanted`), and where to go on. Both
learn, so the walk serves both directions and meets a difference after about log16(n) turns.

Rules of the file:

1. An entry must answer a place that our last step left open, and answers it for good. Places are disjoint and
   get strictly longer, so no peer can make a walk longer than a path, or larger than our own trie
   (SCENARIOS B40).
2. Wanted ids must come from the leaves of our last step, each at most once (B43).
3. Digests and ids are compared as 8 bytes under the key of the session, so that collisions cannot be prepared
   (T11). A chance collision leaves the roots unequal, and the next session has another key.
4. A step with a single open place uses :class:`Halved` there: few differences, hence fewer bytes. It is
   answered for one child, or, if several differ, by the same place in full.
"""

from __future__ import annotations

import hashlib

from .canonical import digest
from .errors import MalformedMessageError
from .limits import SHORT_DIGEST_BYTES, SYNC_PAGE_IDS_MAX, TRIE_LEAF_IDS_MAX
from .merkle import Trie
from .messages.walk import Children, Entry, Halved, Leaf, Wanted

_RADIX = range(16)
_BITS = range(4)


def session_key(first: bytes, second: bytes) -> bytes:
    """Return the key of short digests: it depends on the nonces of the initiator and of the responder."""
    return digest("crdt-merge/sync/1", first, second)


class Walk:
    """One side of a walk over a snapshot of its trie."""

    def __init__(self, trie: Trie, key: bytes, *, is_first: bool) -> None:
        self._trie = trie
        self._key = key
        self._open: dict[bytes, bool] = {} if is_first else {b"": False}
        """Places that the other side may answer; True where we sent halves."""
        self._leaves: dict[bytes, bytes] = {}
        """Short id -> id, of the leaves in our last step."""
        self._unequal: list[bytes] = [b""] if is_first else []
        """Places to describe in our next step."""
        self._in_full: list[bytes] = []
        self._wants: set[bytes] = set()
        self.to_send: set[bytes] = set()
        """Ids that the other side lacks."""
        self.wanted: set[bytes] = set()
        """Short ids that we asked for, or are about to."""
        self.comparison_count = 0

    def absorb(self, entry: Entry) -> None:
        """Take in one entry of the other side's step.

        Raises:
            RemoteProtocolError: It answers nothing that we said.
        """
        match entry:
            case Children():
                self._absorb_children(entry)
            case Halved():
                self._absorb_halves(entry)
            case Leaf():
                self._absorb_leaf(entry)
            case Wanted():
                self._absorb_wanted(entry)

    def step(self) -> list[Entry]:
        """Return our answer to everything absorbed since the last one; one that only wants ends the walk."""
        self._open.clear()
        self._leaves.clear()
        # The root is always alone, which says nothing about the number of differences.
        is_lone = len(self._unequal) == 1 and self._unequal[0] != b"" and not self._in_full
        entries: list[Entry] = [self._describe(place, is_lone=is_lone) for place in self._unequal]
        entries += [self._describe_exactly(place) for place in self._in_full]
        wants = sorted(self._wants)
        pages = range(0, len(wants), SYNC_PAGE_IDS_MAX)
        entries += [Wanted(tuple(wants[start : start + SYNC_PAGE_IDS_MAX])) for start in pages]
        self._unequal.clear()
        self._in_full.clear()
        self._wants.clear()
        return entries

    def short(self, data: bytes) -> bytes:
        """Return the 8 bytes that stand for an id or digest in this session."""
        return hashlib.blake2b(data, digest_size=SHORT_DIGEST_BYTES, key=self._key).digest()

    # --- what we have ---------------------------------------------------------------------------------

    def _describe(self, place: bytes, *, is_lone: bool) -> Entry:
        if self._trie.count(place) <= TRIE_LEAF_IDS_MAX:
            return self._leaf(place)
        node = self._branching(place)
        if not is_lone:
            return self._children(node)
        self._open[node] = True
        return Halved(node, self._bitmap(node), self._halves(node))

    def _describe_exactly(self, place: bytes) -> Entry:
        is_small = self._trie.count(place) <= TRIE_LEAF_IDS_MAX
        return self._leaf(place) if is_small else self._children(place)

    def _leaf(self, place: bytes) -> Leaf:
        listed = {self.short(identifier): identifier for identifier in self._trie.ids(place)}
        self._leaves |= listed
        return Leaf(place, tuple(sorted(listed)))

    def _children(self, node: bytes) -> Children:
        present = self._trie.children(node)
        self._open |= {node + bytes([nibble]): False for nibble in present}
        digests = tuple(self._short_digest(node, nibble) for nibble in present)
        return Children(node, self._bitmap(node), digests)

    def _halves(self, node: bytes) -> tuple[bytes, ...]:
        digests = [self._trie.digest(node + bytes([nibble])) for nibble in _RADIX]
        return tuple(
            self.short(b"".join(digests[nibble] for nibble in _RADIX if nibble >> bit & 1 == side))
            for bit in _BITS
            for side in (0, 1)
        )

    def _branching(self, place: bytes) -> bytes:
        """Return the longest prefix that all of our ids at ``place`` share."""
        while len(children := self._trie.children(place)) == 1:
            place += bytes(children)
        return place

    def _bitmap(self, node: bytes) -> int:
        return sum(1 << nibble for nibble in self._trie.children(node))

    def _short_digest(self, node: bytes, nibble: int) -> bytes:
        return self.short(self._trie.digest(node + bytes([nibble])))

    # --- what the other side has ----------------------------------------------------------------------

    def _absorb_children(self, entry: Children) -> None:
        self._enter(entry.prefix)
        digests = iter(entry.digests)
        for nibble in _RADIX:
            child = entry.prefix + bytes([nibble])
            if not entry.bitmap >> nibble & 1:
                self.to_send.update(self._trie.ids(child))
                continue
            self.comparison_count += 1
            if next(digests) != self._short_digest(entry.prefix, nibble):
                self._unequal.append(child)

    def _absorb_halves(self, entry: Halved) -> None:
        self._enter(entry.prefix)
        self.comparison_count += len(entry.digests)
        unequal = [
            ours != theirs for ours, theirs in zip(self._halves(entry.prefix), entry.digests, strict=True)
        ]
        if any(unequal[2 * bit] == unequal[2 * bit + 1] for bit in _BITS):
            self._in_full.append(entry.prefix)
            return
        nibble = sum(1 << bit for bit in _BITS if unequal[2 * bit + 1])
        child = entry.prefix + bytes([nibble])
        if entry.bitmap >> nibble & 1:
            self._unequal.append(child)
        else:
            self.to_send.update(self._trie.ids(child))

    def _absorb_leaf(self, entry: Leaf) -> None:
        place, is_halved = self._answered(entry.prefix)
        if len(entry.prefix) - len(place) > is_halved:
            raise MalformedMessageError("a leaf of the trie answers for a place it does not cover.")
        theirs = set(entry.short_ids)
        self.comparison_count += len(theirs)
        for identifier in self._trie.ids(entry.prefix):
            short = self.short(identifier) if theirs else b""
            if short in theirs:
                theirs.discard(short)
            else:
                self.to_send.add(identifier)
        self._wants |= theirs
        self.wanted |= theirs

    def _absorb_wanted(self, entry: Wanted) -> None:
        for short in entry.short_ids:
            identifier = self._leaves.pop(short, None)
            if identifier is None:
                raise MalformedMessageError("an id is wanted that was not listed, or wanted twice.")
            self.to_send.add(identifier)

    def _enter(self, node: bytes) -> None:
        """Close the place that ``node`` answers; the other side lacks what we have there, ``node`` apart."""
        place, is_halved = self._answered(node)
        if is_halved and len(node) > len(place):
            place = node[: len(place) + 1]
        if self._trie.count(node) != self._trie.count(place):
            below = set(self._trie.ids(node))
            self.to_send.update(identifier for identifier in self._trie.ids(place) if identifier not in below)

    def _answered(self, prefix: bytes) -> tuple[bytes, bool]:
        for length in range(len(prefix) + 1):
            place = prefix[:length]
            if place in self._open:
                return place, self._open.pop(place)
        raise MalformedMessageError("an entry about the trie answers nothing that was asked.")
