"""What is erased is in no file of the data directory, and nothing of it is stored again."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from crdt_merge_node.errors import ErasedError
from crdt_merge_node.ports import SeededRng, SystemFs
from crdt_merge_node.storage import DataDir, Store
from crdt_merge_node.storage.recovery import compare_root, save_root
from crdt_merge_protocol.blobs import blob_digest_of, chunk_digest
from crdt_merge_protocol.limits import CHUNK_BYTES
from support.file_systems import SharingFs
from support.machines import StillClock

pytestmark = [pytest.mark.asyncio, pytest.mark.usefixtures("lines")]

MARK = b"NOT-TO-BE-FOUND-"
LARGE = MARK * (CHUNK_BYTES // len(MARK)) + b"large"
SMALL = MARK * 100
OTHER = b"stays" * 20_000
OBJECT = b"\x07" * 32


@asynccontextmanager
async def opened(path: Path, fs: SystemFs | None = None) -> AsyncIterator[Store]:
    data = DataDir.open(path, fs=fs or SystemFs())
    store = await Store.open(data, clock=StillClock(), rng=SeededRng(7))
    try:
        yield store
    finally:
        await store.close()
        data.close()


def marked(directory: Path) -> list[str]:
    """Return the files below a directory that hold the mark."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return [str(path.relative_to(directory)) for path in files if MARK in path.read_bytes()]


def chunks() -> list[bytes]:
    return [LARGE[at : at + CHUNK_BYTES] for at in range(0, len(LARGE), CHUNK_BYTES)]


def bring(store: Store, directory: Path) -> tuple[bytes, bytes, bytes]:
    """Store a large blob, a small one and one that is to stay; return their digests."""
    path = directory / "model"
    path.write_bytes(LARGE + SMALL + OTHER)
    places = [(0, len(LARGE)), (len(LARGE), len(SMALL)), (len(LARGE) + len(SMALL), len(OTHER))]
    with store.blobs.keeping(path, may_link=False) as kept:
        if kept is None:
            large, small, other = (store.blobs.import_tensor(path, *place)[0] for place in places)
        else:
            large, small, other = (store.blobs.keep_tensor(kept, *place)[0] for place in places)
    path.unlink()
    return large, small, other


@pytest.mark.parametrize("fs", [SystemFs(), SharingFs()], ids=["copied", "shared"])
async def test_erased_bytes_are_in_no_file(tmp_path: Path, fs: SystemFs) -> None:
    data = tmp_path / "data"
    async with opened(data, fs) as store:
        large, small, other = bring(store, tmp_path)
        store.blobs.put_object(OBJECT, MARK * 50)
        assert marked(data)
        store.blobs.erase(objects=[OBJECT], blobs=[large, small], beside=[other])
        assert marked(data) == []
        assert not store.blobs.has(large)
        assert not store.blobs.has(small)
        assert not store.blobs.has_object(OBJECT)
        assert store.blobs.read_chunk(other, 0) == OTHER
    async with opened(data, fs) as store:
        assert marked(data) == []
        assert store.blobs.erased_among([OBJECT, large, small, other]) == sorted([OBJECT, large, small])
        assert store.blobs.read_chunk(other, 0) == OTHER
        assert store.recovery.is_clean


async def test_erased_bytes_are_not_stored_again(tmp_path: Path) -> None:
    async with opened(tmp_path / "data") as store:
        large, small = blob_digest_of(LARGE), blob_digest_of(SMALL)
        store.blobs.erase(objects=[OBJECT], blobs=[large, small])
        with pytest.raises(ErasedError):
            store.blobs.put_inline(small, SMALL)
        with pytest.raises(ErasedError):
            store.blobs.put_object(OBJECT, MARK)
        with pytest.raises(ErasedError):
            store.blobs.begin_partial(large, len(LARGE), [chunk_digest(chunk) for chunk in chunks()])
        with pytest.raises(ErasedError):
            bring(store, tmp_path)
        (tmp_path / "model").unlink()
        assert marked(tmp_path) == []


async def test_a_fetch_under_way_ends_when_its_blob_is_erased(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with opened(data) as store:
        large = blob_digest_of(LARGE)
        partial = store.blobs.begin_partial(large, len(LARGE), [chunk_digest(chunk) for chunk in chunks()])
        partial.write(0, chunks()[0])
        store.blobs.erase(objects=[], blobs=[large])
        assert partial.write(1, chunks()[1]) is False
        assert marked(data) == []
        assert store.blobs.read_chunk(large, 0) is None


async def test_damaged_copies_that_were_set_aside_go_too(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with opened(data) as store:
        large, *_ = bring(store, tmp_path)
        store.blobs.quarantine(large, "for the test")
        assert marked(data)
        store.blobs.erase(objects=[], blobs=[large, blob_digest_of(SMALL)])
        assert marked(data) == []


async def test_a_small_tensor_goes_from_the_file_that_it_shares_with_others(tmp_path: Path) -> None:
    """Its row is in the database, and its bytes stand in a file that is kept for what is large, as well."""
    data = tmp_path / "data"
    async with opened(data, SharingFs()) as store:
        path = tmp_path / "model"
        path.write_bytes(SMALL + OTHER)
        with store.blobs.keeping(path, may_link=False) as kept:
            assert kept is not None
            small = store.blobs.keep_tensor(kept, 0, len(SMALL))[0]
            other = store.blobs.keep_tensor(kept, len(SMALL), len(OTHER))[0]
        assert len(marked(data)) > 1
        store.blobs.erase(objects=[], blobs=[small], beside=[other])
        assert marked(data) == []
        assert store.blobs.read_chunk(other, 0) == OTHER


async def test_damaged_rows_that_were_set_aside_go_too(tmp_path: Path) -> None:
    """``fsck --repair`` moves them, and what is left of them is most of what they held."""
    data = tmp_path / "data"
    small = blob_digest_of(SMALL)
    async with opened(data) as store:
        rows = [("object", OBJECT), ("blob", small), ("operation", small)]
        store._database.write(
            lambda connection: connection.executemany(
                "INSERT INTO quarantine (kind, id, data, reason, wall_time) VALUES (?, ?, ?, 'test', 0)",
                [(kind, id_, MARK if kind != "operation" else b"evidence") for kind, id_ in rows],
            )
        ).result()
        store.blobs.erase(objects=[OBJECT], blobs=[small])
        assert [(kind, id_) for kind, id_, _ in store.quarantined()] == [("operation", small)]
        assert marked(data) == []


async def test_a_start_removes_what_a_crash_left_of_an_erasure(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with opened(data) as store:
        large, small, other = bring(store, tmp_path)
        path = store.blobs.files.path_of(large)
        before = path.read_bytes()
        store.blobs.erase(objects=[], blobs=[large, small])
    path.write_bytes(before)  # As if the power had failed before the name was gone for good.
    (data / "partial" / large.hex()).write_bytes(before)
    assert len(marked(data)) == 2
    async with opened(data) as store:
        assert marked(data) == []
        assert not store.blobs.has(large)
        assert store.blobs.has(other)


async def test_what_something_unbanned_needs_may_come_back(tmp_path: Path) -> None:
    async with opened(tmp_path / "data") as store:
        small = blob_digest_of(SMALL)
        store.blobs.erase(objects=[], blobs=[small])
        store.blobs.permit([small])
        store.blobs.put_inline(small, SMALL)
    async with opened(tmp_path / "data") as store:
        assert store.blobs.read_chunk(small, 0) == SMALL


class SnapshotFs(SharingFs):
    """Copies a directory before each change to it: what a kill at that moment would leave."""

    def __init__(self) -> None:
        self.take: Callable[[str], None] = lambda _: None

    def create(self, path: Path, *, mode: int = 0o600) -> Any:
        self.take(f"create {path.parent.name}")
        return super().create(path, mode=mode)

    def rename(self, source: Path, target: Path) -> None:
        self.take(f"rename to {target.parent.parent.name}")
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self.take(f"unlink in {path.parent.parent.name}/{path.parent.name}")
        super().unlink(path)

    def sync_dir(self, path: Path) -> None:
        self.take(f"sync {path.name}")
        super().sync_dir(path)


@pytest.mark.parametrize("is_shared", [False, True], ids=["copied", "shared"])
async def test_t44_killed_at_any_step_of_an_erasure_nothing_is_lost_and_nothing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_shared: bool
) -> None:
    data, snapshots = tmp_path / "data", []
    fs = SnapshotFs()
    if not is_shared:
        fs.clone = lambda *_: False  # type: ignore[method-assign]
        fs.link = lambda *_: False  # type: ignore[method-assign]

    def take(step: str) -> None:
        snapshots.append((step, tmp_path / f"killed-{len(snapshots)}"))
        shutil.copytree(data, snapshots[-1][1])

    async with opened(data, fs) as store:
        large, small, other = bring(store, tmp_path)
        store.blobs.put_object(OBJECT, MARK * 50)
        erase = {"objects": [OBJECT], "blobs": [large, small], "beside": [other]}
        empty_log = store._database.empty_log

        def emptied() -> None:
            take("committed")
            empty_log()
            take("log emptied")

        monkeypatch.setattr(store._database, "empty_log", emptied)
        fs.take = take
        store.blobs.erase(**erase)
        take("done")
        fs.take = lambda _: None
    assert {"committed", "log emptied"} <= {step for step, _ in snapshots}
    for step, path in snapshots:
        async with opened(path) as store:
            is_noted = store.blobs.is_erased(large)
            assert (marked(path) == []) is is_noted, step
            assert store.blobs.has(large) is not is_noted, step
            assert store.blobs.has_object(OBJECT) is not is_noted, step
            assert store.blobs.read_chunk(other, 0) == OTHER, step
            assert is_noted or store.blobs.read_chunk(large, 0) == LARGE[:CHUNK_BYTES], step
            store.blobs.erase(**erase)
            assert marked(path) == [], step
            assert store.blobs.read_chunk(other, 0) == OTHER, step


async def test_r7_the_root_that_was_saved_goes_with_what_a_revocation_drops(tmp_path: Path) -> None:
    """It is the root of more, and the next start would take what is gone for lost."""
    group = b"g" * 32
    async with opened(tmp_path / "data") as store:
        await save_root(store, group, root=b"r" * 32, count=2)
        await store.drop_operations(group, [b"o" * 32])
        assert await compare_root(store, group, root=b"s" * 32, count=1) is None
    async with opened(tmp_path / "data") as store:
        assert await compare_root(store, group, root=b"s" * 32, count=1) is None
