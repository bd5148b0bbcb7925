"""Several nodes in one process: each remembers what it did itself, and nothing of the others."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from crdt_merge_node.control.model import LogEvent
from crdt_merge_node.daemon import serve
from crdt_merge_node.errors import InvalidRequestError, StoreFailedError
from crdt_merge_node.runtime import RunningNode
from crdt_merge_node.telemetry.logging import log_level, set_log_level
from crdt_merge_node.world import World
from support.whole_nodes import Site, WholeNode, config_of, last, save_model, until_agreed

pytestmark = pytest.mark.asyncio


async def told(node: WholeNode, name: str, **kwargs: object) -> list[LogEvent]:
    """Return what a node says of one kind of event."""
    asked = {"level": "debug", **kwargs}
    return [event async for event in node.api.events(**asked) if event.event == name]  # type: ignore[arg-type]


async def test_nodes_of_one_process_do_not_hear_each_other(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(3) as nodes:
        await nodes[0].create_group("g", save_model(tmp_path / "like", 1.0))
        await nodes[0].add("g", save_model(tmp_path / "m", 1.0))
        await until_agreed("g", *nodes, used=1)
        await nodes[1].api.peer_block(nodes[2].id.hex())
        await nodes[2].until(lambda: nodes[1].id not in nodes[2].services.driver.connections)

        for node in nodes:
            others = {other.id.hex() for other in nodes if other is not node}
            (ready,) = await told(node, "node.ready")
            assert ready.fields["node"] == node.id.hex()
            assert len(await told(node, "store.opened")) == 1
            assert {event.fields["peer"] for event in await told(node, "peer.joined")} == others
            exchanged = await told(node, "exchange.completed")
            assert {event.fields["peer"] for event in exchanged} <= others
        counts = [len(await told(node, "peer.blocked")) for node in nodes]
        assert counts == [0, 1, 0]
        created = [len(await told(node, "group.created")) for node in nodes]
        assert created == [1, 0, 0]
        assert await told(nodes[0], "blob.fetched") == []


async def test_who_follows_a_node_has_the_end_of_its_story(tmp_path: Path) -> None:
    site = Site(tmp_path)
    async with site.running(site.make()) as one:
        seen = asyncio.create_task(_all(one.api.events(follow=True)))
        async with site.running(site.make(), one.address) as other:
            await one.connected(other)
            await one.create_group("g", save_model(tmp_path / "like", 1.0))
        await one.until(lambda: not one.services.driver.connections)

    assert [event.event for event in await seen][-2:] == ["group.created", "peer.left"]


async def test_who_follows_learns_why_a_node_ends(tmp_path: Path) -> None:
    stories: list[asyncio.Task[list[LogEvent]]] = []

    def ready(node: RunningNode) -> None:
        stories.append(asyncio.create_task(_all(node.api.events(follow=True))))
        error = StoreFailedError("the disk is gone.")
        asyncio.get_running_loop().call_soon(node.services.driver.fail, error)

    stop: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    status = await serve(config_of(Site(tmp_path).make()), World(), stop=stop, on_ready=ready)

    failed = [event for event in await stories[0] if event.event == "node.failed"]
    assert status == 74
    assert [event.fields["error"] for event in failed] == ["the disk is gone."]


async def _all(events):
    return [event async for event in events]


async def test_who_stops_following_is_forgotten(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(1) as nodes:
        following = nodes[0].api.events(follow=True)
        assert (await anext(following)).event == "store.opened"
        await following.aclose()

        assert not nodes[0].services.events._followers


async def test_the_level_of_the_log_can_be_changed_and_is_no_matter_to_events(tmp_path: Path) -> None:
    before = log_level()
    try:
        async with Site(tmp_path).nodes(1) as nodes:
            api = nodes[0].api
            assert (await api.log_level("error")).level == "error"
            assert (await api.log_level(None)).configured == "info"
            await nodes[0].create_group("g", save_model(tmp_path / "like", 1.0))
            assert len(await told(nodes[0], "group.created")) == 1
            with pytest.raises(InvalidRequestError, match='"loud" is no level'):
                await api.log_level("loud")
            with pytest.raises(InvalidRequestError, match='"loud" is no level'):
                await last(api.events(level="loud"))
    finally:
        set_log_level(before)
