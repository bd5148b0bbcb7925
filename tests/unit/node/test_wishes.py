"""What is fetched for whom: shares, sharing, and giving up."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import pytest
from crdt_merge_node import wishes as wishes_module
from crdt_merge_node.errors import StorageError
from crdt_merge_node.wishes import Wish, Wishes
from crdt_merge_protocol.errors import MalformedMessageError

pytestmark = pytest.mark.asyncio

GROUP, OTHER_GROUP = b"g" * 32, b"o" * 32
ALICE, MALLORY = b"a" * 32, b"m" * 32


class World:
    """Fetches that end when a test says so."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.came: list[list[bytes]] = []
        self.partly: list[list[bytes]] = []
        self.disproved: list[tuple[bytes, int]] = []
        self.fatal: list[BaseException] = []
        self.ends: dict[bytes, asyncio.Future[None]] = {}
        self.wishes = Wishes(
            came=self._came,
            partly=self._partly,
            disproved=lambda blob, nbytes, _reason: self.disproved.append((blob, nbytes)),
            fatal=self.fatal.append,
        )

    def _partly(self, groups: Iterable[bytes]) -> None:
        self.partly.append(list(groups))

    def _came(self, groups: Iterable[bytes]) -> None:
        self.came.append(list(groups))

    def wish(self, number: int, owner: bytes = ALICE, content: bytes = b"") -> Wish:
        key = bytes([number]) * 32
        return Wish(id=key, nbytes=10, owner=owner, start=self._fetch(key), content=content)

    def _fetch(self, key: bytes) -> Callable[[], Awaitable[None]]:
        async def fetch() -> None:
            self.asked.append(key)
            self.ends[key] = asyncio.get_running_loop().create_future()
            await self.ends[key]

        return fetch

    async def end(self, number: int, error: Exception | None = None) -> None:
        future = self.ends[bytes([number]) * 32]
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
        await turns()


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_two_groups_need_is_asked_for_once_and_told_to_both() -> None:
    world = World()
    world.wishes.need(GROUP, [world.wish(1)])
    world.wishes.need(OTHER_GROUP, [world.wish(1), world.wish(2)])
    await turns()
    await world.end(1)

    assert sorted(world.asked) == [bytes([1]) * 32, bytes([2]) * 32]
    assert world.came == [[GROUP, OTHER_GROUP]]
    await world.wishes.close()


async def test_of_blobs_of_one_content_only_the_last_says_that_it_is_whole() -> None:
    world = World()
    world.wishes.need(GROUP, [world.wish(number, content=b"c" * 32) for number in (1, 2, 3)])
    await turns()
    await world.end(1)
    await world.end(3)
    assert (world.came, world.partly) == ([], [[GROUP], [GROUP]])
    await world.end(2)

    assert world.came == [[GROUP]]
    await world.wishes.close()


async def test_what_is_needed_no_more_is_given_up() -> None:
    world = World()
    world.wishes.need(GROUP, [world.wish(1), world.wish(2)])
    world.wishes.need(OTHER_GROUP, [world.wish(2)])
    await turns()
    world.wishes.need(GROUP, [])
    await turns()

    assert world.ends[bytes([1]) * 32].cancelled()
    assert not world.ends[bytes([2]) * 32].done()
    await world.wishes.close()


async def test_who_withholds_much_takes_only_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wishes_module, "WISHES_PER_OWNER_MAX", 2)
    world = World()
    needed = [world.wish(number, MALLORY) for number in range(5)] + [world.wish(9)]
    world.wishes.need(GROUP, needed)
    await turns()
    before = list(world.asked)
    await world.end(0)
    world.wishes.need(GROUP, needed[1:])
    await turns()

    assert before == [bytes([number]) * 32 for number in (0, 1, 9)]
    assert world.asked == [*before, bytes([2]) * 32]
    assert world.came == [[GROUP]], "who still waits for its turn is told that there is room"
    await world.wishes.close()


async def test_what_all_need_comes_before_the_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wishes_module, "WISHES_PER_OWNER_MAX", 0)
    world = World()
    world.wishes.need(GROUP, [world.wish(1), world.wish(2, b"")])
    await turns()

    assert world.asked == [bytes([2]) * 32]
    await world.wishes.close()


async def test_a_size_that_is_disproved_is_reported() -> None:
    world = World()
    world.wishes.need(GROUP, [world.wish(1)])
    await turns()
    await world.end(1, MalformedMessageError("it has 5 bytes"))

    assert world.disproved == [(bytes([1]) * 32, 10)]
    assert world.came == [[GROUP]]
    await world.wishes.close()


async def test_a_fetch_that_fails_is_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wishes_module, "RETRY_S", 0.0)
    world = World()
    world.wishes.need(GROUP, [world.wish(1)])
    await turns()
    await world.end(1, StorageError("too many open files"))

    assert world.came == [[GROUP]]
    assert (world.fatal, len(world.wishes)) == ([], 0)
    await world.wishes.close()


async def test_a_bug_ends_the_node() -> None:
    world = World()
    world.wishes.need(GROUP, [world.wish(1)])
    await turns()
    await world.end(1, KeyError("a bug"))

    assert [type(error) for error in world.fatal] == [KeyError]
    await world.wishes.close()


async def test_after_the_end_nothing_is_asked_for() -> None:
    world = World()
    world.wishes.need(GROUP, [world.wish(1)])
    await turns()
    await world.wishes.close()
    world.wishes.need(GROUP, [world.wish(2)])
    await turns()

    assert world.asked == [bytes([1]) * 32]
    assert world.came == []
