"""What the kernel says of this process and of the memory left to it; where its output goes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def process_id() -> int:
    """Return the id of this process, for lock files and logs."""
    return os.getpid()


def silence(descriptor: int) -> None:
    """Let what is written to an open file of this process go nowhere from now on."""
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.dup2(nowhere, descriptor)
    finally:
        os.close(nowhere)


def available_memory_bytes() -> int:
    """Return how much memory programs may still take without swapping; 0 if the kernel does not say."""
    with contextlib.suppress(OSError, ValueError), Path("/proc/meminfo").open(encoding="ascii") as facts:
        for line in facts:
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    return 0
