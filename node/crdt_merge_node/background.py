"""Long blocking work as an async iterator of progress that ends with a result.

The work runs in a thread and calls ``report(done_bytes, total_bytes, step)`` as often as it likes; only the
newest report is passed on. Closing the iterator early makes ``is_cancelled`` true and waits until the work
has noticed, so that nothing goes on behind the caller's back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from .control.model import Progress

T = TypeVar("T")

Report = Callable[[int, int, str], None]
IsCancelled = Callable[[], bool]
PROGRESS_INTERVAL_S = 0.1


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

    task = asyncio.create_task(asyncio.to_thread(work, report, lambda: bool(cancelled)))
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=PROGRESS_INTERVAL_S)
            if newest:
                yield newest.pop()
        yield Done(task.result())
    finally:
        cancelled.append(True)
        if not task.done():
            await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # Looked at, or asyncio warns; who closed the iterator does not care.
