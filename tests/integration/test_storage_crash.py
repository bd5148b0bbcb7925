"""Nothing acknowledged is lost, nothing half-written is served, wherever a run is cut: T20, T43, T44, B70."""

import contextlib
import errno
import itertools
import os
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import apsw
import pytest
import structlog
from crdt_merge_node.errors import CorruptError, FullError, StorageError, StoreFailedError
from crdt_merge_node.ports import SeededRng
from crdt_merge_node.storage import DataDir, Store
from crdt_merge_protocol.blobs import blob_digest, chunk_digest
from crdt_merge_protocol.limits import CHUNK_BYTES
from crdt_merge_simulations.disk import PowerCutError, SimulatedDisk
from support.machines import (
    GENESIS,
    GROUP,
    HOME,
    MODEL,
    MODEL_BYTES,
    Machine,
    StillClock,
    make_rows,
    new_disk,
)

FETCHED = [bytes([7]) * CHUNK_BYTES, b"tail" * 1000]
FETCHED_BYTES = sum(map(len, FETCHED))
FETCHED_CHUNKS = [chunk_digest(chunk) for chunk in FETCHED]
FETCHED_DIGEST = blob_digest(FETCHED_BYTES, FETCHED_CHUNKS)


@pytest.fixture(autouse=True)
def quiet():
    with structlog.testing.capture_logs() as lines:
        yield lines


ROWS = make_rows(9)


@dataclass
class Acknowledged:
    """What the store has confirmed to somebody."""

    has_group: bool = False
    operations: list[bytes] = field(default_factory=list)
    blobs: set[bytes] = field(default_factory=set)
    deleted: set[bytes] = field(default_factory=set)
    deleting: set[bytes] = field(default_factory=set)
    objects: set[bytes] = field(default_factory=set)
    facts: dict[str, bytes] = field(default_factory=dict)


def steps(store: Store, acknowledged: Acknowledged):
    """Return the work of a node as named steps, each safe to repeat; each notes what was acknowledged."""

    async def group():
        await store.add_group(GENESIS, GROUP)
        acknowledged.has_group = True

    async def operations():
        for begin in (0, 3, 6):
            rows = ROWS[begin : begin + 3]
            await store.append(rows)
            acknowledged.operations += [row.id for row in rows if row.id not in acknowledged.operations]

    async def import_model():
        digest, is_finite = store.blobs.import_tensor(MODEL, 0, MODEL_BYTES)
        assert is_finite
        acknowledged.blobs.add(digest)

    async def import_small():
        acknowledged.blobs.add(store.blobs.import_tensor(MODEL, 0, 1000)[0])

    async def fetch():
        partial = store.blobs.begin_partial(FETCHED_DIGEST, FETCHED_BYTES, FETCHED_CHUNKS)
        for index, chunk in enumerate(FETCHED):
            partial.write(index, chunk)
        partial.finish()
        acknowledged.blobs.add(FETCHED_DIGEST)

    async def describe():
        store.blobs.put_object(b"o" * 32, b"manifest" * 100)
        acknowledged.objects.add(b"o" * 32)

    async def remember():
        await store.put_meta("fact", b"value")
        acknowledged.facts["fact"] = b"value"

    async def delete():
        digest, _ = store.blobs.import_tensor(MODEL, 7, MODEL_BYTES)
        acknowledged.deleting.add(digest)
        store.blobs.delete(digest)
        acknowledged.deleted.add(digest)

    return [group, operations, import_model, import_small, fetch, describe, remember, delete]


async def live(machine: Machine, acknowledged: Acknowledged) -> None:
    async with machine as store:
        for step in steps(store, acknowledged):
            await step()


async def live_until_cut(disk: SimulatedDisk, acknowledged: Acknowledged) -> None:
    with contextlib.suppress(OSError, StorageError):  # A cut while closing has nobody left to tell.
        await live(Machine(disk), acknowledged)
    assert disk.is_dead


async def check(disk: SimulatedDisk, acknowledged: Acknowledged) -> None:
    """Start again and compare everything with what was acknowledged."""
    machine = Machine(disk)
    async with machine as store:
        stored = [row.id for row in store.load_operations(GROUP)]
        for digest in store.blobs.digests():
            store.blobs.verify(digest)

        assert stored == [row.id for row in ROWS[: len(stored)]]
        assert len(stored) >= len(acknowledged.operations)
        assert not acknowledged.has_group or store.groups() == [(GROUP, GENESIS)]
        assert all(store.blobs.has(digest) for digest in acknowledged.blobs)
        assert not any(store.blobs.has(digest) for digest in acknowledged.deleted)
        assert all(store.blobs.get_object(id_) == b"manifest" * 100 for id_ in acknowledged.objects)
        assert all([await store.get_meta(key) == value for key, value in acknowledged.facts.items()])
        assert store.quarantined() == []
        assert machine.fatal == []
    assert machine.corrupt == []


async def count_calls() -> int:
    disk = new_disk()
    await live(Machine(disk), Acknowledged())
    return disk.calls


def cut_at(cut: int):
    def fault(index, name, path):
        if index == cut:
            raise PowerCutError

    return fault


@pytest.mark.asyncio
async def test_a_run_without_faults_acknowledges_everything_and_keeps_it():
    disk, acknowledged = new_disk(), Acknowledged()
    await live(Machine(disk), acknowledged)

    assert len(acknowledged.operations) == len(ROWS)
    assert len(acknowledged.blobs) == 3
    await check(disk.after_power_cut(Random(0)), acknowledged)


@pytest.mark.parametrize("shard", range(8))
@pytest.mark.asyncio
async def test_a_power_cut_at_any_call_loses_nothing_acknowledged(shard):
    """T43: the run is cut at each call in turn, the disk keeps a random part, the next start goes on."""
    for cut in range(shard, await count_calls(), 8):
        disk, acknowledged = new_disk(fault=cut_at(cut)), Acknowledged()
        await live_until_cut(disk, acknowledged)
        survivor = disk.after_power_cut(Random(cut))

        await check(survivor, acknowledged)
        if cut // 8 % 5 == 0:
            await live(Machine(survivor), acknowledged)
            await check(survivor, acknowledged)


@pytest.mark.parametrize("shard", range(4))
@pytest.mark.asyncio
async def test_a_power_cut_during_recovery_loses_nothing_either(shard):
    """The first cut leaves work for recovery; the second falls at each call of the start that does it."""
    first = await count_calls() * 3 // 4
    disk, acknowledged = new_disk(fault=cut_at(first)), Acknowledged()
    await live_until_cut(disk, acknowledged)
    for cut in range(shard, 10_000, 4):
        survivor = disk.after_power_cut(Random(5))
        survivor.fault = cut_at(cut)
        with contextlib.suppress(OSError, StorageError):
            async with Machine(survivor):
                pass
        if not survivor.is_dead:
            assert cut > 20
            break
        await check(survivor.after_power_cut(Random(cut)), acknowledged)


WRITES = frozenset({"create", "write", "mkdir", "rename", "truncate"})


def fail_at(target: int, code: int, names: frozenset[str], hits: list[str]):
    """Return a fault that fails the ``target``-th call among those of these names, once."""
    seen = itertools.count()

    def fault(index, name, path):
        if name in names and next(seen) == target:
            hits.append(f"{name} {path}")
            raise OSError(code, os.strerror(code), str(path))

    return fault


@pytest.mark.parametrize("shard", range(4))
@pytest.mark.asyncio
async def test_a_full_disk_at_any_write_is_named_and_passes_without_a_restart(shard):
    """T20, B70: ENOSPC at each writing call in turn; the same process goes on once there is room."""
    for target in range(shard, 10_000, 4):
        hits: list[str] = []
        disk, acknowledged = new_disk(), Acknowledged()
        disk.fault = fail_at(target, errno.ENOSPC, WRITES, hits)
        machine = Machine(disk)
        try:
            store = await machine.__aenter__()
        except FullError:
            machine = Machine(disk)
            store = await machine.__aenter__()
        for step in steps(store, acknowledged):
            try:
                await step()
            except FullError:
                await step()
        await machine.__aexit__()

        assert machine.fatal == [], hits
        assert len(acknowledged.operations) == len(ROWS)
        assert disk.listdir(HOME / "tmp") == []
        if target // 4 % 3 == 0:
            await check(disk.after_power_cut(Random(target)), acknowledged)
        if not hits:
            assert target > 20
            break


@pytest.mark.parametrize("shard", range(4))
@pytest.mark.asyncio
async def test_a_failed_sync_or_write_stops_the_store_for_good_and_once(shard):
    """T44: EIO at each writing or syncing call in turn; never retried, never acknowledged after it."""
    for target in range(shard, 10_000, 4):
        hits: list[str] = []
        disk, acknowledged = new_disk(), Acknowledged()
        disk.fault = fail_at(target, errno.EIO, WRITES | {"sync", "sync_dir", "unlink"}, hits)
        machine, is_open = Machine(disk), False
        try:
            async with machine as store:
                is_open = True
                for step in steps(store, acknowledged):
                    await step()
        except StorageError:
            if is_open:
                with pytest.raises(StorageError):
                    await store.append(ROWS)
        if not hits:
            assert target > 20
            break

        assert len(machine.fatal) == int(is_open), hits
        await check(disk.after_power_cut(Random(target)), acknowledged)


@pytest.mark.asyncio
async def test_a_failed_store_refuses_every_later_write():
    disk, hits = new_disk(), []
    machine = Machine(disk)
    async with machine as store:
        await store.add_group(GENESIS, GROUP)
        disk.fault = fail_at(0, errno.EIO, frozenset({"sync"}), hits)
        with pytest.raises(StoreFailedError, match="failed"):
            await store.append(ROWS[:1])
        disk.fault = None

        for attempt in (store.append(ROWS[:1]), store.put_meta("a", b"b"), store.add_group(b"", b"h" * 32)):
            with pytest.raises(StoreFailedError):
                await attempt
        with pytest.raises(StoreFailedError):
            store.blobs.import_tensor(MODEL, 0, MODEL_BYTES)
        assert store.groups() == [(GROUP, GENESIS)]
    assert len(machine.fatal) == 1
    assert machine.fatal[0].exit_code == 74


@pytest.mark.parametrize("shard", range(4))
@pytest.mark.asyncio
async def test_an_unreadable_sector_ends_in_a_typed_error_and_loses_no_operation(shard):
    """T41: EIO at each read of a second run in turn."""
    disk, acknowledged = new_disk(), Acknowledged()
    await live(Machine(disk), acknowledged)
    for target in range(shard, 10_000, 4):
        hits: list[str] = []
        again = disk.after_power_cut(Random(0))
        again.fault = fail_at(target, errno.EIO, frozenset({"read", "open"}), hits)
        with contextlib.suppress(StorageError):
            async with Machine(again) as store:
                list(store.load_operations(GROUP))
                for digest in store.blobs.digests():
                    store.blobs.verify(digest)
        again.fault = None
        if not hits:
            assert target > 5
            break
        async with Machine(again) as store:
            assert [row.id for row in store.load_operations(GROUP)] == acknowledged.operations


@pytest.mark.asyncio
async def test_a_small_disk_fills_up_and_is_used_again_after_a_delete():
    """T20: real pressure, not an injected error."""
    disk = new_disk(capacity_bytes=3 << 20)
    async with Machine(disk) as store:
        await store.add_group(GENESIS, GROUP)

        with pytest.raises(FullError) as caught:  # noqa: PT012  (which of them fails is not the point)
            for offset in range(50):
                store.blobs.import_tensor(MODEL, offset, MODEL_BYTES)
        digests = store.blobs.digests()

        assert "bytes are free" in caught.value.message
        assert "Free some" in caught.value.hint
        assert len(digests) > 3
        assert all(store.blobs.read_chunk(digest, 0) is not None for digest in digests)

        for digest in digests:
            store.blobs.delete(digest)
        await store.append(ROWS)
        store.blobs.import_tensor(MODEL, 99, MODEL_BYTES)

    assert disk.used_bytes < 3 << 20


# --- the database on a real file system (B67) ---------------------------------------------------------


async def fill(path: Path) -> None:
    """Make a store with every operation, closed in good order."""
    data = DataDir.open(path)
    store = await Store.open(data, clock=StillClock(), rng=SeededRng(1), reserve_bytes=0)
    await store.add_group(GENESIS, GROUP)
    await store.append(ROWS)
    await store.close()
    data.close()


async def reopen(path: Path) -> list[bytes]:
    """Return the ids of the operations that a start finds."""
    data = DataDir.open(path)
    try:
        store = await Store.open(data, clock=StillClock(), rng=SeededRng(1), reserve_bytes=0)
        try:
            return [row.id for row in store.load_operations(GROUP)]
        finally:
            await store.close()
    finally:
        data.close()


@pytest.mark.asyncio
async def test_a_database_cut_short_is_refused_and_never_taken_for_a_new_one(tmp_path):
    home = tmp_path / "data"
    await fill(home)
    whole = (home / "ops.db").read_bytes()
    for size in range(0, len(whole), 4096):
        (home / "ops.db").write_bytes(whole[:size])
        with pytest.raises(CorruptError) as caught:
            await reopen(home)
        (home / "ops.db-wal").unlink(missing_ok=True)

        assert caught.value.exit_code == 7
    (home / "ops.db").unlink()
    with pytest.raises(CorruptError, match="gone or empty"):
        await reopen(home)
    (home / "ops.db").write_bytes(whole)

    assert await reopen(home) == [row.id for row in ROWS]


@pytest.mark.asyncio
async def test_flipped_bytes_in_the_database_never_change_an_operation(tmp_path):
    """T41, T52: whatever a rotten page does, a start serves genuine operations or refuses."""
    home = tmp_path / "data"
    await fill(home)
    whole = (home / "ops.db").read_bytes()
    rng = Random(3)
    for position in rng.sample(range(len(whole)), 60):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        (home / "ops.db").write_bytes(bytes(damaged))
        (home / "ops.db-wal").unlink(missing_ok=True)
        try:
            found = await reopen(home)
        except StorageError:
            continue

        assert set(found) <= {row.id for row in ROWS}


@pytest.mark.asyncio
async def test_a_torn_or_missing_log_gives_a_prefix_of_what_was_appended(tmp_path):
    """B67: the write-ahead log cut at many places, with a wrong salt, and gone."""
    home, copy = tmp_path / "data", tmp_path / "copy"
    data = DataDir.open(home)
    store = await Store.open(data, clock=StillClock(), rng=SeededRng(1), reserve_bytes=0)
    await store.add_group(GENESIS, GROUP)
    for row in ROWS:
        await store.append([row])
    database, log = (home / "ops.db").read_bytes(), (home / "ops.db-wal").read_bytes()
    form = (home / "FORMAT").read_bytes()
    await store.close()
    data.close()
    assert len(log) > 30_000

    salted = bytearray(log)
    salted[16] ^= 0xFF
    lengths = set()
    for torn in [*(log[:size] for size in range(0, len(log) + 1, 2048)), bytes(salted), log]:
        copy.mkdir(exist_ok=True)
        (copy / "ops.db").write_bytes(database)
        (copy / "ops.db-wal").write_bytes(torn)
        (copy / "FORMAT").write_bytes(form)
        found = await reopen(copy)

        assert found == [row.id for row in ROWS[: len(found)]]
        lengths.add(len(found))
    assert {0, len(ROWS)} <= lengths
    assert apsw.sqlite_lib_version() >= "3.50"
