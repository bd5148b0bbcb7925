"""A directory of files that appears whole, durable and under its name, or not at all.

Files are written into a hidden directory beside it, which then takes the name. A directory that is there
already is replaced only if it holds nothing but what an earlier output left there: nothing of a user's is
ever removed. If the process dies between the two renames of a replacement, the earlier directory is still
there under a hidden name, and the next attempt puts it back first.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from crdt_merge_protocol.checkpoint import INDEX_NAME, is_shard_name
from crdt_merge_protocol.packing import CONFIG_NAME

from crdt_merge_node.errors import InvalidRequestError
from crdt_merge_node.ports import Fs, Rng, process_id
from crdt_merge_node.resolve.files import naming
from crdt_merge_node.resolve.job import PROVENANCE_SUFFIX

_NEW: Final = ".part"
_OLD: Final = ".old"


class StagedDirectory:
    """A directory under construction. A context manager: what is left unfinished goes."""

    def __init__(self, target: Path, *, fs: Fs, rng: Rng) -> None:
        """Make the hidden directory.

        Raises:
            InvalidRequestError: The target is there and holds something else than an earlier output.
            StorageError: It cannot be made.
        """
        self.target = target
        self._fs = fs
        token = f"{process_id()}-{rng.bytes(6).hex()}"
        self.path = target.with_name(f".{target.name}.{token}{_NEW}")
        self._old = target.with_name(f".{target.name}.{token}{_OLD}")
        sweep(fs, target)
        _require_replaceable(fs, target)
        with naming(target, "written"):
            fs.mkdir(self.path, mode=0o777)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            _remove(self._fs, self.path)
        with contextlib.suppress(OSError):
            _put_back(self._fs, self._old, self.target)

    def commit(self) -> None:
        """Give the directory its name, durably. Its files are durable already."""
        with naming(self.target, "written"):
            self._fs.sync_dir(self.path)
            if self._fs.stat(self.target) is not None:
                self._fs.rename(self.target, self._old)
            self._fs.rename(self.path, self.target)
            self._fs.sync_dir(self.target.parent)


def is_output_name(name: str) -> bool:
    """Tell whether a file of this name in an output directory is one that we wrote."""
    return is_shard_name(name) or name in (INDEX_NAME, CONFIG_NAME) or name.endswith(PROVENANCE_SUFFIX)


def _require_replaceable(fs: Fs, target: Path) -> None:
    with naming(target, "written"):
        found = fs.stat(target)
        if found is None:
            return
        names = fs.listdir(target) if found.is_directory else []
    if not found.is_directory:
        raise InvalidRequestError(
            f"{target} is there and is no directory.", hint="Name another place for the shards."
        )
    foreign = [name for name in names if not is_output_name(name)]
    if foreign:
        raise InvalidRequestError(
            f"{target} holds {foreign[0]}, which no output does; nothing of it is replaced.",
            hint="Name a directory that is not there yet, or move what is in it elsewhere.",
        )


def sweep(fs: Fs, target: Path) -> None:
    """Remove what a killed process left; put back what it had moved away."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.(?P<process>\d+)-[0-9a-f]+({_NEW}|{_OLD})")
    with naming(target, "written"):
        names = fs.listdir(target.parent)
    for name in names:
        found = pattern.fullmatch(name)
        if not found or fs.stat(Path("/proc", found["process"])) is not None:
            continue
        with contextlib.suppress(OSError):
            if name.endswith(_OLD):
                _put_back(fs, target.parent / name, target)
            else:
                _remove(fs, target.parent / name)


def _put_back(fs: Fs, old: Path, target: Path) -> None:
    """Remove the directory that was replaced; if nothing took its place, give it its name again."""
    if fs.stat(old) is not None and fs.stat(target) is None:
        fs.rename(old, target)
    else:
        _remove(fs, old)


def _remove(fs: Fs, directory: Path) -> None:
    if fs.stat(directory) is None:
        return
    for name in fs.listdir(directory):
        fs.unlink(directory / name)
    fs.rmdir(directory)
