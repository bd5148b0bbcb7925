"""Gets objects and blobs from whichever connected peers have them, and waits for them if none has.

    wanted -> queued -> active -> here and durable
                        |    ^
                        v    |  peers changed, or a while later
                        parked: nobody can help now; ``missing()`` says why

A want goes in steps, one at a time: an object is one step; a blob of several chunks first needs the list of
their digests. Bounds: so many wants are active, and so many bytes of them missing, however much is wanted.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Executor
from typing import Any, Final

from crdt_merge_protocol.blobs import blob_digest_of
from crdt_merge_protocol.errors import LimitExceededError, MalformedMessageError
from crdt_merge_protocol.fetch import Item, ItemKind, RandomLike
from crdt_merge_protocol.limits import BLOB_BYTES_MAX, FETCH_BYTES_MAX

from crdt_merge_node.errors import FullError
from crdt_merge_node.ports import SeededRng
from crdt_merge_node.telemetry.logging import get_logger

from .exchange import Exchange
from .pickup import NothingYetError, Pickup
from .ports import BlobStoreLike, ClockLike, ConnectionLike
from .wants import Missing, Progress, Stage, Want

log = get_logger(__name__)

ACTIVE_MAX: Final = 64
ACTIVE_BYTES: Final = 2 * FETCH_BYTES_MAX
"""Further wants become active while less than this is missing of those that are."""
QUEUE_CHOICE: Final = 32
"""The next want is a random one of so many: nodes that fetch the same set then hold different parts early."""
PARK_RETRY_S: Final = 1.0
PARK_RETRY_S_MAX: Final = 15.0
FULL_RETRY_S: Final = 30.0
NO_PROGRESS_S: Final = 3.0
"""A want that nobody advances for this long makes room for others."""
LINK_IDLE_S: Final = 15.0
"""A handshake costs a few milliseconds on both sides, an idle link memory and now and then a ping."""


class Fetcher:
    """Fetches what is wanted. Lives on one event loop."""

    def __init__(
        self,
        blobs: BlobStoreLike,
        *,
        node: bytes,
        peers: Callable[[], Iterable[bytes]],
        open: Callable[[bytes], Awaitable[ConnectionLike]],  # noqa: A002  (says best what it does)
        clock: ClockLike,
        rng: RandomLike,
        executor: Executor | None = None,
    ) -> None:
        """Take what the fetcher works with.

        Args:
            node: This node's id.
            peers: Returns the peers that are connected now; call :meth:`peers_changed` when that changes.
            open: Opens a bulk connection to a peer, on which nothing has been read yet.
            executor: For what blocks: disk and hashing. Default: the loop's.
        """
        self._peers = peers
        self._clock = clock
        # A sequence of our own: asking the kernel for each draw gives the GIL away, to threads that hash.
        self._rng = SeededRng(rng.random())
        self._exchange = Exchange(
            node=node,
            open_connection=open,
            clock=clock,
            rng=self._rng,
            executor=executor,
            on_change=self._pump_soon,
        )
        self._pickup = Pickup(blobs, self._exchange, executor)
        self._wants: dict[Item, Want] = {}
        self._queues: dict[ItemKind, deque[Want]] = {ItemKind.OBJECT: deque(), ItemKind.BLOB: deque()}
        self._active: dict[Want, None] = {}
        self._parked: dict[Want, None] = {}
        self._ending: dict[Item, asyncio.Task[Any]] = {}
        """Wants that were given up and still have a file open."""
        self._next_retry = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._is_pump_due = False
        self._is_closed = False
        self._idle_since: float | None = None

    # --- what others call ---------------------------------------------------------------------------------

    async def want_object(
        self, object_id: bytes, verify: Callable[[bytes], bool], *, owner: bytes = b""
    ) -> bytes:
        """Return an object, from the store or from a peer; it is stored, durably, when this returns.

        Waits as long as no peer has it. Cancelling the last waiter gives the want up.

        Args:
            verify: Tells whether these bytes hash to ``object_id``; called in an executor if they are many.
            owner: The node that had it first, if it is known: asked before others.
        """
        data = await self._want(Item(ItemKind.OBJECT, object_id), 0, verify, (owner,))
        assert isinstance(data, bytes)
        return data

    async def want_blob(
        self, digest: bytes, nbytes: int, *, owner: bytes = b"", content: bytes = b""
    ) -> None:
        """Return once a blob is here, whole and durable.

        Waits as long as no peer has it. Cancelling the last waiter gives the want up; what is on disk of it
        stays, and a later want continues there.

        Args:
            owner: The node that had it first, if it is known: asked before others.
            content: The object that names it, if it is known: whoever gave that is asked before others.

        Raises:
            LimitExceededError: Larger than any blob may be.
            MalformedMessageError: The digest proves that the blob has another size.
        """
        if not 0 <= nbytes <= BLOB_BYTES_MAX:
            raise LimitExceededError(f"{nbytes} bytes are wanted of a blob, it can have {BLOB_BYTES_MAX}.")
        likely = (owner, self._exchange.giver(content))
        key = Item(ItemKind.BLOB, digest)
        await self._want(key, nbytes, lambda data: blob_digest_of(data) == digest, likely)

    def cancel(self, wanted_id: bytes) -> None:
        """Give up an object or blob; whoever waits for it is cancelled."""
        for key in (Item(ItemKind.OBJECT, wanted_id), Item(ItemKind.BLOB, wanted_id)):
            if (want := self._wants.get(key)) is not None:
                for waiter in tuple(want.waiters):
                    waiter.cancel()
                self._give_up(want)

    def peers_changed(self) -> None:
        """Look again who is connected; what nobody could help with is tried again."""
        now = self._clock.monotonic()
        if self._exchange.set_peers(self._peers(), now=now):
            for want in self._parked:
                want.retry_at, want.retry_s = now, PARK_RETRY_S
            self._next_retry = now
        self._pump_soon()

    def missing(self) -> list[Missing]:
        """Return everything wanted and not here, the oldest first, and what it waits for."""
        return [
            Missing(
                id=want.key.id,
                kind=want.key.kind,
                nbytes=want.nbytes,
                missing_bytes=want.missing_bytes,
                since=want.since,
                reason=self._reason(want),
            )
            for want in sorted(self._wants.values(), key=lambda want: want.since)
        ]

    def _reason(self, want: Want) -> str:
        match want.stage:
            case Stage.QUEUED:
                return "waits for its turn"
            case Stage.ACTIVE:
                return self._exchange.describe(want.step)
            case Stage.PARKED:
                return want.reason

    def progress(self) -> Progress:
        """Return how it goes, over all wants."""
        return Progress(
            wants=len(self._wants),
            missing_bytes=sum(want.missing_bytes for want in self._wants.values()),
            rate_bytes_per_s=self._exchange.rate.value(now=self._clock.monotonic()),
            fetched_bytes=self._exchange.fetched_bytes,
            refused_bytes=self._exchange.refused_bytes,
        )

    async def close(self) -> None:
        """Give up every want and close every link. What is on disk stays."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        wants = tuple(self._wants.values())
        for want in wants:
            self.cancel(want.key.id)
        self._exchange.cut_all("this node stops")
        await asyncio.gather(*(want.task for want in wants if want.task), return_exceptions=True)

    # --- the life of a want -------------------------------------------------------------------------------

    async def _want(
        self, key: Item, nbytes: int, verify: Callable[[bytes], bool], likely: tuple[bytes, ...]
    ) -> Any:
        while not self._is_closed:
            want = self._wants.get(key) or self._begin(key, nbytes, verify, likely)
            waiter: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            want.waiters.add(waiter)
            try:
                value = await waiter
            except MalformedMessageError:
                # Of two manifests that give one blob two sizes, the wrong one must not fail the right one.
                if want.nbytes == nbytes:
                    raise
                continue
            finally:
                want.waiters.discard(waiter)
                if not want.waiters:
                    self._give_up(want)
            if want.nbytes == nbytes:
                return value
        raise asyncio.CancelledError

    def _begin(
        self, key: Item, nbytes: int, verify: Callable[[bytes], bool], likely: tuple[bytes, ...]
    ) -> Want:
        want = Want(
            key=key,
            nbytes=nbytes,
            since=self._clock.now(),
            verify=verify,
            likely=likely,
            retry_s=PARK_RETRY_S,
        )
        self._wants[key] = want
        self._queues[key.kind].append(want)
        self._pump_soon()
        return want

    def _give_up(self, want: Want) -> None:
        if self._wants.get(want.key) is want:
            del self._wants[want.key]
            if want.task is None:
                self._queues[want.key.kind].remove(want)
            else:
                self._ending[want.key] = want.task
                want.task.cancel()

    def _settle(self, want: Want, task: asyncio.Task[Any]) -> None:
        if self._wants.get(want.key) is want:
            del self._wants[want.key]
        self._active.pop(want, None)
        self._parked.pop(want, None)
        if want.stage is Stage.QUEUED:
            self._queues[want.key.kind].remove(want)
        if self._ending.get(want.key) is task:
            del self._ending[want.key]
        error = None if task.cancelled() else task.exception()
        for waiter in tuple(want.waiters):
            if waiter.done():
                continue
            if task.cancelled():
                waiter.cancel()
            elif error is not None:
                waiter.set_exception(error)
            else:
                waiter.set_result(task.result())
        self._pump_soon()

    def _admit(self, now: float) -> None:
        if now >= self._next_retry:
            for want in [want for want in self._parked if now >= want.retry_at]:
                del self._parked[want]
                want.stage = Stage.QUEUED
                self._queues[want.key.kind].append(want)
            self._next_retry = min((want.retry_at for want in self._parked), default=math.inf)
        while (queue := self._open_queue()) is not None:
            at = int(self._rng.random() * min(QUEUE_CHOICE, len(queue)))
            want = queue[at]
            del queue[at]
            want.stage = Stage.ACTIVE
            self._active[want] = None
            want.is_admitted.set()
            if want.task is None:
                want.task = asyncio.create_task(self._fetch(want), name=f"fetch-{want.key.id.hex()[:8]}")
                want.task.add_done_callback(lambda task, want=want: self._settle(want, task))  # type: ignore[misc]
            elif want.step is not None:
                self._exchange.enter(want.step)

    def _open_queue(self) -> deque[Want] | None:
        """Return the queue from which the next want may become active, if any."""
        objects, blobs = self._queues[ItemKind.OBJECT], self._queues[ItemKind.BLOB]
        active = [want for want in self._active if want.key.kind is ItemKind.BLOB]
        # Objects say what else to fetch; they never wait behind gigabytes.
        if objects and len(self._active) - len(active) < ACTIVE_MAX:
            return objects
        missing_bytes = sum(want.missing_bytes for want in active)
        return blobs if blobs and len(active) < ACTIVE_MAX and missing_bytes < ACTIVE_BYTES else None

    def _park(self, want: Want, reason: str, *, now: float, retry_s: float | None = None) -> None:
        self._active.pop(want, None)
        self._parked[want] = None
        want.stage = Stage.PARKED
        want.reason = reason
        want.is_admitted.clear()
        step = want.step
        if step is not None:
            self._exchange.leave(step)
            if step.has_advanced:
                step.has_advanced, want.retry_s = False, PARK_RETRY_S
            if step.count > 1 and not step.present and not step.done.done():
                step.done.set_exception(NothingYetError())
        want.retry_at = now + (want.retry_s if retry_s is None else retry_s)
        want.retry_s = min(PARK_RETRY_S_MAX, want.retry_s * 2)
        self._next_retry = min(self._next_retry, want.retry_at)
        self._pump_soon()  # There is room for another.

    async def _fetch(self, want: Want) -> Any:
        began = self._clock.monotonic()
        while (ending := self._ending.get(want.key)) is not None:
            await asyncio.wait([ending])  # It may be about to close the file that this one would go on with.
        while True:
            try:
                if want.key.kind is ItemKind.OBJECT:
                    return await self._pickup.take_object(want)
                await self._pickup.take_blob(want)
            except FullError as error:
                self._park(want, str(error), now=self._clock.monotonic(), retry_s=FULL_RETRY_S)
            except NothingYetError:
                pass
            else:
                duration_s = self._clock.monotonic() - began
                log.debug("blob.fetched", blob=want.key.id, bytes=want.nbytes, duration_s=duration_s)
                return None
            await want.is_admitted.wait()

    # --- driving ------------------------------------------------------------------------------------------

    def _pump_soon(self) -> None:
        if not self._is_pump_due and not self._is_closed:
            self._is_pump_due = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._is_pump_due = False
        if self._is_closed:
            return
        now = self._clock.monotonic()
        if self._wants and not self._exchange.providers:
            self._exchange.set_peers(self._peers(), now=now)
        self._admit(now)
        wakeup = self._exchange.turn(now=now)
        for step in self._exchange.stuck(now=now):
            self._park(self._pickup.owners[step], self._exchange.describe_stuck(now=now), now=now)
        if any(self._queues.values()):
            for step in self._exchange.idle(now=now, idle_s=NO_PROGRESS_S):
                self._park(
                    self._pickup.owners[step],
                    "the peers that have a part of it wait for the rest too",
                    now=now,
                )
        self._close_idle(now)
        self._arm(now, wakeup)

    def _close_idle(self, now: float) -> None:
        if self._wants or not self._exchange.has_links:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        elif now - self._idle_since >= LINK_IDLE_S:
            self._idle_since = None
            self._exchange.cut_all("nothing to ask")

    def _arm(self, now: float, wakeup: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        times = [] if wakeup is None else [wakeup]
        if self._parked and self._exchange.providers:
            times.append(self._next_retry)
        if self._idle_since is not None:
            times.append(self._idle_since + LINK_IDLE_S)
        if times:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, min(times) - now), self._pump_soon)
