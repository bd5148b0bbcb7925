"""Two settings of glibc's malloc that decide how fast a megabyte moves, and one of Python's collector.

By default every buffer of 128 KiB or more is a mapping of its own: taken from the kernel, faulted in page by
page, and given back, for each chunk anew. Keeping such buffers in the heap took the system time that sending
512 MiB costs from 1.0-1.1 s to 0.3 s, in four runs on one busy two-core host; the rate was too noisy to
compare.
"""

from __future__ import annotations

import ctypes
import gc
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
MMAP_THRESHOLD_BYTES: Final = 32 << 20
"""glibc's own maximum on 64-bit machines."""
TRIM_THRESHOLD_BYTES: Final = 128 << 20


def keep_large_buffers() -> bool:
    """Tell malloc to reuse large buffers; False where the C library has no such settings (musl)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return bool(
        mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES) and mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
    )


def spare_what_stays() -> None:
    """Let Python's collector never again look at what is alive now: modules, classes, parts of the node.

    To walk through them takes 55 ms, in which nothing else happens, and again whenever a quarter as many
    objects have come: gossip waited for it.
    """
    gc.collect()
    gc.freeze()
