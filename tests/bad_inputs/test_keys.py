"""Keys in the wrong hands or places (SCENARIOS 6.2: B65, B72; T4, T34).

Key files of the wrong size, mode or owner (B71) are in ``tests/unit/transport/test_identity.py``.
"""

import asyncio
import shutil
from pathlib import Path

import pytest
import structlog
from crdt_merge_node import cloning
from crdt_merge_node.alarms import Alarms
from crdt_merge_node.cloning import CloneAlarm, Instances, instance_in, new_instance
from crdt_merge_protocol.errors import BadSignatureError
from crdt_merge_protocol.identity import check_public_key
from support.bulk import LoopClock, run
from support.whole_nodes import TIMEOUT_S, Site, WholeNode, save_model


def alarmed(node: WholeNode) -> list[str]:
    return [alarm.message for alarm in node.services.alarms.standing() if alarm.code == "node.cloned"]


async def until_alarmed(node: WholeNode) -> str:
    async with asyncio.timeout(TIMEOUT_S):
        while not (found := alarmed(node)):  # noqa: ASYNC110 - alarms tell nobody.
            await asyncio.sleep(0.01)
    return found[0]


@pytest.mark.asyncio
async def test_b72_two_copies_of_one_directory_harm_nothing_and_both_learn_of_each_other(tmp_path: Path):
    """T34: each start has a log of its own, so nobody forks; all that both said is kept everywhere."""
    site = Site(tmp_path)
    home, other = site.make(), site.make()
    async with site.running(home, name="once") as node:
        await node.create_group("g", save_model(tmp_path / "model", 1.0))
        await node.add("g", save_model(tmp_path / "first", 1.0), slot="first")
    twin_home = tmp_path / "copy"
    shutil.copytree(home, twin_home)
    (twin_home / "LOCK").unlink()
    with structlog.testing.capture_logs():
        async with site.running(other, name="other") as peer:
            async with site.running(twin_home, name="twice") as twin:
                async with site.running(home, peer.address, twin.address, name="once") as node:
                    said = [await until_alarmed(node), await until_alarmed(twin)]
                    health = [(await one.api.status()).is_healthy for one in (node, twin)]
                    tags = [await add(node, tmp_path, "of-one"), await add(twin, tmp_path, "of-two")]
                    await peer.until(lambda: bytes.fromhex(tags[0]) in ids(peer))
                twin.services.engine.overlay.add_seed(peer.address)
                twin.services.driver.start()
                await peer.until(lambda: {bytes.fromhex(tag) for tag in tags} <= ids(peer))
            async with site.running(home, peer.address, name="once") as node:
                await node.until(lambda: ids(node) == ids(peer))
                view = node.services.engine.state(node.group("g")).view

    assert all("runs twice" in message for message in said)
    assert health == [False, False]
    assert {shown.tag.hex() for shown in view.visible} >= set(tags), "an author without forks is not hidden"


async def add(node: WholeNode, directory: Path, slot: str) -> str:
    added = await node.add("g", save_model(directory / slot, float(len(slot))), slot=slot)
    return added.contribution.tag


def ids(node: WholeNode) -> set[bytes]:
    group = node.group("g")
    state = node.services.engine.state(group) if group else None
    return {signed.id for signed in state.causal()} if state else set()


@pytest.mark.asyncio
async def test_b72_a_peer_that_sees_two_copies_take_turns_raises_the_alarm(tmp_path: Path):
    """The copies never meet each other: each takes the other's place at the peer, until one comes back."""
    site = Site(tmp_path)
    watcher_home, home = site.make(), site.make()
    async with site.running(home, name="once"):
        pass
    twin_home = tmp_path / "copy"
    shutil.copytree(home, twin_home)
    (twin_home / "LOCK").unlink()
    with structlog.testing.capture_logs():
        async with (
            site.running(watcher_home) as watcher,
            site.running(home, watcher.address, name="once") as node,
        ):
            await watcher.connected(node)
            async with site.running(twin_home, watcher.address, name="once"):
                message = await until_alarmed(watcher)

    assert message.startswith("node once runs twice")
    assert node.id.hex()[:12] in message


@pytest.mark.asyncio
async def test_b72_a_node_that_restarts_ever_so_often_is_no_copy(tmp_path: Path):
    site = Site(tmp_path)
    watcher_home, home = site.make(), site.make()
    async with site.running(watcher_home) as watcher:
        for _ in range(4):
            async with site.running(home, watcher.address) as node:
                await watcher.connected(node)
        assert alarmed(watcher) == []


@pytest.mark.asyncio
async def test_b72_a_node_that_dials_itself_is_no_copy(tmp_path: Path):
    """Whoever puts all nodes into one list of seeds has put each into its own."""
    site = Site(tmp_path)
    home = site.make()
    async with site.running(home) as node:
        node.services.engine.overlay.add_seed(node.address)
        with structlog.testing.capture_logs() as lines:
            node.services.driver.start()
            async with asyncio.timeout(TIMEOUT_S):
                while not any("same node" in str(line) for line in lines):  # noqa: ASYNC110 - logs tell nobody.
                    await asyncio.sleep(0.01)

        assert alarmed(node) == []


@pytest.mark.asyncio
async def test_b72_only_an_instance_that_comes_back_is_a_copy():
    met = Instances()

    assert [met.comes_back(one) for one in "aabbccc"] == [False] * 7
    assert met.comes_back("a")
    assert met.comes_back("b")
    assert not met.comes_back("")
    assert not met.comes_back("b")
    assert not any(met.comes_back(f"new {number}") for number in range(1000))


@pytest.mark.asyncio
async def test_b72_every_start_has_another_instance_and_hello_names_it():
    instances = {new_instance(bytes(32), 1_800_000_000.0 + step * 1e-6) for step in range(1000)}

    assert len(instances) == 1000
    assert instance_in(("name=x", "instance=abc")) == "abc"
    assert instance_in(("name=x",)) == ""


def test_b72_the_alarm_ends_after_a_calm_hour(monkeypatch: pytest.MonkeyPatch):
    calm_s = cloning.CALM_S / 10  # The virtual hour of a test is one hour long.
    monkeypatch.setattr(cloning, "CALM_S", calm_s)

    async def scenario() -> None:
        alarms = Alarms(LoopClock())
        clones = CloneAlarm(alarms)
        with structlog.testing.capture_logs() as lines:
            clones.raise_for(bytes(32), "127.0.0.1:1", is_own=False)
            await asyncio.sleep(calm_s / 2)
            clones.raise_for(bytes(32), "127.0.0.1:2", is_own=False)
            await asyncio.sleep(calm_s - 1)

            assert not alarms.is_healthy
            assert "127.0.0.1:2" in alarms.standing()[0].message
            await asyncio.sleep(2)
        assert alarms.is_healthy
        assert [line["event"] for line in lines] == ["node.cloned"]

    run(scenario())


BAD_KEYS = {
    "zero": bytes(32),
    "identity": b"\x01" + bytes(31),
    "minus one": b"\xec" + b"\xff" * 30 + b"\x7f",
    "not canonical": b"\xed" + b"\xff" * 31,
    "none": b"",
    "long": bytes(33),
}


@pytest.mark.parametrize("case", BAD_KEYS)
def test_b28_a_node_id_that_is_no_good_point_is_no_id(case):
    with pytest.raises(BadSignatureError):
        check_public_key(BAD_KEYS[case])
