"""What a member publishes of types that nobody here knows is fetched, but not without end (SCENARIOS T19)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from crdt_merge_node.contents import GroupContents, Item
from crdt_merge_node.rationing import ROOM_BYTES_MIN, UNKNOWN_PER_AUTHOR_MAX, ration
from crdt_merge_protocol.blobs import Schema, TensorSpec
from crdt_merge_protocol.state import CRDTMergeState
from crdt_merge_protocol.strategies.artefacts import SCOPES
from crdt_merge_protocol.view import Visible
from support.authors import ONE, hash_of, make_genesis

ROOM = 2 * ROOM_BYTES_MIN
SCHEMA = Schema.of([TensorSpec(name="w", dtype="U8", shape=(ROOM,))])
VIEW = CRDTMergeState(make_genesis()).view


def item(
    depth: int, nbytes: int, *, author: str = "author", kind: str = "newer", is_whole: bool = False
) -> Item:
    tag = hash_of(f"{author} {kind} {depth} {nbytes}")
    visible = Visible(
        tag=tag,
        author=hash_of(author),
        slot=f"s{depth}",
        type=kind,
        content=hash_of(f"content {depth}"),
        weight=ONE,
        payload=None,
        digest=tag,
        depth=depth,
        holders=0,
    )
    missing = {} if is_whole else {hash_of(f"blob {depth} {author}"): nbytes}
    return Item(visible=visible, is_pending=False, nbytes=nbytes, is_judged=is_whole, missing=missing)


def rationed(*items: Item, before: tuple[Item, ...] = (), schema: Schema | None = SCHEMA) -> list[Item]:
    """Return what is withheld."""
    contents = GroupContents(view=VIEW, schema=schema)
    contents.items = {one.visible.tag: one for one in items}
    ration(contents, {one.visible.tag: one for one in before})
    return [one for one in items if one.is_withheld]


def test_as_much_as_one_model_of_the_group_is_fetched_and_the_newest_beyond_it_waits() -> None:
    first, second, third = item(1, ROOM // 2), item(2, ROOM // 2), item(3, 1)

    assert rationed(third, second, first) == [third]
    assert third.missing == {}
    assert '"newer" is not known' in third.problem
    assert all(one.missing and not one.problem for one in (first, second))


def test_one_that_is_too_large_does_not_keep_a_smaller_one_out() -> None:
    large, small = item(1, ROOM + 1), item(2, ROOM)

    assert rationed(large, small) == [large]


def test_they_are_counted_too_because_the_size_of_a_manifest_is_not_known() -> None:
    many = [item(depth, 0) for depth in range(UNKNOWN_PER_AUTHOR_MAX + 3)]

    assert rationed(*many) == many[UNKNOWN_PER_AUTHOR_MAX:]


def test_no_author_takes_the_room_of_another() -> None:
    assert rationed(item(1, ROOM, author="one"), item(2, ROOM, author="two")) == []


@pytest.mark.parametrize("kind", ["model", "adapter", next(iter(SCOPES))])
def test_what_the_schema_bounds_is_not_rationed(kind: str) -> None:
    assert rationed(*(item(depth, ROOM, kind=kind) for depth in range(3))) == []


def test_an_older_one_that_comes_to_light_takes_no_place_of_what_is_here_or_on_its_way() -> None:
    """Else an author could show them newest first, and have each of them fetched in turn."""
    old, on_its_way, whole = item(1, ROOM), item(2, ROOM // 2), item(3, ROOM // 2, is_whole=True)
    before = item(2, ROOM // 2)

    assert rationed(old, on_its_way, whole, before=(before,)) == [old]
    assert rationed(item(1, ROOM), item(3, ROOM, is_whole=True)) != []


def test_what_was_withheld_is_no_older_right() -> None:
    withheld = replace(item(2, ROOM), is_withheld=True)
    first, second = item(1, ROOM), item(2, ROOM)

    assert rationed(first, second, before=(withheld,)) == [second]


def test_what_is_removed_makes_room() -> None:
    first, second = item(1, ROOM), item(2, ROOM)
    assert rationed(first, second) == [second]

    again = item(2, ROOM)
    assert rationed(again, before=(second,)) == []
    assert again.missing


def test_small_models_leave_room_for_something() -> None:
    small = Schema.of([TensorSpec(name="w", dtype="U8", shape=(1,))])

    assert rationed(item(1, ROOM_BYTES_MIN), schema=small) == []
    assert len(rationed(item(1, ROOM_BYTES_MIN + 1), schema=small)) == 1


def test_without_a_schema_nothing_is_judged_yet() -> None:
    assert rationed(item(1, 10 * ROOM), schema=None) == []
