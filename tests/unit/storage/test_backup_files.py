"""Backups and checks of blobs that stand in users' files, on file systems of each kind."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
from crdt_merge_node.errors import StorageError
from crdt_merge_node.ports import SeededRng, SystemFs
from crdt_merge_node.storage import DataDir, Store
from crdt_merge_node.storage.backup import Origin, Written, write_backup
from crdt_merge_node.storage.findings import nothing
from crdt_merge_node.storage.fsck import fsck
from crdt_merge_node.storage.restore import restore_backup, verify_backup
from crdt_merge_protocol.blobs import blob_digest_of
from support.file_systems import SharingFs, StubbornFs
from support.machines import GENESIS, GROUP, StillClock

pytestmark = [pytest.mark.asyncio, pytest.mark.usefixtures("lines")]

A, B = b"\x01" * ((1 << 20) + 5), b"\x02" * 100_000
DATA = b"head" + A + B
ORIGIN = Origin(release="1", node="ab" * 32, cluster="cd" * 32, cluster_name="prod")


async def _keep(data_dir: Path, source: Path) -> None:
    """Make a store of which one blob is a file and two stand in a user's."""
    source.write_bytes(DATA)  # noqa: ASYNC240  Nothing else runs.
    data = DataDir.open(data_dir, fs=SharingFs())
    store = await Store.open(data, clock=StillClock(), rng=SeededRng(7), reserve_bytes=0)
    with store.blobs.keeping(source, may_link=False) as kept:
        assert kept is not None
        store.blobs.keep_tensor(kept, 4, len(A))
        store.blobs.keep_tensor(kept, 4 + len(A), len(B))
    store.blobs.import_tensor(source, 0, len(DATA))
    await store.close()
    data.close()


async def _back_up(data_dir: Path, target: Path, fs: SystemFs, *, is_copying: bool = False) -> Written:
    data = DataDir.open(data_dir, fs=fs)
    store = await Store.open(data, clock=StillClock(), rng=SeededRng(8), reserve_bytes=0)
    try:
        return write_backup(
            store,
            target,
            origin=ORIGIN,
            with_keys=True,
            is_copying=is_copying,
            fs=fs,
            clock=StillClock(),
            report=nothing,
        )
    finally:
        await store.close()
        data.close()


@pytest.mark.parametrize("fs", [SharingFs(), SystemFs(), StubbornFs()], ids=["reflinks", "links", "neither"])
async def test_a_backup_of_kept_files_is_whole_without_them(tmp_path: Path, fs: SystemFs) -> None:
    """Whatever becomes of the user's file later: it is no part of the backup."""
    await _keep(tmp_path / "node", tmp_path / "model")
    written = await _back_up(tmp_path / "node", tmp_path / "backup", fs)
    (tmp_path / "model").write_bytes(b"another model")
    is_sharing = isinstance(fs, SharingFs)

    assert verify_backup(tmp_path / "backup", fs=fs, clock=StillClock()) == []
    assert written.manifest.blobs == 3
    assert any((tmp_path / "backup" / "kept").iterdir()) is is_sharing
    assert written.linked_bytes == (0 if isinstance(fs, StubbornFs) else len(DATA) + is_sharing * len(A + B))
    (tmp_path / "other" / "identity").mkdir(parents=True)
    (tmp_path / "other" / "identity" / "cluster.json").write_text(ORIGIN.cluster)
    restore_backup(tmp_path / "backup", tmp_path / "other", is_alone=True, fs=fs, clock=StillClock())
    data = DataDir.open(tmp_path / "other", fs=fs)
    store = await Store.open(data, clock=StillClock(), rng=SeededRng(9), reserve_bytes=0)
    try:
        for content in (A, B, DATA):
            store.blobs.verify(blob_digest_of(content))
    finally:
        await store.close()
        data.close()


async def test_asked_to_copy_it_shares_nothing(tmp_path: Path) -> None:
    await _keep(tmp_path / "node", tmp_path / "model")
    written = await _back_up(tmp_path / "node", tmp_path / "backup", SharingFs(), is_copying=True)
    files = [path for path in (tmp_path / "backup" / "blobs").rglob("*") if path.is_file()]

    assert written.linked_bytes == 0
    assert {path.stat().st_nlink for path in files} == {1}
    assert len(files) == 3


async def test_a_blob_that_is_damaged_when_it_is_copied_is_left_out(tmp_path: Path) -> None:
    await _keep(tmp_path / "node", tmp_path / "model")
    name = blob_digest_of(DATA).hex()
    path = tmp_path / "node" / "blobs" / name[:2] / name[2:]
    data = bytearray(DATA)
    data[9] ^= 1
    path.write_bytes(data)
    written = await _back_up(tmp_path / "node", tmp_path / "backup", StubbornFs())

    assert written.missing_blobs == 1
    assert written.manifest.blobs == 2
    assert verify_backup(tmp_path / "backup", fs=SystemFs(), clock=StillClock()) == []


async def test_fsck_sees_what_was_written_to_a_kept_file(tmp_path: Path) -> None:
    await _keep(tmp_path / "node", tmp_path / "model")
    [kept] = (tmp_path / "node" / "kept").iterdir()
    before = kept.read_bytes()
    data = bytearray(before)
    data[4 + len(A) + 7] ^= 1
    kept.write_bytes(data)

    def check(*, is_repairing: bool) -> list[tuple[str, str]]:
        checked = fsck(
            tmp_path / "node",
            fs=SystemFs(),
            clock=StillClock(),
            check_identity=lambda _path, _fs: None,
            is_repairing=is_repairing,
        )
        return [(found.kind, found.subject) for found in checked.findings]

    assert check(is_repairing=False) == [("blob", blob_digest_of(B).hex())]
    assert check(is_repairing=True) == [("blob", blob_digest_of(B).hex())]
    assert check(is_repairing=False) == []
    assert kept.read_bytes() == bytes(data)  # It still holds the other blob.


def _open_files_named(part: str) -> list[str]:
    descriptors = [entry for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    return [name for name in map(os.readlink, descriptors) if part in name]


async def test_a_backup_without_room_blames_its_own_place_and_the_store_goes_on(tmp_path: Path) -> None:
    """One that cannot be written must not end the node whose store is well, nor keep its file open."""
    data = DataDir.open(tmp_path / "node")
    store = await Store.open(data, clock=StillClock(), rng=SeededRng(7), reserve_bytes=0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"copy\.db cannot be written"):
            store.copy_database(tmp_path / "copy.db", nothing)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    await store.add_group(GENESIS, GROUP)

    assert store.groups() == [(GROUP, GENESIS)]
    assert not _open_files_named("copy.db")
    await store.close()
    data.close()
