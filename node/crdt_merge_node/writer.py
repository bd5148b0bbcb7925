"""Carries out the storage effects of the engine, in the order in which they were asked for.

What has queued up while a commit was under way shares the next one, so that durability costs one fsync for
many operations. While what a commit brought is applied, turn by turn, the next is on its way. A full disk is
no end: what found no room is refused to whoever asked, the engine forgets it, and everything goes on
(SCENARIOS T20). Any other failure of the disk is fail-stop (T44).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from crdt_merge_protocol.events import (
    DropOperations,
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
BATCH_OPERATIONS_MAX: Final = 256
"""Operations in one commit, but for those of its last effect: who is in it waits for all to be applied."""


@dataclass(slots=True)
class Waiting:
    """A storage effect on its way to the disk and who waits for it."""

    effect: StoreGroup | StoreOperations | DropOperations
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
        self._reporting: asyncio.Task[None] | None = None
        """Tells of what the last commit brought."""
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

    def put(self, effect: StoreGroup | StoreOperations | DropOperations) -> None:
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
                if self._failure is not None:
                    break
                await self._carry_out(self._next_batch())
            await self._reported()
        except BaseException as error:  # noqa: BLE001 - whatever it is, nobody may wait for ever.
            self._failure = error
            self._settle_all([], error)
            if not isinstance(error, asyncio.CancelledError):
                self._fatal(error)

    def _next_batch(self) -> list[Waiting]:
        batch: list[Waiting] = []
        count = 0
        while self._queue and len(batch) < BATCH_MAX and count < BATCH_OPERATIONS_MAX:
            if batch and isinstance(self._queue[0].effect, DropOperations):
                break  # It has its turn, alone: what comes after it may bring some of them back.
            waiting = self._queue.popleft()
            batch.append(waiting)
            if isinstance(waiting.effect, DropOperations):
                break
            count += len(waiting.effect.operations) if isinstance(waiting.effect, StoreOperations) else 1
        return batch

    async def _carry_out(self, batch: list[Waiting]) -> None:
        try:
            await self._commit(batch)
        except StorageError as error:
            if isinstance(error, StoreFailedError):
                self._settle_all(batch, error)
                raise
            await self._reported()  # What came before it is durable, and is to be applied first.
            # What came after it in the queue may build upon it. Deletions do not, and make room.
            deletions = [waiting for waiting in self._queue if isinstance(waiting.effect, DropOperations)]
            refused = [one for one in self._settle_all(batch, error) if one not in deletions]
            self._queue.extendleft(reversed(deletions))
            self._report(NotStored(groups=tuple(dict.fromkeys(w.effect.group for w in refused))))
        except BaseException as error:
            self._settle_all(batch, error)
            raise

    async def _commit(self, batch: list[Waiting]) -> None:
        """Store a batch and have it reported; what was reported is taken out of ``batch``."""
        if batch and isinstance(dropped := batch[0].effect, DropOperations):
            await self._store.drop_operations(dropped.group, dropped.ids)
            batch.pop().settle(None)
            return
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
        await self._reported()
        self._reporting = asyncio.create_task(self._tell(list(batch)), name="store-reports")
        batch.clear()

    async def _tell(self, batch: list[Waiting]) -> None:
        """Report a batch that is durable."""
        try:
            for group, ids, complete in _turns(list(batch)):
                self._report(OperationsStored(group=group, ids=ids))
                del batch[: len(complete)]
                for waiting in complete:
                    waiting.settle(None)
                await asyncio.sleep(0)  # Applying takes a while; others may have their turn in between.
        except BaseException as error:
            self._failure = error
            self._settle_all(batch, error)
            self._queued.set()
            raise

    async def _reported(self) -> None:
        """Return once all that is durable was reported."""
        reporting, self._reporting = self._reporting, None
        if reporting is not None:
            await reporting

    def _settle_all(self, batch: list[Waiting], error: BaseException) -> list[Waiting]:
        """Tell everybody in the batch and the queue; return who was told."""
        told = [*batch, *self._queue]
        self._queue.clear()
        for waiting in told:
            waiting.settle(error)
            if waiting.done is not None and not waiting.done.cancelled():
                waiting.done.exception()  # Looked at, or asyncio warns if the one who waited is gone.
        return told


def _turns(batch: list[Waiting]) -> Iterator[tuple[bytes, tuple[bytes, ...], list[Waiting]]]:
    """Yield (group, ids, who is complete with them) in order, never too much to be applied in one turn."""
    group, ids, complete = b"", list[bytes](), list[Waiting]()
    for waiting in batch:
        effect = waiting.effect
        assert isinstance(effect, StoreOperations), "groups are out by now"
        if ids and effect.group != group:
            yield group, tuple(ids), complete
            ids, complete = [], []
        group = effect.group
        for signed in effect.operations:
            if len(ids) == OPERATIONS_PER_TURN_MAX:
                yield group, tuple(ids), complete
                ids, complete = [], []
            ids.append(signed.id)
        complete.append(waiting)
    if complete:
        yield group, tuple(ids), complete
