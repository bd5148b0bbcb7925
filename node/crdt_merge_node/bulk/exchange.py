"""Carries out what the planner decides: asks providers for the steps under way and lands what they send.

Nothing that a peer sent has any effect before it was verified, in an executor. Whoever sends a wrong piece is
banned and its link cut; what it sent is dropped.

Sizes need a rule of their own. A manifest says how large a blob is, and so does every provider; the size is
part of the digest, so whoever is right can prove it by the list of chunk digests. A provider that contradicts
the manifest is asked for that proof: with it the want fails, for no peer can help; without it the provider
is banned.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Executor
from typing import Any, Final

from crdt_merge_protocol.errors import MalformedMessageError
from crdt_merge_protocol.fetch import Ask, FetchPlanner, Item, ItemKind, RandomLike
from crdt_merge_protocol.limits import KIB
from crdt_merge_protocol.messages.bulk import Absent, Chunk, ChunkList, Have

from crdt_merge_node.telemetry.logging import get_logger

from .landing import check_size, proves_size
from .link import Answer, Link, WholeObject
from .ports import ClockLike, ConnectionLike
from .wants import Rate, Step

log = get_logger(__name__)

PROVIDERS_MAX: Final = 16
GIVERS_MAX: Final = 1024
LAND_WAIT_S: Final = 0.005
"""How long a chunk waits for others that would be landed with it."""
SMALL_BYTES: Final = 64 * KIB
"""Hashing so much takes less than handing it to a thread."""


class Exchange:
    """The providers, the links to them, and the steps that are asked of them."""

    def __init__(
        self,
        *,
        node: bytes,
        open_connection: Callable[[bytes], Awaitable[ConnectionLike]],
        clock: ClockLike,
        rng: RandomLike,
        executor: Executor | None,
        on_change: Callable[[], None],
    ) -> None:
        self._node = node
        self._open_connection = open_connection
        self._clock = clock
        self._executor = executor
        self._on_change = on_change
        self._planner = FetchPlanner(rng=rng)
        self._links: dict[bytes, Link] = {}
        self._steps: dict[Item, Step] = {}
        self._disputes: set[tuple[bytes, bytes]] = set()
        self._givers: dict[bytes, bytes] = {}
        self.fetched_bytes = 0
        self.refused_bytes = 0
        self.rate = Rate(clock.monotonic())

    # --- providers ----------------------------------------------------------------------------------------

    def set_peers(self, peers: Iterable[bytes], *, now: float) -> bool:
        """Ask these peers from now on, at most sixteen of them. Returns whether there is a new one."""
        connected = [peer for peer in dict.fromkeys(peers) if peer != self._node]
        known = set(self._planner.providers)
        for provider in sorted(known - set(connected)):
            self._planner.provider_gone(provider)
            self.cut(provider, "no longer connected")
        room = PROVIDERS_MAX - len(self._planner.providers)
        new = [peer for peer in connected if peer not in known][: max(0, room)]
        for provider in new:
            self._planner.add_provider(provider, now=now)
        return bool(new)

    @property
    def providers(self) -> tuple[bytes, ...]:
        """The peers that are asked."""
        return self._planner.providers

    @property
    def has_links(self) -> bool:
        """Whether any connection is open or being dialled."""
        return bool(self._links)

    def cut(self, provider: bytes, reason: str) -> None:
        """Close the link to a provider."""
        if (link := self._links.pop(provider, None)) is not None:
            link.close(reason)

    def cut_all(self, reason: str) -> None:
        """Close every link."""
        for provider in tuple(self._links):
            self.cut(provider, reason)

    def _link(self, provider: bytes) -> Link:
        if provider not in self._links:
            self._links[provider] = Link(
                provider, self._open_connection, on_answer=self._on_answer, on_lost=self._on_lost
            )
        return self._links[provider]

    def _on_lost(self, link: Link, reason: str) -> None:
        self._disputes = {dispute for dispute in self._disputes if dispute[0] != link.peer}
        if self._links.get(link.peer) is link:
            del self._links[link.peer]
            log.debug("bulk.lost", peer=link.peer, reason=reason)
            self._planner.rest(link.peer, now=self._clock.monotonic())
            self._on_change()

    # --- steps --------------------------------------------------------------------------------------------

    def enter(self, step: Step) -> None:
        """Begin, or go on, to ask for the pieces of a step."""
        parties = sorted({self._node, *self._planner.providers})
        self._planner.add(
            step.item,
            nbytes=step.nbytes,
            count=step.count,
            present=step.present,
            own_slice=(parties.index(self._node), len(parties)),
            likely=step.likely,
            now=self._clock.monotonic(),
        )
        self._steps[step.item] = step
        self._on_change()

    def leave(self, step: Step) -> None:
        """Ask for nothing of a step any more."""
        if self._steps.get(step.item) is step:
            del self._steps[step.item]
            self._cancel(self._planner.discard(step.item))
            step.inbox.clear()
            self._stop_waiting(step)

    def turn(self, *, now: float) -> float | None:
        """Send what is due. Returns when to call again if nothing happens; None: not needed."""
        for provider, link in self._links.items():
            if link.has_progressed(now=now):
                self._planner.progress(provider, now=now)
        for provider in self._planner.stalled(now=now):
            self.cut(provider, "no progress")
        for ask in self._planner.next_requests(now=now):
            self._link(ask.provider).ask(ask)
        return self._planner.next_wakeup(now=now)

    def stuck(self, *, now: float) -> Iterator[Step]:
        """Yield the steps with which no provider can help."""
        disputed = {blob for _, blob in self._disputes}
        for item, step in list(self._steps.items()):
            if item.id not in disputed and self._planner.is_stuck(item, now=now):
                yield step

    def idle(self, *, now: float, idle_s: float) -> Iterator[Step]:
        """Yield the steps of which nobody owes a piece and none has come for a while."""
        for item, step in list(self._steps.items()):
            if self._planner.is_idle(item) and now - self._planner.progress_at(item) >= idle_s:
                yield step

    def describe(self, step: Step | None) -> str:
        """Say for people what a step under way waits for."""
        sources = self._planner.sources(step.item, now=self._clock.monotonic()) if step else 0
        if sources:
            return f"is being fetched from {sources} of {len(self.providers)} peers"
        return f"asking {len(self.providers)} peers who has it"

    def describe_stuck(self, *, now: float) -> str:
        """Say for people why nobody can help."""
        if not self.providers:
            return "no peer is connected"
        reason = f"none of {len(self.providers)} connected peers has it"
        banned = sum(1 for provider in self.providers if self._planner.is_banned(provider, now=now))
        if banned:
            reason += f"; {banned} of them sent wrong bytes and are not asked for an hour"
        return reason

    def _cancel(self, asks: Iterable[Ask]) -> None:
        for ask in asks:
            if (link := self._links.get(ask.provider)) is not None:
                link.cancel(ask)

    # --- answers ------------------------------------------------------------------------------------------

    def _on_answer(self, provider: bytes, answer: Answer) -> None:
        now = self._clock.monotonic()
        match answer:
            case Chunk(blob=blob, index=index, data=data):
                item = Item(ItemKind.BLOB, blob)
                if not self._is_disputed(provider, item, answer.nbytes, now=now):
                    self._deliver(provider, item, index, data, now=now)
            case WholeObject(id=object_id, data=data):
                self._deliver(provider, Item(ItemKind.OBJECT, object_id), 0, data, now=now)
            case ChunkList(blob=blob):
                if (provider, blob) in self._disputes:
                    self._settle_dispute(provider, answer, now=now)
                self._deliver(provider, Item(ItemKind.CHUNK_LIST, blob), 0, answer, now=now)
            case Have(blob=blob, chunks=chunks):
                item = Item(ItemKind.BLOB, blob)
                if not self._is_disputed(provider, item, answer.nbytes, now=now):
                    self._planner.available(provider, item, chunks, now=now)
            case Absent(id=absent_id, indices=indices):
                for kind in ItemKind:
                    self._planner.failed(provider, Item(kind, absent_id), indices or None, now=now)
        self._on_change()

    def _deliver(self, provider: bytes, item: Item, piece: int, value: Any, *, now: float) -> None:
        if self._planner.received(provider, item, piece, now=now):
            step = self._steps[item]
            step.inbox.append((provider, piece, value))
            if step.count == 1 and _is_small(value):
                batch, step.inbox = step.inbox, []
                self._judge(step, batch, step.land([(piece, value) for _, piece, value in batch]))
            elif step.is_together:
                self._land_now(step)
            else:
                self._land_soon(step)

    def _land_soon(self, step: Step) -> None:
        """See to it that what has come is not left lying."""
        if step.inbox and step.waiting is None:
            step.waiting = asyncio.get_running_loop().call_later(LAND_WAIT_S, self._land_now, step)

    @staticmethod
    def _stop_waiting(step: Step) -> None:
        if step.waiting is not None:
            step.waiting.cancel()
            step.waiting = None

    def _land_now(self, step: Step) -> None:
        self._stop_waiting(step)
        if step.inbox and (step.lander is None or step.lander.done()):
            step.lander = asyncio.create_task(self._land(step), name=f"land-{step.item.id.hex()[:8]}")

    async def _land(self, step: Step) -> None:
        """Verify and keep what has come, all that is there at a time, until little is left."""
        loop = asyncio.get_running_loop()
        is_due = True
        while step.inbox and (is_due or step.is_together):
            is_due = False
            batch, step.inbox = step.inbox, []
            pieces = [(piece, value) for _, piece, value in batch]
            try:
                verdicts = await loop.run_in_executor(self._executor, step.land, pieces)
            except Exception as error:  # noqa: BLE001  (whatever it is, it ends the want and is raised there)
                if not step.done.done():
                    step.done.set_exception(error)
                return
            self._judge(step, batch, verdicts)
            self._on_change()
        self._land_soon(step)

    def _judge(
        self, step: Step, batch: list[tuple[bytes, int, Any]], verdicts: list[tuple[int, ...] | None]
    ) -> None:
        """Take note of which pieces were right."""
        for (provider, piece, value), verdict in zip(batch, verdicts, strict=True):
            nbytes = len(value) if isinstance(value, bytes | memoryview) else 0
            if verdict is None:
                self._reject(step, provider, piece, nbytes)
            else:
                self._note_giver(step.item, provider)
                self._accept(step, verdict, nbytes)
        if step.present == (1 << step.count) - 1 and not step.done.done():
            step.done.set_result(None)

    def _note_giver(self, item: Item, provider: bytes) -> None:
        if item.kind is ItemKind.OBJECT:
            self._givers[item.id] = provider
            if len(self._givers) > GIVERS_MAX:
                del self._givers[next(iter(self._givers))]

    def giver(self, object_id: bytes) -> bytes:
        """Return who gave an object a while ago; empty if that is not known any more."""
        return self._givers.get(object_id, b"")

    def _accept(self, step: Step, pieces: Iterable[int], nbytes: int) -> None:
        now = self._clock.monotonic()
        step.has_advanced = True
        self.fetched_bytes += nbytes
        self.rate.add(nbytes, now=now)
        for piece in pieces:
            step.present |= 1 << piece
            self._cancel(self._planner.accepted(step.item, piece, now=now))

    def _reject(self, step: Step, provider: bytes, piece: int, nbytes: int) -> None:
        self.refused_bytes += nbytes
        self._planner.rejected(provider, step.item, piece, now=self._clock.monotonic())
        self._accuse(provider, step.item, f"piece {piece} does not match its hash")

    def _accuse(self, provider: bytes, item: Item, reason: str) -> None:
        log.warning("blob.refused", peer=provider, blob=item.id, reason=reason)
        self.cut(provider, f"{item.kind} {item.id.hex()[:12]}: {reason}")

    # --- disputes about sizes -----------------------------------------------------------------------------

    def _is_disputed(self, provider: bytes, item: Item, nbytes: int, *, now: float) -> bool:
        """Tell whether a provider has this blob with another size; if so ask it to prove that."""
        step = self._steps.get(item)
        if step is None or step.nbytes == nbytes:
            return False
        self._planner.failed(provider, item, now=now)
        if (link := self._links.get(provider)) is not None and (provider, item.id) not in self._disputes:
            self._disputes.add((provider, item.id))
            link.ask_proof(item.id)
        return True

    def _settle_dispute(self, provider: bytes, answer: ChunkList, *, now: float) -> None:
        self._disputes.discard((provider, answer.blob))
        item = Item(ItemKind.BLOB, answer.blob)
        if not proves_size(answer.blob, answer.nbytes, answer.digests):
            self._planner.ban(provider, now=now)
            self._accuse(provider, item, "the size it claims is not that of its digest")
        elif (step := self._steps.get(item)) is not None and not step.done.done():
            try:
                check_size(answer.blob, claimed=step.nbytes, actual=answer.nbytes)
            except MalformedMessageError as error:
                step.done.set_exception(error)


def _is_small(value: Any) -> bool:
    return isinstance(value, bytes | memoryview) and len(value) <= SMALL_BYTES
