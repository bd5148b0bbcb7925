"""One comparison at a time, again whenever something has changed, and callers who wait for a fresh one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from crdt_merge_protocol.errors import CrdtMergeError

from .errors import ControlError, StorageError, StoreFailedError
from .telemetry.logging import get_logger

log = get_logger()

RETRY_S = 5.0


class Watch:
    """Runs a function again and again, never twice at once, and numbers its runs."""

    def __init__(
        self, compare: Callable[[], Awaitable[None]], *, fatal: Callable[[BaseException], None], name: str
    ) -> None:
        self.generation = 0
        """Requests that the last finished run has seen."""
        self._compare = compare
        self._fatal = fatal
        self._requested = 0
        self._wake = asyncio.Event()
        self._waiters: set[asyncio.Future[None]] = set()
        self._end: CrdtMergeError | None = None
        self._task = asyncio.create_task(self._run(), name=f"watch-{name}")

    def look_again(self) -> int:
        """Ask for another run; return the generation that it will complete."""
        self._requested += 1
        self._wake.set()
        return self._requested

    async def current(self) -> None:
        """Return after a run that began after this call.

        Raises:
            StorageError: The store could not be read.
            ControlError: The node is stopping.
        """
        await self.beyond(self.look_again() - 1)

    async def beyond(self, generation: int) -> None:
        """Return once a run later than ``generation`` has ended.

        Raises:
            StorageError: The store could not be read.
            ControlError: The node is stopping.
        """
        while self.generation <= generation:
            if self._end is not None:
                raise self._end
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)

    async def close(self) -> None:
        """Stop, and tell whoever waits."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._end = self._end or ControlError("the node is stopping.")
        self._notify(self._end)

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            seen = self._requested
            try:
                await self._compare()
            except asyncio.CancelledError:
                raise
            except StorageError as error:
                if isinstance(error, StoreFailedError):
                    self._fail(error)
                    return
                log.warning("contents.failed", error=error)
                self._notify(error)
                asyncio.get_running_loop().call_later(RETRY_S, self._wake.set)
            except Exception as error:  # noqa: BLE001 - a bug, which must not go unnoticed.
                self._fail(error)
                self._fatal(error)
                return
            else:
                self.generation = seen
                self._notify(None)

    def _fail(self, error: Exception) -> None:
        self._end = error if isinstance(error, CrdtMergeError) else ControlError(f"the node failed: {error}.")
        self._notify(self._end)

    def _notify(self, error: CrdtMergeError | None) -> None:
        for waiter in self._waiters:
            if waiter.done():
                continue
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)
