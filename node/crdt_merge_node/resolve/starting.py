"""Starting worker processes: copies of this one where that is safe, else fresh interpreters.

A copy has everything imported and is at work in milliseconds; a fresh interpreter takes a quarter of a second
of processor time. A copy inherits whatever locks other threads held, forever, so only a process of one
thread is copied: the command ``merge`` is one, the daemon with its threads and gRPC never. Either
kind ends when its socket closes and gives the same bits.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Protocol

from . import worker
from .single import ONE_THREAD, is_single


class Process(Protocol):
    """A worker process that was started."""

    def kill(self) -> None:
        """End it at once."""
        ...

    def wait(self, timeout_s: float | None) -> int | None:
        """Return its exit status once it has ended; None if the time is over first."""
        ...


class _Copy:
    """A copy of this process."""

    def __init__(self, process: multiprocessing.process.BaseProcess) -> None:
        self._process = process

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout_s: float | None) -> int | None:
        self._process.join(timeout_s)
        return self._process.exitcode


class _Interpreter:
    """A fresh interpreter."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout_s: float | None) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        return self._process.returncode


def start(
    memory: mmap.mmap, memory_fd: int, slot_bytes: int, others: Sequence[Connection]
) -> tuple[Connection, Process]:
    """Start a worker; return the connection to it, and the process.

    Args:
        memory: Of the slots, shared.
        memory_fd: Its descriptor.
        slot_bytes: Size of a slot.
        others: Connections to other workers, which a copy must not keep open.
    """
    ours, theirs = socket.socketpair()
    connection = Connection(ours.detach())
    with theirs:
        process: Process
        if is_single():
            process = _copy(theirs, memory, slot_bytes, (*others, connection))
        else:
            process = _fresh(theirs.fileno(), memory_fd, slot_bytes)
    return connection, process


def _fresh(socket_fd: int, memory_fd: int, slot_bytes: int) -> Process:
    process = subprocess.Popen(  # noqa: S603 - our own interpreter and module.
        [
            # -P: a file named numpy.py in the working directory is not numpy.
            *(sys.executable, "-P", "-m", worker.__name__),
            *(str(socket_fd), str(memory_fd), str(slot_bytes)),
        ],
        pass_fds=(socket_fd, memory_fd),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ, **ONE_THREAD},
    )
    return _Interpreter(process)


def _copy(
    theirs: socket.socket, memory: mmap.mmap, slot_bytes: int, unwanted: Sequence[Connection]
) -> Process:
    process = multiprocessing.get_context("fork").Process(
        target=_work, args=(theirs, memory, slot_bytes, unwanted)
    )
    with _uninterrupted():
        process.start()
    return _Copy(process)


def _work(theirs: socket.socket, memory: mmap.mmap, slot_bytes: int, unwanted: Sequence[Connection]) -> None:
    """Serve tasks in a copy of the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Before _uninterrupted ends, in the copy as well.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.freeze()  # A collection would write to every object, and so have all of them copied.
    for connection in unwanted:
        connection.close()
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.close(nothing)
    worker.serve(theirs.detach(), memory, slot_bytes)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C: a copy must not take it for its own before it can ignore it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
