"""A worker process: reads tasks from a socket, writes merged bytes to shared memory, answers, repeats.

It ends when its socket closes, so it never outlives the process that started it, whether that one finished,
gave up or was killed. ``starting`` says what it is. The socket carries pickled values between two processes
of one program; nothing a peer sends is ever unpickled.
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
from .tasks import Task, WorkerFailed

NICENESS: Final = 5
"""A merge takes all cores for minutes; whoever answers peers meanwhile goes first."""
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_KEPT_BYTES: Final = 1 << 30


def main(arguments: list[str]) -> None:
    """Serve tasks: the arguments are two descriptors, of the socket and the memory, and the slot size."""
    socket_fd, memory_fd, slot_bytes = (int(argument) for argument in arguments)
    serve(socket_fd, mmap.mmap(memory_fd, 0), slot_bytes)


def serve(socket_fd: int, memory: mmap.mmap, slot_bytes: int) -> None:
    """Serve tasks until the socket closes.

    Args:
        socket_fd: Where tasks come from and answers go.
        memory: Of all slots.
        slot_bytes: Size of each.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides.
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    _keep_memory()
    slots = memoryview(memory)
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
