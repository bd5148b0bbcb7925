"""Users' files that hold blobs as they are, so that adding a checkpoint costs no second copy.

Where the file system can, a file in ``kept/`` shares the blocks of the user's (a reflink): whatever is
written to either later does not show in the other. Where it cannot, and the user asks for it, the file in
``kept/`` is another name of the user's file (a hard link). Then a later write damages blobs; it shows in
their hashes, which are compared whenever they are read, and they are set aside and fetched again like others.

A blob in such a file is a row that says where it begins. The file goes with its last blob. One without rows
is what a crash left, and is removed at the next start.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from crdt_merge_node.control.model import Placement
from crdt_merge_node.errors import StorageError
from crdt_merge_node.ports import Rng

from .health import Health
from .layout import DataDir


@dataclass(frozen=True, slots=True)
class Kept:
    """A file in ``kept/``."""

    name: str
    path: Path
    placement: Placement


class KeptFiles:
    """The directory ``kept/`` of a store. Names are random: nothing that a user chose becomes a path."""

    def __init__(self, data: DataDir, *, rng: Rng, health: Health) -> None:
        self._data = data
        self._fs = data.fs
        self._rng = rng
        self._health = health

    def path_of(self, name: str) -> Path:
        """Return where a kept file is."""
        return self._data.kept / name

    def names(self) -> list[str]:
        """Return the names of all kept files."""
        return self._fs.listdir(self._data.kept)

    def take(self, source: Path, *, may_link: bool) -> Kept | None:
        """Keep a user's file without copying it, durably; None if that cannot be done here.

        Args:
            source: The file; a symbolic link is followed.
            may_link: Whether a hard link will do where blocks cannot be shared.

        Raises:
            StorageError: The file cannot be read.
            StoreFailedError: The disk failed.
        """
        name = self._rng.bytes(16).hex()
        path = self.path_of(name)
        placement = self._place(source, path, may_link=may_link)
        if placement is Placement.COPIED:
            return None
        with self._health.writing(path):
            with self._fs.open_read(path) as file:
                file.sync()
            self._fs.sync_dir(path.parent)
        return Kept(name, path, placement)

    def probe(self, source: Path, *, may_link: bool) -> Placement:
        """Return what :meth:`take` would do with a file, leaving nothing."""
        path = self._data.tmp / self._rng.bytes(16).hex()
        placement = self._place(source, path, may_link=may_link)
        if placement is not Placement.COPIED:
            with self._health.writing(path):
                self._fs.unlink(path)
        return placement

    def drop(self, name: str) -> None:
        """Remove a file of which no blob is left, durably."""
        path = self.path_of(name)
        with self._health.writing(path):
            if self._fs.stat(path) is not None:
                self._fs.unlink(path)
                self._fs.sync_dir(path.parent)

    def _place(self, source: Path, path: Path, *, may_link: bool) -> Placement:
        try:
            if self._fs.clone(source, path):
                return Placement.SHARED
            if may_link and self._fs.link(source, path):
                return Placement.LINKED
        except OSError as error:
            raise StorageError(f"{source} cannot be kept: {error.strerror}.") from error
        return Placement.COPIED
