"""The laws of the replicated state, over adversarial histories, on copies (PROTOCOL 1)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

from crdt_merge_protocol.operations import SignedOperation
from crdt_merge_protocol.rights import judge, past_of
from crdt_merge_protocol.slots import Fate
from crdt_merge_protocol.state import CRDTMergeState
from crdt_merge_protocol.view import view_of
from hypothesis import given
from support.authors import KEYS
from support.histories import DISHONEST, HISTORIES, HONEST, RANDOMS, History, shuffled, summary
from support.profile import examples

PROFILE = examples(80)


def joined(*states: CRDTMergeState) -> CRDTMergeState:
    result = states[0].copy()
    for state in states[1:]:
        result.join(state)
    return result


@PROFILE
@given(HISTORIES)
def test_join_is_commutative_associative_and_idempotent(history: History) -> None:
    a, b, c, _ = history.states
    before = [summary(state) for state in history.states]

    assert summary(joined(a, b)) == summary(joined(b, a))
    assert summary(joined(joined(a, b), c)) == summary(joined(a, joined(b, c)))
    assert summary(joined(a, a)) == summary(a)
    assert [summary(state) for state in history.states] == before


@PROFILE
@given(HISTORIES)
def test_join_only_ever_adds_but_for_what_a_revocation_drops(history: History) -> None:
    a, b, *_ = history.states
    both = joined(a, b)
    union = {signed.id: signed for state in (a, b) for signed in state.causal()}

    assert set(both.trie) == judge(history.genesis, union.values()).kept
    assert both.view.decided.revoked or set(both.trie) == union.keys()
    assert all(joined(both, state).sync_root == both.sync_root for state in (a, b))


@PROFILE
@given(HISTORIES, RANDOMS)
def test_r7_dropping_before_a_join_or_after_it_comes_to_the_same(
    history: History, rng: random.Random
) -> None:
    """The definition alone, over sets that have dropped nothing yet."""
    known = {signed.id: signed for signed in history.operations}

    def kept(ids: Iterable[bytes]) -> frozenset[bytes]:
        return judge(history.genesis, [known[id_] for id_ in ids]).kept

    parts = [past_of(known, rng.sample(sorted(known), rng.randint(0, len(known)))) for _ in range(2)]
    whole = kept(parts[0] | parts[1])

    assert kept(kept(parts[0]) | kept(parts[1])) == whole == kept(whole)
    assert view_of(history.genesis, [known[id_] for id_ in whole]) == view_of(
        history.genesis, [known[id_] for id_ in parts[0] | parts[1]]
    )


@PROFILE
@given(HISTORIES, RANDOMS)
def test_s6_any_delivery_order_gives_the_same_state(history: History, rng: random.Random) -> None:
    expected = CRDTMergeState(history.genesis)
    for signed in history.operations:
        expected.apply(signed)
    for _ in range(3):
        state = CRDTMergeState(history.genesis)
        for signed in shuffled(history.operations, rng):
            state.apply(signed)
            assert not state.apply(signed)
            if rng.random() < 0.3:
                _ = state.view  # Reading at other moments must change nothing.

        assert summary(state) == summary(expected)


@PROFILE
@given(HISTORIES, RANDOMS)
def test_the_incremental_view_equals_the_definition_at_every_step(
    history: History, rng: random.Random
) -> None:
    state = CRDTMergeState(history.genesis)
    order = shuffled(history.operations, rng)
    for count, signed in enumerate(order, start=1):
        state.apply(signed)
        if rng.random() < 0.25:
            assert state.view == view_of(history.genesis, order[:count])

    assert state.view == view_of(history.genesis, order)
    assert all(node.view == view_of(history.genesis, node.causal()) for node in history.states)


@PROFILE
@given(HISTORIES)
def test_what_is_shown_is_wanted_and_what_is_lost_is_never_shown_again(history: History) -> None:
    """Whoever frees room goes by this (SCENARIOS T19)."""
    for state in history.states:
        fates = {tag: fate for tag, _, fate in state.fates()}
        assert fates.keys() == state.adds
        assert all(fates[shown.tag] is Fate.WANTED for shown in (*state.view.visible, *state.view.pending))
        lost = {tag for tag, fate in fates.items() if fate is Fate.LOST}
        for other in history.states:
            view = joined(state, other).view
            assert not lost & {shown.tag for shown in (*view.visible, *view.pending)}


@PROFILE
@given(HISTORIES)
def test_t1_exactly_those_who_forked_are_convicted_and_honest_authors_never(history: History) -> None:
    """Whoever holds two operations at one place of a log convicts, and nobody else does."""
    for state in history.states:
        counted = judge(history.genesis, state.causal()).counted
        counting = [state.get(id_).operation for id_ in counted]
        places = Counter((operation.author, operation.log, operation.seq) for operation in counting)
        guilty = {author for (author, _, _), count in places.items() if count > 1}

        assert state.view.forked == guilty
        assert guilty <= {KEYS[DISHONEST].node_id}
        assert not {shown.author for shown in state.view.visible} & guilty
        for author in guilty:
            first, second = state.fork_proof(author)
            assert first.id != second.id
            assert (first.operation.log, first.operation.seq) == (second.operation.log, second.operation.seq)
        assert all(state.fork_proof(KEYS[number].node_id) is None for number in range(HONEST))


@PROFILE
@given(HISTORIES)
def test_s9_a_copy_shares_nothing_that_changes(history: History) -> None:
    state = history.states[0]
    before = summary(state)
    twin = state.copy()

    assert summary(twin) == before
    for signed in history.operations:
        twin.apply(signed)
    assert summary(state) == before
    assert twin.view == view_of(history.genesis, history.operations)


@PROFILE
@given(HISTORIES)
def test_s4_a_restart_from_the_stored_bytes_gives_the_same_state(history: History) -> None:
    for state in history.states:
        rebuilt = CRDTMergeState(history.genesis)
        for signed in state.causal():
            rebuilt.apply(SignedOperation.parse(signed.wire()))

        assert summary(rebuilt) == summary(state)


@PROFILE
@given(HISTORIES)
def test_choosing_deps_covers_all_heads_and_causal_order_holds(history: History) -> None:
    for state in history.states:
        seen: set[bytes] = set()
        for signed in state.causal():
            assert signed.operation.parents <= seen
            seen.add(signed.id)
        named = {parent for signed in state.causal() for parent in signed.operation.parents}

        assert state.heads() == seen - named
        assert set(state.choose_deps()) == state.heads()
