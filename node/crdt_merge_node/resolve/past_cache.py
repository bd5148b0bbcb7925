"""Writing large outputs past the page cache, while this process hashes them.

The inputs are read two or more times and the output never, so its pages would take the place of theirs; and
filling them costs more processor time than the arithmetic of an average. Whole pages of aligned memory go to
the disk straight (O_DIRECT), the ends of a piece through the cache; no page takes both ways. Where the file
system knows no such thing, all goes through the cache.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
from crdt_merge_protocol.limits import MIB

from crdt_merge_node.ports import File

from .files import WithDescriptor

_pwrite = os.pwrite
PAGE_BYTES: Final = 4096
"""What offsets and addresses have to be multiples of: as much as any disk in use asks for."""
WORTH_BYTES: Final = 64 * MIB
"""Size from which on an output goes past the cache. A smaller one pushes nothing out and may be read soon."""


class PastCache:
    """One file that is written past the cache, by one thread at a time."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._direct: int | None = None
        if isinstance(file, WithDescriptor) and hasattr(os, "O_DIRECT"):
            with contextlib.suppress(OSError):  # The same file, opened anew.
                path = f"/proc/self/fd/{file.descriptor}"
                self._direct = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)

    @property
    def is_direct(self) -> bool:
        """Whether aligned pages have gone straight so far."""
        return self._direct is not None

    def write_at(self, offset: int, data: memoryview) -> None:
        """Write all of ``data``, bytes that nobody changes meanwhile."""
        head = min(-offset % PAGE_BYTES, len(data))
        tail = max(len(data) - (offset + len(data)) % PAGE_BYTES, head)
        written = head
        if self._direct is not None and (_address(data) + head) % PAGE_BYTES == 0:
            written += self._write_pages(self._direct, offset + head, data[head:tail])
        for begin, end in ((0, head), (written, len(data))):
            if begin < end:
                self._file.write_at(offset + begin, data[begin:end])

    def close(self) -> None:
        """Close the second descriptor; the file stays open."""
        if self._direct is not None:
            os.close(self._direct)
            self._direct = None

    def _write_pages(self, descriptor: int, offset: int, data: memoryview) -> int:
        """Return how many bytes went straight; the rest has to go through the cache."""
        written = 0
        try:
            while written < len(data):
                written += _pwrite(descriptor, data[written:], offset + written)
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.EOPNOTSUPP}:
                raise
            self.close()  # It wants another alignment, or was opened in vain.
        return written


@contextlib.contextmanager
def beside(work: Callable[[], None]) -> Iterator[None]:
    """Do ``work`` in another thread; what it raises is raised at the end of the block."""
    errors: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - raised below, by the thread that asked.
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        try:
            thread.join()
        except KeyboardInterrupt:
            thread.join()  # Nobody may close the file under it; it takes milliseconds.
            raise
    for error in errors:
        raise error


def _address(data: memoryview) -> int:
    address: int = np.frombuffer(data, np.uint8).__array_interface__["data"][0] if data else 0
    return address
