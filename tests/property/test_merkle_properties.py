"""The trie against its oracle: any insertions and removals in any order give the root of the set."""

from __future__ import annotations

import random

from crdt_merge_protocol.merkle import NIBBLES_MAX, Trie, nibbles_of, root_of
from hypothesis import given
from hypothesis import strategies as st
from support.profile import examples

# Shared heads, few tails and zeros between: long skipped runs and near misses at every depth.
HEADS = (b"", b"\x00" * 4, b"\xab" * 15, b"\xab" * 29, b"\xab\xcd\xef")


def make_id(rng: random.Random) -> bytes:
    head = rng.choice(HEADS)
    tail = rng.randrange(600).to_bytes(2, "big")
    return (head + tail + bytes(32))[:32] if rng.random() < 0.5 else (head + bytes(32))[:30] + tail


# Drawn through a seed: element by element, Hypothesis seldom makes sets large enough to branch.
SEEDS = st.integers(0, 2**32).map(random.Random)
ids = SEEDS.map(make_id)
ID_SETS = st.tuples(SEEDS, st.integers(0, 120)).map(
    lambda drawn: {make_id(drawn[0]) for _ in range(drawn[1])}
)
PROFILE = examples(60)


@PROFILE
@given(ID_SETS, SEEDS)
def test_the_root_is_that_of_the_set_in_any_order(chosen: set[bytes], rng: random.Random) -> None:
    order = sorted(chosen)
    rng.shuffle(order)
    trie = Trie()
    for identifier in order:
        assert trie.insert(identifier)
        assert not trie.insert(identifier)
    assert trie.root == root_of(chosen) == Trie(chosen).root
    assert list(trie) == sorted(chosen)
    assert len(trie) == len(chosen)


@PROFILE
@given(ID_SETS, ID_SETS)
def test_history_leaves_no_trace(kept: set[bytes], passing: set[bytes]) -> None:
    trie = Trie(kept | passing)
    before = trie.root
    for identifier in sorted(passing - kept, reverse=True):
        assert trie.discard(identifier)
        assert identifier not in trie
    assert trie.root == root_of(kept)
    for identifier in sorted(passing - kept):
        trie.insert(identifier)
    assert trie.root == before == root_of(kept | passing)


@PROFILE
@given(SEEDS, st.integers(0, 200))
def test_interleaved_changes_keep_the_incremental_root_exact(rng: random.Random, count: int) -> None:
    trie, model = Trie(), set[bytes]()
    for _ in range(count):
        # Removals hit by aiming at what is there; growth and shrinkage alternate.
        is_insert = rng.random() < 0.6 or not model
        identifier = make_id(rng) if is_insert or rng.random() < 0.2 else rng.choice(sorted(model))
        if is_insert:
            assert trie.insert(identifier) == (identifier not in model)
            model.add(identifier)
        else:
            assert trie.discard(identifier) == (identifier in model)
            model.discard(identifier)
        assert trie.root == root_of(model)
        assert (identifier in trie) == (identifier in model)


@PROFILE
@given(ID_SETS, ids, st.integers(0, NIBBLES_MAX))
def test_every_prefix_describes_exactly_its_ids(chosen: set[bytes], guide: bytes, depth: int) -> None:
    trie = Trie(chosen)
    prefix = nibbles_of(guide)[:depth]
    below = sorted(i for i in chosen if nibbles_of(i).startswith(prefix))
    assert trie.ids(prefix) == below
    assert trie.count(tuple(prefix)) == len(below)
    if depth < NIBBLES_MAX:
        assert set(trie.children(prefix)) == {nibbles_of(i)[depth] for i in below}
        assert sum(trie.count(prefix + bytes([n])) for n in trie.children(prefix)) == len(below)
    # The digest depends on the prefix's depth and the ids below it, on nothing else in the set.
    assert trie.digest(prefix) == Trie(below).digest(prefix)
    assert (trie.digest(prefix) == Trie(chosen - set(below[:1])).digest(prefix)) == (not below)


@PROFILE
@given(ID_SETS, ID_SETS)
def test_equal_roots_mean_equal_sets(first: set[bytes], second: set[bytes]) -> None:
    assert (Trie(first).root == Trie(second).root) == (first == second)
