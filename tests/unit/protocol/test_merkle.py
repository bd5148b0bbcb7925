"""The trie by examples: known digests, prefixes at every depth, and the attacks it must withstand."""

from __future__ import annotations

import hashlib
import random

import pytest
from crdt_merge_protocol.errors import LocalProtocolError
from crdt_merge_protocol.merkle import Trie, nibbles_of, root_of


def make_ids(count: int, *, seed: int = 1, head: bytes = b"") -> list[bytes]:
    rng = random.Random(seed)
    return [head + rng.randbytes(32 - len(head)) for _ in range(count)]


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def test_the_empty_root_is_the_digest_of_a_leaf_of_none() -> None:
    assert Trie().root == root_of([]) == sha(b"\x00\x00")
    assert len(Trie()) == 0
    assert list(Trie()) == []


def test_sixteen_ids_make_a_leaf_and_seventeen_branch() -> None:
    ids = sorted(make_ids(16))
    assert Trie(ids).root == sha(b"\x00\x10" + b"".join(ids))
    wide = [bytes([16 * n]) + bytes(31) for n in range(16)]
    spread = [*wide, b"\xf1" + bytes(31)]
    leaves = [sha(b"\x00\x01" + one) for one in wide[:15]]
    leaves.append(sha(b"\x00\x02" + wide[15] + spread[16]))
    assert Trie(spread).root == sha(b"\x01\x00\xff\xff" + b"".join(leaves))


def test_skipped_nibbles_are_part_of_the_digest() -> None:
    ids = [b"\xab\xcd" + bytes([16 * n]) + bytes(29) for n in range(16)] + [b"\xab\xcd\xf1" + bytes(29)]
    trie = Trie(ids)
    below = b"".join(trie.digest((0xA, 0xB, 0xC, 0xD, n)) for n in range(16))
    assert trie.root == sha(b"\x01\x04\x0a\x0b\x0c\x0d\xff\xff" + below)
    # The same subtree seen from within its skipped run has fewer nibbles to hash.
    assert trie.digest((0xA, 0xB, 0xC)) == sha(b"\x01\x01\x0d\xff\xff" + below)
    assert trie.digest((0xA, 0xB, 0xC, 0xD)) == sha(b"\x01\x00\xff\xff" + below)
    assert trie.root == root_of(ids)


def test_a_prefix_within_a_skipped_run_has_one_child() -> None:
    trie = Trie(make_ids(40, head=b"\xab\xcd"))
    assert trie.children(()) == (0xA,)
    assert trie.children((0xA, 0xB)) == (0xC,)
    assert trie.count((0xA, 0xB, 0xC)) == 40
    assert len(trie.children((0xA, 0xB, 0xC, 0xD))) > 1
    assert trie.count((0xA, 0xC)) == 0
    assert trie.children((0xA, 0xC)) == ()
    assert trie.digest((0xA, 0xC)) == root_of([])


def test_a_prefix_below_a_leaf_selects_by_the_whole_id() -> None:
    ids = make_ids(5)
    trie = Trie(ids)
    whole = nibbles_of(ids[0])
    assert trie.ids(whole) == [ids[0]]
    assert trie.children(whole) == ()
    assert trie.children(whole[:63]) == (whole[63],)
    assert trie.digest(whole[:40]) == root_of([ids[0]])


def test_insert_and_discard_say_whether_they_changed_anything() -> None:
    first, second = make_ids(2)
    trie = Trie()
    assert trie.insert(first)
    assert not trie.insert(first)
    assert not trie.discard(second)
    assert first in trie
    assert second not in trie
    assert b"short" not in trie
    assert trie.discard(first)
    assert trie.root == root_of([])


def test_a_copy_does_not_see_later_changes() -> None:
    ids = make_ids(200)
    trie = Trie(ids[:100])
    snapshot = trie.copy()
    root = snapshot.root
    for identifier in ids[100:]:
        trie.insert(identifier)
    trie.discard(ids[0])
    assert snapshot.root == root == root_of(ids[:100])
    assert list(snapshot) == sorted(ids[:100])
    assert trie.root == root_of(ids[1:])


@pytest.mark.parametrize("bad", [b"", bytes(31), bytes(33), "a" * 32])
def test_only_ids_of_32_bytes_are_taken(bad: bytes) -> None:
    with pytest.raises(LocalProtocolError):
        Trie().insert(bad)


@pytest.mark.parametrize("prefix", [(16,), (-1,), (0,) * 65])
def test_a_prefix_is_made_of_at_most_64_nibbles(prefix: tuple[int, ...]) -> None:
    with pytest.raises(LocalProtocolError):
        Trie().digest(prefix)


def test_one_insert_rehashes_only_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    trie = Trie(make_ids(5_000))
    assert trie.root
    hashed = 0
    real = hashlib.sha256

    def counting(data: bytes) -> object:
        nonlocal hashed
        hashed += 1
        return real(data)

    monkeypatch.setattr(hashlib, "sha256", counting)
    trie.insert(bytes(32))
    assert trie.root
    assert 0 < hashed <= 20  # Four levels, and at worst one leaf that becomes sixteen.


def test_an_inner_node_cannot_be_replayed_as_a_leaf() -> None:
    """SCENARIOS T10: the bytes under an inner node never hash to the same as ids, nor the reverse."""
    ids = make_ids(17, seed=3)
    trie = Trie(ids)
    present = trie.children(())
    digests = [trie.digest((nibble,)) for nibble in present]
    bitmap = sum(1 << nibble for nibble in present).to_bytes(2, "big")
    assert trie.root == sha(b"\x01\x00" + bitmap + b"".join(digests))
    assert trie.root != Trie(digests).root
    assert Trie(digests).root == sha(b"\x00" + bytes([len(digests)]) + b"".join(sorted(digests)))


def xor_zero_subset(ids: list[bytes]) -> list[bytes]:
    """Return a non-empty subset whose XOR is zero, by elimination over GF(2) (257 vectors suffice)."""
    rows: dict[int, tuple[int, int]] = {}
    for index, identifier in enumerate(ids):
        value, members = int.from_bytes(identifier, "big"), 1 << index
        while value and value.bit_length() in rows:
            other, others = rows[value.bit_length()]
            value, members = value ^ other, members ^ others
        if not value:
            return [ids[n] for n in range(len(ids)) if members >> n & 1]
        rows[value.bit_length()] = value, members
    raise AssertionError("257 vectors of 256 bits are always dependent")


def test_a_subset_that_xors_to_zero_still_changes_the_root() -> None:
    """SCENARIOS T10, B42: the attack that breaks XOR fingerprints in milliseconds does nothing here."""
    subset = xor_zero_subset(make_ids(257, seed=9))
    total = 0
    for identifier in subset:
        total ^= int.from_bytes(identifier, "big")
    assert total == 0
    assert len(subset) > 1
    shared = make_ids(300, seed=10)
    assert Trie(shared).root != Trie([*shared, *subset]).root


def test_ground_prefixes_do_not_deepen_the_tree() -> None:
    """SCENARIOS T11: 10^4 ids that share 32 bits cost one longer hash input, no level."""
    plain = make_ids(10_000, seed=4)
    ground = make_ids(10_000, seed=4, head=bytes(4))

    def depth_of(trie: Trie, prefix: bytes) -> int:
        if trie.count(prefix) <= 16:
            return 0
        below = [depth_of(trie, prefix + bytes([nibble])) for nibble in trie.children(prefix)]
        return max(below) + (1 if len(below) > 1 else 0)

    assert depth_of(Trie(ground), b"") <= depth_of(Trie(plain), b"") + 1
    assert Trie(ground).root == root_of(ground)


def test_bulk_and_single_insertion_agree_on_many_ids() -> None:
    ids = make_ids(2_000, seed=5)
    grown = Trie()
    for identifier in ids:
        grown.insert(identifier)
    assert grown.root == Trie(ids).root == root_of(ids)
    assert list(grown) == sorted(ids)
