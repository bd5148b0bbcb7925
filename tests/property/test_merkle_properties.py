"""The trie against its oracle: any insertions and removals in any order give the root of the set."""

from __future__ import annotations

from crdt_merge_protocol.merkle import NIBBLES_MAX, Trie, nibbles_of, root_of
from hypothesis import given, settings
from hypothesis import strategies as st

# Few values per byte and shared heads and tails: long skipped runs at every depth.
HEADS = st.sampled_from([b"", b"\x00" * 4, b"\xab" * 15, b"\xab" * 31, b"\xab\xcd\xef"])


@st.composite
def ids(draw: st.DrawFn) -> bytes:
    head = draw(HEADS)
    tail = draw(st.integers(0, 600)).to_bytes(2, "big")
    return (head + tail + bytes(32))[:32] if draw(st.booleans()) else (head + bytes(32))[:30] + tail


ID_SETS = st.sets(ids(), max_size=120)
PROFILE = settings(derandomize=True, max_examples=60, deadline=None)


@PROFILE
@given(ID_SETS, st.randoms(use_true_random=False))
def test_the_root_is_that_of_the_set_in_any_order(chosen: set[bytes], rng: object) -> None:
    order = sorted(chosen)
    rng.shuffle(order)  # type: ignore[attr-defined]
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
@given(st.lists(st.tuples(st.booleans(), ids()), max_size=120))
def test_interleaved_changes_keep_the_incremental_root_exact(steps: list[tuple[bool, bytes]]) -> None:
    trie, model = Trie(), set[bytes]()
    for is_insert, identifier in steps:
        if is_insert:
            assert trie.insert(identifier) == (identifier not in model)
            model.add(identifier)
        else:
            assert trie.discard(identifier) == (identifier in model)
            model.discard(identifier)
        assert trie.root == root_of(model)
        assert (identifier in trie) == (identifier in model)


@PROFILE
@given(ID_SETS, ids(), st.integers(0, NIBBLES_MAX))
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
