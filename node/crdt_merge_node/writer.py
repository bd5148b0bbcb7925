"""Carries out the storage effects of the engine, in the order in which they were asked for.

What has queued up while a commit was under way shares the next one, so that durability costs one fsync for
many operations. A full disk is no end: what found no room is refused to whoever asked, the engine forgets it,
and everything goes on (SCENARIOS T20). Any other failure of the disk is fail-stop (T44).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from crdt_merge_protocol.events import (
    Event,
    GroupStored,
    NotStored,
    OperationsStored,
    StoreGroup,
    StoreOperations,
)
from crdt_merge_protocol.limits import OPERATIONS_PER_TURN_MAX

from .errors import StorageError, StoreFailedError
from .storage import OpRow, Store

BATCH_MAX: Final = 256
"""Effects in one commit."""


@dataclass(slots=True)
class Waiting:
    """A storage effect on its way to the disk and who waits for it."""

    effect: StoreGroup | StoreOperations
    done: asyncio.Future[None] | None = None

    def settle(self, error: BaseException | None) -> None:
        """Tell who waits, if anybody still does."""
        if self.done is None or self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)


class StoreWriter:
    """One queue and one task. Reports what became durable, or did not, as events."""

    def __init__(
        self, store: Store, *, report: Callable[[Event], None], fatal: Callable[[BaseException], None]
    ) -> None:
        self._store = store
        self._report = report
        self._fatal = fatal
        self._queue: deque[Waiting] = deque()
        self._queued = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._is_closing = False

    def start(self) -> None:
        """Begin to carry out what is queued."""
        self._task = asyncio.create_task(self._run(), name="store-writer")

    async def close(self) -> None:
        """Return once everything queued is durable, or has failed and was reported."""
        self._is_closing = True
        self._queued.set()
        if self._task is not None:
            await asyncio.wait({self._task})

    @property
    def queued(self) -> int:
        """Effects that are not being carried out yet."""
        return len(self._queue)

    def put(self, effect: StoreGroup | StoreOperations) -> None:
        """Queue an effect that nobody waits for."""
        self._put(Waiting(effect))

    async def put_and_wait(self, effect: StoreGroup | StoreOperations) -> None:
        """Queue an effect; return once it is durable. Cancelling only ends the waiting.

        Raises:
            StorageError: It is not stored.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._put(Waiting(effect, done))
        await done

    def _put(self, waiting: Waiting) -> None:
        if self._failure is not None or (self._task is not None and self._task.done()):
            waiting.settle(self._failure or StorageError("the store is closed."))
            return
        self._queue.append(waiting)
        self._queued.set()

    async def _run(self) -> None:
        try:
            while not (self._is_closing and not self._queue):
                if not self._queue:
                    self._queued.clear()
                    await self._queued.wait()
                batch = [self._queue.popleft() for _ in range(min(BATCH_MAX, len(self._queue)))]
                await self._carry_out(batch)
        except BaseException as error:  # noqa: BLE001 - whatever it is, nobody may wait for ever.
            self._failure = error
            self._settle_all([], error)
            if not isinstance(error, asyncio.CancelledError):
                self._fatal(error)

    async def _carry_out(self, batch: list[Waiting]) -> None:
        try:
            await self._commit(batch)
        except StorageError as error:
            if isinstance(error, StoreFailedError):
                self._settle_all(batch, error)
                raise
            # What came after it in the queue may build upon it.
            refused = self._settle_all(batch, error)
            self._report(NotStored(groups=tuple(dict.fromkeys(w.effect.group for w in refused))))
        except BaseException as error:
            self._settle_all(batch, error)
            raise

    async def _commit(self, batch: list[Waiting]) -> None:
        """Store a batch and report it; what was reported is taken out of ``batch``."""
        for waiting in [w for w in batch if isinstance(w.effect, StoreGroup)]:
            effect = waiting.effect
            assert isinstance(effect, StoreGroup), "just filtered"
            await self._store.add_group(effect.genesis, effect.group)
            batch.remove(waiting)
            self._report(GroupStored(genesis=effect.genesis))
            waiting.settle(None)
        rows = [
            OpRow(group=waiting.effect.group, id=signed.id, wire=signed.wire())
            for waiting in batch
            if isinstance(waiting.effect, StoreOperations)
            for signed in waiting.effect.operations
        ]
        await self._store.append(rows)
        while batch:
            together, group = _together(batch)
            ids = tuple(signed.id for _, effect in together for signed in effect.operations)
            del batch[: len(together)]
            self._report(OperationsStored(group=group, ids=ids))
            for waiting, _ in together:
                waiting.settle(None)
            await asyncio.sleep(0)  # Applying takes a while; others may have their turn in between.

    def _settle_all(self, batch: list[Waiting], error: BaseException) -> list[Waiting]:
        """Tell everybody in the batch and the queue; return who was told."""
        told = [*batch, *self._queue]
        self._queue.clear()
        for waiting in told:
            waiting.settle(error)
            if waiting.done is not None and not waiting.done.cancelled():
                waiting.done.exception()  # Looked at, or asyncio warns if the one who waited is gone.
        return told


def _together(batch: list[Waiting]) -> tuple[list[tuple[Waiting, StoreOperations]], bytes]:
    """Return what at the front of a batch is of one group, and not too much to be applied in one turn."""
    together: list[tuple[Waiting, StoreOperations]] = []
    group = batch[0].effect.group
    count = 0
    for waiting in batch:
        effect = waiting.effect
        assert isinstance(effect, StoreOperations), "groups are out by now"
        count += len(effect.operations)
        if effect.group != group or (together and count > OPERATIONS_PER_TURN_MAX):
            break
        together.append((waiting, effect))
    return together, group
