"""The replicated state: delivery, logs, forks, removal, holds and slots (PROTOCOL R3-R10, R14, R16, R22)."""

from __future__ import annotations

import pytest
from crdt_merge_protocol.errors import LocalProtocolError, MalformedMessageError
from crdt_merge_protocol.operations import Add, Hold, Kind, Remove, SignedOperation
from crdt_merge_protocol.state import CRDTMergeState
from crdt_merge_protocol.view import view_of
from support.authors import KEYS, ONE, Author, contents, hash_of, make_genesis, meet

GENESIS = make_genesis()


def two(**policy: object) -> tuple[Author, Author]:
    genesis = make_genesis(**policy)
    return Author(genesis, 0), Author(genesis, 1)


def fork(author: Author) -> tuple[SignedOperation, SignedOperation]:
    """Return two operations of an author at one place of its log; the first is applied."""
    second = author.make(
        Kind.ADD, Add(slot="main", type="model", content=bytes(32), weight=ONE, payload=None).encode()
    )
    return author.add("first"), second


class TestDelivery:
    def test_r3_an_operation_waits_for_prev_deps_and_refs(self) -> None:
        author, fresh = Author(GENESIS), CRDTMergeState(GENESIS)
        first = author.add()
        second = author.remove(first.id)

        assert fresh.missing(second) == (first.id,)
        with pytest.raises(LocalProtocolError):
            fresh.apply(second)
        assert len(fresh) == 0
        assert fresh.apply(first)
        assert fresh.missing(second) == ()
        assert fresh.apply(second)

    def test_t8_a_tombstone_for_what_does_not_exist_is_never_deliverable(self) -> None:
        """Its targets must be in refs, hence delivered, and no id can be predicted."""
        author, thief = two()
        future = hash_of("ground")
        body = Remove(targets=(future,)).encode()
        tombstone = thief.make(Kind.REMOVE, body, [future])
        author.add()

        assert author.state.missing(tombstone) == (future,)
        with pytest.raises(LocalProtocolError):
            author.state.apply(tombstone)
        assert contents(author.state) == ["content"]

    def test_a_second_delivery_changes_nothing(self) -> None:
        author = Author(GENESIS)
        signed = author.add()
        view, root = author.state.view, author.state.sync_root

        assert author.state.apply(signed) is False
        assert author.state.view is view
        assert author.state.sync_root == root

    @pytest.mark.parametrize("changes", [{"seq": 2}, {"log": b"x" * 16}, {"prev": "other"}])
    def test_b24_prev_must_be_the_one_before_in_the_same_log(self, changes: dict[str, object]) -> None:
        author, other = two()
        author.add()
        foreign = other.add()
        author.pull(other)
        if changes.get("prev"):
            changes = {"prev": foreign.id}
        signed = author.make(Kind.ADD, b"\x01", **changes)
        before = author.state.sync_root

        with pytest.raises(MalformedMessageError):
            author.state.apply(signed)
        assert author.state.sync_root == before
        assert signed.id not in author.state

    def test_states_of_two_groups_cannot_be_joined(self) -> None:
        with pytest.raises(LocalProtocolError):
            CRDTMergeState(GENESIS).join(CRDTMergeState(make_genesis(dtype="F32")))


class TestFacts:
    def test_depth_heads_and_version_vector_follow_the_set(self) -> None:
        one, other = two()
        first, concurrent = one.add("a"), other.add("b")
        one.pull(other)

        assert one.state.heads() == {first.id, concurrent.id}
        assert one.state.choose_deps() == tuple(sorted((first.id, concurrent.id)))

        last = one.add("c")

        assert one.state.heads() == {last.id}
        assert [one.state.depth(signed.id) for signed in (first, concurrent, last)] == [1, 1, 2]
        assert one.state.version_vector == {(one.node_id, one.log): 1, (other.node_id, other.log): 0}
        assert one.state.causal()[-1] is last
        assert one.state.causal([last.id, first.id]) == [first, last]
        assert one.state.get(bytes(32)) is None
        with pytest.raises(LocalProtocolError):
            one.state.depth(bytes(32))

    def test_r1_deps_are_at_most_64_with_policies_and_then_the_deepest_first(self) -> None:
        reader, writer, admin = (Author(GENESIS, number) for number in (2, 1, 0))
        policy = admin.change_policy(KEYS[:1], strategy="ties")
        for number in range(70):
            writer.restart()
            writer.state = CRDTMergeState(GENESIS)
            writer.add(f"c{number}")
            if number < 63:
                writer.add(f"d{number}")
            reader.pull(writer)
        reader.pull(admin)
        deep = {head for head in reader.state.heads() if reader.state.depth(head) == 2}

        assert len(reader.state.heads()) == 71
        assert set(reader.state.choose_deps()) == deep | {policy.id}
        assert list(reader.state.choose_deps()) == sorted(deep | {policy.id})

    def test_unsigned_policies_cannot_crowd_out_other_heads(self) -> None:
        reader, spammer, deep = (Author(GENESIS, number) for number in (2, 1, 0))
        for _ in range(64):
            spammer.restart()
            spammer.state = CRDTMergeState(GENESIS)
            spammer.change_policy(())
            reader.pull(spammer)
        deep.add()
        last = deep.add("second")
        reader.pull(deep)

        assert len(reader.state.heads()) == 65
        assert last.id in reader.state.choose_deps()

    def test_a_and_r_of_the_paper_are_the_adds_and_the_removed(self) -> None:
        author = Author(GENESIS)
        first, second = author.add("a"), author.add("b")
        author.remove(first.id)

        assert author.state.adds == {first.id, second.id}
        assert author.state.removes == {first.id}


class TestForks:
    def test_r6_both_operations_are_kept_and_the_author_is_hidden(self) -> None:
        author, honest = two()
        first, second = fork(author)
        honest.add("honest")
        author.pull(honest)
        author.state.apply(second)

        assert first.id in author.state
        assert second.id in author.state
        assert author.state.view.forked == {author.node_id}
        assert contents(author.state) == ["honest"]
        assert author.state.fork_proof(author.node_id) == tuple(author.state.causal([first.id, second.id]))

    def test_t1_a_fork_shown_to_disjoint_halves_is_found_when_they_meet(self) -> None:
        genesis = make_genesis()
        forker, left, right = (Author(genesis, number) for number in range(3))
        first, second = fork(forker)
        left.state.apply(first)
        right.state.apply(second)
        left.add("left")
        right.add("right")

        assert not left.state.view.forked | right.state.view.forked
        meet(left, right)
        assert left.state.view == right.state.view
        assert left.state.view.fingerprint == right.state.view.fingerprint
        assert left.state.view.forked == {forker.node_id}
        assert contents(left.state) == ["left", "right"]

    def test_b25_the_same_operation_twice_is_no_fork_and_three_are_one(self) -> None:
        author = Author(GENESIS)
        first, second = fork(author)
        third = author.make(77, b"third", seq=0, prev=None)
        author.state.apply(first)

        assert not author.state.view.forked
        author.state.apply(third)
        author.state.apply(second)
        assert author.state.view.forked == {author.node_id}

    def test_r6_a_fork_far_below_the_newest_is_found_and_takes_nothing_back(self) -> None:
        author, other = two()
        second = author.make(77, b"second")
        for _ in range(3):
            author.add()
        other.pull(author)
        other.state.apply(second)

        assert other.state.view.forked == {author.node_id}
        assert other.state.version_vector == {(author.node_id, author.log): 2}

    def test_r6_a_fork_by_unreadable_operations_counts_too(self) -> None:
        author, other = two()
        other.state.apply(author.make(99, b"x"))
        other.state.apply(author.make(99, b"y"))

        assert other.state.view.forked == {author.node_id}
        assert other.state.view.unread == 2

    def test_r6_a_fork_hides_what_was_visible_in_every_slot(self) -> None:
        author = Author(GENESIS)
        author.add("a", slot="a")
        author.add("b", slot="b")
        author.restart()
        second = author.make(77, b"second")
        author.emit(77, b"first")

        assert contents(author.state) == ["a", "b"]
        author.state.apply(second)
        assert contents(author.state) == []

    def test_later_adds_of_a_forked_author_stay_hidden(self) -> None:
        author = Author(GENESIS)
        _, second = fork(author)
        author.state.apply(second)
        author.restart()
        author.add("later", slot="other")

        assert contents(author.state) == []
        assert author.state.view == view_of(GENESIS, author.state.causal())

    def test_r8_a_forked_author_removal_of_its_own_stays_in_force(self) -> None:
        """Else a fork would bring back what was removed, if it ever ceases to count."""
        author = Author(GENESIS)
        tag = author.add("gone").id
        author.restart()
        marks = author.make(77, b"one"), author.make(77, b"two")
        author.remove(tag)
        author.state.apply(marks[0])
        author.state.apply(marks[1])

        assert author.state.view.forked == {author.node_id}
        assert author.state.removes == {tag}

    def test_two_logs_of_one_author_are_no_fork(self) -> None:
        author = Author(GENESIS)
        author.add("a")
        author.restart()
        author.add("b")

        assert not author.state.view.forked


class TestRemoval:
    def test_r10_one_removes_only_what_is_ones_own(self) -> None:
        author, thief = two()
        tag = author.add().id
        thief.pull(author)
        thief.remove(tag)
        author.pull(thief)

        assert contents(author.state) == ["content"]
        assert author.state.removes == frozenset()

    def test_t7_foreign_unknown_and_unnamed_targets_have_no_effect(self) -> None:
        author, thief = two()
        own, second = author.add("own"), author.add("second", slot="other")
        thief.pull(author)
        hold = thief.hold(own.id)
        thief.remove(own.id, second.id, hold.id)
        author.pull(thief)
        author.emit(Kind.REMOVE, Remove(targets=(own.id,)).encode())  # Not in refs.

        assert contents(author.state) == ["own", "second"]
        assert author.state.view == view_of(GENESIS, author.state.causal())

    def test_b31_removing_twice_is_removing_once(self) -> None:
        author = Author(GENESIS)
        tag = author.add().id
        author.remove(tag)
        author.remove(tag)

        assert contents(author.state) == []
        assert author.state.removes == {tag}

    def test_b32_a_remove_cannot_be_removed(self) -> None:
        author = Author(GENESIS)
        removal = author.remove(author.add().id)
        author.remove(removal.id)

        assert contents(author.state) == []

    def test_removing_the_newest_shows_the_one_before_it(self) -> None:
        """PROTOCOL R16: so whoever means the slot names every tag of it that it has seen."""
        author = Author(GENESIS)
        old, new = author.add("old"), author.add("new")
        author.remove(new.id)

        assert contents(author.state) == ["old"]
        author.remove(old.id, new.id)
        assert contents(author.state) == []


class TestSlots:
    def test_r16_the_newest_of_a_slot_is_visible(self) -> None:
        author = Author(GENESIS)
        author.add("old")
        author.add("new")
        author.add("other slot", slot="b")
        author.add("other type", kind="fisher")

        assert contents(author.state) == ["new", "other slot", "other type"]

    def test_r16_concurrent_adds_of_one_author_are_ordered_by_depth_and_id(self) -> None:
        author = Author(GENESIS)
        one = author.make(
            Kind.ADD, Add(slot="s", type="model", content=hash_of("1"), weight=1, payload=None).encode()
        )
        author.restart()
        two_ = author.make(
            Kind.ADD, Add(slot="s", type="model", content=hash_of("2"), weight=1, payload=None).encode()
        )
        author.state.apply(one)
        author.state.apply(two_)

        assert [shown.tag for shown in author.state.view.visible] == [max(one.id, two_.id)]

    def test_each_author_has_slots_of_its_own(self) -> None:
        author, other = two()
        author.add("mine")
        other.pull(author)
        other.add("theirs")

        assert contents(other.state) == ["mine", "theirs"]

    def test_visible_rows_carry_the_contribution_and_are_sorted(self) -> None:
        author = Author(GENESIS)
        tags = [author.add(f"c{n}", slot=f"s{n}", weight=n + 1, payload=hash_of("p")).id for n in range(20)]
        visible = author.state.view.visible
        row = next(row for row in visible if row.tag == tags[3])

        assert {shown.tag for shown in visible} == set(tags)
        assert [(r.digest, r.tag) for r in visible] == sorted((r.digest, r.tag) for r in visible)
        assert (row.author, row.slot, row.type) == (author.node_id, "s3", "model")
        assert (row.content, row.weight, row.payload) == (hash_of("c3"), 4, hash_of("p"))
        assert (row.depth, row.holders) == (4, 0)


class TestHolds:
    def test_b38_own_repeated_and_unknown_holds_do_not_count(self) -> None:
        author, other = two(holders=2)
        tag = author.add().id
        author.hold(tag)
        other.pull(author)
        other.hold(tag)
        other.hold(tag)
        other.hold(*other.state.heads())  # A HOLD of a HOLD.
        third = Author(author.state.genesis, 2)
        third.pull(other)
        third.emit(Kind.HOLD, Hold(tags=(tag,)).encode())  # Not in refs.
        other.pull(third)

        assert other.state.view.visible == ()
        assert [(shown.tag, shown.holders) for shown in other.state.view.pending] == [(tag, 1)]

    def test_r16_enough_other_authors_make_an_add_visible(self) -> None:
        genesis = make_genesis(holders=2)
        author, first, second = (Author(genesis, number) for number in range(3))
        tag = author.add().id
        for other in (first, second):
            assert contents(author.state) == []
            other.pull(author)
            other.hold(tag)
            author.pull(other)

        assert [(shown.tag, shown.holders) for shown in author.state.view.visible] == [(tag, 2)]
        assert author.state.view.pending == ()

    def test_r16_filters_come_before_slots_so_an_unheld_add_hides_nothing(self) -> None:
        author, other = two(holders=1)
        old = author.add("old").id
        other.pull(author)
        other.hold(old)
        author.pull(other)
        new = author.add("new").id

        assert contents(author.state) == ["old"]
        assert [shown.tag for shown in author.state.view.pending] == [new]
        other.pull(author)
        other.hold(new)
        author.pull(other)
        assert contents(author.state) == ["new"]
        assert author.state.view.pending == ()

    def test_what_an_older_held_add_would_not_replace_is_not_pending(self) -> None:
        author, other = two(holders=1)
        author.add("old")
        new = author.add("new").id
        other.pull(author)

        assert len(other.state.view.pending) == 2
        other.hold(new)
        assert contents(other.state) == ["new"]
        assert other.state.view.pending == ()

    def test_a_policy_that_asks_for_other_holders_counts_for_the_past_too(self) -> None:
        author, other = two()
        held, unheld = author.add("held", slot="a"), author.add("unheld", slot="b")
        other.pull(author)
        other.hold(held.id)
        author.pull(other)
        author.change_policy(KEYS[:1], holders=1)

        assert contents(author.state) == ["held"]
        assert [shown.tag for shown in author.state.view.pending] == [unheld.id]
        author.change_policy(KEYS[:1], holders=0)
        assert contents(author.state) == ["held", "unheld"]

    def test_a_removed_add_is_neither_visible_nor_pending_however_many_hold_it(self) -> None:
        author, other = two(holders=1)
        tag = author.add().id
        other.pull(author)
        author.remove(tag)
        other.hold(tag)
        author.pull(other)

        assert author.state.view.visible == author.state.view.pending == ()
        assert author.state.view == view_of(author.state.genesis, author.state.causal())


class TestUnread:
    @pytest.mark.parametrize(
        ("kind", "body"),
        [
            (77, b"\x01\x90"),
            (255, b""),
            (Kind.ADD, b"\x02\x90"),
            (Kind.ADD, b"\xff"),
            (Kind.BAN, b"\x01\x90"),
        ],
    )
    def test_r22_what_cannot_be_read_is_kept_and_has_no_effect(self, kind: int, body: bytes) -> None:
        author, other = two()
        author.add()
        before = author.state.view, author.state.sync_root
        signed = author.emit(kind, body)
        assert author.state.view.unread == 1
        other.pull(author)

        assert signed.id in other.state
        assert other.state.sync_root == author.state.sync_root != before[1]
        assert other.state.view.visible == before[0].visible
        assert other.state.view.unread == 1


class TestCopies:
    def test_s9_what_happens_to_a_copy_shows_in_the_copy_only(self) -> None:
        author, other = two(holders=1)
        tag = author.add("held").id
        twin = author.state.copy()
        other.state = twin
        other.hold(tag)
        other.add("theirs")
        author.add("mine", slot="second")  # Makes the original look at its slots again.
        author.remove(author.add("gone").id)

        assert twin.view == view_of(twin.genesis, twin.causal())
        assert author.state.view == view_of(twin.genesis, author.state.causal())
        assert contents(twin) == ["held"]
        assert contents(author.state) == []
        assert [shown.holders for shown in author.state.view.pending] == [0, 0]


class TestCost:
    def test_the_same_view_object_is_returned_until_the_view_changes(self) -> None:
        author, other = two()
        tag = author.add().id
        view = author.state.view
        other.pull(author)
        other.restart()
        other.remove(tag)  # Without effect.
        author.pull(other)

        assert author.state.view is view
        author.add("next")
        assert author.state.view is not view

    def test_the_definition_refuses_a_set_that_lacks_a_part_of_its_past(self) -> None:
        author = Author(GENESIS)
        author.add()
        last = author.add()

        with pytest.raises(LocalProtocolError):
            view_of(GENESIS, [last])
