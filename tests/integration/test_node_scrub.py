"""Damage on a whole node: found by the scrub, mended by a peer, and an alarm if there is none."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from crdt_merge_node import scrub as scrub_module
from support.whole_nodes import TIMEOUT_S, Site, WholeNode, save_model, until_agreed

pytestmark = pytest.mark.asyncio

ROWS = 50_000


def _damage(node: WholeNode) -> bytes:
    """Flip a bit of a blob that is a file; return its digest."""
    [path] = [path for path in (node.services.config.node.data_dir / "blobs").rglob("*") if path.is_file()]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return bytes.fromhex(path.parent.name + path.name)


async def _scrub_once(node: WholeNode) -> None:
    """Let a pass of the node's scrub go by as fast as it can."""
    scrub = node.services.scrub
    async with asyncio.timeout(TIMEOUT_S):
        await scrub._pass()


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PASS_S", "REST_RATIO"):
        monkeypatch.setattr(scrub_module, name, 0.0)
    monkeypatch.setattr(scrub_module, "LOST_S", 0.01)


async def test_a_peer_mends_what_the_scrub_finds(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(2) as (node, other):
        await node.create_group("g", save_model(tmp_path / "model", 1.0, rows=ROWS))
        tag = (await node.add("g", tmp_path / "model")).contribution.tag
        await until_agreed("g", node, other, used=1)
        digest = _damage(node)
        await _scrub_once(node)
        await node.until_state("g", tag, "used")
        assert any((node.services.config.node.data_dir / "quarantine").iterdir())
        await asyncio.to_thread(node.services.store.blobs.verify, digest)
        async with asyncio.timeout(TIMEOUT_S):  # The scrub looks, too: it forgets, then clears.
            while node.services.scrub._damaged or not node.services.alarms.is_healthy:
                await node.services.scrub._look_at_damage()
        assert (await node.api.status()).is_healthy


async def test_what_no_peer_has_is_an_alarm_and_never_dropped_in_silence(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(1) as (node,):
        await node.create_group("g", save_model(tmp_path / "model", 1.0, rows=ROWS))
        tag = (await node.add("g", tmp_path / "model")).contribution.tag
        digest = _damage(node)
        await _scrub_once(node)
        info = await node.until_state("g", tag, "missing")
        alarms = node.services.alarms
        async with asyncio.timeout(TIMEOUT_S):
            while alarms.is_healthy:
                await asyncio.to_thread(lambda: None)  # Time passes.
                await node.services.scrub._look_at_damage()
        [alarm] = [alarm for alarm in alarms.standing() if alarm.code == "blob.lost"]

        assert digest.hex()[:12] in alarm.message
        assert info.missing_blobs == 1
        assert not (await node.api.status()).is_healthy
