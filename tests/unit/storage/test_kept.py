"""Users' files that hold blobs as they are: no second copy, and no less safe."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import apsw
import pytest
from crdt_merge_node.control.model import Placement
from crdt_merge_node.errors import CorruptError, StorageError
from crdt_merge_node.ports import SeededRng, SystemFs
from crdt_merge_node.storage import DataDir, Store
from crdt_merge_node.storage.schema import SCHEMA_VERSION
from crdt_merge_protocol.blobs import blob_digest_of
from crdt_merge_protocol.limits import CHUNK_BYTES
from support.file_systems import SharingFs, StubbornFs
from support.machines import StillClock

pytestmark = [pytest.mark.asyncio, pytest.mark.usefixtures("lines")]

A, B = b"\x01" * (CHUNK_BYTES + 5), b"\x02" * 100_000
SMALL = b"\x03" * 9
GAP = b"head"
DATA = GAP + A + B + SMALL
RANGES = {A: (4, len(A)), B: (4 + len(A), len(B)), SMALL: (4 + len(A) + len(B), len(SMALL))}


@asynccontextmanager
async def opened(
    path: Path, fs: SystemFs | None = None, damaged: list[bytes] | None = None
) -> AsyncIterator[Store]:
    data = DataDir.open(path, fs=fs or SharingFs())
    note = (lambda digest, _reason: damaged.append(digest)) if damaged is not None else None
    store = await Store.open(data, clock=StillClock(), rng=SeededRng(7), on_corrupt=note)
    try:
        yield store
    finally:
        await store.close()
        data.close()


def model(directory: Path) -> Path:
    path = directory / "model"
    path.write_bytes(DATA)
    return path


def bring(store: Store, path: Path, *, may_link: bool = False) -> list[bytes]:
    """Add all tensors of the file, kept as it is."""
    with store.blobs.keeping(path, may_link=may_link) as kept:
        assert kept is not None
        return [store.blobs.keep_tensor(kept, *place)[0] for place in RANGES.values()]


def whole(store: Store, digest: bytes) -> bytes:
    size = store.blobs.size(digest)
    assert size is not None
    chunks = [store.blobs.read_chunk(digest, index) for index in range(-(-size // CHUNK_BYTES))]
    return b"".join(chunk for chunk in chunks if chunk is not None)


def kept_files(path: Path) -> list[Path]:
    return sorted((path / "kept").iterdir())


async def test_blobs_in_a_kept_file_are_read_after_a_restart(tmp_path: Path) -> None:
    path = model(tmp_path)
    async with opened(tmp_path / "data") as store:
        digests = bring(store, path)
        assert digests == [blob_digest_of(data) for data in (A, B, SMALL)]
    path.unlink()
    async with opened(tmp_path / "data") as store:
        assert [whole(store, digest) for digest in digests] == [A, B, SMALL]
        assert store.recovery.is_clean
        place, offset, nbytes, inline = store.blobs.source(digests[1])
        assert place is not None
        assert place.read_bytes()[offset : offset + nbytes] == B
        assert inline is None
        assert [store.blobs.is_kept(digest) for digest in digests] == [True, True, False]
    assert len(kept_files(tmp_path / "data")) == 1
    assert not list((tmp_path / "data" / "blobs").iterdir())


async def test_what_is_written_to_the_file_later_does_not_show_in_a_shared_one(tmp_path: Path) -> None:
    path = model(tmp_path)
    async with opened(tmp_path / "data") as store:
        digests = bring(store, path)
        path.write_bytes(bytes(len(DATA)))
        assert [whole(store, digest) for digest in digests] == [A, B, SMALL]


async def test_what_is_written_to_a_linked_file_is_noticed_and_set_aside(tmp_path: Path) -> None:
    path = model(tmp_path)
    damaged: list[bytes] = []
    async with opened(tmp_path / "data", SystemFs(), damaged) as store:
        digests = bring(store, path, may_link=True)
        assert kept_files(tmp_path / "data")[0].samefile(path)
        with path.open("r+b") as file:
            file.seek(RANGES[B][0])
            file.write(b"x")
        with pytest.raises(CorruptError):
            store.blobs.read_chunk(digests[1], 0)
        assert not store.blobs.has(digests[1])
        assert whole(store, digests[0]) == A
    assert damaged == [digests[1]]


async def test_a_linked_file_that_was_cut_off_is_noticed_at_the_next_start(tmp_path: Path) -> None:
    path = model(tmp_path)
    async with opened(tmp_path / "data", SystemFs()) as store:
        digests = bring(store, path, may_link=True)
    with path.open("r+b") as file:
        file.truncate(RANGES[B][0] + 10)
    async with opened(tmp_path / "data", SystemFs()) as store:
        assert store.recovery.blobs_lost == [digests[1]]
        assert whole(store, digests[0]) == A


async def test_without_leave_no_file_is_linked(tmp_path: Path) -> None:
    path = model(tmp_path)
    async with opened(tmp_path / "data", SystemFs()) as store:
        kept = store.blobs.kept
        with store.blobs.keeping(path, may_link=False) as found:
            is_ext = found is None
        assert kept.probe(path, may_link=False) is (Placement.COPIED if is_ext else Placement.SHARED)
        assert kept.probe(path, may_link=True) is (Placement.LINKED if is_ext else Placement.SHARED)
    assert not kept_files(tmp_path / "data")
    assert path.stat().st_nlink == 1


async def test_where_nothing_else_can_be_done_it_is_copied(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", StubbornFs()) as store:
        with store.blobs.keeping(model(tmp_path), may_link=True) as kept:
            assert kept is None


async def test_the_file_goes_with_its_last_blob_and_not_before(tmp_path: Path) -> None:
    async with opened(tmp_path / "data") as store:
        digests = bring(store, model(tmp_path))
        store.blobs.delete(digests[0])
        assert len(kept_files(tmp_path / "data")) == 1
        store.blobs.delete(digests[1])
        assert not kept_files(tmp_path / "data")
        assert not any(store.blobs.has(digest) for digest in digests[:2])
    async with opened(tmp_path / "data") as store:
        assert store.recovery.is_clean


async def test_a_file_of_which_everything_is_here_already_is_not_kept(tmp_path: Path) -> None:
    path = model(tmp_path)
    async with opened(tmp_path / "data") as store:
        bring(store, path)
        first = kept_files(tmp_path / "data")
        bring(store, path)
        assert kept_files(tmp_path / "data") == first


async def test_an_addition_that_fails_keeps_no_file(tmp_path: Path) -> None:
    def give_up(_nbytes: int) -> None:
        raise StorageError("no longer wanted.")

    def bring_one(store: Store) -> None:
        with store.blobs.keeping(model(tmp_path), may_link=False) as kept:
            assert kept is not None
            store.blobs.keep_tensor(kept, *RANGES[A], progress=give_up)

    async with opened(tmp_path / "data") as store:
        with pytest.raises(StorageError, match="no longer"):
            bring_one(store)
        assert not kept_files(tmp_path / "data")


async def test_what_a_crash_left_without_rows_is_removed(tmp_path: Path) -> None:
    async with opened(tmp_path / "data"):
        pass
    (tmp_path / "data" / "kept" / "ab").write_bytes(DATA)
    async with opened(tmp_path / "data") as store:
        assert store.recovery.files_swept == 1
    assert not kept_files(tmp_path / "data")


async def test_a_kept_file_that_is_gone_makes_its_blobs_missing(tmp_path: Path) -> None:
    async with opened(tmp_path / "data") as store:
        digests = bring(store, model(tmp_path))
    kept_files(tmp_path / "data")[0].unlink()
    async with opened(tmp_path / "data") as store:
        assert sorted(store.recovery.blobs_lost) == sorted(digests[:2])
        assert bring(store, model(tmp_path)) == digests
        assert whole(store, digests[0]) == A


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE kept SET file = '../../etc/passwd'",
        "UPDATE kept SET file = zeroblob(32)",
        "UPDATE kept SET position = -1",
        "UPDATE kept SET position = 'x'",
    ],
)
async def test_a_row_that_leads_elsewhere_is_dropped(tmp_path: Path, change: str) -> None:
    async with opened(tmp_path / "data") as store:
        digests = bring(store, model(tmp_path))
    connection = apsw.Connection(str(tmp_path / "data" / "ops.db"))
    connection.execute(change)
    connection.close()
    async with opened(tmp_path / "data") as store:
        assert store.recovery.rows_dropped == 2
        assert not any(store.blobs.has(digest) for digest in digests[:2])


async def test_a_database_of_the_first_version_is_brought_up_to_date(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", StubbornFs()) as store:
        digest, _ = store.blobs.import_tensor(model(tmp_path), *RANGES[A])
    connection = apsw.Connection(str(tmp_path / "data" / "ops.db"))
    connection.execute("DROP TABLE kept; PRAGMA user_version = 1")  # All that differs.
    connection.close()
    async with opened(tmp_path / "data") as store:
        assert whole(store, digest) == A
        assert [whole(store, each) for each in bring(store, model(tmp_path))] == [A, B, SMALL]
    connection = apsw.Connection(str(tmp_path / "data" / "ops.db"))
    assert connection.pragma("user_version") == SCHEMA_VERSION
    connection.close()
