"""Drives the engine: turns connections, storage and timers into events, and effects into I/O.

The driver is a thin loop around ``Engine.handle``. It adds no rule of its own but these of plumbing:

* of two connections with one peer the one that the smaller node id dialled stays, on both sides;
* whatever a peer's message makes go wrong in here ends that connection and not the node (DESIGN 3.4), while
  a failure anywhere else is a bug that must not go unnoticed, and ends the node;
* what repeats at every retry is logged once a minute.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from crdt_merge_protocol.engine import Engine
from crdt_merge_protocol.errors import CrdtMergeError
from crdt_merge_protocol.events import (
    AttestationMismatch,
    DialAnswered,
    DialFailed,
    DialPeer,
    Disconnect,
    DropOperations,
    Effect,
    Event,
    GroupChanged,
    MessageReceived,
    PeerBlocked,
    PeerDown,
    PeerForgotten,
    PeerLeft,
    PeerUp,
    RememberPeer,
    Send,
    StoreGroup,
    StoreOperations,
    Tick,
)
from crdt_merge_protocol.genesis import Genesis
from crdt_merge_protocol.messages import Message
from crdt_merge_protocol.messages.gossip import Attest
from crdt_merge_protocol.messages.membership import Roots
from crdt_merge_protocol.messages.sync import End
from crdt_merge_protocol.operations import SignedOperation
from crdt_merge_protocol.overlay import Dial
from crdt_merge_protocol.reading import Reading
from crdt_merge_protocol.reconciler import Ended

from .background import Duties
from .callbacks import Callbacks
from .cloning import instance_in
from .deadline_timer import DeadlineTimer
from .errors import PeerRefusedError, TransportError
from .flapping import Flapping, log_changes
from .pacing import Paced, Pacing
from .peer_memory import PeerMemory
from .peer_records import PeerRecord, PeerRecords, name_in
from .ports import Clock
from .repeats import Repeats
from .standing import Standing
from .storage import Store
from .telemetry.counters import Counters
from .telemetry.logging import get_logger
from .transport.connection import Connection, Lane
from .transport.contexts import ALPN_GOSSIP
from .transport.endpoint import Endpoint
from .verifying import Verifier
from .writer import StoreWriter

log = get_logger()


class GossipDriver:
    """One node's engine among its connections, its store and its clock."""

    def __init__(self, engine: Engine, store: Store, clock: Clock, *, own_name: str = "") -> None:
        self.engine = engine
        self.clock = clock
        self.own_name = own_name
        self.callbacks = Callbacks()
        self.standing = Standing()
        self.counters = Counters()
        self.endpoint: Endpoint | None = None
        """Set before :meth:`start`."""
        self.connections: dict[bytes, Connection] = {}
        self._records = PeerRecords(clock)
        self._memory = PeerMemory(store)
        self._repeats = Repeats(clock)
        self._flapping = Flapping(
            clock, tell=lambda peer, changes: log_changes(peer, changes, self.record(peer).state)
        )
        self._pacing = Pacing(clock, self.counters)
        self._verifier = Verifier(clock, self._pacing, read=engine.read, deliver=self._deliver)
        self._writer = StoreWriter(store, report=self.handle, fatal=self.fail)
        self._timer = DeadlineTimer(lambda: self.handle(Tick()))
        self._duties = Duties(self.fail)
        self._is_closing = False

    def start(self) -> None:
        """Begin to store, dial and announce."""
        self._writer.start()
        self.handle(Tick())

    async def close(self) -> None:
        """Stop dialling, say goodbye, and return once everything queued is durable."""
        self._is_closing = True
        self._flapping.close()
        self._timer.close()
        await self._duties.close()
        for connection in list(self.connections.values()):
            connection.close("the node is shutting down")
        await self._verifier.close()
        await self._writer.close()

    # --- what other parts of the node ask ---------------------------------------------------------------

    async def create_group(self, genesis: Genesis) -> None:
        """Begin a group; return once it is durable.

        Raises:
            NotReadyError: The node holds back.
        """
        self.standing.check()
        await self._store_and_wait(self.engine.create_group(genesis))

    async def author(
        self, group: bytes, kind: int, body: bytes, refs: Iterable[bytes] = ()
    ) -> SignedOperation:
        """Sign an operation of this node; return once it is durable (PROTOCOL R21) and announced.

        Raises:
            NotReadyError: The node holds back.
        """
        self.standing.check()
        signed, effects = self.engine.author(group, kind, body, refs)
        await self._store_and_wait(effects)
        return signed

    def attest(self, attest: Attest) -> None:
        """Tell all peers what this node wrote for a resolve key."""
        self._carry_out(self.engine.attest(attest))

    def block(self, peer: bytes, *, is_blocked: bool) -> None:
        """Block or unblock a peer."""
        self.handle(PeerBlocked(peer=peer, is_blocked=is_blocked))
        if not is_blocked:
            self._records.set_state(peer, "failed", "")
        elif peer not in self.connections:
            self._records.set_state(peer, "blocked", "blocked by the operator of this node")

    def leave(self) -> None:
        """Tell all connected peers that this node leaves for good."""
        self._carry_out(self.engine.leave())

    async def forget(self, peer: bytes) -> None:
        """Give up a peer that will not come back; return once that is remembered."""
        await self._memory.note_left(peer)
        self.handle(PeerForgotten(peer=peer))

    def name(self, peer: bytes) -> str:
        """Return what a node calls itself, as far as it has said so."""
        return self.own_name if peer == self.engine.node else self.record(peer).name

    @property
    def known(self) -> frozenset[bytes]:
        """Every peer that can be named: met, heard of, or decided about."""
        overlay = self.engine.overlay
        return frozenset(overlay.known | self.connections.keys())

    @staticmethod
    def loop_time() -> float:
        """Return the clock that connections note their last byte by, in seconds."""
        return asyncio.get_running_loop().time()

    def record(self, peer: bytes) -> PeerRecord:
        """Return what is known of a peer; of one that was never met, nothing is kept."""
        return self._records.get(peer)

    def refused(self, remote: str, reason: str, *, peer: bytes | None = None, code: str = "E1602") -> None:
        """Log that one of two nodes would not talk with the other, unless it was said a moment ago."""
        self.counters.refusals += 1
        host = remote.rpartition(":")[0]
        if count := self._repeats.count((peer or host, reason.replace(remote, ""))):
            log.warning(
                "peer.refused", peer=peer or "", remote=remote, reason=reason, count=count, error_code=code
            )

    # --- connections ------------------------------------------------------------------------------------

    def connected(self, connection: Connection, *, dialled: Dial | None) -> None:
        """Take over a gossip connection that is open and authenticated."""
        peer = connection.peer
        if self._is_closing:
            connection.close("the node is shutting down")
            return
        present = self.connections.get(peer)
        if present is not None and present.is_open and not self._replaces(connection, present):
            connection.close("there is a connection already")
            if dialled is not None:
                self.handle(DialAnswered(dial=dialled, peer=peer))
            return
        self.connections[peer] = connection
        connection.on_message = self.received
        connection.on_silent = self._silent
        self.watch(connection)
        connection.closed.add_done_callback(
            lambda done: self._verifier.ended(connection, lambda: self._closed(connection, done))
        )
        if present is not None:
            present.close("replaced by another connection")
        else:
            self._records.set_state(peer, "alive", "")
            if self._flapping.is_said(peer, "joined"):
                log.info("peer.joined", peer=peer, address=connection.remote)
        self._records[peer].name = name_in(connection.hello.features)
        if self._records[peer].instances.comes_back(instance_in(connection.hello.features)):
            self.callbacks.cloned(peer, connection.remote)
        address = dialled.address if dialled else None
        self.handle(PeerUp(peer=peer, addresses=tuple(connection.hello.addresses), dialled=address))
        self.callbacks.peers_changed()

    def watch(self, connection: Connection) -> None:
        """Leave a peer alone for a while, ever longer, if it breaks the protocol on a connection (T17).

        What the engine objects to it has noted itself; this is for what never reaches it: bytes that are no
        messages, and whatever goes wrong on bulk connections.
        """
        connection.closed.add_done_callback(lambda _: self._note_offence(connection))

    def _note_offence(self, connection: Connection) -> None:
        offence, peer = connection.offence, connection.peer
        if offence is None or self._is_closing:
            return
        self.counters.offences[offence.code] += 1
        self.engine.overlay.offended(peer, now=self.clock.monotonic())
        self.refused(connection.remote, offence.message, peer=peer, code=offence.code)

    def _replaces(self, new: Connection, present: Connection) -> bool:
        """Both sides must choose alike: the dial of the smaller id wins; of two alike, the newer."""
        if new.outbound == present.outbound:
            return True
        return new.outbound == (self.engine.node < new.peer)

    def received(self, connection: Paced, message: Message) -> None:
        """Deal with a message of a gossip connection, in its turn."""
        if self.connections.get(connection.peer) is connection:
            with self._blaming(connection, message):
                self._verifier.arrived(connection, message)

    def _deliver(self, connection: Paced, message: Message, reading: Reading | None) -> None:
        peer = connection.peer
        if self.connections.get(peer) is not connection:
            return
        with self._blaming(connection, message):
            event = MessageReceived(peer=peer, message=message, reading=reading)
            self._carry_out(self.engine.handle(event, now=self.clock.monotonic()))
            if isinstance(message, Roots | End) and self._is_converged_with(peer):
                self._records[peer].last_sync = self.counters.last_agreed = self.clock.now()

    @contextmanager
    def _blaming(self, connection: Paced, message: Message) -> Iterator[None]:
        """End a connection, and not the node, if a message of it makes something go wrong."""
        peer = connection.peer
        try:
            yield
        except Exception as error:
            log.error(  # noqa: TRY400 - exc_info is given.
                "message.failed", peer=peer, message=type(message).__name__, error=error, exc_info=error
            )
            self.engine.overlay.offended(peer, now=self.clock.monotonic())
            self._verifier.drop(connection)
            self.connections[peer].close("this node failed to deal with a message")

    def _closed(self, connection: Connection, done: asyncio.Future[str]) -> None:
        peer = connection.peer
        record = self._records[peer]
        record.bytes_in += connection.bytes_in
        record.bytes_out += connection.bytes_out
        if self.connections.get(peer) is not connection:
            return
        del self.connections[peer]
        reason = "cancelled" if done.cancelled() else done.result()
        blocked = peer in self.engine.overlay.blocked
        left = peer in self.engine.overlay.left
        self._records.set_state(peer, "blocked" if blocked else "left" if left else "failed", reason)
        if self._is_closing:
            return
        if self._flapping.is_said(peer, "left", reason):
            log.info("peer.left", peer=peer, reason=reason)
        self.handle(PeerDown(peer=peer, reason=reason))
        self.callbacks.peers_changed()

    def _silent(self, connection: Connection, silent_s: float) -> None:
        peer = connection.peer
        if self.connections.get(peer) is connection and self._flapping.is_said(peer, "suspected"):
            log.warning("peer.suspected", peer=peer, duration_s=round(silent_s, 3))

    def _is_converged_with(self, peer: bytes) -> bool:
        return all(self.engine.reconciler.is_equal(peer, group) for group in self.engine.replicas)

    # --- the loop around the engine ---------------------------------------------------------------------

    def handle(self, event: Event) -> None:
        """Feed one event to the engine and carry out what it wants."""
        try:
            self._carry_out(self.engine.handle(event, now=self.clock.monotonic()))
        except Exception as error:
            self.fail(error)
            raise

    def fail(self, error: BaseException) -> None:
        """End the node because of a bug or a failed disk."""
        self.callbacks.fatal(error)

    async def _store_and_wait(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, DropOperations):
                self._writer.put(effect)
                continue
            assert isinstance(effect, StoreGroup | StoreOperations), "own acts begin on the disk"
            await self._writer.put_and_wait(effect)

    def _carry_out(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    if connection := self.connections.get(effect.peer):
                        connection.send(effect.message, Lane(effect.lane.value))
                case StoreGroup() | StoreOperations() | DropOperations():
                    self._writer.put(effect)
                case DialPeer():
                    self._spawn(self._dial(effect.dial))
                case Disconnect():
                    self._disconnect(effect)
                case GroupChanged():
                    self.callbacks.group_changed(effect.group)
                case RememberPeer():
                    self._spawn(self._memory.remember(effect))
                case PeerLeft():
                    self._left(effect.peer)
                case AttestationMismatch():
                    self.callbacks.mismatch(effect)
                case Ended():
                    self._exchanged(effect)
        now = self.clock.monotonic()
        self._timer.set(None if self._is_closing else self.engine.deadline(now=now), now=now)

    def _disconnect(self, effect: Disconnect) -> None:
        connection = self.connections.get(effect.peer)
        if connection is not None:
            if not effect.is_routine and effect.peer not in self.engine.overlay.blocked:
                self.counters.offences[effect.code] += 1
                self.refused(connection.remote, effect.reason, peer=effect.peer, code=effect.code)
            self._verifier.drop(connection)  # Whatever else it has sent, nobody will look at.
            connection.close(effect.reason)

    def _exchanged(self, ended: Ended) -> None:
        self.counters.exchanges.add(ended.outcome, ended.duration_s)
        now = self.clock.now()
        if ended.outcome != "failed":
            self.counters.last_agreed = now
        self._records.note_exchange(ended, now)

    @property
    def queued_effects(self) -> int:
        """Effects that wait for the disk."""
        return self._writer.queued

    async def _dial(self, dial: Dial) -> None:
        assert self.endpoint is not None, "the endpoint is there before anything is dialled"
        try:
            connection = await self.endpoint.dial(dial.address, alpn=ALPN_GOSSIP, expect=dial.expect)
        except (TransportError, CrdtMergeError, OSError, ValueError) as error:
            # Not only what the endpoint promises: the address may be what somebody made up.
            reason = error.message if isinstance(error, CrdtMergeError) else str(error)
            is_refused = isinstance(error, PeerRefusedError)
            self.handle(DialFailed(dial=dial, reason=reason, is_refused=is_refused))
            peer = dial.expect
            if peer is not None and peer in self._records and peer not in self.engine.overlay.blocked:
                self._records.set_state(peer, "failed", reason)
            if is_refused:
                self.refused(dial.address, reason, peer=peer)
            else:
                log.debug("peer.unreachable", address=dial.address, reason=reason)
            return
        self.connected(connection, dialled=dial)

    def _left(self, peer: bytes) -> None:
        if peer not in self.connections:
            self._records.set_state(peer, "left", "")
        log.info("peer.departed", peer=peer)
        self._spawn(self._memory.try_note_left(peer))
        self.callbacks.peers_changed()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        if self._is_closing:
            work.close()
            return
        self._duties.begin(work, name="gossip")
