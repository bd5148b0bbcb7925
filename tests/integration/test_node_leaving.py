"""Leaving for good: nothing goes with the node that nobody else has, and nobody looks for it afterwards."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from click.testing import CliRunner
from crdt_merge_node.cli.app import root
from crdt_merge_node.control.model import LeavePlan, LeaveReport
from crdt_merge_node.errors import ConfigError, InvalidRequestError, NotReadyError, TimedOutError
from crdt_merge_node.leaving import come_back, has_left
from crdt_merge_node.ports import SystemFs
from support.whole_nodes import TIMEOUT_S, Site, WholeNode, last, save_model, until_agreed

pytestmark = pytest.mark.asyncio


def _leave(node: WholeNode, *, copies: int = 0, wait_s: float = 0.0, accept_loss: bool = False):
    return node.api.leave(copies=copies, wait_s=wait_s, accept_loss=accept_loss)


async def _held(node: WholeNode, name: str) -> None:
    await node.until_group(name, lambda info: info.missing_blobs == 0 and info.used > 0)


async def test_a_node_whose_everything_others_hold_leaves_at_once_and_is_not_missed(tmp_path: Path) -> None:
    site = Site(tmp_path)
    dirs = [site.make() for _ in range(3)]
    async with site.running(dirs[0], name="a") as a, site.running(dirs[1], a.address, name="b") as b:
        async with site.running(dirs[2], a.address, b.address, name="leaver") as leaver:
            for node in (a, b, leaver):
                await node.connected(*({a, b, leaver} - {node}))
            await a.create_group("g", save_model(tmp_path / "model", 1.0))
            await leaver.until_group("g", lambda info: info.missing_blobs == 0)
            added = await leaver.add("g", save_model(tmp_path / "mine", 2.0), meta={"note": "mine"})
            for node in (a, b):
                await _held(node, "g")
            await leaver.equal("g", a, b)
            await a.equal("g", b)
            await b.equal("g", a)
            events = [event async for event in _leave(leaver)]

            assert isinstance(events[0], LeavePlan)
            assert isinstance(events[-1], LeaveReport)
            assert (events[0].copies, events[0].contributions) == (2, 2)
            assert (events[-1].told, events[-1].lost) == (2, ())
            assert leaver.services.stopping.done()
            with pytest.raises(NotReadyError):
                await leaver.add("g", tmp_path / "mine", slot="late")
        for node in (a, b):
            await node.until(lambda node=node: leaver.id not in node.services.driver.connections)
            [gone] = [peer for peer in await node.api.peer_list() if peer.id == leaver.id.hex()]

            assert (gone.state, gone.addresses) == ("left", ())
            assert leaver.id not in node.services.engine.overlay.peers
            assert [
                reason.subject for each in (await node.api.why(None)).groups for reason in each.reasons
            ] == []
            assert added.contribution.tag in [item.tag for item in await node.api.contribution_list("g")]
    with pytest.raises(ConfigError, match="has left its cluster") as caught:
        async with site.running(dirs[2]):
            pass
    assert caught.value.exit_code == 78
    assert "--join TOKEN --force" in caught.value.hint


async def test_what_only_it_holds_keeps_it_until_it_may_be_lost(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(2) as (other, node):
        await node.create_group("g", save_model(tmp_path / "model", 1.0))
        await other.until_group("g", lambda info: info.missing_blobs == 0)
        await other.api.group_follow("g", follow=False)
        tag = (await node.add("g", save_model(tmp_path / "mine", 2.0, rows=3))).contribution.tag
        await node.equal("g", other)
        with pytest.raises(InvalidRequestError, match="by nobody") as caught:
            await last(_leave(node))
        assert tag[:12] in caught.value.message
        assert not has_left(node.services.config.node.data_dir, SystemFs())
        await node.add("g", tmp_path / "mine", slot="still-at-work")

        report = await last(_leave(node, accept_loss=True))

        assert {item.slot for item in report.lost} == {"main", "still-at-work"}
        assert has_left(node.services.config.node.data_dir, SystemFs())


async def test_it_waits_until_others_hold_everything(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(2) as (other, node):
        await node.create_group("g", save_model(tmp_path / "model", 1.0))
        await other.until_group("g", lambda info: info.missing_blobs == 0)
        await other.api.group_follow("g", follow=False)
        await node.add("g", save_model(tmp_path / "mine", 2.0))
        await node.equal("g", other)
        with pytest.raises(TimedOutError):
            await last(_leave(node, wait_s=0.1))
        events = _leave(node, wait_s=TIMEOUT_S)
        plan = await anext(events)
        assert [item.holders for item in plan.items] == [0]
        await other.api.group_follow("g", follow=True)

        report = await last(events)

        assert report.lost == ()


async def test_alone_it_would_take_everything_along(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(1) as (node,):
        await node.create_group("g", save_model(tmp_path / "model", 1.0))
        with pytest.raises(InvalidRequestError) as caught:
            await last(_leave(node))

        assert "operations of g" in caught.value.message


async def test_after_it_came_back_it_is_a_member_like_before(tmp_path: Path) -> None:
    site = Site(tmp_path)
    first_dir, second_dir = site.make(), site.make()
    async with site.running(first_dir) as first:
        async with site.running(second_dir, first.address) as second:
            await first.connected(second)
            await first.create_group("g", save_model(tmp_path / "model", 1.0))
            await second.until_group("g", lambda info: info.missing_blobs == 0)
            await last(_leave(second))
        invite = await first.api.invite(expires_s=3600.0)
        line = ["--data-dir", str(second_dir), "init", "--join", invite.token]
        refused = await asyncio.to_thread(CliRunner().invoke, root, line)
        joined = await asyncio.to_thread(CliRunner().invoke, root, [*line, "--force"])
        again = await asyncio.to_thread(CliRunner().invoke, root, [*line, "--force"])

        assert (refused.exit_code, joined.exit_code, again.exit_code) == (78, 0, 78), joined.stderr
        async with site.running(second_dir) as second:
            await first.connected(second)
            await second.add("g", save_model(tmp_path / "mine", 2.0))
            await until_agreed("g", first, second, used=1)
            assert [peer.state for peer in await first.api.peer_list()] == ["alive"]


async def test_a_mark_can_be_taken_back_twice(tmp_path: Path) -> None:
    (tmp_path / "LEFT").write_text("{}")
    come_back(tmp_path, SystemFs())
    come_back(tmp_path, SystemFs())

    assert not has_left(tmp_path, SystemFs())
