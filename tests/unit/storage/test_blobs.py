import errno
import os
from pathlib import Path
from random import Random

import pytest
from crdt_merge_node.errors import CorruptError, FullError, StorageError
from crdt_merge_node.ports import SeededRng
from crdt_merge_node.storage import DataDir, Store
from crdt_merge_protocol.blobs import blob_digest, blob_digest_of, chunk_digest
from crdt_merge_protocol.errors import LocalProtocolError, MalformedMessageError
from crdt_merge_protocol.limits import CHUNK_BYTES, INLINE_BLOB_BYTES_MAX
from crdt_merge_simulations.disk import PowerCutError
from support.machines import HOME, MODEL, MODEL_BYTES, Machine, StillClock, new_disk

pytestmark = pytest.mark.usefixtures("lines")

CHUNKS = [b"a" * CHUNK_BYTES, b"b" * CHUNK_BYTES, b"c" * 1000]
NBYTES = sum(map(len, CHUNKS))
DIGESTS = [chunk_digest(chunk) for chunk in CHUNKS]
DIGEST = blob_digest(NBYTES, DIGESTS)


def write_file(disk, path: Path, data: bytes) -> None:
    if disk.stat(path) is not None:
        disk.unlink(path)
    with disk.create(path) as file:
        file.write_at(0, data)


def read_file(disk, path: Path) -> bytes:
    with disk.open_read(path) as file:
        return file.read_at(0, file.size())


def source_bytes(disk, offset: int, nbytes: int) -> bytes:
    with disk.open_read(MODEL) as file:
        return file.read_at(offset, nbytes)


@pytest.mark.parametrize("nbytes", [0, 1, INLINE_BLOB_BYTES_MAX, INLINE_BLOB_BYTES_MAX + 1, MODEL_BYTES])
@pytest.mark.asyncio
async def test_an_imported_range_is_found_by_its_digest_after_a_restart(nbytes):
    disk = new_disk()
    async with Machine(disk) as store:
        digest, is_finite = store.blobs.import_tensor(MODEL, 11, nbytes)
    data = source_bytes(disk, 11, nbytes)

    assert digest == blob_digest_of(data)
    assert is_finite is True
    async with Machine(disk) as store:
        path, offset, size, inline = store.blobs.source(digest)
        got = inline if path is None else read_file(disk, path)[offset : offset + size]
        assert got == data
        assert (path is None) == (nbytes <= INLINE_BLOB_BYTES_MAX)
        assert store.blobs.size(digest) == store.blobs.total_bytes() == nbytes
        assert b"".join(store.blobs.read_chunk(digest, i) or b"" for i in range(3)) == data


@pytest.mark.asyncio
async def test_names_of_files_come_from_digests_alone():
    """T21."""
    disk = new_disk()
    async with Machine(disk) as store:
        digest, _ = store.blobs.import_tensor(MODEL, 0, MODEL_BYTES)

    assert disk.listdir(HOME / "blobs") == [digest.hex()[:2]]
    assert disk.listdir(HOME / "blobs" / digest.hex()[:2]) == [digest.hex()[2:]]
    assert disk.listdir(HOME / "tmp") == []


@pytest.mark.asyncio
async def test_equal_tensors_are_stored_once():
    async with Machine(new_disk()) as store:
        first, _ = store.blobs.import_tensor(MODEL, 0, MODEL_BYTES)
        second, _ = store.blobs.import_tensor(MODEL, 0, MODEL_BYTES)

        assert first == second
        assert store.blobs.total_bytes() == MODEL_BYTES
        assert store.blobs.digests() == [first]


@pytest.mark.asyncio
async def test_an_import_scans_every_chunk_and_reports_bytes_done():
    disk = new_disk()
    write_file(disk, MODEL, b"".join(CHUNKS))
    seen, done = [], []

    def scan(chunk: memoryview) -> bool:
        seen.append(len(chunk))
        return bytes(chunk[:1]) != b"b"

    async with Machine(disk) as store:
        digest, is_finite = store.blobs.import_tensor(MODEL, 0, NBYTES, scan=scan, progress=done.append)

    assert (digest, is_finite) == (DIGEST, False)
    assert seen == [CHUNK_BYTES, CHUNK_BYTES, 1000]
    assert done == [CHUNK_BYTES, 2 * CHUNK_BYTES, NBYTES]


@pytest.mark.asyncio
async def test_a_cancelled_import_leaves_nothing_behind():
    class CancelledError(Exception):
        pass

    def cancel(_done):
        raise CancelledError

    disk = new_disk()
    async with Machine(disk) as store:
        with pytest.raises(CancelledError):
            store.blobs.import_tensor(MODEL, 0, MODEL_BYTES, progress=cancel)

        assert store.blobs.digests() == []
        assert disk.listdir(HOME / "tmp") == []
        assert store.room._promised == {}


@pytest.mark.parametrize(
    ("offset", "match"), [(MODEL_BYTES * 2 - 5, "too early"), (MODEL_BYTES * 9, "too early")]
)
@pytest.mark.asyncio
async def test_a_file_that_ends_early_is_refused(offset, match):
    async with Machine(new_disk()) as store:
        with pytest.raises(StorageError, match=match):
            store.blobs.import_tensor(MODEL, offset, MODEL_BYTES)
        with pytest.raises(StorageError, match="cannot be read"):
            store.blobs.import_tensor(HOME / "absent", 0, 1)
        with pytest.raises(LocalProtocolError, match="at most"):
            store.blobs.import_tensor(MODEL, 0, 1 << 60)

        assert store.health.failure is None


@pytest.mark.asyncio
async def test_bytes_under_a_foreign_digest_are_refused():
    async with Machine(new_disk()) as store:
        with pytest.raises(MalformedMessageError):
            store.blobs.put_inline(DIGEST, b"other")
        with pytest.raises(LocalProtocolError):
            store.blobs.put_inline(DIGEST, bytes(INLINE_BLOB_BYTES_MAX + 1))

        assert not store.blobs.has(DIGEST)


@pytest.mark.asyncio
async def test_objects_are_kept_and_damaged_ones_are_forgotten():
    disk = new_disk()
    async with Machine(disk) as store:
        store.blobs.put_object(b"o" * 32, b"manifest")
        store.blobs.put_object(b"o" * 32, b"ignored")
    machine = Machine(disk)
    async with machine as store:
        assert store.blobs.get_object(b"o" * 32) == b"manifest"
        assert store.blobs.get_object(b"?" * 32) is None
        store._database.delete("UPDATE objects SET data = x'00'")
        with pytest.raises(CorruptError):
            store.blobs.get_object(b"o" * 32)

        assert not store.blobs.has_object(b"o" * 32)
        store.blobs.put_object(b"o" * 32, b"manifest")
        assert store.blobs.get_object(b"o" * 32) == b"manifest"
    assert machine.corrupt == [b"o" * 32]


# --- fetching -----------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_chunks_arrive_in_any_order_are_served_at_once_and_make_the_blob():
    disk = new_disk()
    async with Machine(disk) as store:
        partial = store.blobs.begin_partial(DIGEST, NBYTES, DIGESTS)
        assert store.blobs.begin_partial(DIGEST, NBYTES, DIGESTS) is partial
        assert partial.write(2, CHUNKS[2]) is True
        assert partial.write(2, CHUNKS[2]) is False
        assert (list(partial.present), partial.missing_bytes) == ([0, 0, 1], 2 * CHUNK_BYTES)
        assert store.blobs.read_chunk(DIGEST, 2) == CHUNKS[2]
        assert store.blobs.read_chunk(DIGEST, 0) is None
        assert store.blobs.chunk_digests(DIGEST) == DIGESTS
        assert not store.blobs.has(DIGEST)
        with pytest.raises(LocalProtocolError, match="2 chunks"):
            partial.finish()
        partial.write(0, CHUNKS[0])
        partial.write(1, CHUNKS[1])
        partial.finish()
        partial.finish()

        assert store.blobs.has(DIGEST)
        assert store.blobs.partial(DIGEST) is None
        assert [store.blobs.read_chunk(DIGEST, index) for index in range(4)] == [*CHUNKS, None]
        assert store.room._promised == {}
    assert disk.listdir(HOME / "partial") == []


@pytest.mark.parametrize(
    ("index", "chunk"),
    [(0, CHUNKS[1]), (2, CHUNKS[2] + b"c"), (2, CHUNKS[2][:-1]), (3, b""), (-1, CHUNKS[2])],
)
@pytest.mark.asyncio
async def test_a_chunk_that_is_not_the_chunk_is_never_written(index, chunk):
    """B45, B46."""
    async with Machine(new_disk()) as store:
        partial = store.blobs.begin_partial(DIGEST, NBYTES, DIGESTS)
        with pytest.raises(MalformedMessageError):
            partial.write(index, chunk)

        assert not any(partial.present)


@pytest.mark.parametrize(
    ("nbytes", "digests"),
    [
        (NBYTES + 1, DIGESTS),
        (NBYTES, DIGESTS[:2]),
        (NBYTES, DIGESTS[::-1]),
        (-1, []),
        (1 << 63, DIGESTS),
        (0, []),
    ],
)
@pytest.mark.asyncio
async def test_a_list_of_chunks_that_does_not_make_the_blob_is_refused(nbytes, digests):
    async with Machine(new_disk()) as store:
        with pytest.raises(MalformedMessageError):
            store.blobs.begin_partial(DIGEST, nbytes, digests)


@pytest.mark.parametrize("data", [b"", b"small"])
@pytest.mark.asyncio
async def test_a_small_blob_is_fetched_into_a_row(data):
    digest, chunks = blob_digest_of(data), [chunk_digest(data)] if data else []
    async with Machine(new_disk()) as store:
        partial = store.blobs.begin_partial(digest, len(data), chunks)
        if data:
            partial.write(0, data)
            assert store.blobs.read_chunk(digest, 0) == data
        partial.finish()

        assert store.blobs.source(digest) == (None, 0, len(data), data)


@pytest.mark.asyncio
async def test_a_fetch_goes_on_after_a_restart_with_the_chunks_whose_bytes_are_there():
    disk = new_disk()
    async with Machine(disk) as store:
        partial = store.blobs.begin_partial(DIGEST, NBYTES, DIGESTS)
        partial.write(0, CHUNKS[0])
        partial.write(2, CHUNKS[2])
        partial.abandon()
        assert store.blobs.partial(DIGEST) is None
    path = HOME / "partial" / DIGEST.hex()
    with disk.open_write(path) as file:
        file.write_at(5, b"rotten")
        file.write_at(NBYTES, b"too long")

    async with Machine(disk) as store:
        partial = store.blobs.begin_partial(DIGEST, NBYTES, DIGESTS)
        assert list(partial.present) == [0, 0, 1]
        assert partial.missing_bytes == 2 * CHUNK_BYTES
        partial.write(0, CHUNKS[0])
        partial.write(1, CHUNKS[1])
        partial.finish()
        store.blobs.verify(DIGEST)


@pytest.mark.asyncio
async def test_a_chunk_that_rots_before_the_blob_is_whole_is_fetched_again():
    disk = new_disk()
    async with Machine(disk) as store:
        partial = store.blobs.begin_partial(DIGEST, NBYTES, DIGESTS)
        partial.write(2, CHUNKS[2])
        with disk.open_write(HOME / "partial" / DIGEST.hex()) as file:
            file.write_at(2 * CHUNK_BYTES, b"rotten")

        assert partial.read(2) is None
        assert partial.missing_bytes == NBYTES
        assert partial.write(2, CHUNKS[2]) is True


@pytest.mark.asyncio
async def test_a_blob_that_is_here_comes_back_finished():
    async with Machine(new_disk()) as store:
        data = b"small"
        store.blobs.put_inline(blob_digest_of(data), data)
        partial = store.blobs.begin_partial(blob_digest_of(data), len(data), [chunk_digest(data)])

        assert (partial.is_finished, partial.missing_bytes, list(partial.present)) == (True, 0, [1])
        partial.finish()
        assert store.blobs.partial(partial.digest) is None


@pytest.mark.asyncio
async def test_room_is_set_aside_before_a_byte_is_fetched():
    disk = new_disk(capacity_bytes=4 << 20)
    async with Machine(disk) as store:
        partial = store.blobs.begin_partial(DIGEST, NBYTES, DIGESTS)
        other = [b"d" * CHUNK_BYTES, b"e" * CHUNK_BYTES]
        digests = [chunk_digest(chunk) for chunk in other]
        other_digest = blob_digest(2 * CHUNK_BYTES, digests)
        with pytest.raises(FullError):
            store.blobs.begin_partial(other_digest, 2 * CHUNK_BYTES, digests)
        assert store.blobs.partial(other_digest) is None
        partial.abandon()

        store.blobs.begin_partial(other_digest, 2 * CHUNK_BYTES, digests)


# --- deletion and damage ------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_deleted_blob_is_gone_and_may_be_stored_again():
    disk = new_disk()
    async with Machine(disk) as store:
        digest, _ = store.blobs.import_tensor(MODEL, 0, MODEL_BYTES)
        small, _ = store.blobs.import_tensor(MODEL, 0, 9)
        store.blobs.delete(digest)
        store.blobs.delete(digest)
        store.blobs.delete(small)
        assert store.blobs.total_bytes() == 0
        assert disk.stat(store.blobs.files.path_of(digest)) is None
        with pytest.raises(StorageError, match="not here"):
            store.blobs.source(digest)
        store.blobs.import_tensor(MODEL, 0, MODEL_BYTES)

    async with Machine(disk) as store:
        assert store.blobs.digests() == [digest]


@pytest.mark.asyncio
async def test_a_delete_that_was_cut_after_its_row_is_finished_by_the_next_start():
    disk = new_disk()

    def fault(_index, name, _path):
        if name == "unlink":
            raise PowerCutError

    async with Machine(disk) as store:
        digest, _ = store.blobs.import_tensor(MODEL, 0, MODEL_BYTES)
        path = store.blobs.files.path_of(digest)
        disk.fault = fault
        with pytest.raises(StorageError):
            store.blobs.delete(digest)
    survivor = disk.after_power_cut(Random(1))
    assert survivor.stat(path) is not None

    async with Machine(survivor) as store:
        assert not store.blobs.has(digest)
        assert survivor.stat(path) is None


DAMAGES = {
    "truncated": lambda path: os.truncate(path, MODEL_BYTES - 1),
    "extended": lambda path: os.truncate(path, MODEL_BYTES + 1),
    "flipped": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "swapped": lambda path: path.write_bytes(bytes(MODEL_BYTES)),
    "directory": lambda path: (path.unlink(), path.mkdir()),
    "fifo": lambda path: (path.unlink(), os.mkfifo(path)),
    "link": lambda path: (path.rename(path.parents[3] / "moved"), path.symlink_to(path.parents[3] / "moved")),
    "gone": lambda path: path.unlink(),
}


async def open_real(path: Path, corrupt: list[bytes]) -> Store:
    return await Store.open(
        DataDir.open(path),
        clock=StillClock(),
        rng=SeededRng(1),
        reserve_bytes=0,
        on_corrupt=lambda digest, _reason: corrupt.append(digest),
    )


async def close_real(store: Store) -> None:
    await store.close()
    store.data.close()


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("is_running", [True, False], ids=["running", "restart"])
@pytest.mark.asyncio
async def test_a_damaged_file_is_set_aside_and_never_served(tmp_path, name, is_running):
    """T41, B68: then the blob is missing like any other, and can be stored again."""
    (tmp_path / "model").write_bytes(bytes(range(250)) * (MODEL_BYTES // 250))
    corrupt: list[bytes] = []
    store = await open_real(tmp_path / "data", corrupt)
    digest, _ = store.blobs.import_tensor(tmp_path / "model", 0, MODEL_BYTES)
    path = store.blobs.files.path_of(digest)
    if is_running:
        DAMAGES[name](path)
    else:
        await close_real(store)
        DAMAGES[name](path)
        store = await open_real(tmp_path / "data", corrupt)
    if store.blobs.has(digest):
        if name == "extended":  # The chunk itself is intact; only who reads by path could be misled.
            with pytest.raises(CorruptError):
                store.blobs.source(digest)
        else:
            with pytest.raises(CorruptError):
                store.blobs.read_chunk(digest, 0)

    assert not store.blobs.has(digest)
    assert store.blobs.read_chunk(digest, 0) is None
    assert len(list((tmp_path / "data" / "quarantine").iterdir())) == (0 if name == "gone" else 1)
    assert store.health.failure is None
    assert store.blobs.import_tensor(tmp_path / "model", 0, MODEL_BYTES)[0] == digest
    store.blobs.verify(digest)
    await close_real(store)
    assert corrupt == [digest]


@pytest.mark.asyncio
async def test_damaged_rows_of_small_blobs_and_chunk_lists_are_forgotten():
    machine = Machine(new_disk())
    async with machine as store:
        small, _ = store.blobs.import_tensor(MODEL, 0, 9)
        large, _ = store.blobs.import_tensor(MODEL, 0, MODEL_BYTES)
        store._database.delete("UPDATE blobs SET inline = zeroblob(9) WHERE digest = ?", small)
        store._database.delete("UPDATE blobs SET chunks = zeroblob(32) WHERE digest = ?", large)
        with pytest.raises(CorruptError):
            store.blobs.source(small)
        with pytest.raises(CorruptError):
            store.blobs.read_chunk(large, 0)

        assert store.blobs.digests() == []
    assert set(machine.corrupt) == {small, large}


@pytest.mark.asyncio
async def test_too_many_open_files_is_not_taken_for_damage():
    """B70: EMFILE passes; the blob stays."""
    disk = new_disk()
    async with Machine(disk) as store:
        digest, _ = store.blobs.import_tensor(MODEL, 0, MODEL_BYTES)

        def fault(_index, name, _path):
            if name in ("open", "create"):
                raise OSError(errno.EMFILE, "too many open files")

        disk.fault = fault
        with pytest.raises(StorageError, match="too many") as caught:
            store.blobs.read_chunk(digest, 0)
        assert not isinstance(caught.value, CorruptError)
        with pytest.raises(StorageError, match="too many"):
            store.blobs.begin_partial(DIGEST, NBYTES, DIGESTS)
        disk.fault = None

        assert store.health.failure is None
        assert store.blobs.read_chunk(digest, 0) is not None
        store.blobs.begin_partial(DIGEST, NBYTES, DIGESTS)


@pytest.mark.asyncio
async def test_after_a_failed_sync_nothing_of_a_partial_blob_is_believed():
    """T44: the kernel may hold clean pages that the disk never got; hashing them would prove nothing."""
    disk = new_disk()
    machine = Machine(disk)
    async with machine as store:
        partial = store.blobs.begin_partial(DIGEST, NBYTES, DIGESTS)
        for index, chunk in enumerate(CHUNKS):
            partial.write(index, chunk)

        def fault(_index, name, _path):
            if name == "sync":
                raise OSError(errno.EIO, "io")

        disk.fault = fault
        with pytest.raises(StorageError):
            partial.finish()
        disk.fault = None

        assert disk.stat(partial.path) is None
        assert store.blobs.partial(DIGEST) is None
        assert not store.blobs.has(DIGEST)
    assert len(machine.fatal) == 1


@pytest.mark.asyncio
async def test_a_long_fetch_is_synced_on_the_way(monkeypatch):
    monkeypatch.setattr("crdt_merge_node.storage.partial.SYNC_BYTES", CHUNK_BYTES)
    disk, syncs = new_disk(), []
    async with Machine(disk) as store:
        partial = store.blobs.begin_partial(DIGEST, NBYTES, DIGESTS)
        disk.fault = lambda _index, name, path: syncs.append(path) if name == "sync" else None
        partial.write(0, CHUNKS[0])
        partial.write(2, CHUNKS[2])

        assert syncs == [partial.path]
        disk.fault = None
