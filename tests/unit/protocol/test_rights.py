"""Acts of administrators, and what they do to others' operations (PROTOCOL R7, R8, R10-R13)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from crdt_merge_protocol.acts import Act
from crdt_merge_protocol.canonical import digest, encode
from crdt_merge_protocol.errors import LocalProtocolError
from crdt_merge_protocol.genesis import Genesis
from crdt_merge_protocol.limits import ACT_CONTENTS_MAX, DEPS_MAX, REASON_CHARS_MAX, REFS_MAX
from crdt_merge_protocol.operations import (
    Admit,
    Ban,
    Erase,
    Kind,
    Operation,
    Receipt,
    Remove,
    Revoke,
    SignedOperation,
    read_body,
)
from crdt_merge_protocol.replica import Replica
from crdt_merge_protocol.state import CRDTMergeState
from crdt_merge_protocol.view import view_of
from support.authors import KEYS, Author, contents, hash_of, make_genesis, meet, signed_act

NONCE = bytes(16)
ALICE, BOB, THIEF = range(3)
GENESIS = make_genesis(admins=KEYS[:3], quorum=2)
QUORUM = KEYS[:2]
SORTED = tuple(number.to_bytes(32, "big") for number in range(2000))


def authors(genesis: Genesis = GENESIS) -> tuple[Author, Author, Author]:
    return Author(genesis, ALICE), Author(genesis, BOB), Author(genesis, THIEF)


def ban(*words: str) -> Ban:
    return Ban(contents=tuple(sorted(map(hash_of, words))), nonce=NONCE)


def revoke(author: Author, *heads: SignedOperation) -> Revoke:
    return Revoke(key=author.node_id, heads=tuple(sorted(one.id for one in heads)), nonce=NONCE)


def rebuilt(state: CRDTMergeState) -> CRDTMergeState:
    """Return what a restart makes of what is stored."""
    again = CRDTMergeState(state.genesis)
    for signed in state.causal():
        again.apply(SignedOperation.parse(signed.wire()))
    return again


def check(*states: CRDTMergeState) -> None:
    """Compare states with each other, with the definition, and with themselves after a restart."""
    for state in states:
        assert state.view == view_of(state.genesis, state.causal()) == rebuilt(state).view
        assert (state.sync_root, state.view) == (states[0].sync_root, states[0].view)


ACTS: list[Act] = [
    ban("x"),
    Erase(contents=(hash_of("x"),), tags=(), nonce=NONCE),
    Admit(author=KEYS[THIEF].node_id, nonce=NONCE),
    Revoke(key=KEYS[THIEF].node_id, heads=(), nonce=NONCE),
]


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.KIND.name)
@pytest.mark.parametrize(
    "signers",
    [(), KEYS[:1], (KEYS[0], KEYS[0], KEYS[0]), (KEYS[0], KEYS[4]), (KEYS[4], KEYS[5])],
    ids=["nobody", "m - 1", "one three times", "one and a stranger", "strangers"],
)
def test_b33_t33_an_act_without_its_quorum_is_kept_and_has_no_effect(
    act: Act, signers: Iterable[object]
) -> None:
    alice, *_ = authors()
    alice.add("x")
    before = alice.state.view
    signed = alice.act(act, signers)

    assert signed.id in alice.state
    assert alice.state.view == before
    alice.act(act, QUORUM)
    assert alice.state.view != before
    check(alice.state)


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.KIND.name)
def test_t3_signatures_count_for_their_group_kind_action_and_nonce_only(act: Act) -> None:
    alice, *_ = authors()
    for group, changes in ((hash_of("other"), {}), (alice.state.group, {"nonce": b"n" * 16})):
        signed = replace(signed_act(group, act, QUORUM), **changes)
        alice.emit(act.KIND, signed.encode())
        assert alice.state.view.decided == view_of(GENESIS, []).decided


def test_signatures_are_gathered_one_after_another_and_one_administrator_signs_once() -> None:
    group = GENESIS.group
    draft = ban("x")
    once = read_body_of(draft.signed_by(KEYS[0], group))
    twice = read_body_of(once.signed_by(KEYS[1], group))

    assert once.signed_by(KEYS[0], group) is once
    assert [admin for admin, _ in twice.signatures] == [KEYS[0].node_id, KEYS[1].node_id]
    alice, *_ = authors()
    alice.emit(Kind.BAN, twice.encode())
    assert alice.state.view.banned == {hash_of("x")}


def read_body_of(said: Act) -> Act:
    operation = Operation(
        group=GENESIS.group, author=KEYS[0].node_id, log=bytes(16), seq=0, prev=None, deps=(), refs=(),
        kind=said.KIND, body=said.encode(),
    )  # fmt: skip
    read = read_body(operation)
    assert read == said
    return read


GOLDEN = {
    Kind.REMOVE: (Remove(targets=(SORTED[1],), nonce=NONCE), "5f5123687bffaf05"),
    Kind.ADMIT: (ACTS[2], "f83c8893f5dcb6d0"),
    Kind.REVOKE: (
        Revoke(key=KEYS[2].node_id, heads=SORTED[1:3], reason="stolen", nonce=NONCE),
        "b6821179fa414c4c",
    ),
    Kind.BAN: (Ban(contents=SORTED[1:3], reason="copied", nonce=NONCE), "b5ecf72de057a7be"),
    Kind.ERASE: (
        Erase(contents=SORTED[1:2], tags=SORTED[3:4], reason="asked", nonce=NONCE),
        "4d8451118e5dce7c",
    ),
}


@pytest.mark.parametrize("kind", GOLDEN)
def test_the_bytes_of_acts_and_what_is_signed_are_what_they_always_were(kind: Kind) -> None:
    act, expected = GOLDEN[kind]
    body = signed_act(hash_of("group"), act, QUORUM).encode()

    assert digest("golden", body, act.digest(hash_of("group"))).hex()[:16] == expected


def test_the_bytes_of_a_removal_of_ones_own_and_of_a_receipt_are_what_they_always_were() -> None:
    assert Remove(targets=(SORTED[1],)).encode() == b"\x01\x91\x91\xc4\x20" + SORTED[1]
    assert Receipt(erasures=(SORTED[1],)).encode() == b"\x01\x91\x91\xc4\x20" + SORTED[1]


def act_body(action: object, *, nonce: bytes = NONCE, signatures: object = ()) -> bytes:
    return b"\x01" + encode([encode(action), nonce, list(signatures)])


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (Kind.BAN, act_body([[], ""])),
        (Kind.BAN, act_body([[SORTED[1], SORTED[0]], ""])),
        (Kind.BAN, act_body([list(SORTED[: ACT_CONTENTS_MAX + 1]), ""])),
        (Kind.BAN, act_body([[SORTED[0]], "x" * (REASON_CHARS_MAX + 1)])),
        (Kind.BAN, act_body([[SORTED[0]], ""], nonce=bytes(15))),
        (Kind.BAN, act_body([[SORTED[0]], ""], signatures=[[bytes(32), bytes(63)]])),
        (Kind.BAN, act_body([[SORTED[0]], ""], signatures=[[bytes(32), bytes(64)]] * 33)),
        (Kind.BAN, b"\x01" + encode([encode([[SORTED[0]], ""]) + b"\x00", NONCE, []])),
        (Kind.ERASE, act_body([[], [], ""])),
        (Kind.ERASE, act_body([[], list(SORTED[: REFS_MAX + 1]), ""])),
        (Kind.ADMIT, act_body([bytes(31)])),
        (Kind.ADMIT, act_body([bytes(32)])),
        (Kind.REVOKE, act_body([SORTED[1], [SORTED[1], SORTED[1]], ""])),
        (Kind.REVOKE, act_body([SORTED[1], list(SORTED[: REFS_MAX + 1]), ""])),
        (Kind.REMOVE, b"\x01" + encode([[SORTED[1]], b"", []])),
        (Kind.REMOVE, b"\x01" + encode([[SORTED[1]], NONCE])),
        (Kind.RECEIPT, b"\x01" + encode([[]])),
    ],
)
def test_a_body_outside_its_ranges_is_unreadable_and_not_an_error(kind: Kind, body: bytes) -> None:
    alice, *_ = authors()
    alice.emit(kind, body)

    assert alice.state.view.unread == 1


def test_an_act_that_no_node_could_read_is_not_encoded() -> None:
    for act in (
        Ban(contents=(), nonce=NONCE),
        Remove(targets=SORTED[:1], signatures=((SORTED[1], bytes(64)),)),
    ):
        with pytest.raises(LocalProtocolError):
            act.encode()


class TestBans:
    def test_r13_a_ban_beats_every_add_of_that_content_past_concurrent_and_future(self) -> None:
        alice, bob, carol = authors()
        alice.add("bad")
        bob.add("bad", slot="concurrent")
        carol.act(ban("bad"), QUORUM)
        meet(alice, bob, carol)
        bob.add("bad", slot="after")
        bob.add("good", slot="good")
        meet(alice, bob, carol)

        assert contents(alice.state) == ["good"]
        check(alice.state, bob.state, carol.state)

    def test_a_banned_add_hides_no_older_one_of_its_slot(self) -> None:
        alice, *_ = authors()
        alice.add("old")
        alice.add("bad")
        alice.act(ban("bad"), QUORUM)

        assert contents(alice.state) == ["old"]
        check(alice.state)

    def test_r8_a_ban_stays_in_force_whatever_becomes_of_who_sent_it(self) -> None:
        alice, bob, _ = authors()
        alice.add("bad")
        bob.pull(alice)
        bob.act(ban("bad"), QUORUM)
        alice.pull(bob)
        alice.act(revoke(bob), QUORUM)

        assert contents(alice.state) == []
        assert alice.state.view.banned == {hash_of("bad")}
        check(alice.state)

    def test_b34_t35_an_erasure_names_contents_and_metadata_for_good(self) -> None:
        alice, bob, _ = authors()
        with_notes = alice.add("bad", payload=hash_of("notes"))
        other = alice.add("good", slot="good", payload=hash_of("more notes"))
        erase = Erase(contents=(hash_of("bad"),), tags=(other.id,), reason="asked", nonce=NONCE)
        erased = alice.act(erase, QUORUM, [other.id])
        bob.pull(alice)
        late = bob.add("bad", slot="late")
        alice.pull(bob)
        decided = alice.state.view.decided

        assert contents(alice.state) == ["good"]
        assert decided.banned == decided.erased == {hash_of("bad")}
        assert decided.erased_tags == {with_notes.id, other.id, late.id}
        assert decided.erasures == {erased.id}
        check(alice.state, bob.state)

    def test_t8_a_tag_that_an_erasure_does_not_have_in_refs_keeps_its_metadata(self) -> None:
        alice, *_ = authors()
        tag = alice.add("good").id
        alice.act(Erase(contents=(), tags=(tag,), nonce=NONCE), QUORUM)

        assert not alice.state.view.decided.erased_tags
        check(alice.state)

    def test_t36_receipts_are_counted_by_author_for_erasures_that_have_an_effect(self) -> None:
        alice, bob, _ = authors()
        erase = Erase(contents=(hash_of("bad"),), tags=(), nonce=NONCE)
        real, unsigned = alice.act(erase, QUORUM), alice.act(erase, KEYS[:1])
        both = tuple(sorted((real.id, unsigned.id)))
        for author in (alice, alice, bob):
            author.pull(alice)
            author.emit(Kind.RECEIPT, Receipt(erasures=both).encode(), both)
        bob.emit(Kind.RECEIPT, Receipt(erasures=(SORTED[1],)).encode())
        alice.pull(bob)

        assert alice.state.view.decided.receipts == {(real.id, alice.node_id), (real.id, bob.node_id)}
        check(alice.state, bob.state)


class TestRemovals:
    def test_t7_r10_others_contributions_are_removed_with_a_quorum_only(self) -> None:
        alice, bob, _ = authors()
        tag = alice.add("theirs").id
        bob.pull(alice)
        removal = Remove(targets=(tag,), nonce=NONCE)
        bob.remove(tag)
        bob.act(removal, KEYS[:1], [tag])
        bob.act(removal, QUORUM)  # Does not name it in refs.
        assert contents(bob.state) == ["theirs"]

        bob.act(removal, QUORUM, [tag])
        alice.pull(bob)
        assert contents(alice.state) == []
        alice.add("theirs")
        assert contents(alice.state) == ["theirs"]
        check(alice.state)

    def test_one_may_remove_ones_own_with_too_few_signatures(self) -> None:
        alice, *_ = authors()
        tag = alice.add("own").id
        alice.act(Remove(targets=(tag,), nonce=NONCE), (), [tag])

        assert contents(alice.state) == []
        check(alice.state)


class TestAdmission:
    GENESIS = make_genesis(admins=KEYS[:3], quorum=2, is_open=False)

    def admit(self, admin: Author, author: Author) -> SignedOperation:
        return admin.act(Admit(author=author.node_id, nonce=NONCE), QUORUM)

    def test_b29_t26_nobody_counts_before_being_admitted_administrators_neither(self) -> None:
        alice, bob, carol = authors(self.GENESIS)
        alice.add("alice")
        early = bob.add("early")
        carol.pull(bob)
        carol.hold(early.id)
        admission = self.admit(alice, bob)
        meet(alice, bob, carol)
        assert contents(alice.state) == []

        bob.add("after", slot="after")
        alice.pull(bob)
        assert contents(alice.state) == ["after"]
        assert alice.state.view.decided.admitted == {bob.node_id}
        assert admission.id in alice.state
        check(alice.state, bob.state)

    def test_b29_an_admission_without_a_quorum_admits_nobody(self) -> None:
        alice, bob, _ = authors(self.GENESIS)
        alice.act(Admit(author=bob.node_id, nonce=NONCE), KEYS[:1])
        bob.pull(alice)
        bob.add("no")

        assert contents(bob.state) == []
        check(bob.state)

    def test_r1_acts_are_built_upon_before_deeper_heads(self) -> None:
        """Or what follows would not have the admission in its past while there are many heads."""
        alice, *_ = authors()
        admitted = alice.act(Admit(author=KEYS[BOB].node_id, nonce=NONCE), QUORUM)
        for number in range(DEPS_MAX + 6):
            chain = Author(GENESIS, THIEF)
            chain.log, chain.made = number.to_bytes(16, "little"), {}
            for word in ("below", "above"):
                alice.state.apply(chain.add(f"{word} {number}"))
        deps = alice.state.choose_deps()

        assert len(deps) == DEPS_MAX
        assert alice.state.depth(admitted.id) == 1
        assert admitted.id in deps

    def test_r11_an_admission_that_is_concurrent_is_not_in_the_past(self) -> None:
        alice, bob, _ = authors(self.GENESIS)
        self.admit(alice, bob)
        bob.add("concurrent")
        meet(alice, bob)

        assert contents(alice.state) == []
        check(alice.state, bob.state)

    def test_t26_a_thousand_keys_of_ones_own_count_for_nothing(self) -> None:
        alice, bob, carol = authors(self.GENESIS)
        self.admit(alice, bob)
        meet(alice, bob, carol)
        tag = bob.add("admitted").id
        for number in (2, 4, 5, 6, 7):
            sybil = Author(self.GENESIS, number)
            sybil.pull(bob)
            sybil.add("sybil")
            sybil.hold(tag)
            alice.pull(sybil)

        assert contents(alice.state) == ["admitted"]
        assert alice.state.view.visible[0].holders == 0
        check(alice.state)

    def test_r6_only_operations_that_count_are_a_fork(self) -> None:
        alice, bob, _ = authors(self.GENESIS)
        first = bob.make(Kind.ADD, b"\x01")
        bob.emit(Kind.ADD, b"\x02")  # The second at its place; neither counts.
        bob.state.apply(first)
        self.admit(alice, bob)
        bob.pull(alice)
        bob.restart()
        bob.add("after")

        assert contents(bob.state) == ["after"]
        assert bob.state.view.forked == frozenset()
        check(bob.state)


class TestRevocation:
    def test_t31_a_new_node_key_contributes_again_and_the_old_one_counts_up_to_its_heads(self) -> None:
        alice, old, new = authors()
        within = old.add("within")
        new.pull(old)
        new.add("again")
        alice.pull(new)
        beyond = old.add("beyond", slot="second")
        alice.act(revoke(old, within), QUORUM, [within.id])
        meet(alice, new)
        alice.state.join(old.state)
        old.pull(alice)

        assert contents(alice.state) == contents(old.state) == ["again", "within"]
        assert beyond.id not in alice.state
        check(alice.state, old.state)

    def test_t32_a_thief_removes_forks_and_dates_back_in_vain(self) -> None:
        alice, bob, thief = authors()
        honest = thief.add("honest")
        bob.pull(thief)
        place = {"log": thief.log, "seq": 0, "prev": None, "deps": ()}
        mark = thief.seq, thief.prev
        removal = thief.remove(honest.id)
        fork = thief.make(Kind.ADD, b"\x01", **place)
        thief.state.apply(fork)
        thief.seq, thief.prev = mark
        dated_back = thief.add("dated back", slot="other")
        alice.pull(bob)
        assert contents(alice.state) == ["honest"]

        alice.act(revoke(thief, honest), QUORUM, [honest.id])
        for state in (alice.state, bob.state):
            for signed in (removal, fork, dated_back):
                state.apply(signed)
        bob.add("built upon them", slot="bob")
        meet(alice, bob)

        assert contents(alice.state) == ["built upon them", "honest"]
        assert alice.state.view.forked == frozenset()
        assert {removal.id, fork.id, dated_back.id} <= set(bob.state.trie), "bob knew of no revocation"
        check(alice.state, bob.state)

    def test_r7_what_nothing_kept_was_made_after_is_dropped_and_refused(self) -> None:
        alice, bob, thief = authors()
        first = thief.add("first")
        alice.pull(thief)
        junk = [thief.add(f"junk{number}") for number in range(20)]
        alice.pull(thief)
        bob.pull(alice)
        before = len(alice.state)
        alice.restart()
        alice.emit(
            Kind.REVOKE,
            signed_act(alice.state.group, revoke(thief, first), QUORUM).encode(),
            [first.id],
            deps=(first.id,),
        )

        assert len(alice.state) == before + 1 - len(junk)
        assert set(alice.state.take_dropped()) == {signed.id for signed in junk}
        assert alice.state.take_dropped() == ()
        assert not alice.state.apply(junk[0])
        bob.pull(alice)
        check(alice.state, bob.state)
        assert contents(alice.state) == ["first"]

    def test_t32_applying_a_revocation_on_arrival_would_diverge(self) -> None:
        """The mutant that the rules were written against: it keeps what came before the REVOKE."""
        alice, _, thief = authors()
        first = thief.add("first")
        alice.pull(thief)
        beyond = thief.add("beyond", slot="second")
        act = alice.act(revoke(thief, first), QUORUM, [first.id])

        def by_arrival(order: list[SignedOperation]) -> list[bytes]:
            taken: list[bytes] = []
            for signed in order:
                is_late = act.id in taken and signed.operation.author == thief.node_id
                taken += [] if is_late else [signed.id]
            return sorted(taken)

        orders = ([first, beyond, act], [first, act, beyond])
        states = [CRDTMergeState(GENESIS) for _ in orders]
        for state, order in zip(states, orders, strict=True):
            for signed in order:
                state.apply(signed)

        assert by_arrival(orders[0]) != by_arrival(orders[1])
        assert states[0].sync_root == states[1].sync_root
        check(*states)

    def test_r1_what_was_below_something_dropped_is_a_head_that_is_built_upon_again(self) -> None:
        alice, bob, thief = authors()
        first = alice.add("x")
        thief.pull(alice)
        for number in range(2 * DEPS_MAX):
            alice.state.apply(thief.add(f"stolen {number}"))
        bob.act(revoke(thief), QUORUM)
        alice.pull(thief, bob)

        assert first.id in alice.state.heads()
        assert set(alice.state.choose_deps()) == alice.state.heads()
        check(alice.state)

    def test_r7_several_revocations_intersect(self) -> None:
        alice, bob, thief = authors()
        one = thief.add("one", slot="one")
        thief.restart()
        thief.state = CRDTMergeState(GENESIS)
        other = thief.add("other", slot="other")
        for admin in (alice, bob):
            admin.state.apply(one)
            admin.state.apply(other)
        alice.act(revoke(thief, one), QUORUM, [one.id])
        assert contents(alice.state) == ["one"]
        bob.act(revoke(thief, other), QUORUM, [other.id])
        meet(alice, bob)

        assert contents(alice.state) == []
        check(alice.state, bob.state)

    def test_b36_a_revocation_that_does_not_name_its_heads_in_refs_has_no_effect(self) -> None:
        """Anybody may send it again: without this rule, with fewer heads, which would exclude more."""
        alice, _, thief = authors()
        head = thief.add("within")
        alice.pull(thief)
        act = signed_act(GENESIS.group, revoke(thief, head), QUORUM)
        alice.emit(Kind.REVOKE, act.encode())

        assert contents(alice.state) == ["within"]
        assert not alice.state.view.decided.revoked
        check(alice.state)

    def test_b36_a_revocation_with_unknown_heads_waits_for_them(self) -> None:
        alice, _, thief = authors()
        unknown = thief.add("unknown")
        alice.emit(Kind.ADD, b"\x01")
        act = signed_act(GENESIS.group, revoke(thief, unknown), QUORUM).encode()
        signed = alice.make(Kind.REVOKE, act, [unknown.id])

        assert alice.state.missing(signed) == (unknown.id,)
        with pytest.raises(LocalProtocolError):
            alice.state.apply(signed)

    def test_b36_keys_that_revoke_themselves_and_each_other_are_all_revoked(self) -> None:
        alice, bob, carol = authors()
        for author, target in ((alice, bob), (bob, alice), (carol, carol)):
            author.add("before")
            author.act(revoke(target), QUORUM)
        meet(alice, bob, carol)

        assert alice.state.view.decided.revoked == {alice.node_id, bob.node_id, carol.node_id}
        assert contents(alice.state) == []
        check(alice.state, bob.state, carol.state)

    def test_b29_a_key_that_is_revoked_and_admitted_again_does_not_count_again(self) -> None:
        genesis = TestAdmission.GENESIS
        alice, bob, _ = authors(genesis)
        alice.act(Admit(author=bob.node_id, nonce=NONCE), QUORUM)
        bob.pull(alice)
        within = bob.add("within")
        alice.pull(bob)
        alice.act(revoke(bob, within), QUORUM, [within.id])
        alice.act(Admit(author=bob.node_id, nonce=b"n" * 16), QUORUM)
        bob.state = alice.state.copy()
        bob.add("beyond", slot="second")

        assert contents(bob.state) == ["within"]
        check(bob.state)

    def test_a_revoked_node_is_told_that_nothing_it_signs_counts_and_acts_can_still_be_sent(self) -> None:
        alice, bob, _ = authors()
        replica = Replica(GENESIS, bob.key, bytes(16))
        first = replica.author(Kind.ADD, b"\x01")
        replica.stored([first.id])
        replica.state.apply(alice.act(revoke(bob), QUORUM))
        assert replica.take_dropped() == (first.id,)
        replica.forget_aside()

        with pytest.raises(LocalProtocolError, match="revoked"):
            replica.author(Kind.ADD, b"\x01")
        sent = replica.author(Kind.BAN, signed_act(GENESIS.group, ban("x"), QUORUM).encode())
        replica.stored([sent.id])
        assert sent.id in replica.state
        assert (sent.operation.seq, sent.operation.prev) == (0, None)
        assert sent.operation.log != first.operation.log

    def test_t49_a_revocation_that_is_sent_again_is_not_worked_through_again(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        alice, bob, thief = authors()
        thief.add("x")
        alice.pull(thief)
        alice.act(revoke(thief), QUORUM)
        bob.pull(alice)
        monkeypatch.setattr(CRDTMergeState, "_drop", lambda _: pytest.fail("worked through again"))
        bob.act(revoke(thief), QUORUM)

        assert len(bob.state) == 3

    def test_s9_a_copy_shares_nothing_that_a_revocation_changes(self) -> None:
        alice, _, thief = authors()
        thief.add("x")
        alice.pull(thief)
        twin, root = alice.state.copy(), alice.state.sync_root
        alice.act(revoke(thief), QUORUM)

        assert (twin.sync_root, contents(twin)) == (root, ["x"])
        check(twin)


class TestAside:
    """What a replica does with what a revoked key signs."""

    def world(self) -> tuple[Replica, Author, Author]:
        alice, bob, thief = authors()
        act = alice.act(revoke(thief), QUORUM)
        replica = Replica(GENESIS, alice.key, b"replica's log...")
        replica.state.apply(act)
        return replica, bob, thief

    def test_it_is_not_stored_and_comes_in_before_what_builds_upon_it(self) -> None:
        replica, bob, thief = self.world()
        junk = [thief.add(f"junk{number}") for number in range(3)]
        bob.pull(thief)
        built = bob.add("built")
        receipt = replica.receive([signed.wire() for signed in junk], b"peer")
        assert (receipt.accepted, receipt.aside) == ((), tuple(signed.id for signed in junk))

        receipt = replica.receive([built.wire()], b"peer")
        assert receipt.accepted == (*junk, built)
        assert replica.stored(signed.id for signed in receipt.accepted) == [*junk, built]
        assert replica.take_dropped() == ()
        assert {signed.id for signed in (*junk, built)} <= set(replica.state.trie)
        check(replica.state)

    def test_what_waits_for_it_waits_no_more(self) -> None:
        replica, bob, thief = self.world()
        junk = [thief.add(f"junk{number}") for number in range(3)]
        bob.pull(thief)
        built = bob.add("built")
        assert replica.receive([built.wire()], b"peer").is_waiting
        receipt = replica.receive([signed.wire() for signed in junk], b"peer")

        assert receipt.accepted == (*junk, built)

    def test_forgotten_it_is_fetched_again_with_what_builds_upon_it(self) -> None:
        replica, bob, thief = self.world()
        junk = thief.add("junk")
        bob.pull(thief)
        built = bob.add("built")
        replica.receive([junk.wire()], b"peer")
        replica.forget_aside()
        assert replica.state.aside_bytes == 0

        assert replica.receive([built.wire()], b"peer").is_waiting
        assert replica.receive([junk.wire(), built.wire()], b"peer").accepted == (junk, built)

    def test_it_is_remembered_within_a_bound(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("crdt_merge_protocol.replica.ASIDE_BYTES_MAX", 2000)
        replica, _, thief = self.world()
        for number in range(50):
            replica.receive([thief.add(f"junk{number}").wire()], b"peer")
            assert replica.state.aside_bytes < 2000 + 500

    def test_what_is_in_flight_when_the_revocation_comes_is_deleted_again(self) -> None:
        alice, _, thief = authors()
        replica = Replica(GENESIS, alice.key, bytes(16))
        junk = thief.add("junk")
        act = alice.act(revoke(thief), QUORUM)
        replica.receive([junk.wire(), act.wire()], b"peer")
        replica.stored([junk.id])
        assert junk.id in replica.state
        replica.stored([act.id])

        assert replica.take_dropped() == (junk.id,)
        assert len(replica.state) == 1

    def test_what_is_in_flight_keeps_what_it_builds_upon_on_the_disk(self) -> None:
        alice, bob, thief = authors()
        replica = Replica(GENESIS, alice.key, bytes(16))
        junk = thief.add("junk")
        bob.pull(thief)
        built = bob.add("built")
        act = alice.act(revoke(thief), QUORUM)
        replica.state.apply(junk)
        replica.receive([act.wire(), built.wire()], b"peer")
        replica.stored([act.id])
        assert replica.take_dropped() == ()
        replica.forget_aside()
        assert replica.stored([built.id]) == [junk, built]

        assert replica.take_dropped() == ()
        assert {junk.id, built.id} <= set(replica.state.trie)
        check(replica.state)
