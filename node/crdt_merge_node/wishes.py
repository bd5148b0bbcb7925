"""Which objects and blobs are being fetched, for which groups, and on whose account.

The fetcher waits for as long as nobody has what is wanted. So that an author who withholds bytes waits alone,
every author has a share of what is asked for at a time, and only what all contributions need comes before
(PROTOCOL R14: no author can block a group).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final

from crdt_merge_protocol.errors import CrdtMergeError, RemoteProtocolError

from .telemetry.logging import get_logger

log = get_logger()

WISHES_MAX: Final = 4096
"""The fetcher bounds what it works on at a time; this bounds what it has to remember."""
WISHES_PER_OWNER_MAX: Final = 512
RETRY_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """One object or blob that a group needs."""

    id: bytes
    nbytes: int
    """0 for an object, whose size is not known."""
    owner: bytes
    """Who is to blame if nobody has it; empty for what all contributions need."""
    start: Callable[[], Awaitable[None]]
    content: bytes = b""
    """Of a blob: the content that it is a part of. Nothing can be decided before the last of its blobs."""


class Wishes:
    """The fetches under way. Level-triggered: a group states all that it needs, every time."""

    def __init__(
        self,
        *,
        came: Callable[[Iterable[bytes]], None],
        partly: Callable[[Iterable[bytes]], None],
        disproved: Callable[[bytes, int, str], None],
        fatal: Callable[[BaseException], None],
    ) -> None:
        """Take who wants to know.

        Args:
            came: Gets the groups that something was fetched for that tells more, or that ended badly.
            partly: Gets those for which a part of something came, and those that more may be asked for.
            disproved: Gets (id, size, reason) of a blob that cannot have the size that a manifest says.
            fatal: Gets what should not happen.
        """
        self._came = came
        self._partly = partly
        self._disproved = disproved
        self._fatal = fatal
        self._tasks: dict[bytes, asyncio.Task[None]] = {}
        self._shares: Counter[bytes] = Counter()
        self._parts: Counter[bytes] = Counter()
        """Content -> how many of its blobs are being fetched."""
        self._needed: dict[bytes, frozenset[bytes]] = {}
        """group -> everything that it needs."""
        self._starved: set[bytes] = set()
        """Groups that need something that is not asked for yet."""
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._tasks)

    async def close(self) -> None:
        """Give everything up."""
        self._is_closed = True
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def need(self, group: bytes, wishes: Iterable[Wish]) -> None:
        """Fetch these for a group, in this order, and nothing else for it any more."""
        if self._is_closed:
            return
        by_id: dict[bytes, Wish] = {}
        for wish in wishes:
            by_id.setdefault(wish.id, wish)
        self._needed[group] = frozenset(by_id)
        still_needed = frozenset().union(*self._needed.values())
        for key, task in self._tasks.items():
            if key not in still_needed:
                task.cancel()
        self._starved.discard(group)
        for wish in by_id.values():
            if wish.id in self._tasks:
                continue
            is_over = bool(wish.owner) and self._shares[wish.owner] >= WISHES_PER_OWNER_MAX
            if is_over or len(self._tasks) >= WISHES_MAX:
                self._starved.add(group)
            else:
                self._begin(wish)

    def _begin(self, wish: Wish) -> None:
        task = asyncio.create_task(self._fetch(wish), name=f"wish-{wish.id.hex()[:8]}")
        self._tasks[wish.id] = task
        self._shares[wish.owner] += 1
        self._parts[wish.content] += 1
        task.add_done_callback(lambda done: self._ended(wish, done))

    async def _fetch(self, wish: Wish) -> None:
        try:
            await wish.start()
        except RemoteProtocolError as error:
            self._disproved(wish.id, wish.nbytes, error.message)
        except CrdtMergeError as error:
            log.warning("blob.failed", blob=wish.id, error=error)
            await asyncio.sleep(RETRY_S)

    def _ended(self, wish: Wish, task: asyncio.Task[None]) -> None:
        del self._tasks[wish.id]
        for counts, key in ((self._shares, wish.owner), (self._parts, wish.content)):
            counts[key] -= 1
            if not counts[key]:
                del counts[key]
        if self._is_closed:
            return
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fatal(error)
        concerned = {group for group, needed in self._needed.items() if wish.id in needed}
        if wish.content and self._parts[wish.content]:
            self._partly(sorted(concerned | self._starved))
        else:
            self._came(sorted(concerned | self._starved))
