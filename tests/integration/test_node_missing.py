"""Bytes that are not here: named, waited for, left out, and in nobody else's way (SCENARIOS T48, T24)."""

from pathlib import Path

import pytest
from crdt_merge_node import wishes
from crdt_merge_protocol.errors import MissingBlobError
from support.whole_nodes import TIMEOUT_S, Site, save_model, until_agreed

pytestmark = pytest.mark.asyncio


async def test_a_resolve_names_what_is_missing_and_of_whom(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(2) as nodes:
        await nodes[0].create_group("g", save_model(tmp_path / "model", 1.0))
        await nodes[0].add("g", tmp_path / "model")
        await until_agreed("g", *nodes, used=1)
        tag, blob = await nodes[0].withhold("g")
        await nodes[1].until_blobs_missing("g", tag)
        with pytest.raises(MissingBlobError) as raised:
            await nodes[1].resolve("g", tmp_path / "out")
        [shown] = [info for info in await nodes[1].api.contribution_list("g") if info.tag == tag]
        [reason] = [reason for reason in (await nodes[1].api.why("g")).groups[0].reasons if reason.missing]

        assert tag[:12] in raised.value.message
        assert blob[:12] in raised.value.message
        assert "of n0" in raised.value.message
        assert "--without" in raised.value.hint
        assert not (tmp_path / "out").exists()
        assert (shown.state, shown.missing_blobs) == ("missing", 1)
        assert reason.missing == (blob,)


async def test_without_leaves_out_what_is_missing(tmp_path: Path) -> None:
    """The rest resolves under another key: the one that it would have had alone."""
    async with Site(tmp_path).nodes(2) as nodes:
        await nodes[0].create_group("g", save_model(tmp_path / "model", 1.0))
        await nodes[0].add("g", tmp_path / "model")
        await until_agreed("g", *nodes, used=1)
        control = await nodes[1].resolve("g", tmp_path / "control")
        tag, _ = await nodes[0].withhold("g")
        await nodes[1].until_blobs_missing("g", tag)
        report = await nodes[1].resolve("g", tmp_path / "out", without=(tag,))

        assert (report.resolve_key, report.file_sha256) == (control.resolve_key, control.file_sha256)
        assert [info.tag for info in report.excluded] == [tag]


async def test_what_is_pending_does_not_keep_a_group_from_resolving(tmp_path: Path) -> None:
    """With holders, whoever withholds its bytes is alone with its contribution."""
    async with Site(tmp_path).nodes(2) as nodes:
        await nodes[0].create_group("g", save_model(tmp_path / "model", 1.0), holders=1)
        await nodes[0].add("g", tmp_path / "model", wait_holds=1)
        tag, _ = await nodes[0].withhold("g")
        await nodes[1].until_state("g", tag, "pending")
        report = await nodes[1].resolve("g", tmp_path / "out")

        assert [info.tag for info in report.excluded] == [tag]
        assert len(report.inputs) == 1


async def test_a_resolve_waits_for_bytes_and_ends_with_them(tmp_path: Path) -> None:
    site = Site(tmp_path)
    model = save_model(tmp_path / "model", 1.0, rows=1 << 18)
    first_dir, second_dir = site.make(), site.make()
    async with site.running(first_dir) as first, site.running(second_dir, first.address) as second:
        await first.create_group("g", model)
        await first.add("g", model)
        await second.until(lambda: second.root("g") == first.root("g"))
        report = await second.resolve("g", tmp_path / "out", wait_s=TIMEOUT_S)

        assert report.nbytes > 1 << 22


async def test_an_author_who_withholds_much_waits_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PROTOCOL R14: no author can block a group, nor the fetching of others' bytes."""
    monkeypatch.setattr(wishes, "WISHES_PER_OWNER_MAX", 3)
    async with Site(tmp_path).nodes(3) as nodes:
        await nodes[0].create_group("g", save_model(tmp_path / "model", 1.0))
        for node in nodes[1:]:
            await node.until_group("g", lambda info: info.missing_blobs == 0)
        for number in range(10):
            content = number.to_bytes(32, "big")
            await nodes[0].contribute_raw("g", content, slot=f"s{number}")
            nodes[0].services.store.blobs._objects._ids.clear()  # The bytes are gone: nobody has them.
        await nodes[2].until_group("g", lambda info: info.contributions == 10)
        added = await nodes[1].add("g", tmp_path / "model")
        await nodes[2].until_state("g", added.contribution.tag, "used")

        assert len(nodes[2].services.fetcher.missing()) == 3
