"""Backups of nodes at work, and what becomes of a node that is restored from an old one (T34, T35)."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import apsw
import pytest
from click.testing import CliRunner
from crdt_merge_node.cli.app import root
from crdt_merge_node.control.model import BackupReport, PolicyChanges, Progress
from crdt_merge_node.errors import ConfigError, CorruptError, NotFoundError, NotReadyError, PeerRefusedError
from crdt_merge_node.ports import SeededRng, SystemClock, SystemFs, TcpNet
from crdt_merge_node.storage.backup import MANIFEST, UNFINISHED, read_manifest
from crdt_merge_node.storage.restore import restore_backup, unmark, verify_backup
from crdt_merge_node.transport.join import join
from support.whole_nodes import TIMEOUT_S, Site, WholeNode, last, save_model, until_agreed

pytestmark = pytest.mark.asyncio

LARGE_ROWS = 100_000
"""Of a model whose matrix is a file and no row."""


async def _back_up(
    node: WholeNode, target: Path, *, with_keys: bool = True, copy: bool = False
) -> BackupReport:
    report: BackupReport = await last(node.api.backup(path=str(target), with_keys=with_keys, copy=copy))
    return report


def _restore(source: Path, data_dir: Path, *, is_alone: bool = False) -> Any:
    return restore_backup(source, data_dir, is_alone=is_alone, fs=SystemFs(), clock=SystemClock())


def _verify(source: Path) -> list[str]:
    return [found.kind for found in verify_backup(source, fs=SystemFs(), clock=SystemClock())]


async def _cli(*arguments: str) -> Any:
    return await asyncio.to_thread(CliRunner().invoke, root, arguments)


async def test_an_old_backup_in_a_live_cluster_loses_nothing_and_resurrects_nothing(tmp_path: Path) -> None:
    """Acknowledged after the backup and held by a peer: it is back. Removed after it: it stays removed."""
    site = Site(tmp_path)
    a_dir, b_dir = site.make(), site.make()
    async with site.running(a_dir, name="a") as a:
        async with site.running(b_dir, a.address, name="b") as b:
            await a.create_group("g", save_model(tmp_path / "model", 1.0))
            await b.until_group("g", lambda info: info.missing_blobs == 0)
            doomed = await b.add("g", save_model(tmp_path / "doomed", 2.0), slot="doomed")
            old = await b.add("g", save_model(tmp_path / "old", 3.0))
            await until_agreed("g", a, b, used=2)
            await _back_up(b, tmp_path / "backup")
            await b.api.contribution_remove("g", doomed.contribution.tag)
            new = await b.add("g", save_model(tmp_path / "new", 4.0))
            await a.until_state("g", new.contribution.tag, "used")
            root_before, author = a.root("g"), b.id
        shutil.rmtree(b_dir)
        _restore(tmp_path / "backup", b_dir)
        async with site.running(b_dir, a.address, name="b") as b:
            await asyncio.wait_for(b.services.driver.standing.until_open("restored"), TIMEOUT_S)
            await until_agreed("g", a, b, used=1)
            after = await b.add("g", save_model(tmp_path / "after", 5.0), slot="after")
            await until_agreed("g", a, b, used=2)
            await a.until_state("g", after.contribution.tag, "used")
            states = {item.tag: item.state for item in await a.api.contribution_list("g")}

            assert b.id == author
            assert not (b_dir / "RESTORED").exists()
            assert states == {
                new.contribution.tag: "used",
                after.contribution.tag: "used",
                old.contribution.tag: "hidden",
                doomed.contribution.tag: "hidden",
            }
            assert a.services.engine.replicas[a.group("g")].state.view.forked == frozenset()
            assert root_before != a.root("g")
            assert (await b.api.status()).alarms == ()


async def test_until_then_it_acknowledges_nothing_serves_no_bytes_and_admits_nobody(tmp_path: Path) -> None:
    site = Site(tmp_path)
    a_dir, b_dir = site.make(), site.make()
    async with site.running(a_dir) as a:
        await a.create_group("g", save_model(tmp_path / "model", 1.0))
        await a.add("g", save_model(tmp_path / "mine", 2.0))
        await _back_up(a, tmp_path / "backup")
    shutil.rmtree(a_dir)
    _restore(tmp_path / "backup", a_dir)
    async with site.running(a_dir) as a:
        assert [alarm.code for alarm in (await a.api.status()).alarms] == ["node.restored"]
        before = len(a.services.store.blobs.digests())
        with pytest.raises(NotReadyError, match="has not heard yet what happened"):
            await a.add("g", save_model(tmp_path / "early", 3.0), slot="early")
        with pytest.raises(NotReadyError):
            await a.set_policy("g", PolicyChanges(holders=1))
        with pytest.raises(NotReadyError):
            await a.create_group("h", tmp_path / "model")
        assert len(a.services.store.blobs.digests()) == before
        token = (await a.api.invite(expires_s=600.0)).token
        fs, rng, clock = SystemFs(), SeededRng(9), SystemClock()
        with pytest.raises(PeerRefusedError, match="has not heard yet"):
            await join(token, tmp_path / "new", fs=fs, net=TcpNet(), clock=clock, rng=rng)
        a.services.driver.standing.close("test", "the test holds it back", is_serving=False)
        async with site.running(b_dir, a.address) as b:
            await asyncio.wait_for(a.services.driver.standing.until_open("restored"), TIMEOUT_S)
            await b.until(lambda: b.services.fetcher.missing() != [])

            assert (await b.info("g")).used == 0
            assert b.services.store.blobs.digests() == []
            a.services.driver.standing.open("test")
            await b.until_group("g", lambda info: info.used == 1)


async def test_alone_it_goes_on_at_once(tmp_path: Path) -> None:
    site = Site(tmp_path)
    data_dir = site.make()
    async with site.running(data_dir) as node:
        await node.create_group("g", save_model(tmp_path / "model", 1.0))
        await node.add("g", save_model(tmp_path / "mine", 2.0))
        await _back_up(node, tmp_path / "backup")
    shutil.rmtree(data_dir)
    _restore(tmp_path / "backup", data_dir, is_alone=True)
    async with site.running(data_dir) as node:
        assert (await node.info("g")).used == 1
        await node.add("g", save_model(tmp_path / "more", 3.0), slot="more")
    _restore(tmp_path / "backup", tmp_path / "other")
    unmark(tmp_path / "other", SystemFs())  # What `run --alone` does.
    async with site.running(tmp_path / "other") as node:
        await node.add("g", tmp_path / "more", slot="more")


async def test_an_invitation_that_was_used_since_does_not_come_back(tmp_path: Path) -> None:
    site = Site(tmp_path)
    data_dir = site.make()
    async with site.running(data_dir) as node:
        await node.api.invite(expires_s=600.0)
        await _back_up(node, tmp_path / "backup")
        assert await node.services.store.scan_meta("invite/")
    _restore(tmp_path / "backup", tmp_path / "other")
    async with site.running(tmp_path / "other") as node:
        assert await node.services.store.scan_meta("invite/") == []


async def test_a_node_that_knew_of_no_group_waits_for_nobody(tmp_path: Path) -> None:
    site = Site(tmp_path)
    data_dir = site.make()
    async with site.running(data_dir) as node:
        await _back_up(node, tmp_path / "backup")
    _restore(tmp_path / "backup", tmp_path / "other")
    async with site.running(tmp_path / "other") as node:
        await node.create_group("g", save_model(tmp_path / "model", 1.0))
    assert not (tmp_path / "other" / "RESTORED").exists()


@pytest.mark.parametrize("copy", [False, True], ids=["shared", "copied"])
async def test_a_backup_made_at_work_is_whole(tmp_path: Path, *, copy: bool) -> None:
    """While contributions come in, and with blobs that are files."""
    site = Site(tmp_path)
    data_dir = site.make()
    async with site.running(data_dir) as node:
        await node.create_group("g", save_model(tmp_path / "model", 1.0, rows=LARGE_ROWS))
        for number in range(3):
            path = save_model(tmp_path / f"m{number}", float(number), rows=LARGE_ROWS)
            await node.add("g", path, slot=f"s{number}")
        path = save_model(tmp_path / "late", 9.0, rows=LARGE_ROWS)
        report, _ = await asyncio.gather(
            _back_up(node, tmp_path / "backup", copy=copy), node.add("g", path, slot="late")
        )
        node_id = node.id.hex()
    manifest = read_manifest(tmp_path / "backup", SystemFs())

    assert _verify(tmp_path / "backup") == []
    assert (manifest.node, report.node, report.has_keys) == (node_id, node_id, True)
    assert report.blobs == manifest.blobs >= 4
    assert (report.linked_bytes > 0) is (not copy)
    for key in (tmp_path / "backup" / "keys").rglob("*.key"):
        assert key.stat().st_mode & 0o777 == 0o600
    _restore(tmp_path / "backup", tmp_path / "other", is_alone=True)
    async with site.running(tmp_path / "other") as node:
        info = await node.until_group("g", lambda info: info.used >= 3)
        assert info.missing_blobs == 0


async def test_without_being_asked_no_key_is_in_a_backup(tmp_path: Path) -> None:
    site = Site(tmp_path)
    data_dir, other_dir = site.make(), site.make()
    async with site.running(data_dir) as node:
        await node.create_group("g", save_model(tmp_path / "model", 1.0))
        await _back_up(node, tmp_path / "backup", with_keys=False)
    seed = (data_dir / "identity" / "node.key").read_bytes()

    assert not (tmp_path / "backup" / "keys").exists()
    assert all(seed not in path.read_bytes() for path in (tmp_path / "backup").rglob("*") if path.is_file())
    with pytest.raises(ConfigError, match="has no keys"):
        _restore(tmp_path / "backup", tmp_path / "other")
    _restore(tmp_path / "backup", other_dir, is_alone=True)  # A member with keys of its own.
    async with site.running(other_dir) as node:
        assert node.group("g") is not None


async def test_an_interrupted_backup_goes_on(tmp_path: Path) -> None:
    site = Site(tmp_path)
    data_dir = site.make()
    target = tmp_path / "backup"
    async with site.running(data_dir) as node:
        await node.create_group("g", save_model(tmp_path / "model", 1.0, rows=LARGE_ROWS))
        await node.add("g", tmp_path / "model")
        await node.add("g", save_model(tmp_path / "other", 2.0, rows=LARGE_ROWS), slot="other")
        events = node.api.backup(path=str(target), with_keys=False, copy=True)
        assert isinstance(await anext(events), Progress)
        await events.aclose()  # type: ignore[attr-defined]  # A generator, which the type does not promise.
        if not (target / MANIFEST).exists():  # It may have been faster than the one who cancelled.
            assert (target / UNFINISHED).exists()
            with pytest.raises(NotFoundError, match="not finished"):
                _verify(target)
            await _back_up(node, target, with_keys=False, copy=True)
        assert _verify(target) == []
        with pytest.raises(ConfigError, match="finished backup"):
            await _back_up(node, target)
        for bad in (data_dir / "inside", tmp_path):
            with pytest.raises(ConfigError):
                await _back_up(node, bad)


async def _made(tmp_path: Path) -> Path:
    site = Site(tmp_path)
    async with site.running(site.make()) as node:
        await node.create_group("g", save_model(tmp_path / "model", 1.0, rows=LARGE_ROWS))
        await node.add("g", tmp_path / "model")
        await _back_up(node, tmp_path / "backup", copy=True)
    return tmp_path / "backup"


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


async def test_damage_to_a_backup_is_found_and_nothing_is_restored_of_it(tmp_path: Path) -> None:
    backup = await _made(tmp_path)
    [blob] = [path for path in (backup / "blobs").rglob("*") if path.is_file()]
    for damaged, kind in (
        (blob, "blob"),
        (backup / "ops.db", "database"),
        (backup / "keys/identity/node.key", "identity"),
    ):
        before = damaged.read_bytes()
        _flip(damaged)
        assert kind in _verify(backup), damaged
        with pytest.raises(CorruptError, match="is damaged"):
            _restore(backup, tmp_path / "other")
        assert not (tmp_path / "other").exists()
        damaged.write_bytes(before)
    connection = apsw.Connection(str(backup / "ops.db"))
    connection.execute("DELETE FROM operations WHERE position = 1")
    connection.close()
    assert "database" in _verify(backup)
    (backup / MANIFEST).write_text("{")
    with pytest.raises(CorruptError):
        _verify(backup)


async def test_a_directory_with_data_is_never_restored_over(tmp_path: Path) -> None:
    backup = await _made(tmp_path)
    with pytest.raises(ConfigError, match="has data already"):
        _restore(backup, tmp_path / "node-0")


async def test_the_commands_do_it_for_a_node_that_is_stopped(tmp_path: Path) -> None:
    await _made(tmp_path)
    data_dir, target, other = tmp_path / "node-0", tmp_path / "second", tmp_path / "other"
    settings = '[node]\nname = "alpha"\n'
    (data_dir / "config.toml").write_text(settings)
    made = await _cli("--data-dir", str(data_dir), "backup", str(target), "--with-keys", "--json")
    checked = await _cli("backup", "verify", str(target), "--json")
    restored = await _cli("--data-dir", str(other), "restore", str(target), "--json")
    fsck = await _cli("--data-dir", str(other), "fsck")
    [blob] = [path for path in (target / "blobs").rglob("*") if path.is_file()]
    blob.unlink()
    damaged = await _cli("backup", "verify", str(target))
    results = [json.loads(each.stdout.splitlines()[-1]) for each in (made, checked, restored)]

    assert [each.exit_code for each in (made, checked, restored, fsck, damaged)] == [0, 0, 0, 0, 7], (
        made.stderr
    )
    assert [each["schema"] for each in results] == ["backup/1", "backup-verify/1", "restore/1"]
    assert results[1]["is_whole"] is True
    assert results[2]["waits_for_peer"] is True
    assert {each["node"] for each in results} == {results[0]["node"]}
    assert (other / "RESTORED").exists()
    assert (other / "config.toml").read_text() == settings
    assert "its file is gone" in damaged.stdout
