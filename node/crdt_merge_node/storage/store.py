"""The store of one daemon: an asynchronous face over the one writer thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import apsw
from crdt_merge_protocol.limits import MIB

from crdt_merge_node.errors import StorageError, StoreFailedError
from crdt_merge_node.ports import Clock, Fs, Rng
from crdt_merge_node.telemetry.events import of_this_node
from crdt_merge_node.telemetry.logging import get_logger

from .blobs import BlobStore
from .database import Database
from .health import NO_ROOM, Health, Room, full_error
from .layout import DataDir
from .operations import OperationLog, OpRow
from .recovery import ROOT_FACT, RecoveryReport, explain_damaged_genesis, recover

RESERVE_BYTES_DEFAULT: Final = 256 * MIB
CLUSTER_FACT: Final = "cluster"

log = get_logger(__name__)


class Store:
    """Everything durable of one node. Open it with :meth:`open`, on the loop that will use it."""

    def __init__(
        self,
        data: DataDir,
        database: Database,
        blobs: BlobStore,
        *,
        clock: Clock,
        health: Health,
        room: Room,
        own_executor: Executor | None,
    ) -> None:
        self.data = data
        self.blobs = blobs
        self.health = health
        self.room = room
        self.recovery = RecoveryReport()
        """What opening found and repaired."""
        self._database = database
        self._log = OperationLog(database)
        self._clock = clock
        self._facts: dict[str, bytes] = {}
        self._own_executor = own_executor

    @classmethod
    async def open(
        cls,
        data: DataDir,
        *,
        fs: Fs | None = None,
        clock: Clock,
        rng: Rng,
        reserve_bytes: int = RESERVE_BYTES_DEFAULT,
        on_fatal: Callable[[StoreFailedError], None] | None = None,
        on_corrupt: Callable[[bytes, str], None] | None = None,
        executor: Executor | None = None,
        vfs: str | None = None,
    ) -> Store:
        """Open or make the store in a locked data directory, recover and check it.

        Args:
            data: The directory; it stays locked, and its owner closes it after the store.
            fs: Only to be explicit: must be the file system of ``data``.
            clock: Wall time for records of damage.
            rng: Names of temporary files.
            reserve_bytes: Room to leave free, at most a twentieth of the file system.
            on_fatal: Called once, on this loop, when a write failed and the daemon has to end (exit code 74).
            on_corrupt: Called on this loop with the id of a blob or object that was set aside as damaged.
            executor: One thread for the database; one that runs at once makes everything deterministic.
            vfs: APSW name of a virtual file system for the database, in tests and simulations.

        Raises:
            CorruptError: The database is damaged or gone.
            SchemaTooNewError: A newer release wrote it.
            FullError: No room to make it.
            StorageError: It cannot be opened.
        """
        assert fs is None or fs is data.fs
        loop = asyncio.get_running_loop()
        health = Health(_on_loop(loop, on_fatal, _log_fatal))
        room = Room(data.fs, data.path, reserve_bytes=reserve_bytes)
        own_executor = None if executor else ThreadPoolExecutor(1, thread_name_prefix="store")
        worker = executor or own_executor
        assert worker is not None

        def build() -> Store:
            database = Database.open(
                data.database, is_new=not data.has_store, executor=worker, health=health, room=room, vfs=vfs
            )
            try:
                damage = _on_loop(loop, on_corrupt, _log_corrupt)
                blobs = BlobStore(data, database, rng=rng, health=health, room=room, on_corrupt=damage)
                store = cls(
                    data, database, blobs, clock=clock, health=health, room=room, own_executor=own_executor
                )
                store.start()
            except BaseException:
                database.close()
                raise
            return store

        try:
            return build() if executor else await asyncio.to_thread(build)
        except BaseException:
            if own_executor:
                own_executor.shutdown(wait=False)
            raise

    def start(self) -> None:
        """Recover, check, and read the small facts; called once, by :meth:`open`. Blocks."""
        started = self._clock.monotonic()
        try:
            if not self.data.has_store:
                self.data.mark_store()
            self.recovery = recover(self.data, self._log, self.blobs, wall_time=self._clock.now())
        except OSError as error:
            if error.errno in NO_ROOM:
                raise full_error(self.data.path) from error
            raise StorageError(
                f"{self.data.path}: {error.strerror}.", hint="Check the disk and permissions."
            ) from error
        rows = self._database.query("SELECT name, value FROM facts")
        self._facts = {name: value for name, value in rows if type(name) is str and type(value) is bytes}
        self._log_recovery(self._clock.monotonic() - started)

    async def close(self) -> None:
        """Finish what is queued and close the database. Idempotent."""
        if self._own_executor is None:
            self._database.close()
            return
        await asyncio.to_thread(self._database.close)
        self._own_executor.shutdown()

    # --- groups and operations ----------------------------------------------------------------------

    async def add_group(self, genesis_bytes: bytes, group: bytes) -> None:
        """Store a group; storing it again changes nothing. Durable on return."""
        await asyncio.wrap_future(self._log.add_group(genesis_bytes, group))

    def groups(self) -> list[tuple[bytes, bytes]]:
        """Return (group, genesis bytes) of every group, in the order in which they came. Blocks.

        A genesis that is damaged is left out: peers tell of the group again, and storing it mends the row.
        """
        groups = []
        for group, genesis in self._log.groups():
            reason = explain_damaged_genesis(group, genesis)
            if reason is None:
                groups.append((group, genesis))
            else:
                log.error("group.damaged", group=group, reason=reason)
        return groups

    async def append(self, rows: Sequence[OpRow]) -> None:
        """Append operations, all or none; durable on return. Concurrent calls share a transaction.

        Raises:
            FullError: No room; nothing was stored.
            StoreFailedError: The disk failed; whether the rows survive shows at the next start.
            LocalProtocolError: A group is not stored.
        """
        if rows:
            await asyncio.wrap_future(self._log.append(rows))

    async def drop_operations(self, group: bytes, ids: Sequence[bytes]) -> None:
        """Delete operations, all or none, of which some may not be stored; durable on return.

        The root that was saved at the last orderly stop is forgotten with them: it is the root of more. What
        contents they had is remembered as small facts (``EXCLUDED_FACT``), for nothing else says so any more.
        """
        fact = ROOT_FACT + group.hex()
        notes = await asyncio.wrap_future(self._log.drop(ids, forgetting=fact))
        self._facts.pop(fact, None)
        self._facts.update(notes)

    def load_operations(self, group: bytes) -> Iterator[OpRow]:
        """Yield a group's operations in append order, setting aside rows that are none. Blocks."""
        for good, bad in self._log.pages(group):
            for row in bad:
                self._log.quarantine(
                    position=row.position, reason=row.reason, wall_time=self._clock.now()
                ).result()
                log.error("operation.quarantined", operation=row.id, group=group, reason=row.reason)
            yield from good

    def last_position(self) -> int:
        """Return where in the log the newest operation is; 0 if there is none. Blocks."""
        return self._log.last_position()

    def operations_after(self, position: int, count: int) -> tuple[list[OpRow], int]:
        """Return the next operations of any group, and the position of the last. Blocks.

        Rows that are no operations are set aside and not returned.
        """
        good, bad, last = self._log.after(position, count)
        for row in bad:
            self._log.quarantine(
                position=row.position, reason=row.reason, wall_time=self._clock.now()
            ).result()
            log.error("operation.quarantined", operation=row.id, reason=row.reason)
        return good, last

    def page_problems(self, table: str) -> list[str]:
        """Return what SQLite finds wrong with a table of the schema and its indexes. Blocks."""
        rows = self._database.query(f"PRAGMA integrity_check('{table}')")
        return [str(row[0]) for row in rows if row[0] != "ok"]

    def quarantine_operation(self, operation_id: bytes, reason: str) -> None:
        """Move an operation that cannot be used out of the log, so that a good copy may come. Blocks."""
        self._log.quarantine(id_=operation_id, reason=reason, wall_time=self._clock.now()).result()
        log.error("operation.quarantined", operation=operation_id, reason=reason)

    def quarantined(self) -> list[tuple[str, bytes | None, str]]:
        """Return (kind, id, reason) of every row that was set aside, oldest first. Blocks."""
        return self._log.quarantined()

    def copy_database(self, target: Path, report: Callable[[int, int, str], None]) -> None:
        """Copy the database, as it is when this ends, to a file, durably. Blocks.

        Raises:
            StorageError: The copy cannot be written.
        """
        fs = self.data.fs
        if fs.stat(target) is not None:
            fs.unlink(target)
        self._database.back_up(target, lambda done, total: report(done, total, "copying the database"))
        with fs.open_write(target) as file:
            file.sync()

    # --- small facts --------------------------------------------------------------------------------

    async def put_meta(self, key: str, value: bytes) -> None:
        """Store a small fact; durable on return."""
        await self.update_meta({key: value})

    async def delete_meta(self, key: str) -> None:
        """Forget a small fact; durable on return."""
        await self.update_meta({key: None})

    async def update_meta(self, changes: Mapping[str, bytes | None]) -> None:
        """Store or (None) forget several facts, all or none; durable on return."""
        stored = [(key, value) for key, value in changes.items() if value is not None]
        dropped = [(key,) for key, value in changes.items() if value is None]

        def change(connection: apsw.Connection) -> None:
            connection.executemany("INSERT OR REPLACE INTO facts (name, value) VALUES (?, ?)", stored)
            connection.executemany("DELETE FROM facts WHERE name = ?", dropped)

        future = self._database.write(change, needs_room=bool(stored))
        # On completion and not after the await: a cancelled caller must not leave memory behind the disk.
        future.add_done_callback(lambda done: self._note_facts(done, stored, dropped))
        await asyncio.wrap_future(future)

    async def get_meta(self, key: str) -> bytes | None:
        """Return a small fact, or None. Answered from memory."""
        return self._facts.get(key)

    async def scan_meta(self, prefix: str) -> list[tuple[str, bytes]]:
        """Return (key, value) of all facts whose key begins with ``prefix``, sorted. From memory."""
        return sorted(fact for fact in list(self._facts.items()) if fact[0].startswith(prefix))

    async def bind_cluster(self, cluster: bytes) -> None:
        """Tie the store to its cluster at the first start; refuse another one later (B66).

        Raises:
            StorageError: The directory belongs to another cluster.
        """
        known = self._facts.get(CLUSTER_FACT)
        if known is None:
            await self.put_meta(CLUSTER_FACT, cluster)
        elif known != cluster:
            raise StorageError(
                f"{self.data.path} belongs to cluster {known.hex()[:12]}, "
                f"the certificates to {cluster.hex()[:12]}.",
                hint="Give each cluster a data directory of its own.",
            )

    def _note_facts(
        self, done: Future[None], stored: Sequence[tuple[str, bytes]], dropped: Sequence[tuple[str]]
    ) -> None:
        if done.cancelled() or done.exception() is not None:
            return
        self._facts.update(stored)
        for (key,) in dropped:
            self._facts.pop(key, None)

    def _log_recovery(self, duration_s: float) -> None:
        found = self.recovery
        log.info(
            "store.opened",
            operations=found.operations,
            blobs=found.blobs,
            bytes=found.blob_bytes,
            duration_s=round(duration_s, 3),
        )
        if not found.is_clean:
            log.warning(
                "store.repaired",
                swept=found.files_swept,
                adopted=len(found.blobs_adopted),
                lost=len(found.blobs_lost),
                quarantined=found.files_quarantined + found.rows_dropped + len(found.operations_quarantined),
            )


def _on_loop(
    loop: asyncio.AbstractEventLoop, callback: Callable[..., None] | None, first: Callable[..., None]
) -> Callable[..., None]:
    """Return a function for any thread that runs ``first`` there and ``callback`` on the loop."""
    first = of_this_node(first)

    def call(*args: Any) -> None:
        first(*args)
        if callback is not None and not loop.is_closed():
            loop.call_soon_threadsafe(callback, *args)

    return call


def _log_fatal(error: StoreFailedError) -> None:
    log.error("store.failed", error=error)


def _log_corrupt(blob: bytes, reason: str) -> None:
    log.error("blob.corrupt", blob=blob, reason=reason)
