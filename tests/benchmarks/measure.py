"""What every measurement uses: rows of the table, the clock, the floor, the memory of a process tree."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np

MIB: Final = 1 << 20
SAMPLE_S: Final = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line chose."""

    elements: int = 16_000_000
    """float32 elements of one model in the resolve rows."""
    checkpoint_mib: int = 256
    blob_mib: int = 256
    operations: int = 4_000
    repeats: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table."""

    what: str
    measured: str
    against: str = ""
    """The floor or rival, measured in the same run."""
    ratio: str = ""
    target: str = ""


def best_s(work: Callable[[], object], repeats: int = 3) -> float:
    """Return the seconds of the fastest of several runs."""
    times = []
    for _ in range(repeats):
        gc.collect()
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def copy_bytes_per_s(nbytes: int = 256 * MIB) -> float:
    """Return the bandwidth of a copy in memory, counting bytes read and bytes written."""
    source, target = np.ones(nbytes // 8), np.zeros(nbytes // 8)
    return 2 * nbytes / best_s(lambda: np.copyto(target, source), repeats=5)


def durable_copy(inputs: Sequence[Path], output: Path) -> None:
    """Read all inputs; write the first one to ``output`` and wait for the disk."""
    buffer = bytearray(MIB)
    with output.open("wb", buffering=0) as target:
        for number, path in enumerate(inputs):
            with path.open("rb", buffering=0) as source:
                while count := source.readinto(buffer):
                    if number == 0:
                        target.write(memoryview(buffer)[:count])
        os.fsync(target.fileno())


def ms(seconds: float) -> str:
    """Return a duration for people."""
    return f"{seconds * 1000:,.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.2f} ms"


def times(ratio: float) -> str:
    """Return a ratio for people."""
    return f"{ratio:.2f}x" if ratio < 10 else f"{ratio:,.0f}x"


def rss_bytes(pid: int, *, kinds: tuple[str, ...] = ("VmRSS",)) -> int:
    """Return memory of a process from ``/proc``; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    return sum(int(found[kind].split()[0]) * 1024 for kind in kinds if kind in found)


def descendants(pid: int) -> list[int]:
    """Return a process and everything it started, as far as it is alive."""
    found = [pid]
    for parent in found:
        try:
            tasks = os.listdir(f"/proc/{parent}/task")
            for task in tasks:
                children = Path(f"/proc/{parent}/task/{task}/children").read_text().split()
                found += [int(child) for child in children]
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


class PeakMemory:
    """The largest anonymous and shared memory that a process tree held while this was open, sampled."""

    def __init__(self, pid: int) -> None:
        self.nbytes = 0
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            now = sum(rss_bytes(pid, kinds=("RssAnon", "RssShmem")) for pid in descendants(self._pid))
            self.nbytes = max(self.nbytes, now)
