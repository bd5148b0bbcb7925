"""A member that publishes types which nobody knows fills nobody's disk (SCENARIOS T19)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from crdt_merge_node import rationing
from crdt_merge_protocol.blobs import Manifest
from support.whole_nodes import Site, WholeNode, save_model

pytestmark = pytest.mark.asyncio

COUNT = 12
NBYTES = 32 << 10


async def publish(node: WholeNode, number: int) -> str:
    tensors = {"w": np.full(NBYTES // 4, number, np.float32)}
    manifest = Manifest.of(node.put_tensors(tensors))
    return await node.contribute_raw("g", manifest, slot=f"s{number}", type="invented")


def held(node: WholeNode, tags: list[str]) -> list[str]:
    group = node.group("g")
    assert group is not None
    items = node.services.keeper.contents(group).items
    return [tag for tag in tags if items[bytes.fromhex(tag)].is_judged]


async def test_t19_of_types_nobody_knows_a_model_is_fetched_and_a_removal_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rationing, "ROOM_BYTES_MIN", 3 * NBYTES)
    async with Site(tmp_path).nodes(2) as (spammer, node):
        await spammer.create_group("g", save_model(tmp_path / "like", 1.0))
        await node.until_group("g", lambda info: info.missing_blobs == 0)
        tags = [await publish(spammer, number) for number in range(COUNT)]
        await node.until(lambda: len(node.services.engine.state(node.group("g")).adds) == COUNT)
        info = await node.until_group("g", lambda info: info.quarantined == COUNT - 3)
        await node.until_group("g", lambda info: info.missing_blobs == 0)
        kept = held(node, tags)

        assert info.used == 0
        assert len(kept) == 3
        waiting = [tag for tag in tags if tag not in kept]
        infos = {one.tag: one for one in await node.api.contribution_list("g")}
        assert all("not known to this release" in infos[tag].reason for tag in waiting)
        assert node.services.fetcher.missing() == []

        mine = await node.add("g", save_model(tmp_path / "m", 2.0))
        await spammer.until_group("g", lambda info: info.used == 1)
        await spammer.api.contribution_remove("g", kept[0])
        await node.until_group("g", lambda _info: len(held(node, waiting)) == 1)
        assert (await node.info("g")).used == 1
        assert mine.contribution.tag in {one.tag for one in await node.api.contribution_list("g")}
