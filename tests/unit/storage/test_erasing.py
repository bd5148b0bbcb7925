"""What is erased is in no file of the data directory, and nothing of it is stored again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from crdt_merge_node.errors import ErasedError
from crdt_merge_node.ports import SeededRng, SystemFs
from crdt_merge_node.storage import DataDir, Store
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
