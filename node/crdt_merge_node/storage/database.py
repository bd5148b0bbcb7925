"""The one SQLite connection, on the one thread that may use it, committing in groups.

Work is queued as small functions of the connection. Whatever has queued up while the last transaction was
being synced goes into the next one together, each function in a savepoint of its own: one durable commit
costs a few hundred microseconds of CPU and a disk flush, and under load hundreds of callers share it. There
is no timer: a lone caller never waits for company. A future completes only after COMMIT, at
``synchronous=FULL``, has returned; reads queue the same way and so see everything acknowledged before them.

There is no second connection: locking is exclusive, which also lets the database run on the simulated disk.
Checkpoints are made here, after the callers have their answers, instead of by SQLite inside a commit: SQLite
ignores the errors of its own.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import apsw

from crdt_merge_node.errors import FullError, StorageError

from .connecting import connect, translated
from .health import Health, Room, full_error

T = TypeVar("T")
Work = Callable[[apsw.Connection], T]

BATCH_MAX: Final = 256
"""Functions in one transaction. Bounds how long the first of them waits for the last."""
BACKUP_PAGES: Final = 256
"""Copied at a time: a MiB, for which the thread is away from other work."""
CHECKPOINT_PAGES: Final = 1000
"""Pages in the write-ahead log that call for a checkpoint: 4 MB, SQLite's own default."""
_FATAL: Final = (
    apsw.IOError,
    apsw.CorruptError,
    apsw.NotADBError,
    apsw.ReadOnlyError,
    apsw.CantOpenError,
    apsw.InternalError,
)


def done() -> Future[None]:
    """Return a future that is complete: there is nothing to write."""
    future: Future[None] = Future()
    future.set_result(None)
    return future


@contextmanager
def _blaming(target: Path) -> Iterator[None]:
    """Say of a copy what went wrong with it, so that nobody loses trust in the database itself."""
    try:
        yield
    except apsw.FullError as error:
        raise FullError(f"{target} cannot be written: no room.", hint="Make room there.") from error
    except apsw.Error as error:
        raise StorageError(f"{target} cannot be written: {error}.", hint="Name another place.") from error


@dataclass(slots=True)
class _Item:
    """A queued function and where its result goes."""

    work: Work[Any]
    future: Future[Any]
    is_write: bool
    needs_room: bool

    def take(self) -> bool:
        return self.future.set_running_or_notify_cancel()


class Database:
    """The operation database. Every method may be called from any thread but that of the executor."""

    def __init__(
        self, connection: apsw.Connection, path: Path, *, executor: Executor, health: Health, room: Room
    ) -> None:
        self._connection = connection
        self._path = path
        self._executor = executor
        self._health = health
        self._room = room
        self._lock = threading.Lock()
        self._queue: deque[_Item] = deque()
        self._is_scheduled = False
        self._is_closed = False
        self._wal_pages = 0
        connection.set_wal_hook(self._note_wal)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        is_new: bool,
        executor: Executor,
        health: Health,
        room: Room,
        vfs: str | None = None,
    ) -> Database:
        """Open or make the database; recover and check it.

        Args:
            path: The file.
            is_new: Whether the data directory never had one.
            executor: One thread, or one that runs everything at once (for simulations).
            health: Where failures are recorded.
            room: Checked before every write.
            vfs: APSW name of a virtual file system, for tests and simulations.

        Raises:
            CorruptError: Damaged, or gone.
            SchemaTooNewError: Written by a newer release.
            FullError: No room.
            StorageError: It cannot be opened.
        """

        def open_and_check() -> apsw.Connection:
            with translated(path):
                return connect(path, is_new=is_new, vfs=vfs)

        connection = executor.submit(open_and_check).result()
        return cls(connection, path, executor=executor, health=health, room=room)

    def write(self, work: Work[T], *, needs_room: bool = True) -> Future[T]:
        """Queue a change; the future completes once it is durable.

        The function runs in a savepoint: if it raises, it alone is undone and its future has the error. With
        ``needs_room`` the change is refused on a full disk (not for what frees space).
        """
        return self._submit(work, is_write=True, needs_room=needs_room)

    def write_then(
        self, work: Work[object], noted: Callable[[], None], *, needs_room: bool = True
    ) -> Future[None]:
        """Queue a change; ``noted`` runs once it is durable, and the future completes after that.

        ``noted`` runs on whichever thread is at hand; it must not block. The future cannot be cancelled.
        """
        after: Future[None] = Future()
        after.set_running_or_notify_cancel()

        def finish(done: Future[object]) -> None:
            if (error := done.exception()) is not None:
                after.set_exception(error)
            else:
                noted()
                after.set_result(None)

        self.write(work, needs_room=needs_room).add_done_callback(finish)
        return after

    def read(self, work: Work[T]) -> T:
        """Run a query after everything queued before it, and wait for the answer."""
        return self._submit(work, is_write=False, needs_room=False).result()

    def query(self, sql: str, *parameters: bytes | int | str) -> list[Any]:
        """Return all rows of a query, after everything queued before it. Blocks."""
        return self.read(lambda connection: connection.execute(sql, parameters).fetchall())

    def delete(self, sql: str, *parameters: bytes | int | str) -> None:
        """Run one statement that frees space, durably, also on a full disk. Blocks."""
        self.write(lambda connection: connection.execute(sql, parameters), needs_room=False).result()

    def empty_log(self) -> None:
        """Leave nothing in the write-ahead log: what was deleted is then in no file. Blocks.

        Raises:
            FullError: No room; the log keeps everything.
            StoreFailedError: The disk failed.
        """

        def checkpoint() -> None:
            self._health.check()
            try:
                self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            except apsw.Error as error:
                raise self._explain(error) from error

        with self._lock:
            if self._is_closed:
                raise StorageError("the store is closed.")
        self._executor.submit(checkpoint).result()

    def back_up(self, target: Path, progress: Callable[[int, int], None]) -> None:
        """Copy the database, as it is when this ends, to a file. Blocks the caller; other work goes between.

        Args:
            target: The file; what is there is replaced.
            progress: Hears (bytes copied, bytes in all).

        Raises:
            FullError, StorageError: The copy cannot be written. It says nothing about this database.
        """
        copying: list[tuple[apsw.Connection, apsw.Backup]] = []

        def begin(connection: apsw.Connection) -> None:
            with _blaming(target):
                copy = apsw.Connection(str(target))
                copying.append((copy, copy.backup("main", connection, "main")))

        def step(connection: apsw.Connection) -> tuple[int, int]:
            _, backup = copying[0]
            # Locked: a write of this very connection is under way. Whatever it changes is in the copy, too.
            with _blaming(target), suppress(apsw.LockedError, apsw.BusyError):
                backup.step(BACKUP_PAGES)
            page_bytes = int(connection.pragma("page_size"))
            return backup.page_count * page_bytes, backup.remaining * page_bytes

        def end(_connection: apsw.Connection) -> None:
            for copy, backup in copying:
                is_done = backup.done
                with _blaming(target), closing(copy):
                    with suppress(apsw.Error):  # It says again what a step said.
                        backup.finish()
                    if is_done:
                        copy.pragma("journal_mode", "delete")  # One file, without a log beside it.

        try:
            self.read(begin)
            total, left = 1, 1
            while left or not copying[0][1].done:
                total, left = self.read(step)
                progress(total - left, total)
        finally:
            self.read(end)

    def close(self) -> None:
        """Finish what is queued and close the file. Idempotent."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        self._executor.submit(self._drain).result()
        self._executor.submit(self._close_connection).result()

    def _submit(self, work: Work[T], *, is_write: bool, needs_room: bool) -> Future[T]:
        future: Future[T] = Future()
        with self._lock:
            if self._is_closed:
                raise StorageError("the store is closed.")
            self._queue.append(_Item(work, future, is_write, needs_room))
            if self._is_scheduled:
                return future
            self._is_scheduled = True
        self._executor.submit(self._drain)
        return future

    def _drain(self) -> None:
        while True:
            with self._lock:
                batch = [self._queue.popleft() for _ in range(min(BATCH_MAX, len(self._queue)))]
                if not batch:
                    self._is_scheduled = False
                    return
            batch = self._admit([item for item in batch if item.take()])
            if batch:
                self._run(batch)
                self._checkpoint()

    def _admit(self, batch: list[_Item]) -> list[_Item]:
        """Refuse the writes that cannot be made now, before any damage."""
        refusal: StorageError | None = None
        try:
            self._health.check()
        except StorageError as error:
            refusal = error
        no_room: StorageError | None = None
        if refusal is None and any(item.needs_room for item in batch):
            try:
                self._room.require_rows()
            except StorageError as error:
                no_room = error
        admitted: list[_Item] = []
        for item in batch:
            reason = refusal if item.is_write else None
            reason = reason or (no_room if item.needs_room else None)
            if reason is None:
                admitted.append(item)
            else:
                item.future.set_exception(reason)
        return admitted

    def _run(self, batch: list[_Item]) -> None:
        """Run a batch in one transaction and complete its futures only when that is durable."""
        has_writes = any(item.is_write for item in batch)
        try:
            if has_writes:
                self._connection.execute("BEGIN IMMEDIATE")
            outcomes = [self._run_one(item) for item in batch]
            if has_writes:
                self._connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001  (whatever it is, nobody may wait for ever)
            self._roll_back()
            reason = self._explain(error)
            for item in batch:
                item.future.set_exception(reason)
            return
        for item, result, problem in outcomes:
            if problem is None:
                item.future.set_result(result)
            else:
                item.future.set_exception(problem)

    def _run_one(self, item: _Item) -> tuple[_Item, Any, BaseException | None]:
        """Run one function. Failures of the file end the batch; any other is the function's own."""
        if item.is_write:
            self._connection.execute("SAVEPOINT item")
        try:
            result = item.work(self._connection)
        except (*_FATAL, apsw.FullError, apsw.NoMemError):
            raise
        except Exception as error:  # noqa: BLE001  (it belongs to the caller and is handed to the caller)
            if item.is_write:
                self._connection.execute("ROLLBACK TO item; RELEASE item")
            return item, None, error
        if item.is_write:
            self._connection.execute("RELEASE item")
        return item, result, None

    def _roll_back(self) -> None:
        if self._connection.in_transaction:  # SQLite rolls back by itself after some errors.
            try:
                self._connection.execute("ROLLBACK")
            except apsw.Error as error:
                self._health.fail(f"rolling back {self._path}", error)

    def _explain(self, error: BaseException) -> StorageError:
        if isinstance(error, apsw.FullError):
            full = full_error(self._path)
            self._room.note_full(full)
            return full
        if isinstance(error, apsw.NoMemError):
            return StorageError(f"{self._path}: out of memory.", hint="Nothing was lost. Retry.")
        return self._health.fail(f"using {self._path}", error)

    def _note_wal(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        self._wal_pages = pages
        return apsw.SQLITE_OK

    def _checkpoint(self) -> None:
        if self._wal_pages < CHECKPOINT_PAGES or self._health.failure is not None:
            return
        self._wal_pages = 0
        try:
            self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        except apsw.FullError:
            # The log keeps everything; a later commit tries again.
            self._room.note_full(full_error(self._path))
        except apsw.Error as error:
            self._health.fail(f"checkpointing {self._path}", error)

    def _close_connection(self) -> None:
        try:
            if self._health.failure is not None:
                # The next start must find what the disk has, not what this process believes.
                self._connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            self._connection.close()
        except apsw.FullError:
            self._connection.close(True)
        except apsw.Error as error:
            self._connection.close(True)
            self._health.fail(f"closing {self._path}", error)
