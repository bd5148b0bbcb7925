"""How an operation reaches everybody over partial views: pushed along a tree, announced beside it.

Plumtree (Leitão, Pereira, Rodrigues, SRDS 2007; PROTOCOL 3). A neighbour is *eager*, then operations are
pushed to it, or *lazy*, then their ids are announced. A push of what another push brought before makes the
link lazy (PRUNE); an announced id that does not arrive makes one eager and fetches it (GRAFT). One tree
serves the whole cluster. Links come and go, so the tree is kept short:

1. Announcements wait a fixed time, so one that comes soon after the push shows that the announcer is nearer
   to the author than who pushed: the link to it becomes part of the tree, and the slower one is pruned.
2. Who loses the link that it was pushed to on puts the nearest announcer in its place at once.
3. A new link is lazy unless there is no tree yet, and links of the tree are rarely given up for new ones.

What is told or pushed is durable here: this class hears of an operation, but passes it on only when
:meth:`stored` is called. It keeps ids of operations that peers speak of, bounded per peer.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from .limits import (
    ANNOUNCED_MAX,
    ANNOUNCED_PER_PEER_MAX,
    CONTROL_BODY_BYTES_MAX,
    IHAVE_IDS_MAX,
    KIB,
    RECENT_IDS_MAX,
)
from .messages.base import Message
from .messages.gossip import Gossip
from .messages.overlay import Graft, IHave, Prune
from .operations import SignedOperation

IHAVE_FLUSH_S: Final = 0.05
"""Ids are announced together after this; a push along the tree is usually faster."""
GRAFT_S: Final = 0.03
"""An announced operation that has not come by then is fetched, and the link becomes part of the tree."""
OPTIMISE_S: Final = 0.015
"""An announcer that would have pushed this much earlier than the one who did is nearer."""
OPTIMISE_INTERVAL_S: Final = 10.0
OPTIMISE_BURST: Final = 2
"""So many links at once, then one an interval: where many nodes author, each is far from another end of the
tree, and under load announcements wait less and look early."""
EAGER_AT_FIRST: Final = 4
"""Of the links of a node that nothing was pushed to; so the first push of all does not take every link."""
GRAFT_AGAIN_S: Final = 0.25
GRAFT_TRIES_MAX: Final = 4
GRAFT_BYTES_MAX: Final = 256 * KIB
"""Pushed in answer to one GRAFT. What is more is for anti-entropy."""
GOSSIP_BYTES_MAX: Final = CONTROL_BODY_BYTES_MAX - 1024
GOSSIP_OPERATIONS_MAX: Final = 1024

Outgoing = list[tuple[bytes, Message]]


@dataclass(slots=True)
class Recent:
    """Who has an operation that was passed on lately."""

    source: bytes | None = None
    """Who pushed it first; this node, if it is the author; None: it came by anti-entropy."""
    arrived: float = 0.0
    """When it was pushed first."""
    holders: set[bytes] = field(default_factory=set)


@dataclass(slots=True)
class Announced:
    """An operation that is not here, and who has it."""

    group: bytes
    peers: list[bytes]
    tries: int = 0


class Plumtree:
    """The tree as one node sees it."""

    def __init__(self, node: bytes) -> None:
        self.eager: dict[bytes, None] = {}
        self.lazy: dict[bytes, None] = {}
        self._node = node
        self._recent: OrderedDict[bytes, Recent] = OrderedDict()
        self._announced: dict[bytes, Announced] = {}
        self._announced_counts: Counter[bytes] = Counter()
        self._timers: list[tuple[float, bytes]] = []
        self._queue: dict[bytes, dict[bytes, list[bytes]]] = {}
        """peer -> group -> ids to announce."""
        self._flush_due: float | None = None
        self._parent: bytes | None = None
        """Who pushed the newest operation first."""
        self._group = b""
        """That of the newest operation."""
        self._lags: dict[bytes, float] = {}
        """How much later than the push a lazy neighbour would have pushed, as far as it announced lately."""
        self._optimise_due = -math.inf

    # --- neighbours -------------------------------------------------------------------------------------

    def neighbour_up(self, peer: bytes) -> None:
        """Begin to push to a new neighbour, or to announce to it if there is a tree."""
        self.eager.pop(peer, None)
        self.lazy.pop(peer, None)
        is_lazy = bool(self.eager) if self._parent is not None else len(self.eager) >= EAGER_AT_FIRST
        (self.lazy if is_lazy else self.eager)[peer] = None

    def neighbour_down(self, peer: bytes) -> Outgoing:
        """Forget a neighbour; if it was the one that pushes to this node, another shall."""
        is_parent = peer in self.eager and peer == self._parent
        self.eager.pop(peer, None)
        self.lazy.pop(peer, None)
        self._queue.pop(peer, None)
        self._lags.pop(peer, None)
        if not is_parent or not self.lazy or not self._group:
            return []
        nearest = min(self.lazy, key=lambda other: self._lags.get(other, math.inf))
        return self._join(nearest, self._group)

    def need(self, peer: bytes) -> int:
        """Return how much the tree needs a neighbour: 0 not at all, 1 to be pushed to, 2 as who pushes."""
        return (peer in self.eager) + (peer in self.eager and peer == self._parent)

    def _join(self, peer: bytes, group: bytes) -> Outgoing:
        """Make the link to a neighbour part of the tree, at both ends."""
        self._set_eager(peer)
        return [(peer, Graft(group=group, ids=()))]

    def _set_eager(self, peer: bytes) -> None:
        if peer in self.lazy:
            del self.lazy[peer]
            self.eager[peer] = None
            self._lags.pop(peer, None)

    def _set_lazy(self, peer: bytes) -> None:
        if peer in self.eager:
            del self.eager[peer]
            self.lazy[peer] = None

    # --- operations -------------------------------------------------------------------------------------

    def pushed(self, peer: bytes, *, new: Iterable[bytes], known: Iterable[bytes], now: float) -> Outgoing:
        """Note the ids that a peer pushed: those that were new here, and those that were not.

        Returns:
            A PRUNE if another peer is faster; a GRAFT for one who announced it long before it was pushed.
        """
        is_first = is_late = False
        announced: Announced | None = None
        for operation_id in new:
            recent = self._recall(operation_id)
            recent.source, recent.arrived = peer, now
            announced = announced or self._announced.get(operation_id)
            is_first = True
        for operation_id in known:
            before = self._recent.get(operation_id)
            if before is None:
                continue
            before.holders.add(peer)
            is_late |= before.source not in (None, peer)
        if is_first:
            self._parent = peer
            self._set_eager(peer)
            if announced is not None and not announced.tries:
                return self._optimise(announced.peers[0], announced.group, now=now)
        elif is_late and (peer in self.eager or peer in self.lazy):
            self._set_lazy(peer)
            return [(peer, Prune())]
        return []

    def synced(self, peer: bytes, ids: Iterable[bytes]) -> None:
        """Note what a peer sent in a sync session. Others may have it or not: it is announced, not pushed."""
        for operation_id in ids:
            self._recall(operation_id).holders.add(peer)

    def stored(
        self, group: bytes, operations: Sequence[SignedOperation], *, synced_max: int, now: float
    ) -> tuple[Outgoing, int]:
        """Pass on operations that have just become durable here.

        Args:
            group: Their group.
            operations: In causal order.
            synced_max: How many that came by anti-entropy are announced at most.
            now: Seconds.

        Returns:
            What to send at once, and how many came by anti-entropy and are announced.
        """
        self._group = group
        pairs: list[tuple[SignedOperation, Recent]] = []
        synced: list[tuple[SignedOperation, Recent]] = []
        for signed in operations:
            self._forget_announced(signed.id)
            recent = self._recall(signed.id)
            if signed.operation.author == self._node:
                recent.source = self._node
            if recent.source is not None:
                pairs.append((signed, recent))
            elif len(synced) < synced_max:
                synced.append((signed, recent))
        outgoing = self._push(group, pairs)
        for peer in self.lazy:
            self._queue_ids(peer, group, pairs, now=now)
        for peer in (*self.eager, *self.lazy) if synced else ():
            self._queue_ids(peer, group, synced, now=now)
        return outgoing, len(synced)

    def _push(self, group: bytes, pairs: list[tuple[SignedOperation, Recent]]) -> Outgoing:
        outgoing: Outgoing = []
        written: dict[tuple[bytes, ...], list[Gossip]] = {}
        for peer in self.eager:
            lacking = [signed for signed, recent in pairs if self._may_lack(recent, peer)]
            key = tuple(signed.id for signed in lacking)
            if key not in written:
                written[key] = gossip_messages(group, lacking)
            outgoing += [(peer, message) for message in written[key]]
            for _, recent in pairs:
                recent.holders.add(peer)
        return outgoing

    def _queue_ids(
        self, peer: bytes, group: bytes, pairs: list[tuple[SignedOperation, Recent]], *, now: float
    ) -> None:
        ids = [signed.id for signed, recent in pairs if self._may_lack(recent, peer)]
        if ids:
            self._queue.setdefault(peer, {}).setdefault(group, []).extend(ids)
            if self._flush_due is None:
                self._flush_due = now + IHAVE_FLUSH_S

    @staticmethod
    def _may_lack(recent: Recent, peer: bytes) -> bool:
        return peer != recent.source and peer not in recent.holders

    def _recall(self, operation_id: bytes) -> Recent:
        recent = self._recent.get(operation_id)
        if recent is None:
            recent = self._recent[operation_id] = Recent()
            if len(self._recent) > RECENT_IDS_MAX:
                self._recent.popitem(last=False)
        return recent

    # --- messages ---------------------------------------------------------------------------------------

    def announced(
        self, peer: bytes, message: IHave, is_here: Callable[[bytes], bool], *, now: float
    ) -> Outgoing:
        """Note what a neighbour has; what is not here is fetched unless it comes on its own.

        Returns:
            A GRAFT if this neighbour is nearer to the author than who pushed.
        """
        is_nearer = False
        for place, operation_id in enumerate(message.ids):
            if is_here(operation_id):
                if recent := self._recent.get(operation_id):
                    recent.holders.add(peer)
                    # The first waited as long as announcements do, the others perhaps not.
                    is_nearer |= place == 0 and self._is_nearer(peer, recent, now=now)
                continue
            known = self._announced.get(operation_id)
            if self._announced_counts[peer] >= ANNOUNCED_PER_PEER_MAX or (known and peer in known.peers):
                continue
            if known is None:
                if len(self._announced) >= ANNOUNCED_MAX:
                    break
                known = self._announced[operation_id] = Announced(message.group, [])
                heapq.heappush(self._timers, (now + GRAFT_S, operation_id))
            known.peers.append(peer)
            self._announced_counts[peer] += 1
        return self._optimise(peer, message.group, now=now) if is_nearer else []

    def _is_nearer(self, peer: bytes, recent: Recent, *, now: float) -> bool:
        if peer not in self.lazy or recent.source in (None, self._node, peer):
            return False
        self._lags[peer] = lag_s = now - IHAVE_FLUSH_S - recent.arrived
        return lag_s < -OPTIMISE_S

    def _optimise(self, peer: bytes, group: bytes, *, now: float) -> Outgoing:
        """Make the link to a lazy neighbour part of the tree, unless that was done too often lately."""
        if peer not in self.lazy or now < self._optimise_due:
            return []
        burst_s = (OPTIMISE_BURST - 1) * OPTIMISE_INTERVAL_S
        self._optimise_due = max(self._optimise_due, now - burst_s) + OPTIMISE_INTERVAL_S
        return self._join(peer, group)

    def grafted(
        self, peer: bytes, message: Graft, find: Callable[[bytes], SignedOperation | None]
    ) -> Outgoing:
        """Make the link to a neighbour part of the tree, and push what it asks for."""
        self._set_eager(peer)
        found: list[SignedOperation] = []
        size = 0
        for operation_id in dict.fromkeys(message.ids):
            signed = find(operation_id)
            if signed is None:
                continue
            size += len(signed.encoded)
            if size > GRAFT_BYTES_MAX:
                break
            found.append(signed)
            self._recall(operation_id).holders.add(peer)
        return [(peer, answer) for answer in gossip_messages(message.group, found)]

    def pruned(self, peer: bytes) -> None:
        """Announce to a neighbour only."""
        self._set_lazy(peer)

    # --- time -------------------------------------------------------------------------------------------

    def next_due(self) -> float | None:
        """Return when :meth:`tick` has something to do."""
        if not self._timers:
            return self._flush_due
        graft_due = self._timers[0][0]
        return graft_due if self._flush_due is None else min(self._flush_due, graft_due)

    def tick(self, is_in_flight: Callable[[bytes, bytes], bool], *, now: float) -> Outgoing:
        """Announce what waits to be announced, and fetch what was announced and has not come.

        Args:
            is_in_flight: Tells of (group, id) whether it is here already and on its way to the disk.
            now: Seconds.
        """
        outgoing = self._flush(now=now)
        wanted: dict[tuple[bytes, bytes], list[bytes]] = {}
        while self._timers and self._timers[0][0] <= now:
            _, operation_id = heapq.heappop(self._timers)
            announced = self._announced.get(operation_id)
            if announced is None:
                continue
            if is_in_flight(announced.group, operation_id):
                heapq.heappush(self._timers, (now + GRAFT_AGAIN_S, operation_id))
                continue
            announced.tries += 1
            holders = [peer for peer in announced.peers if peer in self.eager or peer in self.lazy]
            if not holders or announced.tries > GRAFT_TRIES_MAX:
                self._forget_announced(operation_id)  # Anti-entropy will bring it.
                continue
            peer = holders[(announced.tries - 1) % len(holders)]
            wanted.setdefault((peer, announced.group), []).append(operation_id)
            heapq.heappush(self._timers, (now + GRAFT_AGAIN_S, operation_id))
        for (peer, group), ids in wanted.items():
            self._set_eager(peer)
            outgoing += [(peer, Graft(group=group, ids=page)) for page in _pages(ids)]
        return outgoing

    def _flush(self, *, now: float) -> Outgoing:
        if self._flush_due is None or self._flush_due > now:
            return []
        self._flush_due = None
        queue, self._queue = self._queue, {}
        written: dict[tuple[bytes, tuple[bytes, ...]], IHave] = {}
        outgoing: Outgoing = []
        for peer, groups in queue.items():
            for group, ids in groups.items():
                for page in _pages([one for one in ids if not self._is_held(one, peer)]):
                    key = (group, page)
                    if key not in written:
                        written[key] = IHave(group=group, ids=page)
                    outgoing.append((peer, written[key]))
        return outgoing

    def _is_held(self, operation_id: bytes, peer: bytes) -> bool:
        recent = self._recent.get(operation_id)
        return recent is not None and peer in recent.holders

    def _forget_announced(self, operation_id: bytes) -> None:
        announced = self._announced.pop(operation_id, None)
        if announced is None:
            return
        recent = self._recall(operation_id)
        for peer in announced.peers:
            recent.holders.add(peer)
            self._announced_counts[peer] -= 1
            if self._announced_counts[peer] <= 0:
                del self._announced_counts[peer]


def gossip_messages(group: bytes, operations: Iterable[SignedOperation]) -> list[Gossip]:
    """Return messages that push operations in order, each within the size of a frame."""
    pages: list[list[bytes]] = []
    room = 0
    for signed in operations:
        wire = signed.wire()
        size = len(wire) + 8
        if not pages or size > room or len(pages[-1]) >= GOSSIP_OPERATIONS_MAX:
            pages.append([])
            room = GOSSIP_BYTES_MAX
        pages[-1].append(wire)
        room -= size
    return [Gossip(group=group, operations=tuple(page)) for page in pages]


def _pages(ids: Sequence[bytes]) -> list[tuple[bytes, ...]]:
    return [tuple(ids[start : start + IHAVE_IDS_MAX]) for start in range(0, len(ids), IHAVE_IDS_MAX)]
