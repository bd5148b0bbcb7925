"""All about a peer, asked of a node that has one."""

from __future__ import annotations

from pathlib import Path

import pytest
from crdt_merge_node import flapping
from crdt_merge_node.errors import NotFoundError
from crdt_merge_node.flapping import SAID_MAX
from crdt_merge_node.version import VERSION
from support.whole_nodes import Site, save_model, until_agreed

pytestmark = pytest.mark.asyncio


async def test_a_connected_peer_is_shown_with_its_connection_and_its_story(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(2) as (one, other):
        await one.create_group("g", save_model(tmp_path / "like", 1.0))
        await one.add("g", save_model(tmp_path / "m", 1.0))
        await until_agreed("g", one, other, used=1)
        await other.equal("g", one)
        found = await other.api.peer_show("n0")

        assert (found.peer.id, found.peer.state, found.peer.view) == (one.id.hex(), "alive", "mesh")
        assert found.agent == f"crdt-merge-node/{VERSION}"
        assert found.remote == one.address, "it was dialled"
        assert found.connected_since is not None
        assert other.services.started - 1 <= found.connected_since <= found.now
        assert found.certificate_expires == one.services.identity.certificate_expires_at
        (exchange,) = found.exchanges
        assert (exchange.group_name, exchange.is_equal, exchange.operations) == ("g", True, 1)
        assert exchange.operations == exchange.peer_operations
        assert found.events[0].event == "peer.joined"
        assert {event.fields["peer"] for event in found.events} == {one.id.hex()}
        assert (found.refusal, found.accused_by, found.missing_contributions) == ("", (), 0)


async def test_what_is_missing_of_a_peer_is_shown(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(2) as (one, other):
        await one.create_group("g", save_model(tmp_path / "like", 1.0))
        await one.add("g", save_model(tmp_path / "m", 1.0))
        await until_agreed("g", one, other, used=1)
        tag, _ = await one.withhold("g")
        await other.until_blobs_missing("g", tag)
        found = await other.api.peer_show(one.id.hex())

        assert found.missing_contributions == 1
        assert found.missing_bytes > 0


async def test_a_blocked_peer_is_shown_with_the_reason(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(2) as (one, other):
        await one.api.peer_block(other.id.hex())
        await one.until(lambda: other.id not in one.services.driver.connections)
        found = await one.api.peer_show("n1")

        assert found.peer.state == "blocked"
        assert found.refusal == "blocked by the operator of this node"
        assert (found.remote, found.connected_since, found.certificate_expires) == ("", None, None)
        told = [event.event for event in found.events]
        assert told[:3] == ["peer.joined", "peer.blocked", "peer.left"] or told[:3] == [
            "peer.joined",
            "peer.left",
            "peer.blocked",
        ]


async def test_a_peer_that_is_not_known_is_an_error(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(1) as (one,):
        with pytest.raises(NotFoundError, match='there is no peer "nobody"'):
            await one.api.peer_show("nobody")


async def test_a_peer_that_comes_and_goes_is_not_said_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left out is counted, not lost: it comes in one line when the minute is over."""
    monkeypatch.setattr(flapping, "WINDOW_S", 3600.0)  # It is over when this test says so.
    async with Site(tmp_path).nodes(2) as (one, other):
        driver = one.services.driver
        for _ in range(
            2 * SAID_MAX
        ):  # Twice as many cuts as are needed: a connection dialled beside it hides a cut.
            present = driver.connections[other.id]
            present.abort("cut by the test")
            await one.until(lambda present=present: driver.connections.get(other.id) not in (None, present))
        changes = {"peer.joined", "peer.left"}
        told = [event.event for event in one.services.events.read() if event.event in changes]
        (window,) = driver._flapping._windows.values()

        assert len(told) == SAID_MAX
        assert set(told) == changes
        assert window.silent.counts.total() >= SAID_MAX
        with one.services.events.bound():
            driver._flapping._ended(other.id)
        (flapped,) = [e for e in one.services.events.read() if e.event == "peer.flapped"]
        assert flapped.numbers["joined"] + flapped.numbers["left"] == window.silent.counts.total()
        assert flapped.fields["state"] == "alive"
