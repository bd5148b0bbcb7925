"""The protocol of one node as a state machine: events in, effects out.

    effects = engine.handle(event, now=seconds)

The engine holds the replicated state of every group of the cluster, the overlay, the sync sessions and the
attestations. It owns no socket, file or clock: time is an argument, randomness a function given to it, and
storage an effect whose completion comes back as an event. The order is always

    verified -> StoreOperations -> (disk) -> OperationsStored -> applied, acknowledged, announced, built upon

so whatever a peer is told about is durable here (DESIGN 3.5). Whoever drives the engine calls
:meth:`Engine.handle` with :class:`Tick` when :attr:`Engine.deadline` has come.

Whatever a peer sends leads to effects, at worst to :class:`Disconnect`; it never raises. All that is kept on
the word of a peer is bounded, and by what that peer itself said before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from .announcer import Announcer, announcements
from .arriving_groups import ArrivingGroups
from .attestations import Attestations
from .broadcast import TREE_MESSAGES, Broadcast
from .departures import Departures
from .errors import LocalProtocolError, MalformedMessageError, RemoteProtocolError
from .events import (
    DialAnswered,
    DialFailed,
    Disconnect,
    Effect,
    Event,
    GroupChanged,
    GroupStored,
    Lane,
    MessageReceived,
    NotStored,
    OperationsStored,
    PeerBlocked,
    PeerDown,
    PeerForgotten,
    PeerLeft,
    PeerUp,
    RememberPeer,
    StoreOperations,
    Tick,
)
from .genesis import Genesis
from .identity import NodeKey
from .intake import Intake
from .messages.base import Message
from .messages.gossip import Attest, GenesisFound, Gossip, WantGenesis
from .messages.membership import Departed, Goodbye, Peers, Roots
from .messages.overlay import VIEW_MESSAGES, IHave, Prune
from .messages.sync import SYNC_MESSAGES
from .operations import LOG_BYTES, SignedOperation
from .overlay import Overlay
from .reading import Reading
from .reconciler import Reconciler
from .replica import Replica
from .sending import introduce, perform, sends
from .state import CRDTMergeState

SYNCED_DELAY_S: Final = 1.0
"""In a partial view roots are announced now and then; after a session that brought something, within this."""
SESSION_SPREAD_S: Final = 1.0

NEIGHBOUR_MESSAGES: Final = frozenset({Gossip, Roots, IHave})
"""Who sends these takes us for a neighbour."""


class Engine:
    """The deterministic core of a node."""

    def __init__(self, key: NodeKey, *, random_bytes: Callable[[int], bytes]) -> None:
        self.node = key.node_id
        self._key = key
        self._random_bytes = random_bytes
        self.overlay = Overlay(self.node, self._jitter, random_bytes=random_bytes)
        self.replicas: dict[bytes, Replica] = {}
        self.attestations = Attestations(self.node)
        self.reconciler = Reconciler(node=self.node, states=self.state, random_bytes=random_bytes)
        self._broadcast = Broadcast(self.node)
        self.overlay.view.active.need = self._broadcast.tree.need
        self._announcer = Announcer(self._jitter)
        self.arriving = ArrivingGroups(self.replicas)
        self._intake = Intake(
            self.replicas,
            overlay=self.overlay,
            broadcast=self._broadcast,
            reconciler=self.reconciler,
            announcer=self._announcer,
            offence=self._offence,
        )
        self._departures = Departures(self.overlay)

    # --- what the driver asks -------------------------------------------------------------------------

    def state(self, group: bytes) -> CRDTMergeState | None:
        """Return the durable state of a group, or None."""
        replica = self.replicas.get(group)
        return replica.state if replica else None

    def knows_more(self, peer: bytes) -> bool:
        """Tell whether a peer has said that it has groups that are not here."""
        return self.arriving.is_any_from(peer)

    def deadline(self, *, now: float) -> float | None:
        """Return when :class:`Tick` is due, in the caller's seconds; None: not before another event."""
        due = self.overlay.next_due(now=now)
        others = (self._announcer.next_due(), self._broadcast.tree.next_due(), self.reconciler.next_due())
        for other in others:
            if other is not None and (due is None or other < due):
                due = other
        return due

    def open_group(self, genesis: Genesis) -> Replica:
        """Begin with a group that storage holds; the caller applies its stored operations to the state."""
        replica = Replica(genesis, self._key, self._random_bytes(LOG_BYTES))
        self.replicas[replica.group] = replica
        return replica

    def create_group(self, genesis: Genesis) -> list[Effect]:
        """Begin a group; it exists once :class:`GroupStored` has come back.

        Raises:
            LocalProtocolError: The cluster has as many groups as it can have.
        """
        return self.arriving.create(genesis)

    def author(
        self, group: bytes, kind: int, body: bytes, refs: Iterable[bytes] = ()
    ) -> tuple[SignedOperation, list[Effect]]:
        """Sign an operation of this node; it is acknowledged once :class:`OperationsStored` has come back.

        Raises:
            LocalProtocolError: No node would accept it.
        """
        replica = self.replicas.get(group)
        if replica is None:
            raise LocalProtocolError(f"group {group.hex()[:12]} is not here.")
        signed = replica.author(kind, body, refs)
        self._intake.in_flight_bytes += len(signed.encoded)
        return signed, [StoreOperations(group=group, operations=(signed,))]

    def attest(self, attest: Attest) -> list[Effect]:
        """Tell all neighbours what this node wrote for a resolve key, and compare with what they wrote."""
        effects = self._compare(self.node, attest)
        return effects + sends([(peer, attest) for peer in self.overlay.neighbours], Lane.OPERATIONS)

    def leave(self) -> list[Effect]:
        """Tell every connected peer that this node leaves for good, and does not come back by itself."""
        return self._departures.own(self._key)

    # --- what happens ---------------------------------------------------------------------------------

    def handle(self, event: Event, *, now: float) -> list[Effect]:
        """Apply one event and return what the driver must do, in order. ``now``: seconds, monotonic."""
        effects = self._handle(event, now=now)
        if self.overlay.may_have_changed:
            effects += self._neighbours_changed()
        for ended in self.reconciler.take_ended():
            effects.append(ended)
            if ended.received_count and not self.overlay.is_mesh:
                self._announcer.changed(ended.group, now=now, wait_s=SYNCED_DELAY_S * self._jitter())
            effects += self._intake.forget_aside()
        return effects

    def _handle(self, event: Event, *, now: float) -> list[Effect]:  # noqa: PLR0911 - one answer per kind.
        match event:
            case MessageReceived():
                return self._received(event, now=now)
            case OperationsStored():
                return self._intake.stored(event.group, event.ids, now=now)
            case GroupStored():
                return self._group_stored(event.genesis, now=now)
            case NotStored():
                return self._not_stored(event.groups, now=now)
            case PeerUp():
                return self._peer_up(event, now=now)
            case PeerDown():
                return self._peer_down(event.peer, now=now)
            case PeerBlocked():
                return self._peer_blocked(event.peer, is_blocked=event.is_blocked)
            case PeerForgotten():
                self.overlay.forget(event.peer)
                return [PeerLeft(peer=event.peer)]
            case Tick():
                return self._tick(now=now)
            case DialAnswered():
                return perform(self.overlay.dial_answered(event.dial, event.peer, now=now))
            case DialFailed(dial=dial):
                return perform(
                    self.overlay.dial_failed(dial, event.reason, now=now, is_refusal=event.is_refused)
                )

    def _tick(self, *, now: float) -> list[Effect]:
        effects = self._intake.forget_aside() + perform(self.overlay.tick(now=now))
        effects += sends(self._broadcast.tree.tick(self._is_in_flight, now=now), Lane.OPERATIONS)
        effects += self._announce(self.overlay.neighbours, self._announcer.take(self.replicas, now=now))
        return effects + sends(self.reconciler.tick(now=now), Lane.SYNC)

    # --- peers ----------------------------------------------------------------------------------------

    def _peer_up(self, event: PeerUp, *, now: float) -> list[Effect]:
        peer = event.peer
        if peer in self.overlay.active:
            self.reconciler.peer_down(peer)  # A new connection took the place of one that sessions ran on.
        if event.dialled is not None:
            self.overlay.reached(event.dialled, peer)
        self.overlay.learn(peer, event.addresses)
        actions = self.overlay.peer_up(peer, event.dialled, now=now)
        known = tuple(self.overlay.peers[peer].addresses)
        effects: list[Effect] = [RememberPeer(peer=peer, addresses=known)] if known else []
        if self.overlay.is_mesh:
            effects += introduce(self.overlay, peer, known)
        return effects + perform(actions)

    def _neighbours_changed(self) -> list[Effect]:
        """Tell new neighbours what is here, and forget what those said who are none any more."""
        added, removed = self.overlay.take_changes()
        if not added and not removed:
            return []
        effects: list[Effect] = []
        for peer in removed:
            effects += sends(self._broadcast.tree.neighbour_down(peer), Lane.OPERATIONS)
            self.reconciler.peer_down(peer)
        for peer in added:
            self._broadcast.tree.neighbour_up(peer)
        self.reconciler.spread_s = 0.0 if self.overlay.is_mesh else SESSION_SPREAD_S
        effects += self._announce(added, sorted(self.replicas)) if added else []
        own = [(peer, attest) for peer in added for attest in self.attestations.own()]
        return effects + sends(own, Lane.OPERATIONS)

    def _peer_down(self, peer: bytes, *, now: float) -> list[Effect]:
        actions = self.overlay.peer_down(peer, now=now)
        self.reconciler.peer_down(peer)
        self.arriving.forget_peer(peer)
        self._departures.forget_peer(peer)
        for replica in self.replicas.values():
            replica.forget_peer(peer)
        return perform(actions)

    def _peer_blocked(self, peer: bytes, *, is_blocked: bool) -> list[Effect]:
        if not is_blocked:
            self.overlay.unblock(peer)
            return []
        self.overlay.block(peer)
        self.overlay.closing(peer)
        if peer not in self.overlay.active:
            return []
        return [Disconnect(peer=peer, code="E1602", reason="blocked by the operator of this node")]

    # --- messages -------------------------------------------------------------------------------------

    def read(self, peer: bytes, message: Message) -> tuple[Reading, list[tuple[bytes, SignedOperation]]]:
        """Return what is to go with a message, and the operations in it whose signatures will be checked.

        What of that the driver checks (:func:`~crdt_merge_protocol.reading.check`) and notes in the reading,
        :meth:`handle` does not check again. Nothing changes here, and what was noted stays right whatever
        happens meanwhile.
        """
        return self._intake.read(peer, message)

    def _received(self, event: MessageReceived, *, now: float) -> list[Effect]:
        peer, message = event.peer, event.message
        if peer not in self.overlay.active:
            return []
        try:
            effects = self._dispatch(peer, message, event.reading or Reading(), now=now)
        except RemoteProtocolError as error:
            return [self._offence(peer, error, now=now)]
        if type(message) in NEIGHBOUR_MESSAGES and not self.overlay.is_neighbour(peer):
            effects += perform(self.overlay.view.not_a_neighbour(peer, now=now))
        return effects

    def _offence(self, peer: bytes, error: RemoteProtocolError, *, now: float) -> Disconnect:
        self.overlay.offended(peer, now=now)
        self.overlay.closing(peer)
        return Disconnect(peer=peer, code=type(error).code, reason=error.message)

    def _dispatch(  # noqa: PLR0911 - as above.
        self, peer: bytes, message: Message, reading: Reading, *, now: float
    ) -> list[Effect]:
        match message:
            case Gossip():
                return self._pushed(peer, message, reading, now=now)
            case Roots():
                return self._roots(peer, message, now=now)
            case WantGenesis():
                return self.arriving.give(peer, message.groups)
            case GenesisFound():
                return self.arriving.take(message.genesis)
            case Attest():
                return self._compare(peer, message)
            case Peers():
                return perform(self.overlay.introduced(message.peers, peer, now=now))
            case Departed():
                return self._departures.received(peer, message)
            case Goodbye():
                return []
        if isinstance(message, VIEW_MESSAGES):
            return perform(self.overlay.received(peer, message, now=now))
        if isinstance(message, TREE_MESSAGES):
            replica = None if isinstance(message, Prune) else self.replicas.get(message.group)
            return sends(self._broadcast.told(peer, message, replica, now=now), Lane.OPERATIONS)
        if isinstance(message, SYNC_MESSAGES):
            outgoing, group, wires = self.reconciler.receive(peer, message, reading, now=now)
            effects = sends(outgoing, Lane.SYNC)
            taken = self._intake.take(peer, group, wires, reading, is_push=False, now=now) if wires else []
            return effects + taken
        raise MalformedMessageError(f"{type(message).__name__} does not belong on a gossip connection")

    def _pushed(self, peer: bytes, message: Gossip, reading: Reading, *, now: float) -> list[Effect]:
        if message.group not in self.replicas:
            return self.arriving.ask(peer, [message.group])
        if self._intake.is_full:
            return []  # Shed. The roots differ then, and anti-entropy fetches it (DESIGN 3.6).
        return self._intake.take(peer, message.group, message.operations, reading, is_push=True, now=now)

    def _not_stored(self, groups: tuple[bytes, ...], *, now: float) -> list[Effect]:
        for group in groups:
            self.arriving.ended(group)
        self._intake.not_stored(groups, lambda: self._random_bytes(LOG_BYTES), now=now)
        return []

    # --- groups ---------------------------------------------------------------------------------------

    def _roots(self, peer: bytes, message: Roots, *, now: float) -> list[Effect]:
        unknown = []
        for group, root, count in message.roots:
            if group in self.replicas:
                self.reconciler.announced(peer, group, root, count, now=now)
            elif self.arriving.announced(peer, group, root, count):
                unknown.append(group)
        return self.arriving.ask(peer, unknown)

    def _group_stored(self, encoded: bytes, *, now: float) -> list[Effect]:
        genesis = Genesis.decode(encoded)
        self.arriving.ended(genesis.group)
        if genesis.group in self.replicas:
            return []
        self.open_group(genesis)
        self._intake.root_changed(genesis.group, now=now)
        for peer, root, count in self.arriving.take_announced(genesis.group):
            self.reconciler.announced(peer, genesis.group, root, count, now=now)
            self.reconciler.hasten(peer, genesis.group, now=now)
        return [GroupChanged(group=genesis.group)]

    # --- helpers --------------------------------------------------------------------------------------

    def _compare(self, node: bytes, attest: Attest) -> list[Effect]:
        return [*self.attestations.mismatches(node, attest)] if attest.group in self.replicas else []

    def _announce(self, peers: Iterable[bytes], groups: Iterable[bytes]) -> list[Effect]:
        messages = announcements(self.replicas, groups)
        return sends([(peer, message) for peer in peers for message in messages], Lane.SYNC)

    def _is_in_flight(self, group: bytes, operation_id: bytes) -> bool:
        replica = self.replicas.get(group)
        return replica is not None and replica.is_in_flight(operation_id)

    def _jitter(self) -> float:
        return int.from_bytes(self._random_bytes(4), "little") / 2**32
