"""Drives the engine: turns connections, storage and timers into events, and effects into I/O.

The driver is a thin loop around ``Engine.handle``. It adds no rule of its own but two of plumbing:

* storage effects are carried out by one task in the order in which they were asked for; what has queued up
  meanwhile goes into one commit, so durability costs one fsync for many operations;
* of two connections with one peer the one that the smaller node id dialled stays, on both sides.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any

from crdt_merge_protocol.canonical import is_name
from crdt_merge_protocol.engine import Engine
from crdt_merge_protocol.events import (
    AttestationMismatch,
    DialFailed,
    DialPeer,
    Disconnect,
    Effect,
    Event,
    GroupChanged,
    GroupStored,
    MessageReceived,
    OperationsStored,
    PeerBlocked,
    PeerDown,
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
from crdt_merge_protocol.messages.sync import End
from crdt_merge_protocol.operations import SignedOperation
from crdt_merge_protocol.overlay import Dial

from .errors import PeerRefusedError, TransportError
from .ports import Clock
from .storage import OpRow, Store
from .telemetry.logging import get_logger
from .transport.connection import Connection, Lane
from .transport.contexts import ALPN_GOSSIP
from .transport.endpoint import Endpoint

log = get_logger()


@dataclass(slots=True)
class PeerRecord:
    """What the driver knows of a peer beyond the engine."""

    name: str = ""
    """What it calls itself."""
    state: str = "failed"
    since: float = 0.0
    """Wall time of the last change of ``state``."""
    last_error: str = ""
    last_sync: float | None = None
    """Wall time at which a session last ended with equal roots."""
    bytes_in: int = 0
    bytes_out: int = 0
    """On connections that have ended."""


@dataclass(slots=True)
class Callbacks:
    """Who wants to know what the driver learns."""

    group_changed: Callable[[bytes], None] = lambda _group: None
    peers_changed: Callable[[], None] = lambda: None
    mismatch: Callable[[AttestationMismatch], None] = lambda _effect: None
    fatal: Callable[[BaseException], None] = lambda _error: None


@dataclass(slots=True)
class Waiting:
    """A storage effect on its way to the disk and who waits for it."""

    effect: StoreGroup | StoreOperations
    done: asyncio.Future[None] | None = None


@dataclass(slots=True)
class GossipDriver:
    """One node's engine among its connections, its store and its clock."""

    engine: Engine
    store: Store
    clock: Clock
    own_name: str = ""
    callbacks: Callbacks = field(default_factory=Callbacks)
    endpoint: Endpoint | None = None
    connections: dict[bytes, Connection] = field(default_factory=dict)
    records: dict[bytes, PeerRecord] = field(default_factory=dict)
    _timer: asyncio.TimerHandle | None = None
    _queue: deque[Waiting] = field(default_factory=deque)
    _queued: asyncio.Event = field(default_factory=asyncio.Event)
    _writer: asyncio.Task[None] | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _is_closing: bool = False

    def start(self) -> None:
        """Begin to store, dial and announce."""
        self._writer = asyncio.create_task(self._write(), name="gossip-writer")
        self.handle(Tick())

    async def close(self) -> None:
        """Stop dialling, say goodbye, and return once everything queued is durable."""
        self._is_closing = True
        if self._timer:
            self._timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in list(self.connections.values()):
            connection.close("the node is shutting down")
        if self._writer:
            self._queued.set()
            await self._writer

    # --- what other parts of the node ask ---------------------------------------------------------------

    async def create_group(self, genesis: Genesis) -> None:
        """Begin a group; return once it is durable."""
        await self._carry_out_and_wait(self.engine.create_group(genesis))

    async def author(
        self, group: bytes, kind: int, body: bytes, refs: Iterable[bytes] = ()
    ) -> SignedOperation:
        """Sign an operation of this node; return once it is durable (PROTOCOL R21) and announced."""
        signed, effects = self.engine.author(group, kind, body, refs)
        await self._carry_out_and_wait(effects)
        return signed

    def attest(self, attest: Attest) -> None:
        """Tell all peers what this node wrote for a resolve key."""
        self._carry_out(self.engine.attest(attest))

    def block(self, peer: bytes, *, is_blocked: bool) -> None:
        """Block or unblock a peer."""
        self.handle(PeerBlocked(peer=peer, is_blocked=is_blocked))
        if not is_blocked:
            self.record(peer).state = "failed"
        elif peer not in self.connections:
            self._set_state(peer, "blocked", "blocked by the operator of this node")

    def name(self, peer: bytes) -> str:
        """Return what a node calls itself, as far as it has said so."""
        if peer == self.engine.node:
            return self.own_name
        record = self.records.get(peer)
        return record.name if record else ""

    @staticmethod
    def loop_time() -> float:
        """Return the clock that connections note their last byte by, in seconds."""
        return asyncio.get_running_loop().time()

    def record(self, peer: bytes) -> PeerRecord:
        """Return what is known of a peer, from now on kept."""
        return self.records.setdefault(peer, PeerRecord(since=self.clock.now()))

    # --- connections ------------------------------------------------------------------------------------

    def connected(self, connection: Connection, *, dialled: str | None) -> None:
        """Take over a gossip connection that is open and authenticated."""
        peer = connection.peer
        present = self.connections.get(peer)
        if present is not None and not self._replaces(connection, present):
            connection.close("there is a connection already")
            return
        self.connections[peer] = connection
        connection.on_message = self._message
        connection.closed.add_done_callback(lambda done: self._closed(connection, done))
        if present is not None:
            present.close("replaced by another connection")
        else:
            self._set_state(peer, "alive", "")
            log.info("peer.joined", peer=peer, address=connection.remote)
        named = [text.removeprefix("name=") for text in connection.hello.features if text.startswith("name=")]
        self.record(peer).name = named[0] if named and is_name(named[0]) else ""
        self.handle(
            PeerUp(peer=peer, addresses=tuple(connection.hello.addresses), dialled=dialled),
        )
        self.callbacks.peers_changed()

    def _replaces(self, new: Connection, present: Connection) -> bool:
        """Both sides must choose alike: the dial of the smaller id wins; of two alike, the newer."""
        if new.outbound == present.outbound:
            return True
        return new.outbound == (self.engine.node < new.peer)

    def _message(self, connection: Connection, message: Message) -> None:
        if self.connections.get(connection.peer) is not connection:
            return
        self.handle(MessageReceived(peer=connection.peer, message=message))
        if isinstance(message, End) and self._is_converged_with(connection.peer):
            self.record(connection.peer).last_sync = self.clock.now()

    def _closed(self, connection: Connection, done: asyncio.Future[str]) -> None:
        peer = connection.peer
        record = self.record(peer)
        record.bytes_in += connection.bytes_in
        record.bytes_out += connection.bytes_out
        if self.connections.get(peer) is not connection:
            return
        del self.connections[peer]
        reason = "cancelled" if done.cancelled() else done.result()
        blocked = peer in self.engine.overlay.blocked
        self._set_state(peer, "blocked" if blocked else "failed", reason)
        if self._is_closing:
            return
        log.info("peer.left", peer=peer, reason=reason)
        self.handle(PeerDown(peer=peer, reason=reason))
        self.callbacks.peers_changed()

    def _is_converged_with(self, peer: bytes) -> bool:
        return all(
            (known := self.engine.reconciler.roots.get((peer, group))) is not None
            and known[0] == replica.state.sync_root
            for group, replica in self.engine.replicas.items()
        )

    def _set_state(self, peer: bytes, state: str, error: str) -> None:
        record = self.record(peer)
        if record.state != state:
            record.state, record.since = state, self.clock.now()
        record.last_error = error

    # --- the loop around the engine ---------------------------------------------------------------------

    def handle(self, event: Event) -> None:
        """Feed one event to the engine and carry out what it wants."""
        self._carry_out(self.engine.handle(event, now=self.clock.monotonic()))

    async def _carry_out_and_wait(self, effects: list[Effect]) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        for effect in effects:
            assert isinstance(effect, StoreGroup | StoreOperations), "own acts begin on the disk"
            self._queue.append(Waiting(effect, done))
        self._queued.set()
        await done

    def _carry_out(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    if connection := self.connections.get(effect.peer):
                        connection.send(effect.message, Lane(effect.lane.value))
                case StoreGroup() | StoreOperations():
                    self._queue.append(Waiting(effect))
                    self._queued.set()
                case DialPeer():
                    self._spawn(self._dial(effect.dial))
                case Disconnect():
                    self._disconnect(effect)
                case GroupChanged():
                    self.callbacks.group_changed(effect.group)
                case RememberPeer():
                    addresses = "\n".join(effect.addresses).encode()
                    self._spawn(self._remember(f"peer/{effect.peer.hex()}", addresses))
                case AttestationMismatch():
                    self.callbacks.mismatch(effect)
        self._arm()

    def _arm(self) -> None:
        """Set the one timer to the engine's deadline."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        deadline = self.engine.deadline
        if deadline is not None and not self._is_closing:
            delay = max(0.0, deadline - self.clock.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self.handle, Tick())

    def _disconnect(self, effect: Disconnect) -> None:
        connection = self.connections.get(effect.peer)
        if connection is None:
            return
        log.warning(
            "peer.refused",
            peer=effect.peer,
            remote=connection.remote,
            reason=effect.reason,
            error_code=effect.code,
        )
        connection.close(effect.reason)

    async def _dial(self, dial: Dial) -> None:
        assert self.endpoint is not None, "the endpoint is there before anything is dialled"
        try:
            connection = await self.endpoint.dial(dial.address, alpn=ALPN_GOSSIP, expect=dial.expect)
        except TransportError as error:
            self.handle(DialFailed(dial=dial, reason=error.message))
            if dial.expect is not None and self.record(dial.expect).state != "blocked":
                self._set_state(dial.expect, "failed", error.message)
            if isinstance(error, PeerRefusedError):
                log.warning("peer.refused", remote=dial.address, reason=error.message)
            else:
                log.debug("peer.unreachable", address=dial.address, reason=error.message)
            return
        self.connected(connection, dialled=dial.address)

    async def _remember(self, key: str, value: bytes) -> None:
        if await self.store.get_meta(key) != value:
            await self.store.put_meta(key, value)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        if self._is_closing:
            work.close()
            return
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.callbacks.fatal(error)

    # --- storage ----------------------------------------------------------------------------------------

    async def _write(self) -> None:
        """Carry out storage effects in order; what queued up during one commit shares the next."""
        while True:
            await self._queued.wait()
            self._queued.clear()
            while self._queue:
                batch = list(self._queue)
                self._queue.clear()
                try:
                    await self._commit(batch)
                except BaseException as error:
                    for waiting in (*batch, *self._queue):
                        if waiting.done and not waiting.done.done():
                            waiting.done.set_exception(error)
                            waiting.done.exception()
                    self.callbacks.fatal(error)
                    raise
            if self._is_closing:
                return

    async def _commit(self, batch: list[Waiting]) -> None:
        rows = []
        for waiting in batch:
            effect = waiting.effect
            if isinstance(effect, StoreGroup):
                await self.store.add_group(effect.genesis, effect.group)
            else:
                rows += [
                    OpRow(group=effect.group, id=signed.id, wire=signed.wire())
                    for signed in effect.operations
                ]
        if rows:
            await self.store.append(rows)
        for waiting in batch:
            effect = waiting.effect
            if isinstance(effect, StoreGroup):
                self.handle(GroupStored(genesis=effect.genesis))
            else:
                ids = tuple(signed.id for signed in effect.operations)
                self.handle(OperationsStored(group=effect.group, ids=ids))
            if waiting.done and not waiting.done.done():
                waiting.done.set_result(None)
