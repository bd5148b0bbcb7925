"""Long blocking work as an async iterator of progress that ends with a result.

The work runs in a thread of its own and calls ``report(done_bytes, total_bytes, step)`` as often as it
likes; only the newest report is passed on. Closing the iterator early makes ``is_cancelled`` true and waits
until the work has noticed, so that nothing goes on behind the caller's back. Close it yourself, with
``contextlib.aclosing``: an iterator that is only dropped is closed at some time or other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from .control.model import Progress

T = TypeVar("T")

Report = Callable[[int, int, str], None]
IsCancelled = Callable[[], bool]
PROGRESS_INTERVAL_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """The result of finished work."""

    value: T


async def run_with_progress(work: Callable[[Report, IsCancelled], T]) -> AsyncGenerator[Progress | Done[T]]:
    """Run ``work`` in a thread; yield its progress at most ten times a second, then :class:`Done`."""
    newest: list[Progress] = []
    cancelled: list[bool] = []

    def report(done_bytes: int, total_bytes: int, step: str) -> None:
        newest[:] = [Progress(step=step, done_bytes=done_bytes, total_bytes=total_bytes)]

    # A thread of its own: the loop's few are for short work, and several merges would use them all up.
    executor = ThreadPoolExecutor(1, thread_name_prefix="work")
    loop = asyncio.get_running_loop()
    task = loop.run_in_executor(executor, work, report, lambda: bool(cancelled))
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=PROGRESS_INTERVAL_S)
            if newest:
                yield newest.pop()
        yield Done(task.result())
    finally:
        cancelled.append(True)
        executor.shutdown(wait=False)
        if not task.done():
            await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # Looked at, or asyncio warns; who closed the iterator does not care.


class Duties:
    """Tasks that a part of the node has as long as it lives; a failure of one is a failure of the node."""

    def __init__(self, fail: Callable[[BaseException], None]) -> None:
        self._fail = fail
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        """Run ``work`` until it ends or :meth:`close` ends it."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def close(self) -> None:
        """Cancel what still runs, and wait for it."""
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)


async def finish(work: Coroutine[Any, Any, T], *, then: Callable[[T], None]) -> T:
    """Return the result of ``work`` after ``then`` has had it; who is cancelled meanwhile ends after both."""

    def ended(task: asyncio.Future[T]) -> None:
        if not task.cancelled() and task.exception() is None:
            then(task.result())

    task = asyncio.ensure_future(work)
    task.add_done_callback(ended)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
