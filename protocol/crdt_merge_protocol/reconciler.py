"""When to reconcile with whom: turns announced roots into sync sessions and runs them (PROTOCOL 2).

Rules of the file:

1. A peer announces its roots on connect, on change, and now and then. A root that still differs from ours
   after a grace period means that broadcast missed something: open a session.
2. Of two peers the one with the smaller node id opens first; the other waits longer, so that usually one
   session serves both. If both open at once, the larger one's is refused.
3. At most 2 sessions opened by us and 3 opened by others run at once, of the latter at most 2 of one peer.
   Beyond that a BUSY names the cap and says when to come back.
4. A session that makes no progress for 10 s has failed. Whatever the outcome, an unequal root opens another
   session later, with fresh nonces, for as long as the peer is there; after sessions that brought nothing
   ever later, up to 30 s, so that a liar costs little (SCENARIOS T12). If one begins with the two roots of
   the last one, that brought nothing, whatever was sent: a release that cannot read a REVOKE keeps what the
   other side drops. Too soon it is answered with BUSY, which older releases heed as well.
5. What peers say of groups that are not here is not kept here (see ``strangers.py``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from .errors import MalformedMessageError
from .limits import SYNC_INBOUND_MAX, SYNC_INBOUND_PER_PEER_MAX, SYNC_OUTBOUND_MAX, SYNC_RETRY_AFTER_S
from .messages.base import Message
from .messages.sync import SYNC_MESSAGES, Busy, Open
from .reading import Reading
from .running import Place, Running
from .state import CRDTMergeState
from .sync import SyncSession

GRACE_S: Final = 0.3
"""Broadcast usually delivers within this; a session before it would carry the same operations twice."""
YIELD_S: Final = 0.7
"""How much longer the peer with the larger id waits."""
RETRY_S: Final = 1.0
RETRY_S_MAX: Final = 30.0
SESSION_BYTES: Final = 4
"""Every message of a session repeats its id; two at once with one peer must differ, that is all."""

Outgoing = list[tuple[bytes, Message]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A session that is over."""

    peer: bytes
    group: bytes
    outcome: str
    """``equal``, ``unequal`` or ``failed``."""
    reason: str
    """Why it failed, if it did."""
    sent_count: int
    received_count: int
    nbytes: int
    """Of operations, both ways."""
    duration_s: float


class Reconciler:
    """All sync sessions of one node."""

    def __init__(
        self,
        *,
        node: bytes,
        states: Callable[[bytes], CRDTMergeState | None],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._node = node
        self._states = states
        self._random_bytes = random_bytes
        self._roots: dict[bytes, dict[bytes, tuple[bytes, int]]] = {}
        """group -> peer -> the root and count that the peer announced last."""
        self._due: dict[Place, float] = {}
        self._running: dict[tuple[bytes, bytes], Running] = {}
        """By peer and session id."""
        self._cursors: dict[Place, bytes] = {}
        """Where the listing of a group by a peer broke off, to be resumed there."""
        self._fruitless: Counter[Place] = Counter()
        """Sessions in a row that brought nothing."""
        self._tried: dict[Place, tuple[tuple[bytes, bytes], float]] = {}
        """The roots that the last session began with that ended unequal, and until when no other does."""
        self._set_aside: dict[Place, int] = {}
        """How many operations a peer has that a REVOKE here excludes, as far as it has sent them."""
        self._hastened: set[Place] = set()
        """Places that are due only because something waited for its past."""
        self._paused_until = 0.0
        self.spread_s = 0.0
        """How much sessions are put off at random, so that neighbours do not all fetch the same at once."""
        self._ended: list[Ended] = []
        self._next_due: float | None = None
        self._is_due_known = True
        """:attr:`_next_due` holds, until something is planned, begun, answered or over."""

    @property
    def session_count(self) -> int:
        """Sessions under way."""
        return len(self._running)

    def roots(self, group: bytes) -> Mapping[bytes, tuple[bytes, int]]:
        """Return peer -> (root, count) as last announced for a group."""
        return self._roots.get(group, {})

    def is_equal(self, peer: bytes, group: bytes) -> bool:
        """Tell whether a peer's root, as far as it is known, is ours."""
        state, announced = self._states(group), self.roots(group).get(peer)
        return state is not None and announced is not None and announced[0] == state.sync_root

    def take_ended(self) -> list[Ended]:
        """Return the sessions that have ended since the last call."""
        if not self._ended:
            return []
        ended, self._ended = self._ended, []
        return ended

    # --- what leads to a session ------------------------------------------------------------------------

    def announced(self, peer: bytes, group: bytes, root: bytes, count: int, *, now: float) -> None:
        """Note a root that a peer announced for a group that is here."""
        self._hastened.discard((peer, group))
        self._roots.setdefault(group, {})[peer] = (root, count)
        self._consider(peer, group, now=now)

    def changed(self, group: bytes, *, now: float) -> None:
        """Note that our own root of ``group`` is another one."""
        for peer in self.roots(group):
            self._consider(peer, group, now=now)

    def hasten(self, peer: bytes, group: bytes, *, now: float, wait_s: float = 0.0) -> None:
        """Reconcile soon, if the peer is worth it: something is known to be missing."""
        self._is_due_known = False
        place = (peer, group)
        if wait_s and place not in self._due:
            self._hastened.add(place)
        due = now + max(wait_s, self._penalty_s(place))
        self._due[place] = min(due, self._due.get(place, due)) if wait_s else due

    def relax(self, group: bytes) -> None:
        """Take back what :meth:`hasten` put off and nothing else asked for: nothing is missing any more."""
        for place in [place for place in self._hastened if place[1] == group]:
            self._is_due_known = False
            self._hastened.discard(place)
            self._due.pop(place, None)

    def pause(self, until: float) -> None:
        """Open no session before a time, and break off those under way: nothing can be stored meanwhile."""
        self._is_due_known = False
        self._paused_until = until
        for running in list(self._running.values()):
            self._forget(running)
            if running.peer in self.roots(running.group):
                self._due[running.place] = until

    def set_aside(self, peer: bytes, group: bytes, count: int) -> None:
        """Note that so many operations that a session brought are not kept here.

        The peer has them until it learns of the REVOKE. So that it does not list all for ever, and is told
        nothing, both sides are to take themselves for equally full.
        """
        running = self._running_at(peer, group)
        if running is not None:
            running.aside_count += count
            place = running.place
            self._set_aside[place] = max(self._set_aside.get(place, 0), running.aside_count)

    def is_under_way(self, group: bytes) -> bool:
        """Tell whether a session about a group runs."""
        return any(running.group == group for running in self._running.values())

    def peer_down(self, peer: bytes) -> None:
        """Forget a peer and its sessions."""
        self._is_due_known = False
        for remembered in (self._set_aside, self._tried):
            for place in [place for place in remembered if place[0] == peer]:
                del remembered[place]
        for peers in self._roots.values():
            peers.pop(peer, None)
        for running in list(self._running.values()):
            if running.peer == peer:
                self._forget(running)
        for place in [place for place in self._due if place[0] == peer]:
            del self._due[place]
            self._hastened.discard(place)
        for place in [place for place in self._fruitless if place[0] == peer]:
            del self._fruitless[place]

    def _consider(self, peer: bytes, group: bytes, *, now: float) -> None:
        if self.is_equal(peer, group):
            if self._due.pop((peer, group), None) is not None:
                self._is_due_known = False
            self._fruitless.pop((peer, group), None)
        elif (peer, group) not in self._due:
            wait_s = GRACE_S if self._node < peer else GRACE_S + YIELD_S
            if self.spread_s:
                wait_s += self.spread_s * int.from_bytes(self._random_bytes(2), "little") / 2**16
            self._is_due_known = False
            self._due[peer, group] = now + max(wait_s, self._penalty_s((peer, group)))

    def _penalty_s(self, place: Place) -> float:
        """Return how long to wait after sessions that brought nothing."""
        count = self._fruitless[place]
        return min(RETRY_S * 2.0 ** min(count - 1, 5), RETRY_S_MAX) if count else 0.0

    # --- time -------------------------------------------------------------------------------------------

    def next_due(self) -> float | None:
        """Return when :meth:`tick` has something to do."""
        if not self._is_due_known:
            self._next_due, self._is_due_known = self._earliest(), True
        return self._next_due

    def _earliest(self) -> float | None:
        times = [running.session.deadline for running in self._running.values()]
        if self._count(is_inbound=False) < SYNC_OUTBOUND_MAX:
            times += [
                max(due, self._paused_until)
                for place, due in self._due.items()
                if not self._running_at(*place)
            ]
        return min(times, default=None)

    def tick(self, *, now: float) -> Outgoing:
        """Expire stuck sessions and open those that are due."""
        if not self._running and not self._due:
            return []
        self._is_due_known = False
        for running in list(self._running.values()):
            if running.session.expire(now):
                self._settle(running, now=now)
        outgoing: Outgoing = []
        ready = sorted((due, place) for place, due in self._due.items() if due <= now)
        for _, place in ready if now >= self._paused_until else ():
            if self._count(is_inbound=False) >= SYNC_OUTBOUND_MAX:
                break
            if not self._running_at(*place):
                del self._due[place]
                self._hastened.discard(place)
                outgoing += self._open(*place, now=now)
        return outgoing

    # --- sessions ---------------------------------------------------------------------------------------

    def group_of(self, peer: bytes, session: bytes) -> bytes | None:
        """Return which group a session under way is about; None if there is no such session."""
        running = self._running.get((peer, session))
        return None if running is None else running.group

    def receive(
        self, peer: bytes, message: Message, reading: Reading | None = None, *, now: float
    ) -> tuple[Outgoing, bytes, list[bytes]]:
        """Feed a sync message of ``peer``; return (messages to send, group, operations to verify and store).

        Raises:
            RemoteProtocolError: The message does not belong to the session or breaks its rules.
        """
        self._is_due_known = False
        if isinstance(message, Open):
            return self._accept(peer, message, now=now), message.group, []
        assert isinstance(message, SYNC_MESSAGES), "the engine passes sync messages only"
        running = self._running.get((peer, message.session))
        if running is None:
            return [], b"", []  # A session that has ended here; what is missing shows in the roots.
        try:
            replies = running.session.receive(message, now=now, reading=reading)
        finally:
            self._settle(running, now=now)
        return [(peer, reply) for reply in replies], running.group, running.session.take_operations()

    def stored(self, group: bytes, ids: Iterable[bytes], *, now: float) -> Outgoing:
        """Tell the sessions of a group which operations are durable now."""
        if not self._running:
            return []
        self._is_due_known = False
        ids = tuple(ids)
        outgoing: Outgoing = []
        for running in list(self._running.values()):
            if running.group == group:
                outgoing += [(running.peer, reply) for reply in running.session.stored(ids, now=now)]
                self._settle(running, now=now)
        return outgoing

    def _open(self, peer: bytes, group: bytes, *, now: float) -> Outgoing:
        state = self._states(group)
        if state is None or self.is_equal(peer, group):
            return []
        session = SyncSession(
            state=state,
            session=self._random_bytes(SESSION_BYTES),
            initiator=True,
            nonce=self._random_bytes(16),
            now=now,
            after=self._cursors.pop((peer, group), None),
            excluded_count=self._set_aside.get((peer, group), 0),
        )
        roots = state.sync_root, self.roots(group).get(peer, (b"", 0))[0]
        running = Running(peer, group, session, is_inbound=False, began=now, roots=roots)
        self._running[peer, session.session] = running
        return [(peer, message) for message in session.start()]

    def _accept(self, peer: bytes, message: Open, *, now: float) -> Outgoing:
        if (peer, message.session) in self._running:
            raise MalformedMessageError(f"session {message.session.hex()[:12]} is open already.")
        state = self._states(message.group)
        refusal, wait_s = self._refusal(peer, message.group), SYNC_RETRY_AFTER_S
        if state is not None and not refusal:
            tried, until = self._tried.get((peer, message.group), (None, 0.0))
            if tried == (state.sync_root, message.root) and now < until:
                refusal, wait_s = "a session between these two roots has just brought nothing", until - now
        if state is None or refusal:
            reason = refusal or "the group is not here yet"
            retry_after_ms = int(wait_s * 1000) + 1
            return [(peer, Busy(session=message.session, reason=reason, retry_after_ms=retry_after_ms))]
        session = SyncSession(
            state=state,
            session=message.session,
            initiator=False,
            nonce=self._random_bytes(16),
            now=now,
            excluded_count=self._set_aside.get((peer, message.group), 0),
        )
        roots = state.sync_root, message.root
        running = Running(peer, message.group, session, is_inbound=True, began=now, roots=roots)
        self._running[peer, message.session] = running
        try:
            replies = session.receive(message, now=now)
        finally:
            self._settle(running, now=now)
        return [(peer, reply) for reply in replies]

    def _refusal(self, peer: bytes, group: bytes) -> str:
        """Return why no session is accepted now; empty if one is."""
        running = self._running_at(peer, group)
        if running is not None and (running.is_inbound or self._node < peer):
            return "a session about this group is under way"
        if self._count(is_inbound=True) >= SYNC_INBOUND_MAX:
            return f"at most {SYNC_INBOUND_MAX} sessions are accepted"
        of_peer = sum(running.is_inbound and running.peer == peer for running in self._running.values())
        if of_peer >= SYNC_INBOUND_PER_PEER_MAX:
            return f"at most {SYNC_INBOUND_PER_PEER_MAX} sessions of one peer are accepted"
        return ""

    def _settle(self, running: Running, *, now: float) -> None:
        """Note the outcome of a session that has ended."""
        session = running.session
        if not session.is_finished or (running.peer, session.session) not in self._running:
            return
        self._forget(running)
        counters = session.counters
        self._ended.append(
            Ended(
                peer=running.peer,
                group=running.group,
                outcome=session.outcome,
                reason=session.failure.message if session.failure else "",
                sent_count=counters.sent_count,
                received_count=counters.received_count,
                nbytes=counters.sent_bytes + counters.received_bytes,
                duration_s=now - running.began,
            )
        )
        state = self._states(running.group)
        assert state is not None, "a session has a state"
        if session.outcome == "equal":
            self._roots.setdefault(running.group, {})[running.peer] = (state.sync_root, len(state))
            self._due.pop(running.place, None)
            self._fruitless.pop(running.place, None)
            self._set_aside.pop(running.place, None)
            self._tried.pop(running.place, None)
            return
        is_unequal = session.outcome == "unequal"
        is_same = is_unequal and self._tried.get(running.place, (None, 0.0))[0] == running.roots
        if not is_same and (
            counters.received_count > running.aside_count or (counters.sent_count and is_unequal)
        ):
            self._fruitless.pop(running.place, None)
        elif not session.retry_after_s:
            self._fruitless[running.place] += 1
        if is_unequal:
            self._tried[running.place] = running.roots, now + self._penalty_s(running.place)
        if running.peer in self.roots(running.group):
            busy_s = min(session.retry_after_s, RETRY_S_MAX)
            wait_s = max(busy_s, self._penalty_s(running.place), GRACE_S)
            self._due[running.place] = now + (max(wait_s, RETRY_S) if session.failure else wait_s)

    def _forget(self, running: Running) -> None:
        """End a session here; its cursor is kept, so that a list goes on where it broke off."""
        self._running.pop((running.peer, running.session.session), None)
        if running.session.cursor is not None:
            self._cursors[running.place] = running.session.cursor

    def _running_at(self, peer: bytes, group: bytes) -> Running | None:
        place = (peer, group)
        return next((running for running in self._running.values() if running.place == place), None)

    def _count(self, *, is_inbound: bool) -> int:
        return sum(running.is_inbound is is_inbound for running in self._running.values())
