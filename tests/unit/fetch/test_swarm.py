"""Many planners on simulated links: all arrives whatever fails, and spreading is cheap (TARGETS C2).

The links are the simplest that tell something: every node sends at the same rate, one chunk after the other,
to whoever asked first. Providers may hold anything, lie, stall or vanish.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from random import Random

from crdt_merge_protocol.fetch import Ask, FetchPlanner, Item, ItemKind
from crdt_merge_protocol.limits import MIB
from hypothesis import given
from hypothesis import strategies as st
from support.profile import examples

BLOB = Item(ItemKind.BLOB, b"\x01" * 32)
HONEST, LIAR, MUTE, VANISHING = "honest", "liar", "mute", "vanishing"


class Swarm:
    """Nodes with planners, over uplinks of one chunk per ``chunk_s`` and a fixed latency."""

    def __init__(
        self, names: list[bytes], *, count: int, chunk_s: float, latency_s: float, seed: int
    ) -> None:
        self.now = 0.0
        self.count = count
        self.chunk_s = chunk_s
        self.latency_s = latency_s
        self.has = dict.fromkeys(names, 0)
        self.kind = dict.fromkeys(names, HONEST)
        self.planners: dict[bytes, FetchPlanner] = {}
        self.sent_chunks = 0
        self.finished_at: dict[bytes, float] = {}
        self.queues: dict[bytes, list[tuple[bytes, int]]] = {name: [] for name in names}
        self.busy: set[bytes] = set()
        self.gone: set[bytes] = set()
        self.refused: list[tuple[bytes, bytes]] = []
        self._rng = Random(seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._ticket = itertools.count()

    def at(self, delay_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + delay_s, next(self._ticket), action))

    def fetch(self, name: bytes) -> None:
        others = [other for other in self.has if other != name]
        planner = self.planners[name] = FetchPlanner(rng=Random(self._rng.random()))
        for other in others:
            planner.add_provider(other, now=self.now)
        fetching = sorted(other for other in self.has if self.has[other] != self.everything)
        planner.add(
            BLOB,
            nbytes=self.count * MIB,
            count=self.count,
            present=self.has[name],
            own_slice=(fetching.index(name), len(fetching)),
            now=self.now,
        )
        self.at(0.0, lambda: self.pump(name))

    @property
    def everything(self) -> int:
        return (1 << self.count) - 1

    def run(self, *, until_s: float) -> None:
        while self._events and self._events[0][0] <= until_s:
            self.now, _, action = heapq.heappop(self._events)
            action()

    def pump(self, name: bytes) -> None:
        planner = self.planners[name]
        planner.stalled(now=self.now)
        for ask in planner.next_requests(now=self.now):
            self.at(self.latency_s, lambda ask=ask: self.asked(name, ask))  # type: ignore[misc]
        if planner.missing(BLOB) and (wakeup := planner.next_wakeup(now=self.now)) is not None:
            self.at(max(1e-3, wakeup - self.now), lambda: self.pump(name))

    def asked(self, name: bytes, ask: Ask) -> None:
        provider = ask.provider
        if provider in self.gone or self.kind[provider] == MUTE:
            return
        if not ask.pieces:
            share = self.everything if self.kind[provider] == LIAR else self.has[provider]
            self.at(
                self.latency_s, lambda: self.planners[name].available(provider, BLOB, share, now=self.now)
            )
            self.at(self.latency_s, lambda: self.pump(name))
            return
        self.queues[provider] += [(name, piece) for piece in ask.pieces]
        if self.kind[provider] == VANISHING:
            self.gone.add(provider)
            self.at(1.0, lambda: self.vanish(provider))
            return
        self.send_next(provider)

    def vanish(self, provider: bytes) -> None:
        for name, planner in self.planners.items():
            planner.provider_gone(provider)
            self.pump(name)

    def send_next(self, provider: bytes) -> None:
        if provider in self.busy or not self.queues[provider]:
            return
        name, piece = self.queues[provider].pop(0)
        self.busy.add(provider)
        self.sent_chunks += 1
        self.at(self.chunk_s, lambda: self.sent(provider))
        self.at(self.chunk_s + self.latency_s, lambda: self.arrived(provider, name, piece))

    def sent(self, provider: bytes) -> None:
        self.busy.discard(provider)
        self.send_next(provider)

    def arrived(self, provider: bytes, name: bytes, piece: int) -> None:
        planner = self.planners[name]
        if planner.received(provider, BLOB, piece, now=self.now):
            if self.kind[provider] == LIAR:
                planner.rejected(provider, BLOB, piece, now=self.now)
                self.refused.append((name, provider))
            else:
                for cancelled in planner.accepted(BLOB, piece, now=self.now):
                    queue = self.queues[cancelled.provider]
                    self.queues[cancelled.provider] = [q for q in queue if q != (name, cancelled.pieces[0])]
                self.has[name] |= 1 << piece
                if self.has[name] == self.everything:
                    self.finished_at[name] = self.now
        self.pump(name)


def names(count: int) -> list[bytes]:
    return [index.to_bytes(32, "big") for index in range(count)]


@examples(60)
@given(
    kinds=st.lists(st.sampled_from([HONEST, HONEST, LIAR, MUTE, VANISHING]), min_size=1, max_size=5),
    shares=st.lists(st.integers(0, (1 << 24) - 1), min_size=6, max_size=6),
    present=st.integers(0, (1 << 24) - 1),
    seed=st.integers(0, 1000),
)
def test_one_honest_provider_of_each_piece_is_enough_whatever_the_others_do(
    kinds: list[str], shares: list[int], present: int, seed: int
) -> None:
    me, source, *others = names(2 + len(kinds))
    swarm = Swarm([me, source, *others], count=24, chunk_s=0.01, latency_s=0.02, seed=seed)
    swarm.has |= {me: present, source: swarm.everything} | dict(zip(others, shares, strict=False))
    swarm.kind |= dict(zip(others, kinds, strict=True))
    if present == swarm.everything:
        return
    swarm.fetch(me)
    swarm.run(until_s=60.0)

    assert swarm.has[me] == swarm.everything
    assert len(swarm.refused) == len(set(swarm.refused)), "a liar gets one piece in, and no second"


@examples(20)
@given(nodes=st.integers(2, 6), seed=st.integers(0, 1000))
def test_nodes_that_hold_the_pieces_between_them_all_end_up_with_everything(nodes: int, seed: int) -> None:
    rng = Random(seed)
    everyone = names(nodes)
    swarm = Swarm(everyone, count=16, chunk_s=0.01, latency_s=0.02, seed=seed)
    for piece in range(16):
        swarm.has[rng.choice(everyone)] |= 1 << piece
    for name in everyone:
        if swarm.has[name] != swarm.everything:
            swarm.fetch(name)
    swarm.run(until_s=120.0)

    assert all(share == swarm.everything for share in swarm.has.values())


def test_one_blob_reaches_eight_nodes_in_little_more_than_the_time_to_send_it_once() -> None:
    """TARGETS C2 in small: F/u is the time for one uplink to send it once, and 1.5 F/u are enough."""
    source, *others = names(9)
    swarm = Swarm([source, *others], count=96, chunk_s=0.05, latency_s=0.01, seed=3)
    swarm.has[source] = swarm.everything
    for name in others:
        swarm.fetch(name)
    swarm.run(until_s=60.0)

    assert len(swarm.finished_at) == 8
    assert max(swarm.finished_at.values()) <= 1.5 * 96 * 0.05
    assert swarm.sent_chunks <= 1.1 * 8 * 96, "pieces are hardly ever sent twice"
