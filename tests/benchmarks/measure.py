"""What every measurement uses: rows of the table, the clock, the floor, the memory of a process tree."""

from __future__ import annotations

import gc
import os
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
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
    is_full: bool = False
    """Everything in the sizes that the targets name, however long it takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table."""

    what: str
    measured: str
    against: str = ""
    """The floor or rival, measured in the same run."""
    ratio: str = ""
    target: str = ""
    is_missing: bool = False
    """Something that was to be measured, or measured against, could not be had."""


def best_s(
    work: Callable[[], object], repeats: int = 3, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return the seconds of the fastest of several runs; ``time.process_time`` counts those of CPU."""
    times = []
    for _ in range(repeats):
        gc.collect()
        began = clock()
        work()
        times.append(clock() - began)
    return min(times)


def copy_bytes_per_s(nbytes: int = 256 * MIB, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the bandwidth of a copy in memory, counting bytes read and bytes written."""
    source, target = np.ones(nbytes // 8), np.zeros(nbytes // 8)
    return 2 * nbytes / best_s(lambda: np.copyto(target, source), repeats=5, clock=clock)


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
    """The largest anonymous and shared memory that a process tree held while this was open, sampled.

    Files in the page cache do not count; what processes share counts once.
    """

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
        pause = SAMPLE_S
        while not self._ended.wait(pause):
            began = time.perf_counter()
            self.nbytes = max(self.nbytes, sum(map(_private_bytes, descendants(self._pid))))
            # The kernel walks all pages of a process, which stops meanwhile: not more than a tenth of it.
            pause = max(SAMPLE_S, 10 * (time.perf_counter() - began))


def _private_bytes(pid: int) -> int:
    """Return a process's share of anonymous and shared memory; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:"))) * 1024


@dataclass(frozen=True, slots=True)
class Cost:
    """What a command took."""

    wall_s: float
    cpu_s: float
    """Of all its processes."""
    peak_bytes: int
    """Of their anonymous and shared memory."""

    def __str__(self) -> str:
        """Return all three for people."""
        return f"{ms(self.wall_s)}, CPU {ms(self.cpu_s)}, peak {self.peak_bytes / MIB:.0f} MiB"


def as_installed() -> dict[str, str]:
    """Return the environment of a user's commands: they find modules compiled, as installers leave them."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def without_output(output: Path) -> None:
    """Remove what an earlier merge has left, which the next would take over instead of computing it."""
    for path in output.parent.glob(f"{output.name}*"):
        path.unlink()


def run_command(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Cost:
    """Run a command to its end.

    Raises:
        RuntimeError: It failed; the end of what it said is in the message.
    """
    with tempfile.TemporaryFile() as errors:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=errors, env={**as_installed(), **(environment or {})}
        )
        with PeakMemory(process.pid) as peak:
            _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"{shlex.join(command)}: {errors.read().decode()[-2000:]}")
    return Cost(wall_s, usage.ru_utime + usage.ru_stime, peak.nbytes)
