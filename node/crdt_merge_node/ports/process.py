"""What the kernel says of this process and of the memory left to it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def process_id() -> int:
    """Return the id of this process, for lock files and logs."""
    return os.getpid()


def available_memory_bytes() -> int:
    """Return how much memory programs may still take without swapping; 0 if the kernel does not say."""
    with contextlib.suppress(OSError, ValueError), Path("/proc/meminfo").open(encoding="ascii") as facts:
        for line in facts:
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    return 0
