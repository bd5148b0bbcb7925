import asyncio
import threading

import apsw
import pytest
from crdt_merge_node.errors import CorruptError, FullError, SchemaTooNewError, StorageError
from crdt_merge_node.ports import SeededRng, SystemFs
from crdt_merge_node.storage import DataDir, OpRow, Store, connecting
from crdt_merge_node.storage import database as database_module
from crdt_merge_node.storage.schema import SCHEMA_VERSION
from crdt_merge_protocol.errors import LocalProtocolError
from support.machines import GENESIS, GROUP, Machine, StillClock, make_rows, new_disk

ROWS = make_rows(5)

pytestmark = pytest.mark.usefixtures("lines")


async def open_real(path, **kwargs) -> Store:
    return await Store.open(
        DataDir.open(path), clock=StillClock(), rng=SeededRng(1), reserve_bytes=0, **kwargs
    )


async def close_real(store: Store) -> None:
    await store.close()
    store.data.close()


@pytest.mark.asyncio
async def test_operations_come_back_in_append_order_after_a_restart():
    disk = new_disk()
    async with Machine(disk) as store:
        await store.add_group(GENESIS, GROUP)
        await store.append([ROWS[2], ROWS[0]])
        await store.append([ROWS[1]])

    async with Machine(disk) as store:
        assert list(store.load_operations(GROUP)) == [ROWS[2], ROWS[0], ROWS[1]]
        assert store.groups() == [(GROUP, GENESIS)]
        assert list(store.load_operations(b"?" * 32)) == []


@pytest.mark.asyncio
async def test_what_is_stored_already_is_skipped_and_keeps_its_place():
    async with Machine(new_disk()) as store:
        await store.add_group(GENESIS, GROUP)
        await store.add_group(GENESIS, GROUP)
        await store.append(ROWS[:2])
        await store.append(ROWS[:3])
        await store.append([])

        assert list(store.load_operations(GROUP)) == ROWS[:3]
        assert store.groups() == [(GROUP, GENESIS)]


@pytest.mark.asyncio
async def test_operations_of_an_unknown_group_are_refused_all_or_none():
    async with Machine(new_disk()) as store:
        await store.add_group(GENESIS, GROUP)
        with pytest.raises(LocalProtocolError, match="is not stored"):
            await store.append([ROWS[0], OpRow(b"?" * 32, ROWS[1].id, ROWS[1].wire)])

        assert list(store.load_operations(GROUP)) == []


@pytest.mark.asyncio
async def test_pages_of_the_log_are_read_in_order(monkeypatch):
    monkeypatch.setattr("crdt_merge_node.storage.operations.PAGE_ROWS", 2)
    async with Machine(new_disk()) as store:
        await store.add_group(GENESIS, GROUP)
        await store.append(ROWS)

        assert list(store.load_operations(GROUP)) == ROWS


@pytest.mark.asyncio
async def test_concurrent_appends_share_transactions(tmp_path):
    """Group commit: what queues up while one transaction is synced goes into the next one."""
    store = await open_real(tmp_path)
    await store.add_group(GENESIS, GROUP)
    commits = []
    store._database._connection.set_commit_hook(lambda: commits.append(1) or False)
    gate = threading.Event()
    blocker = store._own_executor.submit(gate.wait)
    appends = [asyncio.ensure_future(store.append([row])) for row in ROWS]
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(*appends)

    assert blocker.result() is True
    assert len(commits) == 1
    assert list(store.load_operations(GROUP)) == ROWS
    await close_real(store)


@pytest.mark.asyncio
async def test_an_append_returns_only_after_the_log_was_synced():
    disk = new_disk()
    syncs = []
    async with Machine(disk) as store:
        await store.add_group(GENESIS, GROUP)
        disk.fault = lambda _index, name, path: syncs.append(path.name) if name == "sync" else None
        await store.append(ROWS[:1])

        assert syncs == ["ops.db-wal"]
        disk.fault = None


@pytest.mark.asyncio
async def test_one_bad_change_does_not_undo_its_neighbours(tmp_path):
    store = await open_real(tmp_path)
    gate = threading.Event()
    store._own_executor.submit(gate.wait)

    def fail(connection):
        connection.execute("INSERT INTO facts VALUES ('half', x'00')")
        raise LocalProtocolError("no")

    good = asyncio.ensure_future(store.put_meta("a", b"1"))
    await asyncio.sleep(0)
    bad = store._database.write(fail)
    late = asyncio.ensure_future(store.put_meta("b", b"2"))
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(good, late)

    with pytest.raises(LocalProtocolError):
        bad.result()
    assert store._database.query("SELECT name FROM facts ORDER BY name") == [("a",), ("b",)]
    await close_real(store)


@pytest.mark.asyncio
async def test_a_cancelled_caller_leaves_memory_and_disk_in_step(tmp_path):
    store = await open_real(tmp_path)
    gate = threading.Event()
    entered = threading.Event()
    store._database.write(lambda _connection: (entered.set(), gate.wait()))
    await asyncio.to_thread(entered.wait)
    waiting = asyncio.ensure_future(store.put_meta("queued", b"1"))
    await asyncio.sleep(0)
    waiting.cancel()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await store.put_meta("after", b"2")
    on_disk = [name for (name,) in store._database.query("SELECT name FROM facts ORDER BY name")]

    assert on_disk == [name for name, _ in await store.scan_meta("")]
    await close_real(store)


@pytest.mark.asyncio
async def test_small_facts_are_kept_found_by_prefix_and_forgotten():
    disk = new_disk()
    async with Machine(disk) as store:
        await store.update_meta({"peer/b": b"2", "peer/a": b"1", "other": b"3"})
        await store.put_meta("peer/a", b"9")
        await store.delete_meta("other")

    async with Machine(disk) as store:
        assert await store.scan_meta("peer/") == [("peer/a", b"9"), ("peer/b", b"2")]
        assert await store.get_meta("peer/a") == b"9"
        assert await store.get_meta("other") is None


@pytest.mark.asyncio
async def test_a_store_of_another_cluster_is_refused():
    """B66."""
    async with Machine(new_disk()) as store:
        await store.bind_cluster(b"c" * 32)
        await store.bind_cluster(b"c" * 32)
        with pytest.raises(StorageError, match="belongs to cluster"):
            await store.bind_cluster(b"d" * 32)


@pytest.mark.asyncio
async def test_every_pragma_of_the_durability_recipe_holds(tmp_path):
    store = await open_real(tmp_path)
    asked = {
        name: store._database.read(lambda connection, name=name: connection.pragma(name))
        for name in (
            "journal_mode",
            "synchronous",
            "foreign_keys",
            "mmap_size",
            "secure_delete",
            "temp_store",
        )
    }

    assert asked == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "mmap_size": 0,
        "secure_delete": 1,
        "temp_store": 2,
    }
    await close_real(store)


@pytest.mark.asyncio
async def test_a_pragma_that_does_not_take_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(connecting, "PRAGMAS", (("journal_mode", "off", ("wal",)),))

    with pytest.raises(StorageError, match="journal_mode"):
        await open_real(tmp_path)


def change_header(path, pragma: str) -> None:
    connection = apsw.Connection(str(path / "ops.db"))
    connection.execute(pragma)
    connection.close()


@pytest.mark.parametrize(
    ("pragma", "expected"),
    [
        (f"PRAGMA user_version = {SCHEMA_VERSION + 1}", SchemaTooNewError),
        ("PRAGMA application_id = 1", CorruptError),
    ],
)
@pytest.mark.asyncio
async def test_a_newer_schema_and_a_foreign_database_are_refused(tmp_path, pragma, expected):
    """B66."""
    await close_real(await open_real(tmp_path))
    change_header(tmp_path, pragma)

    data = DataDir.open(tmp_path)
    with pytest.raises(expected):
        await Store.open(data, clock=StillClock(), rng=SeededRng(1))
    data.close()


@pytest.mark.asyncio
async def test_a_closed_store_refuses_and_closes_again(tmp_path):
    store = await open_real(tmp_path)
    await store.close()
    await store.close()

    with pytest.raises(StorageError, match="closed"):
        await store.put_meta("a", b"")
    store.data.close()


@pytest.mark.asyncio
async def test_rows_are_still_taken_when_blobs_no_longer_fit(lines):
    """T20: a remove must be possible on a full disk, so rows stop at half of the reserve."""
    disk = new_disk(capacity_bytes=100 << 20)
    async with Machine(disk) as store:
        store.room._reserve_bytes = 90 << 20  # A twentieth of the disk, 5 MiB, is the most that is kept.
        disk.used_bytes += 96 << 20
        with pytest.raises(FullError):
            store.room.require_blob(1)
        await store.put_meta("still", b"taken")
        disk.used_bytes += 2 << 20
        with pytest.raises(FullError, match="reserve"):
            await store.put_meta("not", b"taken")
        await store.delete_meta("still")
        assert store.room.is_full
        disk.used_bytes -= 98 << 20
        await store.put_meta("again", b"taken")

        assert not store.room.is_full
    assert [line["event"] for line in lines].count("store.full") == 2


@pytest.mark.asyncio
async def test_checkpoints_keep_the_log_short(monkeypatch):
    monkeypatch.setattr(database_module, "CHECKPOINT_PAGES", 10)
    disk = new_disk()
    async with Machine(disk) as store:
        for number in range(30):
            await store.put_meta("fact", bytes([number]) * 5000)

        wal = disk.stat(store.data.path / "ops.db-wal").nbytes
    assert wal < 30 * 4096 * 2


@pytest.mark.asyncio
async def test_the_store_works_from_many_threads_at_once(tmp_path):
    """One connection, one thread: concurrent blocking calls never meet inside SQLite."""
    store = await open_real(tmp_path)
    await store.add_group(GENESIS, GROUP)

    def work(number: int) -> bytes | None:
        id_ = bytes([number]) * 32
        store.blobs.put_object(id_, b"x" * number)
        return store.blobs.get_object(id_)

    results = await asyncio.gather(
        *(asyncio.to_thread(work, number) for number in range(1, 20)), store.append(ROWS), store.append(ROWS)
    )

    assert results[:19] == [b"x" * number for number in range(1, 20)]
    assert isinstance(store.data.fs, SystemFs)
    await close_real(store)
