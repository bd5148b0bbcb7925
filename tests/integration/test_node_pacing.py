"""A member that floods a node with valid operations is slowed; nobody else is, and nothing is lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from crdt_merge_protocol import credit
from support.whole_nodes import Site, save_model

pytestmark = pytest.mark.asyncio


async def test_a_flood_is_slowed_and_all_of_it_arrives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credit, "OPERATIONS_BURST", 8.0)
    monkeypatch.setattr(credit, "OPERATIONS_PER_S", 25.0)
    async with Site(tmp_path).nodes(3) as (flooder, node, honest):
        await flooder.create_group("g", save_model(tmp_path / "like", 1.0))
        for each in (node, honest):
            await each.until_group("g", lambda info: info.missing_blobs == 0)
        await flooder.api.peer_block(
            honest.id.hex()
        )  # Else it may pass the flood on, and be slowed for that.
        await honest.until(lambda: flooder.id not in honest.services.driver.connections)
        model = save_model(tmp_path / "m", 1.0)
        first = await flooder.add("g", model)
        manifest = flooder.services.store.blobs.get_object(bytes.fromhex(first.contribution.content))
        slots = [f"s{number}" for number in range(60)]
        tags = await asyncio.gather(*(flooder.contribute_raw("g", manifest, slot=slot) for slot in slots))
        await honest.add("g", model)
        await node.until_group("g", lambda info: info.contributions == 62)

        assert set(tags) <= {info.tag for info in await node.api.contribution_list("g")}
        slowed = [e for e in node.services.events.read() if e.event == "peer.slowed"]
        assert {event.fields["peer"] for event in slowed} == {flooder.id.hex()}
        assert node.services.driver.counters.paused_s > 0
        assert node.services.driver.connections[flooder.id].is_open


async def test_whoever_connects_anew_has_no_new_credit(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(2) as (one, other):
        pacing = one.services.driver._pacing
        pacing.received(one.services.driver.connections[other.id], (bytes(100),) * 10)
        before = pacing._credits[other.id]
        present = one.services.driver.connections[other.id]
        present.abort("cut by the test")
        await one.until(lambda: one.services.driver.connections.get(other.id) not in (None, present))
        pacing.received(one.services.driver.connections[other.id], (bytes(100),))

        assert pacing._credits[other.id] is before
