"""Who runs the tasks: this process, or worker processes that end with it.

Tasks go out in order and their answers are handed on in the same order, however fast each worker is, so that
the output is written and hashed front to back in one pass. Merged bytes come through *slots* of shared,
anonymous memory: as many as may be under way, allocated once. A slot is free again when its answer has been
used, and the earliest task always has one, so this cannot stall.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Final, Protocol, Self

from crdt_merge_protocol.errors import ResolveError

from crdt_merge_node.ports import Fs, SystemFs

from .blocks import Worker
from .files import SourceReader
from .job import TensorSource
from .starting import Process, start
from .tasks import Task, WorkerFailed

Answer = tuple[Any, memoryview]
"""What a task returned and the bytes it put out; the bytes are valid until the next answer is asked for."""
Tick = Callable[[], None]
"""Called often; raises to give up."""

TASKS_PER_WORKER: Final = 2
"""One at work and one waiting, so that no worker idles while an answer is on its way."""
_TICK_S: Final = 0.1
_END_TIMEOUT_S: Final = 5.0


class Pool(Protocol):
    """Runs tasks. A context manager: leaving it ends whatever it started."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def run(self, tasks: Iterable[Task]) -> Iterator[Answer]:
        """Yield the answers in the order of the tasks. Tasks are drawn as they are started."""
        ...

    def tell(self, task: Task) -> None:
        """Run a task in every worker: how plans and states get there."""
        ...

    def expect(self, source: TensorSource, offset: int, nbytes: int) -> None:
        """Have the kernel begin to read what tasks will. A hint."""
        ...

    def keep(self, workers: int) -> None:
        """Go on with at most so many workers. Only between runs."""
        ...


class InlinePool:
    """Runs tasks in this process, one after the other."""

    def __init__(self, fs: Fs, *, slot_bytes: int, tick: Tick) -> None:
        self._worker = Worker(fs)
        # No page of it is there before it is written to, unlike those of a bytearray.
        self._slot = memoryview(mmap.mmap(-1, max(slot_bytes, 1)))[:slot_bytes]
        self._tick = tick

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.close()

    def run(self, tasks: Iterable[Task]) -> Iterator[Answer]:
        """Yield the answers in the order of the tasks."""
        for task in tasks:
            self._tick()
            answer, nbytes = task.run(self._worker, self._slot)
            yield answer, self._slot[:nbytes]
        self._tick()

    def tell(self, task: Task) -> None:
        """Run a task."""
        task.run(self._worker, self._slot)

    def expect(self, source: TensorSource, offset: int, nbytes: int) -> None:
        """Ask for nothing: a job in this process is small, and its files may be simulated."""

    def keep(self, workers: int) -> None:
        """There is one, and it stays."""


class ProcessPool:
    """Runs tasks in processes that end with this one."""

    def __init__(self, *, workers: int, slot_bytes: int, tick: Tick) -> None:
        self._tick = tick
        self._reader = SourceReader(SystemFs())
        self._slot_bytes = slot_bytes
        self._slot_count = workers * TASKS_PER_WORKER
        memory_fd = os.memfd_create("crdt-merge-resolve")
        try:
            os.ftruncate(memory_fd, self._slot_count * slot_bytes)
            self._memory = mmap.mmap(memory_fd, 0)
            self._workers: list[_WorkerProcess] = []
            for _ in range(workers):
                others = [worker.connection for worker in self._workers]
                self._workers.append(_WorkerProcess(*start(self._memory, memory_fd, slot_bytes, others)))
        finally:
            os.close(memory_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.end()
        self._reader.close()
        # A caller's last view of a slot may still be alive; the kernel frees the memory with it.
        with contextlib.suppress(BufferError):
            self._memory.close()

    def run(self, tasks: Iterable[Task]) -> Iterator[Answer]:
        """Yield the answers in the order of the tasks."""
        waiting = enumerate(tasks)
        free = deque(range(self._slot_count))
        done: dict[int, tuple[int, Any, int]] = {}
        number = 0
        more = True
        while True:
            self._tick()
            while more and free and len(worker := min(self._workers, key=len)) < TASKS_PER_WORKER:
                drawn = next(waiting, None)
                more = drawn is not None
                if drawn is not None:
                    worker.start(drawn[0], free.popleft(), drawn[1])
            if number in done:
                slot, answer, nbytes = done.pop(number)
                start = slot * self._slot_bytes
                yield answer, memoryview(self._memory)[start : start + nbytes]
                free.append(slot)
                number += 1
            elif more or any(self._workers_at_work()):
                for worker in self._ready():
                    task_number, slot, answer, nbytes = worker.finish()
                    done[task_number] = (slot, answer, nbytes)
            else:
                return

    def tell(self, task: Task) -> None:
        """Run a task in every worker. Only between runs."""
        message = _pickled(0, task)  # Once for all of them: a plan names every tensor.
        for worker in self._workers:
            worker.send(-1, 0, message)
        while any(self._workers_at_work()):
            self._tick()
            for worker in self._ready():
                worker.finish()

    def expect(self, source: TensorSource, offset: int, nbytes: int) -> None:
        """Have the kernel read what workers will; they are busy, this process waits for them."""
        self._reader.expect(source, offset, nbytes)

    def keep(self, workers: int) -> None:
        """End all but so many workers. Only between runs."""
        for worker in self._workers[max(workers, 1) :]:
            worker.end()
        del self._workers[max(workers, 1) :]

    def _workers_at_work(self) -> Iterator[bool]:
        return (bool(len(worker)) for worker in self._workers)

    def _ready(self) -> list[_WorkerProcess]:
        """Wait for answers, at most a tick."""
        by_connection: dict[Any, _WorkerProcess] = {
            worker.connection: worker for worker in self._workers if len(worker)
        }
        return [by_connection[ready] for ready in wait(list(by_connection), timeout=_TICK_S)]


class _WorkerProcess:
    """One worker, its connection, and what it was given; its length is the number of tasks under way."""

    def __init__(self, connection: Connection, process: Process) -> None:
        self.connection = connection
        self._process = process
        self._given: deque[tuple[int, int]] = deque()

    def __len__(self) -> int:
        return len(self._given)

    def start(self, number: int, slot: int, task: Task) -> None:
        """Give a task; answers come in the order in which tasks were given."""
        self.send(number, slot, _pickled(slot, task))

    def send(self, number: int, slot: int, message: bytes) -> None:
        """Give a task that has been pickled."""
        self._given.append((number, slot))
        with self._watching():
            self.connection.send_bytes(message)

    def finish(self) -> tuple[int, int, Any, int]:
        """Return (number, slot, answer, bytes put out) of the earliest task under way; blocks."""
        number, slot = self._given.popleft()
        with self._watching():
            outcome = self.connection.recv()
        if isinstance(outcome, WorkerFailed):
            raise RuntimeError(f"A resolve worker failed: {outcome}")  # noqa: TRY004 - a bug of ours.
        if isinstance(outcome, BaseException):
            raise outcome
        answer, nbytes = outcome
        return number, slot, answer, nbytes

    def end(self) -> None:
        """End the worker. It holds nothing that is worth a farewell."""
        self._process.kill()
        self.connection.close()
        self._process.wait(None)

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError):
            status = self._process.wait(_END_TIMEOUT_S)
            raise ResolveError(
                f"A resolve worker ended with status {status} before it was done.",
                hint="If the kernel killed it for want of memory, lower resolve.memory_bytes.",
            ) from None


def _pickled(slot: int, task: Task) -> bytes:
    """Return what a worker receives as a slot and a task."""
    return pickle.dumps((slot, task), pickle.HIGHEST_PROTOCOL)
