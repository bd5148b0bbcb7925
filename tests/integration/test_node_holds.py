"""HOLD: a contribution counts once so many other nodes have its bytes (PROTOCOL R16, R21)."""

from pathlib import Path

import pytest
from crdt_merge_node.errors import InvalidRequestError
from crdt_merge_node.resolve.describe import describe_file
from support.whole_nodes import Site, WholeNode, save_model, until_agreed

pytestmark = pytest.mark.asyncio


async def test_a_contribution_is_pending_until_another_node_holds_it(tmp_path: Path) -> None:
    site = Site(tmp_path)
    model = save_model(tmp_path / "model", 1.0)
    first_dir, second_dir = site.make(), site.make()
    async with site.running(first_dir) as first:
        await first.create_group("g", model, holders=1)
        added = await first.add("g", model)

        assert (added.contribution.state, added.contribution.reason) == ("pending", "0 of 1 holders")
        async with site.running(second_dir, first.address) as second:
            await until_agreed("g", first, second, used=1)
            [shown] = await first.api.contribution_list("g")

            assert (shown.state, shown.holders) == ("used", 1)


async def test_an_add_can_wait_for_holders(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(3) as nodes:
        model = save_model(tmp_path / "model", 1.0)
        await nodes[0].create_group("g", model, holders=2)
        added = await nodes[0].add("g", model, wait_holds=2)

        assert added.holds == 2
        assert added.contribution.state == "used"


async def test_holders_are_not_waited_for_where_nobody_announces_them(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(1) as [node]:
        model = save_model(tmp_path / "model", 1.0)
        await node.create_group("g", model)
        with pytest.raises(InvalidRequestError, match="do not announce"):
            await node.add("g", model, wait_holds=1)

        assert await node.api.contribution_list("g") == ()


async def test_nobody_holds_what_it_has_only_the_manifest_of(tmp_path: Path) -> None:
    """A contribution that is set aside for what its manifest says is held by nobody."""
    async with Site(tmp_path).nodes(2) as nodes:
        await _contribute_misfit(nodes[0], tmp_path)
        tag = (await nodes[0].api.contribution_list("g"))[0].tag
        good = await nodes[0].add("g", tmp_path / "model", wait_holds=1)
        shown = await nodes[1].until_state("g", tag, "quarantined")

        assert good.contribution.state == "used"
        assert shown.holders == 0


async def _contribute_misfit(node: WholeNode, directory: Path) -> None:
    await node.create_group("g", save_model(directory / "model", 1.0), holders=1)
    other = save_model(directory / "other", 1.0, rows=5)
    described = describe_file(other, 1 << 32)
    await node.contribute_raw("g", described.manifest, slot="misfit")
