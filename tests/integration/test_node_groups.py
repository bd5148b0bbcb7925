"""Groups on whole nodes: following, policies, notes, duplicates, several at once."""

from pathlib import Path

import pytest
from crdt_merge_node.control.model import PolicyChanges
from crdt_merge_protocol.errors import MissingBlobError
from safetensors.numpy import load_file
from support.whole_nodes import Site, save_model, settle, until_agreed

pytestmark = pytest.mark.asyncio


async def test_an_unfollowed_group_keeps_its_operations_and_fetches_no_bytes(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(2) as nodes:
        await nodes[0].create_group("g", save_model(tmp_path / "model", 1.0))
        await nodes[1].until_group("g", lambda info: info.missing_blobs == 0)
        await nodes[1].api.group_follow("g", follow=False)
        await nodes[0].add("g", tmp_path / "model")
        info = await nodes[1].until_group("g", lambda info: info.contributions == 1)
        with pytest.raises(MissingBlobError) as raised:
            await nodes[1].resolve("g", tmp_path / "out")

        assert (info.is_followed, info.used) == (False, 0)
        assert "group follow g" in raised.value.hint
        assert nodes[1].services.store.blobs.digests() == []
        await nodes[1].equal("g", nodes[0])
        assert (await nodes[1].api.why("g")).groups[0].is_converged

        await nodes[1].api.group_follow("g", follow=True)
        await until_agreed("g", *nodes, used=1)
        assert (await nodes[1].resolve("g", tmp_path / "out")).inputs


async def test_who_stops_following_stops_asking(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(2) as nodes:
        await nodes[0].create_group("g", save_model(tmp_path / "model", 1.0))
        tag, blob = await nodes[0].withhold("g")
        await nodes[1].until_blobs_missing("g", tag)
        await settle()
        asked = [wanted.id.hex() for wanted in nodes[1].services.fetcher.missing()]
        await nodes[1].api.group_follow("g", follow=False)
        await settle()

        assert blob in asked
        assert nodes[1].services.fetcher.missing() == []


async def test_a_policy_with_a_new_base_reaches_every_node(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(2) as nodes:
        await nodes[0].create_group("g", base=save_model(tmp_path / "base", 1.0), strategy="task_arithmetic")
        await nodes[1].until_group("g", lambda info: info.missing_blobs == 0)
        await nodes[1].add("g", save_model(tmp_path / "model", 3.0))
        await until_agreed("g", *nodes, used=1)
        before = await nodes[1].resolve("g", tmp_path / "before")
        changed = await nodes[0].set_policy(
            "g", PolicyChanges(base_path=str(save_model(tmp_path / "new", 2.0)))
        )
        await nodes[1].until_group("g", lambda info: info.policy_version == changed.version)
        await until_agreed("g", *nodes, used=1)
        after = [await node.resolve("g", tmp_path / f"after{n}") for n, node in enumerate(nodes)]

        assert {report.base for report in after} == {changed.base}
        assert before.resolve_key != after[0].resolve_key
        assert len({report.file_sha256 for report in after}) == 1


async def test_notes_reach_the_other_nodes_and_change_no_output(tmp_path: Path) -> None:
    """PROTOCOL R9: who sent a contribution, and with which notes, never changes an output."""
    async with Site(tmp_path).nodes(2) as nodes:
        await nodes[0].create_group("g", save_model(tmp_path / "model", 1.0))
        added = await nodes[0].add("g", tmp_path / "model", meta={"data": "shard 7", "note": "zwölf"})
        await until_agreed("g", *nodes, used=1)
        tag = added.contribution.tag
        group = nodes[1].group("g")
        while not (shown := await nodes[1].api.contribution_show("g", tag)).meta:
            await nodes[1].services.keeper.beyond(group, nodes[1].services.keeper.generation(group))
        noted = await nodes[1].resolve("g", tmp_path / "noted")
        await nodes[0].add("g", tmp_path / "model")
        await until_agreed("g", *nodes, used=1)
        plain = await nodes[1].resolve("g", tmp_path / "plain")

        assert shown.meta == {"data": "shard 7", "note": "zwölf"}
        assert plain.resolve_key == noted.resolve_key


async def test_the_same_content_of_two_authors_counts_once_and_outlives_one_of_them(tmp_path: Path) -> None:
    """SCENARIOS S2: two nodes add the same content, one removes its own: still visible."""
    async with Site(tmp_path).nodes(2) as nodes:
        model, other = save_model(tmp_path / "model", 1.0), save_model(tmp_path / "other", 4.0)
        await nodes[0].create_group("g", model)
        await nodes[1].until_group("g", lambda info: info.missing_blobs == 0)
        await nodes[0].add("g", model)
        await nodes[1].add("g", model)
        await nodes[0].add("g", other, slot="other")
        await until_agreed("g", *nodes, used=3)
        twice = await nodes[0].resolve("g", tmp_path / "twice")
        await nodes[0].api.contribution_remove("g", "main")
        await until_agreed("g", *nodes, used=2)
        once = await nodes[0].resolve("g", tmp_path / "once")
        await nodes[1].api.contribution_remove("g", "main")
        await until_agreed("g", *nodes, used=1)
        gone = await nodes[0].resolve("g", tmp_path / "gone")

        assert twice.resolve_key == once.resolve_key
        assert twice.file_sha256 == once.file_sha256
        assert load_file(tmp_path / "once")["b"].tolist() == [2.5] * 4
        assert load_file(tmp_path / "gone")["b"].tolist() == [4.0] * 4
        assert gone.resolve_key != once.resolve_key


async def test_two_groups_that_share_their_bytes_both_get_them(tmp_path: Path) -> None:
    """What one group fetches is what the other waits for."""
    site = Site(tmp_path)
    model = save_model(tmp_path / "model", 1.0)
    first_dir, second_dir = site.make(), site.make()
    async with site.running(first_dir) as first:
        for name in ("one", "two"):
            await first.create_group(name, base=model)
            await first.add(name, model)
        async with site.running(second_dir, first.address) as second:
            for name in ("one", "two"):
                await until_agreed(name, first, second, used=1)
            reports = [await second.resolve(name, tmp_path / name) for name in ("one", "two")]

            assert len({report.file_sha256 for report in reports}) == 1
            assert len({report.group for report in reports}) == 2


async def test_a_group_is_named_by_its_name_or_the_beginning_of_its_id(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(1) as [node]:
        info = await node.create_group("g", save_model(tmp_path / "model", 1.0))

        assert await node.api.group_show("g") == await node.api.group_show(info.id[:8])
