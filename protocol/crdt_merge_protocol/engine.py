"""The protocol of one node as a state machine: events in, effects out.

    effects = engine.handle(event, now=seconds)

The engine holds the replicated state of every group of the cluster, the overlay, the sync sessions and the
attestations. It owns no socket, file or clock: time is an argument, randomness a function given to it, and
storage an effect whose completion comes back as an event. The order is always

    verified -> StoreOperations -> (disk) -> OperationsStored -> applied, acknowledged, announced, built upon

so whatever a peer is told about is durable here (DESIGN 3.5). Whoever drives the engine calls
:meth:`Engine.handle` with :class:`Tick` when :attr:`Engine.deadline` has come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .attestations import Attestations
from .broadcast import FullMeshBroadcast
from .errors import CrdtMergeError, LocalProtocolError, MalformedMessageError, RemoteProtocolError
from .events import (
    AttestationMismatch,
    DialFailed,
    DialPeer,
    Disconnect,
    Effect,
    Event,
    GroupChanged,
    GroupStored,
    Lane,
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
from .genesis import Genesis
from .identity import NodeKey
from .limits import CONTROL_BODY_BYTES_MAX, GROUPS_MAX
from .messages.base import Message
from .messages.gossip import Attest, GenesisFound, Gossip, WantGenesis
from .messages.membership import Goodbye, Peers, Roots
from .messages.sync import SYNC_MESSAGES
from .operations import LOG_BYTES, SignedOperation
from .overlay import FullMesh
from .reconciler import Outgoing, Reconciler
from .replica import Replica
from .state import CRDTMergeState

ANNOUNCE_DELAY_S = 0.05
"""Changes within this are announced together."""
ANNOUNCE_ALL_INTERVAL_S = 10.0
"""All roots are announced again this often, in case an announcement was shed."""
ATTESTATIONS_ON_CONNECT = 16
ROOTS_PER_MESSAGE = 512


class Engine:
    """The deterministic core of a node."""

    def __init__(self, key: NodeKey, *, random_bytes: Callable[[int], bytes]) -> None:
        self.node = key.node_id
        self._key = key
        self._random_bytes = random_bytes
        self.overlay = FullMesh(self.node, self._jitter)
        self.replicas: dict[bytes, Replica] = {}
        self.attestations = Attestations(self.node)
        self.reconciler = Reconciler(node=self.node, states=self.state, random_bytes=random_bytes)
        self._broadcast = FullMeshBroadcast()
        self._changed: set[bytes] = set()
        self._announce_due: float | None = None
        self._announce_all_due: float | None = None

    # --- what the driver asks -------------------------------------------------------------------------

    def state(self, group: bytes) -> CRDTMergeState | None:
        """Return the durable state of a group, or None."""
        replica = self.replicas.get(group)
        return replica.state if replica else None

    @property
    def deadline(self) -> float | None:
        """When :class:`Tick` is due, in the caller's monotonic seconds; None: not before another event."""
        times = [
            self._announce_due,
            self._announce_all_due,
            self.overlay.next_due(),
            self.reconciler.next_due(),
        ]
        return min((time for time in times if time is not None), default=None)

    def open_group(self, genesis: Genesis) -> Replica:
        """Begin with a group that storage holds; the caller applies its stored operations to the state."""
        replica = Replica(genesis, self._key, self._random_bytes(LOG_BYTES))
        self.replicas[replica.group] = replica
        return replica

    def create_group(self, genesis: Genesis) -> list[Effect]:
        """Begin a group; it exists once :class:`GroupStored` has come back."""
        return [StoreGroup(group=genesis.group, genesis=genesis.encode())]

    def author(
        self, group: bytes, kind: int, body: bytes, refs: Iterable[bytes] = ()
    ) -> tuple[SignedOperation, list[Effect]]:
        """Sign an operation of this node; it is acknowledged once :class:`OperationsStored` has come back."""
        replica = self.replicas.get(group)
        if replica is None:
            raise LocalProtocolError(f"group {group.hex()[:12]} is not here.")
        signed = replica.author(kind, body, refs)
        return signed, [StoreOperations(group=group, operations=(signed,))]

    def attest(self, attest: Attest) -> list[Effect]:
        """Tell all peers what this node wrote for a resolve key, and compare with what they wrote."""
        effects = self._compare(self.node, attest)
        return effects + [
            Send(peer=peer, message=attest, lane=Lane.OPERATIONS) for peer in sorted(self.overlay.active)
        ]

    # --- what happens ---------------------------------------------------------------------------------

    def handle(self, event: Event, *, now: float) -> list[Effect]:  # noqa: PLR0911 - one answer per kind.
        """Apply one event and return what the driver must do, in order. ``now``: seconds, monotonic."""
        match event:
            case MessageReceived():
                return self._received(event.peer, event.message, now=now)
            case OperationsStored():
                return self._stored(event.group, event.ids, now=now)
            case GroupStored():
                return self._group_stored(event.genesis, now=now)
            case PeerUp():
                return self._peer_up(event, now=now)
            case PeerDown():
                return self._peer_down(event.peer, now=now)
            case DialFailed():
                self.overlay.failed(event.dial.address, event.dial.expect, event.reason, now=now)
                return []
            case PeerBlocked():
                return self._peer_blocked(event.peer, is_blocked=event.is_blocked)
            case Tick():
                return self._tick(now=now)

    def _tick(self, *, now: float) -> list[Effect]:
        effects: list[Effect] = [DialPeer(dial=dial) for dial in self.overlay.due(now=now)]
        if self._announce_all_due is None or self._announce_all_due <= now:
            self._changed.update(self.replicas)
            self._announce_due = now
            self._announce_all_due = now + ANNOUNCE_ALL_INTERVAL_S * (0.9 + 0.2 * self._jitter())
        if self._announce_due is not None and self._announce_due <= now:
            effects += self._announce(sorted(self.overlay.active), sorted(self._changed))
            self._changed.clear()
            self._announce_due = None
        return effects + self._sync_sends(self.reconciler.tick(now=now))

    def _peer_up(self, event: PeerUp, *, now: float) -> list[Effect]:
        peer = event.peer
        if event.dialled is not None:
            self.overlay.reached(event.dialled, peer)
        self.overlay.learn(peer, event.addresses)
        self.overlay.connected(peer)
        known = self.overlay.peers[peer].addresses
        effects: list[Effect] = [RememberPeer(peer=peer, addresses=tuple(known))]
        others = tuple(
            (node, tuple(target.addresses))
            for node, target in sorted(self.overlay.peers.items())
            if node != peer and target.addresses
        )
        if others:
            effects.append(Send(peer=peer, message=Peers(peers=others[:256]), lane=Lane.MEMBERSHIP))
        introduction = Peers(peers=((peer, tuple(known)),))
        effects += [
            Send(peer=other, message=introduction, lane=Lane.MEMBERSHIP)
            for other in sorted(self.overlay.active)
            if other != peer and known
        ]
        effects += self._announce([peer], sorted(self.replicas))
        effects += [
            Send(peer=peer, message=attest, lane=Lane.OPERATIONS)
            for attest in self.attestations.own(newest=ATTESTATIONS_ON_CONNECT)
        ]
        if self._announce_all_due is None:
            self._announce_all_due = now + ANNOUNCE_ALL_INTERVAL_S
        return effects

    def _peer_down(self, peer: bytes, *, now: float) -> list[Effect]:
        self.overlay.disconnected(peer, now=now)
        self.reconciler.peer_down(peer)
        for replica in self.replicas.values():
            replica.forget_peer(peer)
        return []

    def _peer_blocked(self, peer: bytes, *, is_blocked: bool) -> list[Effect]:
        if not is_blocked:
            self.overlay.unblock(peer)
            return []
        self.overlay.block(peer)
        if peer not in self.overlay.active:
            return []
        return [Disconnect(peer=peer, code="E1602", reason="blocked by the operator of this node")]

    # --- messages -------------------------------------------------------------------------------------

    def _received(self, peer: bytes, message: Message, *, now: float) -> list[Effect]:
        try:
            return self._dispatch(peer, message, now=now)
        except RemoteProtocolError as error:
            return [Disconnect(peer=peer, code=type(error).code, reason=error.message)]
        except CrdtMergeError as error:
            raise AssertionError(f"a message of a peer raised {type(error).__name__}: {error}") from error

    def _dispatch(  # noqa: PLR0911 - one answer per kind.
        self, peer: bytes, message: Message, *, now: float
    ) -> list[Effect]:
        match message:
            case Gossip():
                return self._ingest(peer, message.group, message.operations, now=now)
            case Roots():
                return self._roots(peer, message, now=now)
            case WantGenesis():
                return self._give_genesis(peer, message.groups)
            case GenesisFound():
                return self._take_genesis(message.genesis)
            case Attest():
                return self._compare(peer, message)
            case Peers():
                return self._learn(message)
            case Goodbye():
                return []
        if isinstance(message, SYNC_MESSAGES):
            outgoing, group, wires = self.reconciler.receive(peer, message, now=now)
            effects = self._sync_sends(outgoing)
            return effects + (self._ingest(peer, group, wires, now=now) if wires else [])
        raise MalformedMessageError(f"{type(message).__name__} does not belong on a gossip connection")

    def _ingest(self, peer: bytes, group: bytes, wires: Iterable[bytes], *, now: float) -> list[Effect]:
        replica = self.replicas.get(group)
        if replica is None:
            return [Send(peer=peer, message=WantGenesis(groups=(group,)), lane=Lane.MEMBERSHIP)]
        receipt = replica.receive(wires, peer)
        effects: list[Effect] = []
        if receipt.accepted:
            effects.append(StoreOperations(group=group, operations=receipt.accepted))
        if receipt.is_waiting:
            self.reconciler.hasten(peer, group, now=now)
        if receipt.durable:
            effects += self._sync_sends(self.reconciler.stored(group, receipt.durable, now=now))
        return effects

    def _stored(self, group: bytes, ids: tuple[bytes, ...], *, now: float) -> list[Effect]:
        replica = self.replicas[group]
        applied = replica.stored(ids)
        effects: list[Effect] = [GroupChanged(group=group)] if applied else []
        for signed in applied:
            is_own = signed.operation.author == self.node
            message = Gossip(group=group, operations=(signed.wire(),))
            effects += [
                Send(peer=peer, message=message, lane=Lane.OPERATIONS)
                for peer in self._broadcast.targets(is_own=is_own, active=self.overlay.active)
            ]
        effects += self._sync_sends(self.reconciler.stored(group, ids, now=now))
        self._root_changed(group, now=now)
        return effects

    def _roots(self, peer: bytes, message: Roots, *, now: float) -> list[Effect]:
        unknown = []
        for group, root, count in message.roots:
            self.reconciler.announced(peer, group, root, count, now=now)
            if group not in self.replicas and len(self.replicas) < GROUPS_MAX:
                unknown.append(group)
        if not unknown:
            return []
        return [Send(peer=peer, message=WantGenesis(groups=tuple(unknown)), lane=Lane.MEMBERSHIP)]

    def _give_genesis(self, peer: bytes, groups: tuple[bytes, ...]) -> list[Effect]:
        return [
            Send(
                peer=peer,
                message=GenesisFound(genesis=self.replicas[group].state.genesis.encode()),
                lane=Lane.MEMBERSHIP,
            )
            for group in groups
            if group in self.replicas
        ]

    def _take_genesis(self, encoded: bytes) -> list[Effect]:
        genesis = Genesis.decode(encoded)
        if genesis.group in self.replicas or len(self.replicas) >= GROUPS_MAX:
            return []
        return [StoreGroup(group=genesis.group, genesis=encoded)]

    def _group_stored(self, encoded: bytes, *, now: float) -> list[Effect]:
        genesis = Genesis.decode(encoded)
        if genesis.group in self.replicas:
            return []
        self.open_group(genesis)
        self._root_changed(genesis.group, now=now)
        self.reconciler.hasten_all(genesis.group, now=now)
        return [GroupChanged(group=genesis.group)]

    def _learn(self, message: Peers) -> list[Effect]:
        return [
            RememberPeer(peer=peer, addresses=tuple(self.overlay.peers[peer].addresses))
            for peer, addresses in message.peers
            if addresses and self.overlay.learn(peer, addresses)
        ]

    def _compare(self, node: bytes, attest: Attest) -> list[Effect]:
        if attest.group not in self.replicas:
            return []
        differing = self.attestations.record(node, attest)
        if node == self.node:
            pairs = [(peer, output, attest.output_digest) for peer, output in sorted(differing.items())]
        elif self.node in differing:
            pairs = [(node, attest.output_digest, differing[self.node])]
        else:
            pairs = []
        return [
            AttestationMismatch(
                group=attest.group, resolve_key=attest.resolve_key, peer=peer, theirs=theirs, ours=ours
            )
            for peer, theirs, ours in pairs
        ]

    # --- helpers --------------------------------------------------------------------------------------

    def _root_changed(self, group: bytes, *, now: float) -> None:
        self._changed.add(group)
        if self._announce_due is None:
            self._announce_due = now + ANNOUNCE_DELAY_S
        self.reconciler.changed(group, now=now)

    def _announce(self, peers: Iterable[bytes], groups: list[bytes]) -> list[Effect]:
        roots = []
        for group in groups:
            state = self.replicas[group].state
            roots.append((group, state.sync_root, len(state)))
        pages = [
            roots[start : start + ROOTS_PER_MESSAGE] for start in range(0, len(roots), ROOTS_PER_MESSAGE)
        ]
        return [
            Send(peer=peer, message=Roots(roots=tuple(page)), lane=Lane.SYNC)
            for peer in peers
            for page in pages
        ]

    @staticmethod
    def _sync_sends(outgoing: Outgoing) -> list[Effect]:
        return [Send(peer=peer, message=message, lane=Lane.SYNC) for peer, message in outgoing]

    def _jitter(self) -> float:
        return int.from_bytes(self._random_bytes(4), "little") / 2**32


assert ROOTS_PER_MESSAGE * 80 < CONTROL_BODY_BYTES_MAX
