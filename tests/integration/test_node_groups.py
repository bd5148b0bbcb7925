"""Groups on whole nodes: following, policies, notes, duplicates, several at once."""

from pathlib import Path

import numpy as np
import pytest
from crdt_merge_node.control.model import PolicyChanges
from crdt_merge_protocol.blobs import Manifest
from crdt_merge_protocol.errors import DTypeMismatchError, MissingBlobError, ParameterError
from safetensors.numpy import load_file, save_file
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
        await nodes[1].info("g")  # A comparison that began after this has ended.
        await settle()
        asked = [wanted.id.hex() for wanted in nodes[1].services.fetcher.missing()]
        await nodes[1].api.group_follow("g", follow=False)
        await nodes[1].info("g")
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


async def test_a_group_takes_other_float_types_once_its_policy_says_so(tmp_path: Path) -> None:
    """By default the schema fixes them; with ``any`` the values count and the base's type is written."""
    wide = {"w": np.full((3, 4), 1 / 3), "b": np.full(4, 2.0, np.float16)}
    save_file(wide, tmp_path / "wide")
    async with Site(tmp_path).nodes(2) as nodes:
        await nodes[0].create_group("g", base=save_model(tmp_path / "base", 0.0))
        await nodes[1].until_group("g", lambda info: info.missing_blobs == 0)
        await nodes[1].add("g", save_model(tmp_path / "model", 1.0))
        with pytest.raises(DTypeMismatchError, match="element type F16, expected F32"):
            await nodes[0].add("g", tmp_path / "wide")
        tag = await nodes[0].contribute_raw("g", Manifest.of(nodes[0].put_tensors(wide)))
        aside = await nodes[1].until_state("g", tag, "quarantined")
        await nodes[0].set_policy("g", PolicyChanges(dtype="any"))
        for node in nodes:
            await node.until_state("g", tag, "used")
        again = await nodes[0].add("g", tmp_path / "wide", slot="again")
        await until_agreed("g", *nodes, used=3)
        reports = [await node.resolve("g", tmp_path / f"out{number}") for number, node in enumerate(nodes)]
        found = load_file(tmp_path / "out0")
        await nodes[0].set_policy("g", PolicyChanges(dtype="any:F16"))
        await nodes[1].until_group("g", lambda info: info.resolve_key not in {"", reports[0].resolve_key})
        await nodes[1].resolve("g", tmp_path / "narrow")

    assert "element type" in aside.reason
    assert again.contribution.state == "used"
    assert {report.file_sha256 for report in reports} == {reports[0].file_sha256}
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(found["w"], np.full((3, 4), (1 + 1 / 3) / 2, np.float32))
    assert load_file(tmp_path / "narrow")["w"].dtype == np.float16


@pytest.mark.parametrize("dtype", ["any:", "any:any", "any:I32", "F33"])
async def test_what_is_no_element_type_of_a_policy_is_refused(tmp_path: Path, dtype: str) -> None:
    async with Site(tmp_path).nodes(1) as nodes:
        with pytest.raises(ParameterError, match="no element type"):
            await nodes[0].create_group("g", save_model(tmp_path / "model", 1.0), dtype=dtype)


async def test_a_policy_that_is_in_force_already_is_not_written_again(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(1) as [node]:
        base = save_model(tmp_path / "base", 1.0)
        await node.create_group("g", base=base, strategy="ties")
        operations = (await node.info("g")).operations
        same = PolicyChanges(strategy="ties", params={"density": ""}, base_path=str(base), holders=0)
        unchanged = await node.set_policy("g", same)
        changed = await node.set_policy("g", PolicyChanges(params={"density": "0.5"}))

        assert unchanged.version + 1 == changed.version
        assert (await node.info("g")).operations == operations + 1


async def test_a_group_of_quantised_models_is_refused_before_it_is_made(tmp_path: Path) -> None:
    save_file({"l.qweight": np.zeros((2, 2), np.int32), "l.scales": np.ones(2)}, tmp_path / "codes")
    async with Site(tmp_path).nodes(1) as [node]:
        with pytest.raises(DTypeMismatchError, match="quantised"):
            await node.create_group("like", tmp_path / "codes")
        with pytest.raises(DTypeMismatchError, match="quantised"):
            await node.create_group("base", base=tmp_path / "codes", strategy="task_arithmetic")
        await node.create_group("g", base=save_model(tmp_path / "base", 1.0), strategy="task_arithmetic")
        with pytest.raises(DTypeMismatchError, match="quantised"):
            await node.set_policy("g", PolicyChanges(base_path=str(tmp_path / "codes")))

        assert [group.name for group in await node.api.group_list()] == ["g"]
