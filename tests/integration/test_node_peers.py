"""Peers on whole nodes: what is known of them, and what they cannot do."""

import asyncio
from pathlib import Path

import pytest
import structlog
from crdt_merge_node import repeats
from crdt_merge_node.transport.connection import Lane
from crdt_merge_protocol.events import MessageReceived
from crdt_merge_protocol.messages.gossip import Attest, Gossip
from support.whole_nodes import TIMEOUT_S, Site, WholeNode, save_model, until_agreed

pytestmark = pytest.mark.asyncio


async def _closed(node: WholeNode, peer: WholeNode) -> str:
    """Return why the connection to a peer ended."""
    connection = node.services.driver.connections[peer.id]
    async with asyncio.timeout(TIMEOUT_S):
        return await asyncio.shield(connection.closed)


async def test_a_peer_with_nothing_to_sync_was_synced_all_the_same(tmp_path: Path) -> None:
    """Equal roots are as good as a session that ended with them."""
    async with Site(tmp_path).nodes(2) as nodes:
        await nodes[0].create_group("g", save_model(tmp_path / "model", 1.0))
        await nodes[1].until_group("g", lambda info: info.missing_blobs == 0)
        for node, other in (nodes, nodes[::-1]):
            await node.equal("g", other)
            [info] = await node.api.peer_list()

            assert info.is_converged
            assert info.last_sync is not None
            assert info.since <= info.last_sync <= node.services.clock.now()


async def test_two_outputs_for_one_key_alarm_and_make_the_node_unhealthy(tmp_path: Path) -> None:
    """DESIGN 3.2, SCENARIOS T47: an alarm, never a silence; and it is there again after a restart."""
    site = Site(tmp_path)
    first_dir, second_dir = site.make(), site.make()
    async with site.running(first_dir) as first:
        async with site.running(second_dir, first.address, name="liar") as liar:
            await first.create_group("g", save_model(tmp_path / "model", 1.0))
            await first.add("g", tmp_path / "model")
            await until_agreed("g", first, liar, used=1)
            report = await first.resolve("g", tmp_path / "out")
            attest = Attest(
                group=first.group("g"),
                resolve_key=bytes.fromhex(report.resolve_key),
                output_digest=b"another output".ljust(32),
                profile="",
            )
            liar.services.driver.attest(attest)
            await first.until(lambda: not first.services.alarms.is_healthy)
            status = await first.api.status()
            detail = await first.api.group_show("g")
            again = await first.resolve("g", tmp_path / "again")

            assert not status.is_healthy
            assert [(alarm.code, alarm.severity) for alarm in status.alarms] == [
                ("resolve.disagreed", "damage")
            ]
            assert "liar" in status.alarms[0].message
            assert {output.is_agreeing for output in detail.outputs} == {False}
            assert again.disagreeing == (liar.id.hex(),)
        async with site.running(second_dir, first.address, name="liar") as liar:
            await first.connected(liar)

            assert not (await first.api.status()).is_healthy


async def test_who_breaks_the_protocol_is_cut_and_nothing_else_happens(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(3) as nodes:
        await nodes[0].create_group("g", save_model(tmp_path / "model", 1.0))
        for node in nodes[1:]:
            await node.until_group("g", lambda info: info.missing_blobs == 0)
        group = nodes[0].group("g")
        ended = asyncio.ensure_future(_closed(nodes[0], nodes[1]))
        await asyncio.sleep(0)
        hostile = nodes[1].services.driver.connections[nodes[0].id]
        now = nodes[0].services.clock.monotonic()
        with structlog.testing.capture_logs() as lines:
            hostile.send(Gossip(group=group, operations=(b"garbage",)), Lane.OPERATIONS)
            reason = await ended
        refusal = nodes[0].services.engine.overlay.refusal(nodes[1].id, now=now)  # It lasts a second.
        refused = [line for line in lines if line["event"] == "peer.refused"]
        added = await nodes[2].add("g", tmp_path / "model")
        await nodes[0].until_state("g", added.contribution.tag, "used")

        assert "canonical" in reason
        assert refused[0]["error_code"] == "E1201"
        assert "broke the protocol" in refusal
        assert not nodes[0].running.failed.done()


async def test_a_bug_that_a_message_meets_ends_its_connection_and_not_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN 3.4: nothing a peer sends can break a node, not even where we are wrong."""
    async with Site(tmp_path).nodes(2) as nodes:
        await nodes[0].create_group("g", save_model(tmp_path / "model", 1.0))
        handle = nodes[0].services.engine.handle

        def fail_at_attest(event, *, now):
            if isinstance(event, MessageReceived) and isinstance(event.message, Attest):
                raise KeyError("a bug")
            return handle(event, now=now)

        monkeypatch.setattr(nodes[0].services.engine, "handle", fail_at_attest)
        attest = Attest(group=bytes(32), resolve_key=bytes(32), output_digest=bytes(32), profile="")
        ended = asyncio.ensure_future(_closed(nodes[0], nodes[1]))
        await asyncio.sleep(0)
        with structlog.testing.capture_logs() as lines:
            nodes[1].services.driver.attest(attest)
            for connection in nodes[1].services.driver.connections.values():
                connection.send(attest, Lane.OPERATIONS)
            await ended
        [failed] = [line for line in lines if line["event"] == "message.failed"]

        assert (failed["message"], failed["log_level"]) == ("Attest", "error")
        assert not nodes[0].running.failed.done()
        assert (await nodes[0].api.status()).is_healthy


async def test_a_blocked_peer_is_refused_once_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dials again and again; the log does not say so again and again (STYLE 4.5)."""
    monkeypatch.setattr(repeats, "INTERVAL_S", 3600.0)  # However long a minute's worth of dials takes here.
    async with Site(tmp_path).nodes(2) as nodes:
        blocker, blocked = nodes
        with structlog.testing.capture_logs() as lines:
            await blocker.api.peer_block(blocked.id.hex())
            await blocked.until(lambda: blocked.services.engine.overlay.peers[blocker.id].attempts >= 3)
        refusals = [line for line in lines if line["event"] == "peer.refused"]
        [seen] = await blocker.api.peer_list()
        [reason] = (await blocked.api.peer_list())[0].last_error.split("\n")

        assert len(refusals) == 2, "one on each side"
        assert all("blocked by the operator" in line["reason"] for line in refusals)
        assert seen.state == "blocked"
        assert "blocked by the operator" in reason

        await blocker.api.peer_unblock("n1")
        await blocker.connected(blocked)
        assert (await blocker.api.peer_list())[0].state == "alive"
