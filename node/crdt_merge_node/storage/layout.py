"""The data directory: who may use it, what is where, which release wrote it.

LOCK        flock of the running daemon, with its process id
FORMAT      {"format": 1, "has_store": true}; a newer format is refused
identity/   the node's key and certificates          ca/   the cluster CA, where this node has it
ops.db      operations, small objects, small blobs, small facts
blobs/ab/…  larger blobs, named by the rest of their digest; never by anything a peer or user chose (T21)
partial/    blobs being fetched       tmp/   files being written       quarantine/   what was damaged
RESTORED    after ``restore``, until a peer has told what happened since     LEFT   after ``leave``
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, Self

from crdt_merge_node.errors import AlreadyRunningError, CorruptError, SchemaTooNewError, StorageError
from crdt_merge_node.ports import Fs, Lock, SystemFs, process_id, replace_file

from .health import NO_ROOM, full_error

FORMAT_VERSION: Final = 1
FORMAT_BYTES_MAX: Final = 4096
DIRECTORIES: Final = ("identity", "ca", "blobs", "kept", "partial", "tmp", "quarantine")


class DataDir:
    """An open data directory, locked against other processes until :meth:`close`."""

    def __init__(self, path: Path, fs: Fs, lock: Lock) -> None:
        self.path = path
        self.fs = fs
        self._lock = lock
        self.identity = path / "identity"
        self.ca = path / "ca"
        self.blobs = path / "blobs"
        self.kept = path / "kept"
        self.partial = path / "partial"
        self.tmp = path / "tmp"
        self.quarantine = path / "quarantine"
        self.database = path / "ops.db"
        self.has_store = False
        """Whether a database was ever made here: if so, an absent one is a loss and not a fresh start."""

    @classmethod
    def open(cls, path: Path, *, fs: Fs | None = None) -> Self:
        """Lock the directory and check its format; make what is missing.

        Raises:
            AlreadyRunningError: Another process has it.
            SchemaTooNewError: A newer release wrote it.
            CorruptError: Its FORMAT file is not readable.
            FullError: No room to make it.
            StorageError: It is not a directory of this user, or cannot be written.
        """
        fs = fs or SystemFs()
        try:
            _make_root(fs, path)
            lock = fs.lock(path / "LOCK", note=f"{process_id()}\n".encode())
            if lock is None:
                raise AlreadyRunningError(
                    f"another process uses {path} (see the process id in {path / 'LOCK'}).",
                    hint="Stop it, or give this node a --data-dir of its own.",
                )
            data = cls(path, fs, lock)
            try:
                data._prepare()
            except BaseException:
                lock.close()
                raise
        except OSError as error:
            if error.errno in NO_ROOM:
                raise full_error(path) from error
            raise StorageError(
                f"{error.filename or path}: {error.strerror}.",
                hint="Give a --data-dir that this user can write.",
            ) from error
        return data

    def close(self) -> None:
        """Let other processes have the directory."""
        self._lock.close()

    def mark_store(self) -> None:
        """Remember durably that a database was made here."""
        replace_file(self.fs, self.path / "FORMAT", _encode_format(has_store=True))
        self.has_store = True

    def _prepare(self) -> None:
        for name in DIRECTORIES:
            self.fs.mkdir(self.path / name)
        if self.fs.stat(self.path / "FORMAT") is None:
            replace_file(self.fs, self.path / "FORMAT", _encode_format(has_store=False))
        self.fs.sync_dir(self.path)
        self.has_store = self.read_format(self.path, self.fs)

    @staticmethod
    def read_format(directory: Path, fs: Fs) -> bool:
        """Return whether a database was ever made in a directory, whose format must be known.

        Raises:
            SchemaTooNewError: A newer release wrote it.
            CorruptError: Its FORMAT file is not readable.
        """
        path = directory / "FORMAT"
        with fs.open_read(path) as file:
            text = file.read_at(0, FORMAT_BYTES_MAX)
        try:
            document = json.loads(text)
            version, has_store = int(document["format"]), bool(document["has_store"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise CorruptError(
                f"{path} is not readable: {error!r}.", hint="Restore it, or start with a new data directory."
            ) from None
        if version > FORMAT_VERSION:
            raise SchemaTooNewError(
                f"{directory} has format {version}, this release reads {FORMAT_VERSION}.",
                hint="Run the release that wrote it, or a newer one.",
            )
        return has_store


def _make_root(fs: Fs, path: Path) -> None:
    """Make the directory if needed; refuse a link or another user's directory in its place (B65)."""
    missing = [parent for parent in (path, *path.parents) if fs.stat(parent) is None]
    for directory in reversed(missing):
        fs.mkdir(directory)
        fs.sync_dir(directory.parent)
    found = fs.stat(path)
    if found is None or not found.is_directory:
        raise StorageError(
            f"{path} is not a directory.", hint="If it is a symbolic link, give the path it leads to."
        )
    if found.mode & 0o002:
        raise StorageError(
            f"{path} can be written by everybody (mode {found.mode:04o}).", hint=f"chmod o-w {path}"
        )


def _encode_format(*, has_store: bool) -> bytes:
    return (json.dumps({"format": FORMAT_VERSION, "has_store": has_store}) + "\n").encode()
