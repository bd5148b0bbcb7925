"""Frees what contributions held that count for nothing any more (PROTOCOL 1, SCENARIOS T19).

    every ADD of every group -> wanted, past or lost -> after a grace: blobs, notes, and last the manifest

What is *lost*, banned or excluded by a REVOKE, goes after a minute. What is *past*, removed or replaced more
than once, goes after a week in which the node ran: a thief may have done it, and a REVOKE of the thief's key
brings it back (T32). Kept for good is whatever a wanted ADD, the one before it in its slot, or a base of any
policy of any group consists of. Nothing goes that was never a contribution.

It is level-triggered, like the erasures: every comparison of a group asks for a look, and a look begins with
the states as they are. A crash leaves the manifest for as long as a blob of it may be there. ADDs that were
dropped with their operations are remembered as small facts, in the transaction that drops them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, TypeVar

from crdt_merge_protocol.blobs import content_id, payload_id
from crdt_merge_protocol.engine import Engine
from crdt_merge_protocol.packing import packing_id
from crdt_merge_protocol.slots import Fate

from .consisting import bases_of, blobs_of, only_of, packings_of
from .errors import StorageError, StoreFailedError
from .ports import Clock
from .storage import EXCLUDED_FACT, Store
from .stored_ids import ID_DIGITS, read_id
from .telemetry.logging import get_logger

log = get_logger()
T = TypeVar("T")

LOST_S: Final = 60.0
PAST_S: Final = 7 * 86_400.0
LOOK_S: Final = 60.0
"""From a change to the look that it leads to: many changes share one."""
LOOK_S_MAX: Final = 3600.0
"""While something waits; a node that ends loses so much of the time that it has waited."""
WAITED_FACT: Final = "waited"
_ENTRY_BYTES: Final = 36


@dataclass(slots=True)
class _Survey:
    """What all groups have to say of contents and payloads."""

    wanted: set[bytes] = field(default_factory=set)
    wanted_payloads: set[bytes] = field(default_factory=set)
    past: dict[bytes, set[bytes]] = field(default_factory=dict)
    """Content -> payloads of the ADDs that had it."""
    lost: dict[bytes, set[bytes]] = field(default_factory=dict)

    def unwanted_payloads(self, contents: Iterable[bytes]) -> set[bytes]:
        """Return the payloads of unwanted ADDs of these, but for those that a wanted one shares."""
        named: set[bytes] = set()
        for content in contents:
            named |= self.past.get(content, set()) | self.lost.get(content, set())
        return named - self.wanted_payloads


class Unused:
    """What may go, for how long it has been so, and who must not be disturbed."""

    def __init__(self, *, engine: Engine, store: Store, clock: Clock, freed: Callable[[], None]) -> None:
        """Take whose groups they are, where bytes are, and who wants to know that some have gone."""
        self.freed_bytes = 0
        """Of blobs, since the start."""
        self._engine = engine
        self._store = store
        self._clock = clock
        self._freed = freed
        self._users = 0
        self._turn = asyncio.Lock()
        self._waited: dict[bytes, float] = {}
        """Content -> seconds in which nobody wanted it."""
        self._looked = clock.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False

    async def load(self) -> None:
        """Read how long things have waited when the last process ended."""
        data = await self._store.get_meta(WAITED_FACT) or b""
        for at in range(0, len(data) - len(data) % _ENTRY_BYTES, _ENTRY_BYTES):
            content, seconds = data[at : at + 32], data[at + 32 : at + _ENTRY_BYTES]
            self._waited[content] = float(int.from_bytes(seconds, "big"))

    async def close(self) -> None:
        """Stop; a later start goes on."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Let nothing go while the block runs: it reads blobs, or counts on those that are here."""
        async with self._turn:  # What is going has gone then.
            self._users += 1
        try:
            yield
        finally:
            self._users -= 1

    async def undisturbed(self, steps: AsyncGenerator[T]) -> AsyncGenerator[T]:
        """Pass on the steps of something that reads blobs; nothing goes meanwhile."""
        async with self.held(), aclosing(steps):
            async for step in steps:
                yield step

    def changed(self) -> None:
        """Look soon: something may have changed."""
        self._look_in(LOOK_S)

    async def look(self) -> None:
        """Free what is due, unless somebody must not be disturbed.

        Raises:
            StoreFailedError: The disk failed.
        """
        async with self._turn:
            survey = await self._survey()
            due = self._count(survey)
            await self._remember()
            if self._users:
                self._look_in(LOOK_S)
                return
            if due:
                freed = await asyncio.to_thread(self._free, due, survey.unwanted_payloads(due), survey)
                await self._forget_excluded(due)
                if freed:
                    self._freed()
        if self._waited:
            limits = (self._limit(content, survey) - waited for content, waited in self._waited.items())
            self._look_in(max(LOOK_S, min(LOOK_S_MAX, *limits)))

    async def _survey(self) -> _Survey:
        survey = _Survey()
        for replica in self._engine.replicas.values():
            survey.wanted |= bases_of(replica.state)
            for _tag, add, fate in replica.state.fates():
                payloads = set() if add.payload is None else {add.payload}
                if fate is Fate.WANTED:
                    survey.wanted.add(add.content)
                    survey.wanted_payloads |= payloads
                else:
                    known = survey.past if fate is Fate.PAST else survey.lost
                    known.setdefault(add.content, set()).update(payloads)
        for key, _ in await self._store.scan_meta(EXCLUDED_FACT):
            content, _, payload = key.removeprefix(EXCLUDED_FACT).partition("/")
            if found := read_id(content):
                named = read_id(payload) if len(payload) == ID_DIGITS else None
                survey.lost.setdefault(found, set()).update(set() if named is None else {named})
        return survey

    def _count(self, survey: _Survey) -> list[bytes]:
        """Note that time has passed; return whose time has come."""
        now = self._clock.monotonic()
        elapsed, self._looked = now - self._looked, now
        has = self._store.blobs.has_object
        unwanted = (survey.past.keys() | survey.lost.keys()) - survey.wanted
        self._waited = {
            content: self._waited[content] + elapsed if content in self._waited else 0.0
            for content in sorted(unwanted)
            if has(content)  # Of what has no manifest here nothing was fetched, or all has gone.
        }
        return [content for content, waited in self._waited.items() if waited >= self._limit(content, survey)]

    def _limit(self, content: bytes, survey: _Survey) -> float:
        return PAST_S if content in survey.past else LOST_S

    async def _remember(self) -> None:
        entries = (id_ + int(waited).to_bytes(4, "big") for id_, waited in self._waited.items())
        data = b"".join(entries)
        if data == (await self._store.get_meta(WAITED_FACT) or b""):
            return
        try:
            await self._store.update_meta({WAITED_FACT: data or None})
        except StoreFailedError:
            raise
        except StorageError as error:
            log.debug("freeing.forgotten", error=error)  # It waits anew after the next start.

    def _free(self, due: list[bytes], payloads: set[bytes], survey: _Survey) -> int:
        """Remove what contents consist of; return how many blobs and objects it was. Blocks."""
        store, blobs = self._store, self._store.blobs
        contents = only_of(store, due, content_id)
        named = blobs_of(store, contents)
        if named:
            named -= blobs_of(store, survey.wanted)
        payloads = only_of(store, payloads, payload_id)
        packings = only_of(store, packings_of(store, payloads), packing_id)
        if packings:
            packings -= packings_of(store, survey.wanted_payloads)
        nbytes = sum(blobs.size(digest) or 0 for digest in named)
        count = sum(blobs.has(digest) for digest in named)
        for digest in sorted(named):
            blobs.delete(digest)
            blobs.drop_partial(digest)
        objects = [id_ for id_ in sorted({*contents, *payloads, *packings}) if blobs.has_object(id_)]
        blobs.drop_objects(objects)
        self.freed_bytes += nbytes
        if count or objects:
            log.info("store.shrunk", count=count, bytes=nbytes)
        return count + len(objects)

    async def _forget_excluded(self, due: list[bytes]) -> None:
        for content in due:
            self._waited.pop(content, None)
        gone = {
            key: None
            for content in due
            for key, _ in await self._store.scan_meta(f"{EXCLUDED_FACT}{content.hex()}/")
        }
        if gone:
            await self._store.update_meta(gone)

    def _look_in(self, delay_s: float) -> None:
        """Look after a while, or when that was to be done anyway if it is sooner."""
        if self._is_closed:
            return
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            if self._due <= loop.time() + delay_s:
                return
            self._timer.cancel()
        self._due = loop.time() + delay_s
        self._timer = loop.call_at(self._due, self._begin)

    def _begin(self) -> None:
        self._timer = None
        if self._task is not None:
            self._look_in(LOOK_S)
            return
        self._task = asyncio.create_task(self._run(), name="unused")

    async def _run(self) -> None:
        try:
            await self.look()
        except StoreFailedError:
            return  # The store has told the node, which stops.
        except StorageError as error:
            log.warning("freeing.failed", error=error)
            self._look_in(LOOK_S)
        finally:
            self._task = None
