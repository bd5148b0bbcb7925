"""Reads everything that is stored again and again, so that damage shows while others still have the bytes.

A pass goes over all blobs, all objects, all operations and the pages of the database, and takes six days; a
restart goes on where it was. Each step reads at most a MiB and then rests: long enough for the pass to take
its time, and at least 99 times as long as the reading took, so that a scrub never has more than a hundredth
of the disk (SCENARIOS 7). The offline counterpart is ``storage/fsck.py``.

What is found damaged the store sets aside and the keeper fetches again, as after any damaged read. An
operation is put back from memory. What no peer has is an alarm until it is here again (T41).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from crdt_merge_protocol.blobs import chunk_count
from crdt_merge_protocol.canonical import decode, encode
from crdt_merge_protocol.engine import Engine
from crdt_merge_protocol.errors import RemoteProtocolError
from crdt_merge_protocol.operations import SignedOperation

from .alarms import Alarms
from .background import Duties
from .control.model import Severity
from .errors import CorruptError, StorageError, StoreFailedError
from .gossip import GossipDriver
from .keeper import ContentKeeper
from .ports import Clock
from .storage import OpRow, Store
from .telemetry.logging import get_logger

log = get_logger()

PASS_S: Final = 6 * 86_400.0
"""How long a pass takes, unless the disk is so slow that a hundredth of it is not enough."""
REST_RATIO: Final = 99.0
FIRST_S: Final = 60.0
"""After a start; there is enough to do then."""
SAVE_S: Final = 600.0
"""How often it is noted how far the pass is."""
OPERATIONS_AT_A_TIME: Final = 64
OPERATION_BYTES: Final = 1024
"""What checking one operation counts for; its signature costs more than its bytes."""
LOST_S: Final = 60.0
"""Damaged bytes that are not here again after this long are not to be had at the moment."""
OPERATIONS_PHASE: Final = 2
TABLES: Final = ("operations", "objects", "blobs", "facts", "groups")
CURSOR_FACT: Final = "scrub/cursor"
DAMAGED_FACT: Final = "damaged/"
LOST_ALARM: Final = "blob.lost"
PAGES_ALARM: Final = "store.damaged"


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a pass is."""

    began: float
    """Wall time."""
    phase: int = 0
    """0: blobs, 1: objects, 2: operations."""
    after: bytes = b""
    """The last that was read whole: a digest, an id, or a position of 8 bytes."""
    within: bytes = b""
    """What is being read."""
    step: int = 0
    """Its next chunk."""

    def encode(self) -> bytes:
        """Return it as a small fact."""
        return encode([int(self.began), self.phase, self.after, self.within, self.step])

    @classmethod
    def decode(cls, data: bytes) -> Cursor | None:
        """Return the cursor in a small fact, or None if it holds no valid one."""
        try:
            began, phase, after, within, step = decode(data)
            phase = min(max(int(phase), 0), OPERATIONS_PHASE)
            return cls(float(began), phase, bytes(after), bytes(within), int(step))
        except (RemoteProtocolError, ValueError, TypeError):
            return None


class Scrub:
    """The continuous check of one node's store, and the book of what it lacks because of damage."""

    def __init__(
        self,
        *,
        engine: Engine,
        driver: GossipDriver,
        store: Store,
        keeper: ContentKeeper,
        alarms: Alarms,
        clock: Clock,
    ) -> None:
        self.last_completed = 0.0
        """Wall time at which a pass last ended; 0: none since the start."""
        self._engine = engine
        self._driver = driver
        self._store = store
        self._keeper = keeper
        self._alarms = alarms
        self._clock = clock
        self._damaged: dict[bytes, float] = {}
        """What was here and is not any more -> when that was noticed, on the monotonic clock."""
        self._found = 0
        """Damage found in this pass."""
        self._duties = Duties(driver.fail)
        self._watch: asyncio.Task[None] | None = None
        self._is_closing = False
        self._cursor = Cursor(0.0)
        self._saved_at = 0.0

    async def load(self) -> None:
        """Read how far it was, and what is still missing; called once, before :meth:`start`."""
        now = self._clock.monotonic()
        for key, _ in await self._store.scan_meta(DAMAGED_FACT):
            self._damaged[bytes.fromhex(key.removeprefix(DAMAGED_FACT))] = now
        for blob in self._store.recovery.blobs_lost:
            await self._remember(blob)
        saved = await self._store.get_meta(CURSOR_FACT)
        self._cursor = (Cursor.decode(saved) if saved else None) or Cursor(self._clock.now())

    def start(self) -> None:
        """Check from now on."""
        self._duties.begin(self._run(), name="scrub")
        self._watch_damage()

    async def close(self) -> None:
        """Stop; the next start goes on."""
        self._is_closing = True
        await self._duties.close()
        with suppress(StorageError):  # It has been reported; the next start begins a little earlier.
            await self._save(is_due=True)

    def note_damage(self, blob: bytes) -> None:
        """Remember that a blob or object was set aside, until it is here again."""
        self._found += 1
        if not self._is_closing:
            self._duties.begin(self._remember(blob), name="damage")
            self._watch_damage()

    # --- the pass -----------------------------------------------------------------------------------------

    async def _run(self) -> None:
        await asyncio.sleep(FIRST_S)
        while True:
            await self._pass()
            self.last_completed = now = self._clock.now()
            log.info(
                "scrub.completed",
                bytes=self._store.blobs.total_bytes(),
                count=self._found,
                duration_s=round(now - self._cursor.began),
            )
            self._found, self._cursor = 0, Cursor(now)
            await self._save(is_due=True)

    async def _pass(self) -> None:
        """Go on from the cursor to the end."""
        while self._cursor.phase < OPERATIONS_PHASE:
            for key, nbytes, steps in (self._blobs, self._objects)[self._cursor.phase]():
                for step in range(self._cursor.step if self._cursor.within == key else 0, steps):
                    took_s = await self._step(key, step)
                    self._cursor = replace(self._cursor, within=key, step=step + 1)
                    await self._save()
                    await self._rest(took_s, nbytes / steps)
                await self._move_on(key)
            self._cursor = Cursor(self._cursor.began, self._cursor.phase + 1)
        await self._operations()
        for table in TABLES:
            await self._rest(await self._check_pages(table), OPERATION_BYTES)

    def _blobs(self) -> Iterator[tuple[bytes, int, int]]:
        """Yield (digest, bytes, chunks) of the blobs that are still to be read."""
        for digest in self._store.blobs.digests():
            if digest > self._cursor.after and (nbytes := self._store.blobs.size(digest)) is not None:
                yield digest, max(nbytes, 1), max(chunk_count(nbytes), 1)

    def _objects(self) -> Iterator[tuple[bytes, int, int]]:
        for object_id in self._store.blobs.object_ids():
            if object_id > self._cursor.after:
                yield object_id, OPERATION_BYTES, 1

    async def _operations(self) -> None:
        """Check all operations that are here now."""
        end = await asyncio.to_thread(self._store.last_position)
        after = int.from_bytes(self._cursor.after, "big")
        while after < end:
            began = self._clock.monotonic()
            rows, after = await asyncio.to_thread(self._store.operations_after, after, OPERATIONS_AT_A_TIME)
            await self._heal(await asyncio.to_thread(_bad_operations, rows))
            await self._rest(self._clock.monotonic() - began, len(rows) * OPERATION_BYTES)
            await self._move_on(after.to_bytes(8, "big"))

    async def _move_on(self, after: bytes) -> None:
        self._cursor = Cursor(self._cursor.began, self._cursor.phase, after)
        await self._save()

    def _total(self) -> int:
        """Return what a pass has to read, in bytes."""
        operations = sum(len(replica.state) for replica in self._engine.replicas.values())
        rows = operations + len(self._store.blobs.object_ids()) + len(TABLES)
        return self._store.blobs.total_bytes() + rows * OPERATION_BYTES

    async def _rest(self, took_s: float, nbytes: float) -> None:
        share = min(1.0, nbytes / self._total())
        await asyncio.sleep(max(REST_RATIO * took_s, share * PASS_S))

    # --- steps --------------------------------------------------------------------------------------------

    async def _step(self, key: bytes, chunk: int) -> float:
        """Read a chunk of a blob, or an object; return how long that took, in seconds."""
        began = self._clock.monotonic()
        try:
            if self._cursor.phase == 0:
                await asyncio.to_thread(self._store.blobs.read_chunk, key, chunk)
            else:
                await asyncio.to_thread(self._store.blobs.get_object, key)
        except CorruptError:
            pass  # The store has set it aside and told the keeper and this.
        except StoreFailedError:
            raise
        except StorageError as error:
            log.debug("scrub.skipped", error=error)  # Deleted while it was its turn, or no memory.
        return self._clock.monotonic() - began

    async def _heal(self, bad: list[tuple[OpRow, str]]) -> None:
        """Set damaged operations aside, and put them back from memory."""
        for row, reason in bad:
            self._found += 1
            await asyncio.to_thread(self._store.quarantine_operation, row.id, reason)
            state = self._engine.state(row.group)
            signed = state.get(row.id) if state is not None else None
            if signed is not None:
                await self._store.append([OpRow(row.group, row.id, signed.wire())])
                log.info("operation.healed", operation=row.id, group=row.group)

    async def _check_pages(self, table: str) -> float:
        began = self._clock.monotonic()
        problems = await asyncio.to_thread(self._store.page_problems, table)
        if problems:
            self._found += 1
            self._alarms.set(
                PAGES_ALARM,
                severity=Severity.DAMAGE,
                code="E1501",
                message=f"the database is damaged: {problems[0]}.",
                hint="Stop the daemon, then: crdt-merge-node fsck --repair",
            )
            log.error("store.damaged", table=table, reason=problems[0], count=len(problems))
        return self._clock.monotonic() - began

    async def _save(self, *, is_due: bool = False) -> None:
        now = self._clock.monotonic()
        if not is_due and now < self._saved_at + SAVE_S:
            return
        self._saved_at = now
        try:
            await self._store.put_meta(CURSOR_FACT, self._cursor.encode())
        except StoreFailedError:
            raise
        except StorageError as error:
            log.debug("scrub.skipped", error=error)  # No room: the next start begins where this one did.

    # --- what is missing because of damage ------------------------------------------------------------------

    async def _remember(self, blob: bytes) -> None:
        self._damaged.setdefault(blob, self._clock.monotonic())
        try:
            await self._store.put_meta(DAMAGED_FACT + blob.hex(), b"1")
        except StoreFailedError:
            raise
        except StorageError as error:
            log.debug("scrub.skipped", error=error)

    def _watch_damage(self) -> None:
        if (self._watch is None or self._watch.done()) and not self._is_closing:
            self._watch = self._duties.begin(self._watch_until_healed(), name="damage watched")

    async def _watch_until_healed(self) -> None:
        while self._damaged:
            await asyncio.sleep(LOST_S)
            await self._look_at_damage()

    async def _look_at_damage(self) -> None:
        """Forget what is here again or needed by nobody; raise the alarm for the rest."""
        blobs, lost = self._store.blobs, []
        # What is named, too: the keeper may not have noticed yet that it is missing.
        needed = {key for group in self._engine.replicas for key in self._missing(group)}
        needed |= self._keeper.named_blobs()
        for blob, since in list(self._damaged.items()):
            if blobs.has(blob) or blobs.has_object(blob):
                log.info("blob.healed", blob=blob)
            elif self._clock.monotonic() < since + LOST_S:
                continue
            elif blob in needed:
                lost.append(blob)
                continue
            del self._damaged[blob]
            await self._store.delete_meta(DAMAGED_FACT + blob.hex())
        if not lost:
            self._alarms.clear(LOST_ALARM)
            return
        names = ", ".join(blob.hex()[:12] for blob in lost[:4])
        self._alarms.set(
            LOST_ALARM,
            severity=Severity.DAMAGE,
            code=LOST_ALARM,
            message=f"{len(lost)} blobs were damaged here and no peer that is connected has them: {names}.",
            hint="Start a node that has them, or restore them; `why` says which contributions lack them.",
        )

    def _missing(self, group: bytes) -> set[bytes]:
        contents = self._keeper.contents(group)
        return set(contents.missing) if contents is not None else set()


def _bad_operations(rows: list[OpRow]) -> list[tuple[OpRow, str]]:
    """Return the operations that are not what was stored, each with the reason."""
    bad = []
    for row in rows:
        try:
            reason = "" if SignedOperation.parse(row.wire).id == row.id else "its bytes have another id"
        except RemoteProtocolError as error:
            reason = error.message
        if reason:
            bad.append((row, reason))
    return bad
