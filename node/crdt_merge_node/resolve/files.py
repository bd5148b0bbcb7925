"""Reading users' safetensors files and the files of the blob store, with errors that name the file."""

from __future__ import annotations

import contextlib
import errno
import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from crdt_merge_protocol.errors import MalformedTensorFileError
from crdt_merge_protocol.tensorfile import LENGTH_BYTES, TensorEntry, TensorFile, header_bytes, parse_header

from crdt_merge_node.errors import CorruptError, FullError, StorageError
from crdt_merge_node.ports import File, Fs

from .job import TensorSource

if TYPE_CHECKING:
    from crdt_merge_node.checkpoints.reading import CheckpointTensor

_OPEN_FILES_MAX: Final = 64


@runtime_checkable
class WithDescriptor(Protocol):
    """A file that the kernel knows; a simulated one is none."""

    @property
    def descriptor(self) -> int:
        """The open descriptor."""
        ...


@contextmanager
def naming(path: Path | str, verb: str) -> Iterator[None]:
    """Turn an ``OSError`` into an error that says which file could not be ``verb``."""
    try:
        yield
    except OSError as error:
        raise _named(path, verb, error) from error


def _named(path: Path | str, verb: str, error: OSError) -> FullError | StorageError:
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FullError(f"{path} cannot be {verb}: {reason}.", hint="Make room, or name another place.")
    return StorageError(
        f"{path} cannot be {verb}: {reason}.",
        hint="The directory has to be there, and this user, or the daemon's, has to be allowed to.",
    )


def read_header(fs: Fs, path: Path) -> TensorFile:
    """Return the tensors of a safetensors file without reading any.

    Raises:
        MalformedTensorFileError: Not a file that contributions are made of.
        StorageError: It cannot be read.
    """
    with naming(path, "read"), fs.open_read(path, follow=True) as file:
        size = file.size()
        try:
            length = header_bytes(file.read_at(0, LENGTH_BYTES), size)
            return parse_header(file.read_at(LENGTH_BYTES, length), size)
        except MalformedTensorFileError as error:
            raise MalformedTensorFileError(
                f"{path}: {error.message}",
                hint="Only safetensors files of F64, F32, F16, BF16, F8, integer and BOOL tensors are read.",
            ) from None


def read_tensor(fs: Fs, path: Path, entry: TensorEntry | CheckpointTensor) -> bytes:
    """Return the bytes of one small tensor.

    Raises:
        CorruptError: The file ended early.
        StorageError: It cannot be read.
    """
    with naming(path, "read"), fs.open_read(path, follow=True) as file:
        found = file.read_at(entry.begin, entry.end - entry.begin)
    if len(found) != entry.end - entry.begin:
        raise CorruptError(f"{path} ended before its header said.")
    return found


class SourceReader:
    """Reads ranges of tensor sources, keeping the most recent files open."""

    def __init__(self, fs: Fs) -> None:
        self._fs = fs
        self._open: OrderedDict[str, File] = OrderedDict()

    def read(self, source: TensorSource, offset: int, nbytes: int) -> bytes | memoryview:
        """Return ``nbytes`` of a tensor from ``offset`` within it.

        Raises:
            CorruptError: The file ended early.
            StorageError: It cannot be read.
        """
        if source.path is None:
            assert source.data is not None, "a source has a path or its bytes"
            found: bytes | memoryview = memoryview(source.data)[offset : offset + nbytes]
        else:
            try:  # Not ``naming``: this runs for every block.
                found = self._file(source.path).read_at(source.offset + offset, nbytes)
            except OSError as error:
                raise _named(source.path, "read", error) from error
        if len(found) != nbytes:
            raise CorruptError(f"{source.path or 'an inline blob'} ended {nbytes - len(found)} bytes early.")
        return found

    def read_into(self, source: TensorSource, target: memoryview) -> None:
        """Read all of a tensor into bytes that are there for it; raises as :meth:`read`."""
        done = 0
        if source.path is not None:
            with naming(source.path, "read"):
                file = self._file(source.path)
                if isinstance(file, WithDescriptor):
                    while more := os.preadv(file.descriptor, [target[done:]], source.offset + done):
                        done += more
        if done < source.nbytes:  # The kernel knows no such file; or it ended early, which this tells.
            target[done:] = self.read(source, done, source.nbytes - done)

    def expect(self, source: TensorSource, offset: int, nbytes: int) -> None:
        """Say that a range of a tensor will be read soon. A hint: whatever is wrong, the reading tells."""
        if source.path is None:
            return
        with contextlib.suppress(OSError):
            file = self._file(source.path)
            # Not isinstance: asked for thousands of ranges, that of a protocol takes longer than the rest.
            descriptor: int | None = getattr(file, "descriptor", None)
            begin = source.offset + offset
            if descriptor is not None and not _is_at_hand(descriptor, begin, nbytes):
                os.posix_fadvise(descriptor, begin, nbytes, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Close all files."""
        while self._open:
            self._open.popitem()[1].close()

    def _file(self, path: str) -> File:
        file = self._open.pop(path, None)
        if file is None:
            file = self._fs.open_read(Path(path), follow=True)
            if len(self._open) >= _OPEN_FILES_MAX:
                self._open.popitem(last=False)[1].close()
        self._open[path] = file
        return file


def _is_at_hand(descriptor: int, begin: int, nbytes: int) -> bool:
    """Tell whether the ends of a range are in the page cache, and so, as a rule, what is between them.

    The kernel would look at every page of the range to find that there is nothing to do.
    """
    if not hasattr(os, "RWF_NOWAIT") or nbytes <= 0:
        return False
    byte = bytearray(1)
    try:
        return all(os.preadv(descriptor, [byte], at, os.RWF_NOWAIT) for at in (begin, begin + nbytes - 1))
    except OSError:  # Not without waiting; or the file system cannot say.
        return False
