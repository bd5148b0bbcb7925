"""When to reconcile with whom: turns announced roots into sync sessions and runs them (PROTOCOL 2).

Rules of the file:

1. A peer announces its roots on connect, on change, and now and then. A root that still differs from ours
   after a grace period means that broadcast missed something: open a session.
2. Of two peers the one with the smaller node id opens first; the other waits longer, so that usually one
   session serves both.
3. At most 2 sessions opened by us and 3 opened by others run at once; beyond that a BUSY names the cap and
   says when to come back.
4. A session that makes no progress for 10 s has failed. Whatever the outcome, an unequal root opens another
   session later, with fresh nonces, for as long as the peer is there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .errors import MalformedMessageError, RemoteProtocolError
from .limits import SYNC_INBOUND_MAX, SYNC_OUTBOUND_MAX, SYNC_RETRY_AFTER_S
from .messages.base import Message
from .messages.sync import SYNC_MESSAGES, Busy, Open
from .state import CRDTMergeState
from .sync import SyncSession

GRACE_S = 0.3
"""Broadcast usually delivers within this; a session before it would carry the same operations twice."""
YIELD_S = 0.7
"""How much longer the peer with the larger id waits."""
RETRY_S = 1.0
SESSION_BYTES = 4
"""Every message of a session repeats its id; two at once with one peer must differ, that is all."""

Outgoing = list[tuple[bytes, Message]]


@dataclass(slots=True)
class Running:
    """A session and where it runs."""

    peer: bytes
    group: bytes
    session: SyncSession
    is_inbound: bool


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
        self.roots: dict[tuple[bytes, bytes], tuple[bytes, int]] = {}
        """(peer, group) -> the root and count that the peer announced last."""
        self._due: dict[tuple[bytes, bytes], float] = {}
        self._running: dict[tuple[bytes, bytes], Running] = {}
        """By peer and session id."""
        self._cursors: dict[tuple[bytes, bytes], bytes] = {}
        """Where the listing of a group by a peer broke off, to be resumed there."""

    @property
    def session_count(self) -> int:
        """Sessions under way."""
        return len(self._running)

    def announced(self, peer: bytes, group: bytes, root: bytes, count: int, *, now: float) -> None:
        """Note a root that a peer announced."""
        self.roots[peer, group] = (root, count)
        self._consider(peer, group, now + GRACE_S)

    def changed(self, group: bytes, *, now: float) -> None:
        """Note that our own root of ``group`` is another one."""
        for peer, known in list(self.roots):
            if known == group:
                self._consider(peer, group, now + GRACE_S)

    def hasten(self, peer: bytes, group: bytes, *, now: float) -> None:
        """Reconcile at once: something is known to be missing."""
        self._due[peer, group] = now

    def hasten_all(self, group: bytes, *, now: float) -> None:
        """Reconcile at once with everybody who holds a group that is new here."""
        for peer, known in self.roots:
            if known == group:
                self._due[peer, group] = now

    def peer_down(self, peer: bytes) -> None:
        """Forget a peer and its sessions."""
        for key in [key for key in self.roots if key[0] == peer]:
            del self.roots[key]
        for key in [key for key in self._due if key[0] == peer]:
            del self._due[key]
        for key, running in list(self._running.items()):
            if running.peer == peer:
                del self._running[key]
                self._keep_cursor(running)

    def next_due(self) -> float | None:
        """Return when :meth:`tick` has something to do."""
        times = [due for key, due in self._due.items() if not self._is_running(*key)]
        if self._count(is_inbound=False) >= SYNC_OUTBOUND_MAX:
            times = []
        times += [running.session.deadline for running in self._running.values()]
        return min(times, default=None)

    def tick(self, *, now: float) -> Outgoing:
        """Expire stuck sessions and open those that are due."""
        for running in list(self._running.values()):
            if running.session.expire(now):
                self._settle(running, now=now)
        outgoing: Outgoing = []
        for (peer, group), due in sorted(self._due.items(), key=lambda item: (item[1], item[0])):
            if due > now or self._count(is_inbound=False) >= SYNC_OUTBOUND_MAX:
                break
            if self._is_running(peer, group):
                continue
            del self._due[peer, group]
            outgoing += self._open(peer, group, now=now)
        return outgoing

    def receive(self, peer: bytes, message: Message, *, now: float) -> tuple[Outgoing, bytes, list[bytes]]:
        """Feed a sync message of ``peer``; return (messages to send, group, operations to verify and store).

        Raises:
            RemoteProtocolError: The message does not belong to the session or breaks its rules.
        """
        if isinstance(message, Busy):
            self._refused(peer, message, now=now)
            return [], b"", []
        if isinstance(message, Open):
            return self._accept(peer, message, now=now), message.group, []
        assert isinstance(message, SYNC_MESSAGES), "the engine passes sync messages only"
        running = self._running.get((peer, message.session))
        if running is None:
            return [], b"", []  # A session that has ended here; what is missing shows in the roots.
        replies = running.session.receive(message, now=now)
        operations = running.session.take_operations()
        self._settle(running, now=now)
        return [(peer, reply) for reply in replies], running.group, operations

    def stored(self, group: bytes, ids: Iterable[bytes], *, now: float) -> Outgoing:
        """Tell the sessions of a group which operations are durable now."""
        ids = tuple(ids)
        outgoing: Outgoing = []
        for running in list(self._running.values()):
            if running.group == group:
                with contextlib.suppress(
                    RemoteProtocolError
                ):  # The session has failed; the peer may try again.
                    outgoing += [(running.peer, reply) for reply in running.session.stored(ids, now=now)]
                self._settle(running, now=now)
        return outgoing

    def _consider(self, peer: bytes, group: bytes, due: float) -> None:
        state = self._states(group)
        if state is None or self.roots[peer, group][0] == state.sync_root:
            self._due.pop((peer, group), None)
        elif (peer, group) not in self._due:
            self._due[peer, group] = due if self._node < peer else due + YIELD_S

    def _open(self, peer: bytes, group: bytes, *, now: float) -> Outgoing:
        state = self._states(group)
        announced = self.roots.get((peer, group))
        if state is None or (announced is not None and announced[0] == state.sync_root):
            return []
        session = SyncSession(
            state=state,
            session=self._random_bytes(SESSION_BYTES),
            initiator=True,
            nonce=self._random_bytes(16),
            now=now,
            after=self._cursors.pop((peer, group), None),
        )
        self._running[peer, session.session] = Running(peer, group, session, is_inbound=False)
        return [(peer, message) for message in session.start()]

    def _accept(self, peer: bytes, message: Open, *, now: float) -> Outgoing:
        state = self._states(message.group)
        if (peer, message.session) in self._running:
            raise MalformedMessageError(f"session {message.session.hex()[:12]} is open already.")
        if state is None:
            return [(peer, self._busy(message.session, "the group is not here yet"))]
        if self._count(is_inbound=True) >= SYNC_INBOUND_MAX:
            return [(peer, self._busy(message.session, f"at most {SYNC_INBOUND_MAX} sessions are accepted"))]
        session = SyncSession(
            state=state, session=message.session, initiator=False, nonce=self._random_bytes(16), now=now
        )
        running = Running(peer, message.group, session, is_inbound=True)
        self._running[peer, message.session] = running
        replies = session.receive(message, now=now)
        self._settle(running, now=now)
        return [(peer, reply) for reply in replies]

    @staticmethod
    def _busy(session: bytes, reason: str) -> Busy:
        return Busy(session=session, reason=reason, retry_after_ms=int(SYNC_RETRY_AFTER_S * 1000))

    def _refused(self, peer: bytes, message: Busy, *, now: float) -> None:
        running = self._running.get((peer, message.session))
        if running is not None and not running.is_inbound:
            del self._running[peer, message.session]
            self._due[peer, running.group] = now + max(message.retry_after_ms / 1000, SYNC_RETRY_AFTER_S)

    def _settle(self, running: Running, *, now: float) -> None:
        """Note the outcome of a session that has ended."""
        session = running.session
        if not session.is_finished:
            return
        self._running.pop((running.peer, session.session), None)
        self._keep_cursor(running)
        key = (running.peer, running.group)
        if session.outcome == "equal":
            state = self._states(running.group)
            assert state is not None, "a session has a state"
            self.roots[key] = (state.sync_root, len(state))
            self._due.pop(key, None)
        elif key in self.roots:
            self._due[key] = now + RETRY_S if session.outcome == "failed" else now + GRACE_S

    def _keep_cursor(self, running: Running) -> None:
        if running.session.cursor is not None:
            self._cursors[running.peer, running.group] = running.session.cursor

    def _is_running(self, peer: bytes, group: bytes) -> bool:
        return any(running.peer == peer and running.group == group for running in self._running.values())

    def _count(self, *, is_inbound: bool) -> int:
        return sum(running.is_inbound is is_inbound for running in self._running.values())
