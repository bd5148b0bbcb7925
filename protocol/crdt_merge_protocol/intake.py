"""How operations of peers come into the replicas, and what becomes of them on the disk.

    read -> (signatures) -> take -> StoreOperations -> (disk) -> stored or not_stored

Whatever a peer sends leads to effects; that it breaks the protocol is one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from .announcer import Announcer
from .broadcast import Broadcast
from .events import DropOperations, Effect, GroupChanged, Lane, StoreOperations
from .limits import IN_FLIGHT_BYTES_MAX
from .messages.base import Message
from .messages.gossip import Gossip
from .messages.sync import Operations
from .operations import SignedOperation
from .overlay import Overlay
from .reading import Reading
from .reconciler import Reconciler
from .replica import Replica
from .sending import sends

ORPHAN_GRACE_S: Final = 0.5
"""Two links of the tree are not in order with each other: what an operation builds on is on its way."""
FULL_RETRY_S: Final = 5.0
"""After the disk was full, how long nothing is taken from peers. What they offered stays with them."""


class Intake:
    """Takes in the operations of all groups of one node."""

    def __init__(
        self,
        replicas: Mapping[bytes, Replica],
        *,
        overlay: Overlay,
        broadcast: Broadcast,
        reconciler: Reconciler,
        announcer: Announcer,
        offence: Callable[..., Effect],
    ) -> None:
        self.in_flight_bytes = 0
        """Of all groups, handed to storage and not yet durable."""
        self._replicas = replicas
        self._overlay = overlay
        self._broadcast = broadcast
        self._reconciler = reconciler
        self._announcer = announcer
        self._offence = offence
        self._full_until = 0.0

    @property
    def is_full(self) -> bool:
        """Whether so much is on its way to the disk that nothing pushed is taken."""
        return self.in_flight_bytes > IN_FLIGHT_BYTES_MAX

    def read(self, peer: bytes, message: Message) -> tuple[Reading, list[tuple[bytes, SignedOperation]]]:
        """Return what is to go with a message, and the operations in it whose signatures will be checked."""
        reading = Reading()
        group = None
        if isinstance(message, Gossip) and not self.is_full:
            group = message.group
        elif isinstance(message, Operations):
            group = self._reconciler.group_of(peer, message.session)
        if group is None or group not in self._replicas or not isinstance(message, Gossip | Operations):
            return reading, []
        return reading, self._replicas[group].unchecked(message.operations, reading)

    def take(
        self,
        peer: bytes,
        group: bytes,
        wires: Iterable[bytes],
        reading: Reading,
        *,
        is_push: bool,
        now: float,
    ) -> list[Effect]:
        """Verify operations that a peer sent, and have those stored that are new and complete."""
        if now < self._full_until:
            return []
        replica = self._replicas[group]
        before = replica.in_flight_bytes
        receipt = replica.receive(wires, peer, reading)
        self.in_flight_bytes += replica.in_flight_bytes - before
        effects = sends(
            self._broadcast.received(peer, receipt, is_push=is_push, is_mesh=self._overlay.is_mesh, now=now),
            Lane.OPERATIONS,
        )
        if receipt.accepted:
            effects.append(StoreOperations(group=group, operations=receipt.accepted))
        if receipt.is_waiting:
            wait_s = 0.0 if self._overlay.is_mesh else ORPHAN_GRACE_S
            self._reconciler.hasten(peer, group, now=now, wait_s=wait_s)
        elif not replica.orphan_count:
            self._reconciler.relax(group)
        if receipt.aside and not is_push:
            self._reconciler.set_aside(peer, group, len(receipt.aside))
        if settled := receipt.durable + receipt.aside:
            effects += sends(self._reconciler.stored(group, settled, now=now), Lane.SYNC)
        if receipt.refused is not None:
            effects.append(self._offence(peer, receipt.refused, now=now))
        return effects

    def stored(self, group: bytes, ids: tuple[bytes, ...], *, now: float) -> list[Effect]:
        """Apply what has become durable, and pass it on."""
        replica = self._replicas[group]
        before = replica.in_flight_bytes
        applied = replica.stored(ids)
        self.in_flight_bytes += replica.in_flight_bytes - before
        effects: list[Effect] = [GroupChanged(group=group)] if applied else []
        mesh = self._overlay.neighbours if self._overlay.is_mesh else None
        effects += sends(self._broadcast.stored(group, applied, mesh=mesh, now=now), Lane.OPERATIONS)
        effects += sends(self._reconciler.stored(group, ids, now=now), Lane.SYNC)
        if mesh is not None:
            self.root_changed(group, now=now)
        if dropped := replica.take_dropped():
            effects.append(DropOperations(group=group, ids=dropped))
        return effects

    def forget_aside(self) -> list[Effect]:
        """Forget what revoked keys signed and nothing was made after, where no session may bring more."""
        effects: list[Effect] = []
        for group, replica in self._replicas.items():
            if not replica.state.aside_bytes or self._reconciler.is_under_way(group):
                continue
            replica.forget_aside()
            if dropped := replica.take_dropped():
                effects.append(DropOperations(group=group, ids=dropped))
        return effects

    def not_stored(self, groups: Iterable[bytes], new_log: Callable[[], bytes], *, now: float) -> None:
        """Forget what found no room, and take nothing more for a while: who sent it still has it."""
        self._full_until = now + FULL_RETRY_S
        for group in groups:
            if replica := self._replicas.get(group):
                self.in_flight_bytes -= replica.in_flight_bytes
                replica.withdraw(new_log())
        self._reconciler.pause(self._full_until)

    def root_changed(self, group: bytes, *, now: float) -> None:
        """Let everybody know, in time, that the root of a group is another one."""
        self._announcer.changed(group, now=now)
        self._reconciler.changed(group, now=now)
