"""What to fetch next, and from whom (PROTOCOL 5). Pure: time and randomness are arguments.

An *item* is something wanted by its hash: an object, a list of chunk digests, or a blob of many *pieces*
(its chunks). *Providers* are connected peers. The planner knows which provider can give which pieces, keeps
every provider's window full, and sees to it that

1. pieces of our own 1/k slice go first, then the rarest, then random ones: nodes that fetch the same blob at
   the same time then hold different pieces early and serve each other;
2. a piece is asked of one provider at a time; only when a provider has nothing else to give is a piece asked
   a second time, of that provider, if the first has been slow (the *endgame*);
3. a provider that sent a wrong piece is not asked again for an hour, and costs nothing but that piece;
4. a provider without progress loses what it owes to the others and rests, longer each time;
5. what is asked and not yet written stays within one budget over all providers;
6. a single piece is asked of those who probably have it before it is asked of others: of a new contribution
   that is its author, and then whoever gave its manifest.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from .errors import LocalProtocolError
from .fetch_items import REST_S, Ask, Item, ItemKind, Provider, Query, Wanted, asks_of, lowest_bit
from .fetch_owed import Owed
from .limits import FETCH_BYTES_MAX, FETCH_STALL_S, PROVIDER_BAN_S

__all__ = ["Ask", "FetchPlanner", "Item", "ItemKind", "RandomLike"]

RUN_PIECES: Final = 4
"""Neighbouring pieces asked at once: one seek of the provider's disk, and turns stay short."""
QUERY_TIMEOUT_S: Final = 5.0
REST_S_MAX: Final = 60.0
ENDGAME_PATIENCE_S: Final = 0.5
ENDGAME_DUPLICATES_MAX: Final = 8
LIKELY_PATIENCE_S: Final = 0.5
"""How long nobody else is asked for a single piece that a provider probably has."""
TICK_S: Final = 0.25
"""How often to look while something is owed: stalls and the endgame depend on time alone."""


class RandomLike(Protocol):
    """The randomness the planner needs."""

    def random(self) -> float:
        """Return a number in ``0 <= x < 1``."""
        ...


class FetchPlanner:
    """Decides what to ask of whom. The driver sends the asks and reports what became of them."""

    def __init__(self, *, rng: RandomLike, budget_bytes: int = FETCH_BYTES_MAX) -> None:
        self._rng = rng
        self._budget_bytes = budget_bytes
        self._owed = Owed()
        self._providers = self._owed.providers
        self._banned: dict[bytes, float] = {}
        self._items = self._owed.items
        self._urgent: dict[Item, Wanted] = {}
        self._last_usable: list[bytes] = []

    # --- providers ----------------------------------------------------------------------------------------

    @property
    def providers(self) -> tuple[bytes, ...]:
        """The providers known, banned and resting ones included."""
        return tuple(self._providers)

    def add_provider(self, provider: bytes, *, now: float) -> None:
        """Start asking a peer. Known ones are left as they are."""
        if provider not in self._providers:
            self._providers[provider] = Provider(progress_at=now)

    def provider_gone(self, provider: bytes) -> None:
        """Forget a peer that is no longer connected; what it owed is asked of others. A ban is remembered."""
        if provider in self._providers:
            self._owed.forfeit(provider)
            del self._providers[provider]
            for wanted in self._items.values():
                wanted.forget(provider)

    def rest(self, provider: bytes, *, now: float) -> None:
        """Leave a provider alone for a while, twice as long each time until it delivers again."""
        if (known := self._providers.get(provider)) is not None:
            self._owed.forfeit(provider)
            known.window.on_stall()
            known.rests_until = now + known.rest_s
            known.rest_s = min(REST_S_MAX, known.rest_s * 2)

    def ban(self, provider: bytes, *, now: float) -> None:
        """Ask a provider nothing for an hour: it sent what is not what it claims to be."""
        self._banned[provider] = now + PROVIDER_BAN_S
        if provider in self._providers:
            self._owed.forfeit(provider)

    def is_banned(self, provider: bytes, *, now: float) -> bool:
        """Tell whether a provider sent wrong bytes less than an hour ago."""
        if now >= self._banned.get(provider, math.inf):
            del self._banned[provider]
        return provider in self._banned

    def progress(self, provider: bytes, *, now: float) -> None:
        """Note that a provider is sending, though no piece is whole yet."""
        if (known := self._providers.get(provider)) is not None:
            known.progress_at = now

    def stalled(self, *, now: float) -> tuple[bytes, ...]:
        """Return the providers that owe something and have made no progress for too long; they rest now."""
        slow = tuple(
            provider
            for provider, known in self._providers.items()
            if known.flights and now - known.progress_at >= FETCH_STALL_S
        )
        for provider in slow:
            self.rest(provider, now=now)
        return slow

    # --- items --------------------------------------------------------------------------------------------

    def add(
        self,
        item: Item,
        *,
        nbytes: int,
        now: float,
        count: int = 1,
        present: int = 0,
        own_slice: tuple[int, int] = (0, 1),
        likely: Iterable[bytes] = (),
    ) -> None:
        """Want an item of ``count`` pieces, all but the bits in ``present``.

        Args:
            nbytes: Size; for an object, whose size is not known, a guess.
            own_slice: Our rank among the nodes that may be fetching the same, and their number.
            likely: Who probably has it. An item of one piece is asked of them first; of others when none of
                them is here, they do not have it, or they take longer than ``LIKELY_PATIENCE_S``.
        """
        if item in self._items or count < 1:
            raise LocalProtocolError(f"{item.kind} {item.id.hex()[:12]} cannot be wanted (twice).")
        rank, parties = own_slice
        low, high = rank * count // parties, (rank + 1) * count // parties
        self._items[item] = Wanted(
            nbytes=nbytes,
            count=count,
            missing=((1 << count) - 1) & ~present,
            own_slice=(1 << high) - (1 << low),
            progress_at=now,
            likely={provider for provider in likely if provider in self._providers} if count == 1 else set(),
            others_at=now + LIKELY_PATIENCE_S,
        )
        if item.kind is not ItemKind.BLOB:
            # Small, and others wait to learn from it what else to fetch.
            self._urgent[item] = self._items[item]

    def discard(self, item: Item) -> list[Ask]:
        """Want an item no longer. Returns what is in flight, so that it can be cancelled."""
        wanted = self._items.get(item)
        if wanted is None:
            return []
        cancelled: dict[bytes, list[int]] = {}
        for piece, owners in sorted(wanted.flights.items()):
            for provider in tuple(owners):
                cancelled.setdefault(provider, []).append(piece)
                self._owed.drop(provider, item, piece)
        self._owed.nbytes -= sum(wanted.held.values())
        del self._items[item]
        self._urgent.pop(item, None)
        return asks_of((provider, item, pieces) for provider, pieces in cancelled.items())

    def __contains__(self, item: Item) -> bool:
        return item in self._items

    def missing(self, item: Item) -> int:
        """Return the pieces still missing, as bits."""
        wanted = self._items.get(item)
        return 0 if wanted is None else wanted.missing

    def progress_at(self, item: Item) -> float:
        """Return when the last piece of an item was accepted, or when it was added."""
        return self._items[item].progress_at

    def sources(self, item: Item, *, now: float) -> int:
        """Return how many usable providers have something of an item that is still missing."""
        wanted = self._items.get(item)
        return 0 if wanted is None else sum(1 for p in self._usable(now) if wanted.useful(p))

    def is_stuck(self, item: Item, *, now: float) -> bool:
        """Tell whether every usable provider has said that it cannot help, or there is none."""
        wanted = self._items.get(item)
        if wanted is None or wanted.taken:
            return False
        for provider in self._usable(now):
            query = wanted.queries.get(provider)
            if query is None or query.is_open or wanted.useful(provider):
                return False
        return True

    def is_idle(self, item: Item) -> bool:
        """Tell whether nobody owes a piece of an item and none is being judged."""
        wanted = self._items.get(item)
        return wanted is not None and not wanted.taken

    # --- what the driver reports --------------------------------------------------------------------------

    def available(self, provider: bytes, item: Item, pieces: int, *, now: float) -> None:
        """Take note of the pieces a provider has; an answer to an ask without pieces."""
        wanted = self._items.get(item)
        if wanted is None or provider not in self._providers:
            return
        pieces &= wanted.everything
        query = wanted.queries.setdefault(provider, Query(due=now))
        query.answered(
            now=now,
            has_news=bool(pieces & wanted.missing & ~wanted.shares.get(provider, 0)),
            is_complete=pieces == wanted.everything,
        )
        wanted.query_due = min(wanted.query_due, query.due)
        wanted.set_share(provider, pieces)

    def failed(self, provider: bytes, item: Item, pieces: Iterable[int] | None = None, *, now: float) -> None:
        """Take note that a provider cannot give these pieces; without pieces: nothing of the item."""
        wanted = self._items.get(item)
        if wanted is None or provider not in self._providers:
            return
        lost = wanted.everything if pieces is None else sum(1 << piece for piece in set(pieces))
        for piece in [piece for piece in wanted.flights if lost >> piece & 1]:
            self._owed.drop(provider, item, piece)
        query = wanted.queries.setdefault(provider, Query(due=now))
        query.failed(now=now)
        wanted.query_due = min(wanted.query_due, query.due)
        wanted.set_share(provider, wanted.shares.get(provider, 0) & ~lost)
        wanted.unlikely(provider)

    def received(self, provider: bytes, item: Item, piece: int, *, now: float) -> bool:
        """Take note of an answer. True: verify it, then call :meth:`accepted` or :meth:`rejected`.

        False: the piece is here already, or is being verified, or was never wanted; drop it.
        """
        if (known := self._providers.get(provider)) is not None:
            known.progress_at = now
            known.rest_s = REST_S
            self._owed.drop(provider, item, piece, answered_at=now)
        wanted = self._items.get(item)
        if wanted is None or not wanted.missing >> piece & 1 or piece in wanted.held:
            return False
        # An answer that came after its request was given up is as good as any, if there is room for it.
        has_room = self._owed.nbytes + wanted.cost(piece) <= 2 * self._budget_bytes
        if not has_room or self.is_banned(provider, now=now):
            return False
        self._owed.hold(wanted, piece)
        return True

    def accepted(self, item: Item, piece: int, *, now: float) -> list[Ask]:
        """Take note that a piece is written. Returns what to cancel: requests for it elsewhere."""
        wanted = self._items.get(item)
        if wanted is None:
            return []
        self._owed.release(wanted, piece)
        wanted.missing &= ~(1 << piece)
        wanted.progress_at = now
        others = tuple(wanted.flights.get(piece, ()))
        for provider in others:
            self._owed.drop(provider, item, piece)
        return [Ask(provider, item, (piece,)) for provider in others]

    def rejected(self, provider: bytes, item: Item, piece: int, *, now: float) -> None:
        """Take note that a piece was wrong: its sender is banned, the piece wanted again."""
        if (wanted := self._items.get(item)) is not None:
            self._owed.release(wanted, piece)
        self.ban(provider, now=now)

    # --- decisions ----------------------------------------------------------------------------------------

    def next_requests(self, *, now: float) -> list[Ask]:
        """Return what to ask now. Everything returned counts as sent."""
        usable = list(self._usable(now))
        if usable != self._last_usable:
            self._last_usable = usable
            for wanted in self._items.values():
                wanted.query_due = -math.inf
        asks: list[Ask] = []
        for item, wanted in self._items.items():
            asks += self._queries(item, wanted, usable, now)
        if usable:
            turn = int(self._rng.random() * len(usable))
            usable = usable[turn:] + usable[:turn]
        runs: dict[tuple[bytes, Item], list[int]] = {}
        if not self._has_something_to_ask(now):
            return asks
        while usable:
            # In turns, so that one wide window does not take what a narrow one could have fetched meanwhile.
            for provider in tuple(usable):
                run = self._next_run(provider, now)
                if run is None:
                    usable.remove(provider)
                else:
                    runs.setdefault((provider, run[0]), []).extend(run[1])
        return asks + asks_of((provider, item, sorted(run)) for (provider, item), run in runs.items())

    def _has_something_to_ask(self, now: float) -> bool:
        """Tell whether any piece is free, or was asked for so long ago that another may be asked for it."""
        if any(wanted.missing & ~wanted.taken for wanted in self._items.values()):
            return True
        flights = (flight for known in self._providers.values() for flight in known.flights.values())
        return any(now - flight.sent_at >= ENDGAME_PATIENCE_S for flight in flights)

    def next_wakeup(self, *, now: float) -> float | None:
        """Return when to call :meth:`next_requests` though nothing happens; None: not at all.

        Valid after :meth:`next_requests` at the same ``now``.
        """
        if self._owed.nbytes:
            return now + TICK_S
        times = [wanted.query_due for wanted in self._items.values()]
        if self._items:
            times += [known.rests_until for known in self._providers.values() if known.rests_until > now]
            times += [until for provider, until in self._banned.items() if provider in self._providers]
        soonest = min(times, default=math.inf)
        return None if math.isinf(soonest) else soonest

    def _usable(self, now: float) -> Iterator[bytes]:
        for provider, known in self._providers.items():
            if now >= known.rests_until and not self.is_banned(provider, now=now):
                yield provider

    def _queries(self, item: Item, wanted: Wanted, usable: list[bytes], now: float) -> Iterator[Ask]:
        if now < wanted.query_due:
            return
        wanted.query_due = math.inf
        if now < wanted.others_at and (likely := [peer for peer in usable if peer in wanted.likely]):
            usable, wanted.query_due = likely, wanted.others_at
        for provider in usable:
            query = wanted.queries.setdefault(provider, Query(due=now))
            if now >= query.due:
                if query.is_open:
                    wanted.set_share(provider, 0)
                    query.failed(now=now)
                elif wanted.count == 1:
                    # Asking whether it is there would take as long as asking for it.
                    wanted.set_share(provider, 1)
                    query.due = math.inf
                elif wanted.fresh(provider):
                    query.due = now + query.poll_s
                else:
                    query.is_open = True
                    query.due = now + QUERY_TIMEOUT_S
                    yield Ask(provider, item)
            wanted.query_due = min(wanted.query_due, query.due)

    def _next_run(self, provider: bytes, now: float) -> tuple[Item, list[int]] | None:
        if self._owed.nbytes >= self._budget_bytes or not self._providers[provider].has_room():
            return None
        for item, wanted in itertools.chain(self._urgent.items(), self._items.items()):
            if candidates := wanted.fresh(provider):
                run = self._pick(wanted, candidates)
                for piece in run:
                    self._owed.launch(provider, item, piece, now=now)
                return item, run
        return self._second_try(provider, now)

    def _pick(self, wanted: Wanted, candidates: int) -> list[int]:
        """Choose neighbouring pieces: of our slice before others, rare before common, then at random."""
        pool = candidates & wanted.own_slice or candidates
        for level in wanted.rarity_levels():
            if pool & level:
                pool &= level
                break
        at = int(self._rng.random() * wanted.count)
        at = at + lowest_bit(pool >> at) if pool >> at else lowest_bit(pool)
        run = [at]
        while len(run) < RUN_PIECES and pool >> (at + 1) & 1:
            at += 1
            run.append(at)
        return run

    def _second_try(self, provider: bytes, now: float) -> tuple[Item, list[int]] | None:
        if self._owed.duplicates >= ENDGAME_DUPLICATES_MAX:
            return None
        for item, wanted in self._items.items():
            share = wanted.shares.get(provider, 0)
            if not share & wanted.taken:
                continue
            for piece, owners in wanted.flights.items():
                if len(owners) > 1 or provider in owners or not share >> piece & 1 or piece in wanted.held:
                    continue
                if now - self._providers[owners[0]].flights[item, piece].sent_at >= ENDGAME_PATIENCE_S:
                    self._owed.launch(provider, item, piece, now=now)
                    self._owed.duplicates += 1
                    return item, [piece]
        return None
