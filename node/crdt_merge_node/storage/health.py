"""What a failed system call means: no room, a passing shortage, or the end of all trust in the disk.

After a failed fsync the kernel marks the pages clean although they never reached the disk, so a second fsync
succeeds and lies (Rebello et al. 2020, "Can Applications Recover from fsync Failures?"). Hence fail-stop: the
first failed write marks the store failed, later ones are refused at once, the daemon ends with exit code 74
and a restart reads what is really there (SCENARIOS T44). A full disk is different: it is noticed before
anything is damaged and ends by itself (T20).
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from crdt_merge_node.errors import FullError, StorageError, StoreFailedError
from crdt_merge_node.ports import Fs
from crdt_merge_node.telemetry.events import of_this_node
from crdt_merge_node.telemetry.logging import get_logger

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
SHORTAGE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})
RESERVE_SHARE: Final = 20
"""At most 1/20 of the file system is kept free, so that small disks are usable at all."""

log = get_logger(__name__)


class Health:
    """Whether writes can still be trusted. Safe to use from any thread."""

    def __init__(self, on_fatal: Callable[[StoreFailedError], None] | None = None) -> None:
        self._on_fatal = on_fatal
        self._lock = threading.Lock()
        self.failure: StoreFailedError | None = None

    def check(self) -> None:
        """Refuse to go on after a failed write.

        Raises:
            StoreFailedError: A write failed earlier.
        """
        if self.failure is not None:
            raise StoreFailedError(self.failure.message, hint=self.failure.hint)

    def fail(self, what: str, error: BaseException) -> StoreFailedError:
        """Mark the store failed, tell the daemon once, and return the error to raise."""
        failure = StoreFailedError(
            f"{what} failed: {error}.",
            hint="Nothing more is accepted. Check the disk, then start again: what was acknowledged is kept.",
        )
        with self._lock:
            is_first = self.failure is None
            self.failure = self.failure or failure
        if is_first and self._on_fatal is not None:
            self._on_fatal(failure)
        return failure

    @contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """Translate what goes wrong while something is written to ``path``.

        Raises:
            FullError: There is no room.
            StorageError: Too many open files or no memory; nothing was damaged.
            StoreFailedError: Anything else, for good.
        """
        self.check()
        try:
            yield
        except OSError as error:
            if error.errno in NO_ROOM:
                raise full_error(path) from error
            if error.errno in SHORTAGE:
                raise StorageError(f"{path}: {error.strerror}.", hint="Raise the limit and retry.") from error
            raise self.fail(f"writing {path}", error) from error


def full_error(path: Path) -> FullError:
    """Return the error that says there is no room for ``path``."""
    return FullError(
        f"no room on the file system of {path}.",
        hint="Free some, or lower storage.reserve_bytes. Nothing was lost; writing resumes by itself.",
    )


class Room:
    """Keeps a reserve free, so that a full disk is met here and not in the middle of a write.

    Blobs stop at the reserve, rows at half of it: a remove must still be possible when no tensor fits.
    """

    def __init__(self, fs: Fs, path: Path, *, reserve_bytes: int) -> None:
        self._fs = fs
        self._path = path
        self._reserve_bytes = reserve_bytes
        self._lock = threading.Lock()
        self._promised: dict[object, int] = {}
        self.is_full = False
        """Whether the last request was refused."""
        self._say_full = of_this_node(_log_full)

    def require_rows(self) -> None:
        """Check that rows may be written.

        Raises:
            FullError: They may not.
        """
        self._require(0, divisor=2)

    def require_blob(self, nbytes: int) -> None:
        """Check that ``nbytes`` more of blobs fit beside what was promised to unfinished ones.

        Raises:
            FullError: They do not.
        """
        with self._lock:
            promised = sum(self._promised.values())
        self._require(nbytes + promised, divisor=1)

    def promise(self, owner: object, nbytes: int) -> None:
        """Set aside ``nbytes`` for ``owner``, instead of what it had; 0 gives all of it back."""
        with self._lock:
            if nbytes > 0:
                self._promised[owner] = nbytes
            else:
                self._promised.pop(owner, None)

    def note_full(self, error: FullError) -> None:
        """Remember, and tell once, that there is no room."""
        if not self.is_full:
            self._say_full(error)
        self.is_full = True

    def _require(self, nbytes: int, *, divisor: int) -> None:
        try:
            space = self._fs.disk_space(self._path)
        except OSError as error:
            raise StorageError(f"{self._path}: {error.strerror}.") from error
        reserve = min(self._reserve_bytes, space.total_bytes // RESERVE_SHARE) // divisor
        if space.free_bytes - nbytes >= reserve:
            self.is_full = False
            return
        full = FullError(
            f"{space.free_bytes} bytes are free on the file system of {self._path}; {nbytes} more and "
            f"a reserve of {reserve} are needed.",
            hint="Free some, or lower storage.reserve_bytes. Nothing was lost; writing resumes by itself.",
        )
        self.note_full(full)
        raise full


def _log_full(error: FullError) -> None:
    log.error("store.full", error=error)
