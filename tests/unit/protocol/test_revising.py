"""What a REVOKE of one key changes in a state that has taken everything in, and what it leaves alone (R7)."""

from __future__ import annotations

import pytest
from crdt_merge_protocol.operations import Admit, Erase, Kind, Receipt, Remove, Revoke
from crdt_merge_protocol.state import CRDTMergeState
from crdt_merge_protocol.view import view_of
from support.authors import Author, contents, hash_of, make_genesis, meet
from support.histories import summary

NONCE = bytes(16)


class Trio:
    """An administrator, somebody honest, and somebody whose key will be revoked."""

    def __init__(self, *, holders: int = 0, is_open: bool = True) -> None:
        self.genesis = make_genesis(holders=holders, is_open=is_open)
        self.admin, self.honest, self.thief = (Author(self.genesis, number) for number in (0, 1, 3))
        if not is_open:
            for author in (self.admin, self.honest, self.thief):
                self.admin.act(Admit(author=author.node_id, nonce=NONCE))
            self.meet()

    def meet(self) -> None:
        meet(self.admin, self.honest, self.thief)

    def build_upon_all(self) -> None:
        """Have everything kept, because somebody honest has built upon it."""
        self.meet()
        self.honest.add("later", slot="later")
        self.meet()

    def revoke(self, *heads: bytes) -> CRDTMergeState:
        """Revoke the key; return the state, which is what the definition and a restart say."""
        self.admin.pull(self.honest, self.thief)
        named = tuple(sorted(heads))
        self.admin.act(Revoke(key=self.thief.node_id, heads=named, nonce=NONCE), refs=named)
        return checked(self.admin.state)


def checked(state: CRDTMergeState) -> CRDTMergeState:
    """Return a state, which is what the definition and a restart say."""
    rebuilt = CRDTMergeState(state.genesis)
    for signed in state.causal():
        rebuilt.apply(signed)
    assert state.view == view_of(state.genesis, state.causal())
    assert summary(state) == summary(rebuilt)
    return state


def test_receipts_of_a_revoked_key_count_no_more_though_they_are_kept() -> None:
    trio = Trio()
    erasure = trio.admin.act(Erase(contents=(hash_of("x"),), tags=(), nonce=NONCE))
    trio.meet()
    body = Receipt(erasures=(erasure.id,)).encode()
    receipts = [author.emit(Kind.RECEIPT, body, (erasure.id,)) for author in (trio.honest, trio.thief)]
    trio.build_upon_all()
    assert len(trio.admin.state.view.decided.receipts) == 2
    state = trio.revoke()

    assert all(receipt.id in state for receipt in receipts)
    assert state.view.decided.receipts == {(erasure.id, trio.honest.node_id)}


def test_a_receipt_before_the_heads_goes_on_counting() -> None:
    trio = Trio()
    erasure = trio.admin.act(Erase(contents=(hash_of("x"),), tags=(), nonce=NONCE))
    trio.meet()
    receipt = trio.thief.emit(Kind.RECEIPT, Receipt(erasures=(erasure.id,)).encode(), (erasure.id,))
    trio.thief.add("bad")
    trio.build_upon_all()
    state = trio.revoke(receipt.id)

    assert state.view.decided.receipts == {(erasure.id, trio.thief.node_id)}
    assert contents(state) == ["later"]


def test_what_a_revoked_key_removed_beyond_its_heads_is_there_again() -> None:
    trio = Trio()
    first = trio.thief.add("first")
    trio.thief.remove(first.id)
    trio.build_upon_all()
    assert contents(trio.admin.state) == ["later"]
    state = trio.revoke(first.id)

    assert contents(state) == ["first", "later"]
    assert not state.removes


def test_what_administrators_removed_stays_removed_also_if_the_revoked_key_had_removed_it_before() -> None:
    trio = Trio()
    first = trio.thief.add("first")
    trio.thief.remove(first.id)
    trio.meet()
    trio.admin.act(Remove(targets=(first.id,), nonce=NONCE), refs=(first.id,))
    trio.build_upon_all()
    state = trio.revoke(first.id)

    assert contents(state) == ["later"]
    assert state.removes == {first.id}


@pytest.mark.parametrize("holders", [0, 1])
def test_what_a_revoked_key_held_is_held_by_one_less(holders: int) -> None:
    trio = Trio(holders=holders)
    shown = trio.honest.add("kept")
    trio.meet()
    trio.thief.hold(shown.id)
    trio.build_upon_all()
    before = {one.tag: one.holders for one in trio.admin.state.view.visible}
    state = trio.revoke()
    after = {one.tag: one.holders for one in (*state.view.visible, *state.view.pending)}

    assert (before[shown.id], after[shown.id]) == (1, 0)
    assert (shown.id in {one.tag for one in state.view.pending}) is bool(holders)


@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("is_before", [True, False])
def test_a_fork_convicts_a_revoked_key_only_if_both_sides_count(is_before: bool, is_open: bool) -> None:
    trio = Trio(is_open=is_open)
    start = trio.thief.add("start")
    trio.thief.add("one", slot="one")
    trio.thief.seq, trio.thief.prev = start.operation.seq + 1, start.id
    twin = trio.thief.add("other", slot="other")
    trio.build_upon_all()
    assert trio.admin.state.view.forked == {trio.thief.node_id}
    state = trio.revoke(twin.id if is_before else start.id)

    assert (trio.thief.node_id in state.view.forked) is is_before
    assert ("start" in contents(state)) is not is_before


def test_what_was_kept_of_another_revoked_key_goes_with_what_was_built_upon_it() -> None:
    genesis = make_genesis()
    admin, thief, accomplice, witness = (Author(genesis, number) for number in (0, 3, 2, 1))
    accomplice.add("bad")
    thief.pull(accomplice)
    thief.add("worse")
    witness.pull(thief)
    for key in (accomplice.node_id, thief.node_id):
        admin.act(Revoke(key=key, heads=(), nonce=NONCE))  # Made after none of theirs.
    first, second = admin.state.causal()
    witness.state.apply(first)
    assert len(checked(witness.state)) == 3
    witness.state.apply(second)

    assert [signed.id for signed in checked(witness.state).causal()] == [first.id, second.id]
    assert witness.state.version_vector.keys() == {(admin.node_id, admin.log)}


def test_a_revocation_that_leaves_everything_standing_changes_nothing_but_that_it_is_known() -> None:
    trio = Trio()
    for number in range(3):
        trio.thief.add(str(number), slot=str(number))
    trio.build_upon_all()
    before = trio.admin.state.view
    state = trio.revoke(*trio.admin.state.heads())

    assert state.view.visible == before.visible
    assert state.view.decided.revoked == {trio.thief.node_id}
    assert not state.has_dropped
