"""A worker process: reads tasks from a socket, writes merged bytes to shared memory, answers, repeats.

It ends when its socket closes, so it never outlives the process that started it, whether that one finished,
gave up or was killed. It is a fresh interpreter, not a fork: the daemon has threads and gRPC (NOTES 4). The
socket carries pickled values between two processes of one program; nothing a peer sends is ever unpickled.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any, Final

from crdt_merge_protocol.errors import CrdtMergeError

from crdt_merge_node.ports import SystemFs

from .blocks import Worker
from .tasks import Task

NICENESS: Final = 5
"""A merge takes all cores for minutes; whoever answers peers meanwhile goes first."""
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_KEPT_BYTES: Final = 1 << 30


class WorkerFailed(Exception):  # noqa: N818 - an envelope for a traceback, never raised as such.
    """An error of another process that is a bug, with its traceback as text."""


def main(arguments: list[str]) -> None:
    """Serve tasks: the arguments are two descriptors, of the socket and the memory, and the slot size."""
    socket_fd, memory_fd, slot_bytes = (int(argument) for argument in arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides.
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    _keep_memory()
    slots = memoryview(mmap.mmap(memory_fd, 0))
    worker = Worker(SystemFs())
    with Connection(socket_fd) as connection, contextlib.suppress(EOFError, ConnectionError):
        while True:
            slot, task = connection.recv()
            connection.send(_answer(worker, task, slots[slot * slot_bytes : (slot + 1) * slot_bytes]))


def _answer(worker: Worker, task: Task, output: memoryview) -> tuple[Any, int] | BaseException:
    try:
        return task.run(worker, output)
    except CrdtMergeError as error:
        return error
    except MemoryError:
        return WorkerFailed("a worker process ran out of memory")
    except Exception:  # noqa: BLE001 - whatever it is, the parent raises it.
        return WorkerFailed(traceback.format_exc())


def _keep_memory() -> None:
    """Let the C library keep freed arrays for the next block instead of returning them to the kernel.

    With the default thresholds every temporary of a block is mapped, zeroed and unmapped again; that was
    measured to cost more than the arithmetic.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


if __name__ == "__main__":
    main(sys.argv[1:])
