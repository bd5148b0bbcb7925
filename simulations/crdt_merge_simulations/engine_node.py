"""One simulated node: the engine that the daemon runs, a disk, and the driver's few lines around them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Final

from crdt_merge_protocol.engine import Engine
from crdt_merge_protocol.errors import LocalProtocolError
from crdt_merge_protocol.events import (
    AttestationMismatch,
    DialPeer,
    Disconnect,
    DropOperations,
    Effect,
    Event,
    GroupChanged,
    GroupStored,
    NotStored,
    OperationsStored,
    PeerLeft,
    RememberPeer,
    Send,
    StoreGroup,
    StoreOperations,
    Tick,
)
from crdt_merge_protocol.genesis import Genesis
from crdt_merge_protocol.identity import NodeKey
from crdt_merge_protocol.operations import SignedOperation
from crdt_merge_protocol.reconciler import Ended
from crdt_merge_protocol.state import CRDTMergeState

from .engine_links import Line
from .mischief import Mischief

if TYPE_CHECKING:
    from .engine_core import World

STORE_S: Final = (0.001, 0.008)
"""How long a commit takes."""
PORT: Final = 7946


@dataclass(slots=True)
class Disk:
    """What survives a kill."""

    genesis: dict[bytes, tuple[float, bytes]] = field(default_factory=dict)
    """Group -> (time of the commit, genesis)."""
    operations: list[tuple[float, bytes, SignedOperation]] = field(default_factory=list)
    """(time, group, operation) in the order of the commits."""
    peers: dict[bytes, tuple[str, ...]] = field(default_factory=dict)

    def as_of(self, time: float) -> Disk:
        """Return the disk as it was."""
        return Disk(
            {group: entry for group, entry in self.genesis.items() if entry[0] <= time},
            [entry for entry in self.operations if entry[0] <= time],
            dict(self.peers),
        )

    def ids(self) -> dict[bytes, set[bytes]]:
        """Return group -> ids of the operations that are here."""
        ids: dict[bytes, set[bytes]] = {group: set() for group in self.genesis}
        for _, group, signed in self.operations:
            ids[group].add(signed.id)
        return ids


class SimulatedNode:
    """An engine, its disk, and the epoch of its present process."""

    __slots__ = (
        "_committed_at",
        "_timer",
        "address",
        "bytes_sent",
        "disk",
        "disk_rng",
        "engine",
        "epoch",
        "frozen_until",
        "hops",
        "id",
        "index",
        "is_disk_failing",
        "is_full",
        "is_up",
        "key",
        "lines",
        "mischief",
        "name",
        "pending",
        "place",
        "root",
        "seeds",
        "slowness",
        "world",
    )

    def __init__(self, world: World, index: int, place: int, key: NodeKey, name: str) -> None:
        self.world = world
        self.index = index
        self.place = place
        """Where it is in the topology; that of its original for a clone."""
        self.name = name
        self.address = f"{name}:{PORT}"
        self.key = key
        self.id = key.node_id
        self.seeds: list[str] = []
        self.disk = Disk()
        self.disk_rng: Random = world.stream("disk", name)
        self.epoch = 0
        self.is_up = False
        self.is_full = False
        self.is_disk_failing = False
        self.frozen_until = 0.0
        self.slowness = 1.0
        self.lines: dict[bytes, Line] = {}
        """Peer -> the line of the connection that leads to it."""
        self.pending: deque[StoreGroup | StoreOperations | DropOperations] = deque()
        """Handed to the disk and not yet durable."""
        self.mischief: Mischief | None = None
        self.hops: dict[bytes, int] = {}
        """Operation -> how many hops it took here."""
        self.root: bytes | None = None
        """Over all groups, as far as this process has got."""
        self.bytes_sent = 0
        self._committed_at = 0.0
        self._timer: float | None = None
        self.engine: Engine

    # --- the process ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the process on what the disk holds."""
        self.epoch += 1
        self.is_up = True
        self.hops = {signed.id: self.hops.get(signed.id, 0) for _, _, signed in self.disk.operations}
        rng = self.world.stream("node", self.name, self.epoch)
        self.engine = Engine(self.key, random_bytes=rng.randbytes)
        states = {}
        for _, encoded in self.disk.genesis.values():
            replica = self.engine.open_group(Genesis.decode(encoded))
            states[replica.group] = replica.state
        for _, group, signed in self.disk.operations:
            try:
                states[group].apply(signed)
            except LocalProtocolError as error:
                self.world.checker.expect("I9", False, f"{self.name} finds on its disk: {error.message}")
        for address in self.seeds:
            self.engine.overlay.add_seed(address)
        for peer, addresses in self.disk.peers.items():
            self.engine.overlay.learn(peer, addresses)
        self.world.root_changed(self)
        self.handle(Tick())

    def kill(self, *, is_silent: bool = False) -> None:
        """End the process at once: no goodbye, no cleanup.

        Of what was on its way to the disk a part may be durable, though nobody was told. Without power
        (``is_silent``) no kernel resets the connections.
        """
        self.is_up = False
        self.epoch += 1
        self._timer = None
        self.frozen_until = 0.0
        while self.pending and self.disk_rng.random() < 0.5:
            self._write(self.pending.popleft())
        self.pending.clear()
        for line in list(self.lines.values()):
            self.world.dropped(line, is_silent=is_silent)
        self.lines.clear()
        self.world.root_changed(self)

    def handle(self, event: Event) -> None:
        """Feed one event to the engine and carry out the effects; a failure in there ends the process."""
        try:
            effects = self.engine.handle(event, now=self.world.now)
        except Exception as error:  # noqa: BLE001  (whatever it is, it is what this world looks for)
            self.world.engine_failed(self, event, error)
            return
        self.carry_out(effects)

    def author(self, group: bytes, kind: int, body: bytes, refs: Iterable[bytes] = ()) -> SignedOperation:
        """Author an operation; it is acknowledged once it is durable here."""
        signed, effects = self.engine.author(group, kind, body, refs)
        self.world.authored(self, signed)
        self.carry_out(effects)
        return signed

    def states(self) -> dict[bytes, CRDTMergeState]:
        """Return group -> state."""
        return {group: replica.state for group, replica in self.engine.replicas.items()}

    # --- effects --------------------------------------------------------------------------------------------

    def carry_out(self, effects: Iterable[Effect]) -> None:
        """Do what a driver does with effects, in virtual time."""
        world = self.world
        for effect in effects:
            if type(effect) is Send:  # Nearly all are.
                line = self.lines.get(effect.peer)
                if line is not None:
                    world.send(line, effect.message)
                continue
            match effect:
                case StoreGroup() | StoreOperations() | DropOperations():
                    self._store(effect)
                case DialPeer():
                    world.dial(self, effect.dial)
                case Disconnect():
                    self._disconnect(effect)
                case GroupChanged():
                    world.root_changed(self)
                case RememberPeer():
                    self.disk.peers[effect.peer] = effect.addresses
                case PeerLeft():
                    self.disk.peers.pop(effect.peer, None)
                case AttestationMismatch():
                    world.checker.expect("I14", False, f"{self.name} reports another output than its own")
                case Ended():
                    world.checker.sometimes[f"a sync session ended {effect.outcome}"] += 1
        self._arm()

    def _disconnect(self, effect: Disconnect) -> None:
        line = self.lines.get(effect.peer)
        if line is not None:
            deserved = int(not effect.is_routine)
            self.world.checker.sometimes["a peer was disconnected for what it sent"] += deserved
            self.world.hang_up(line, effect.reason)

    def _arm(self) -> None:
        deadline = self.engine.deadline(now=self.world.now)
        if deadline is None or not self.is_up or (self._timer is not None and self._timer <= deadline):
            return
        self._timer = max(deadline, self.world.now)
        self.world.at(self._timer, self, self._tick, self._timer)

    def _tick(self, planned: float) -> None:
        if self._timer != planned:
            return  # An earlier one was armed after this.
        self._timer = None
        self.handle(Tick())

    # --- the disk -------------------------------------------------------------------------------------------

    def _store(self, effect: StoreGroup | StoreOperations | DropOperations) -> None:
        world = self.world
        delay_s = self.disk_rng.uniform(*STORE_S) * self.slowness
        self._committed_at = max(self._committed_at, world.now + delay_s)
        self.pending.append(effect)
        world.at(self._committed_at, self, self._commit)

    def _commit(self) -> None:
        if not self.pending:
            return  # There was no room for it.
        if self.is_full and not isinstance(self.pending[0], DropOperations):
            deletions = [effect for effect in self.pending if isinstance(effect, DropOperations)]
            groups = tuple(sorted({effect.group for effect in self.pending if effect not in deletions}))
            self.pending.clear()
            self.pending.extend(deletions)  # Each has its moment still to come.
            self.world.checker.sometimes["a full disk"] += 1
            self.handle(NotStored(groups=groups))
            return
        if self.is_disk_failing:
            self.is_disk_failing = False
            self.world.failed_disk(self)
            return
        effect = self.pending.popleft()
        self._write(effect)
        if isinstance(effect, StoreGroup):
            self.handle(GroupStored(genesis=effect.genesis))
            return
        if isinstance(effect, DropOperations):
            return
        ids = tuple(signed.id for signed in effect.operations)
        self.handle(OperationsStored(group=effect.group, ids=ids))
        own = [signed for signed in effect.operations if signed.operation.author == self.id]
        self.world.acknowledged(self, effect.group, own)

    def _write(self, effect: StoreGroup | StoreOperations | DropOperations) -> None:
        now = self.world.now
        if isinstance(effect, DropOperations):
            dropped = set(effect.ids)
            gone = [entry[2] for entry in self.disk.operations if entry[2].id in dropped]
            self.world.checker.dropped(self.index, self.engine.replicas[effect.group].state, gone)
            self.disk.operations = [entry for entry in self.disk.operations if entry[2].id not in dropped]
            return
        if isinstance(effect, StoreGroup):
            self.disk.genesis.setdefault(effect.group, (now, effect.genesis))
            return
        for signed in effect.operations:
            self.disk.operations.append((now, effect.group, signed))
        self.world.stored(self, effect.group, effect.operations)
