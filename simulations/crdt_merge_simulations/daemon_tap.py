"""A tap on the engines of all daemons: what they hear, sign and store, and lies put into their mouths.

The engine of a daemon is asked as always; the tap sees each event before it and each effect after it. So the
checker learns of every operation when it is signed and when it is durable, and the report of hops and times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from crdt_merge_protocol.errors import RemoteProtocolError
from crdt_merge_protocol.events import Effect, Event, MessageReceived, OperationsStored, Send
from crdt_merge_protocol.messages.gossip import Gossip
from crdt_merge_protocol.messages.sync import Operations
from crdt_merge_protocol.operations import SignedOperation

from .invariants import Checker
from .machine import Machine


class Tap:
    """Listens to all machines of a world."""

    def __init__(self, checker: Checker, nodes: int, now: Callable[[], float]) -> None:
        self.hops: Counter[int] = Counter()
        """Of first deliveries by broadcast."""
        self.delivery_s: list[float] = []
        """From signing to the last node, per operation."""
        self.deliveries = 0
        self.duplicates = 0
        self._checker = checker
        self._nodes = nodes
        self._now = now
        self._numbers: dict[bytes, int] = {}
        self._born: dict[bytes, float] = {}
        self._hops: dict[int, dict[bytes, int]] = {}
        self._holders: dict[bytes, set[int]] = {}
        self._ids: dict[bytes, bytes | None] = {}
        """Of operations by their bytes; None: the bytes are no operation."""

    def attach(self, machine: Machine) -> None:
        """Listen to the daemon that has just become ready on a machine."""
        assert machine.node is not None, "it is ready"
        engine, number = machine.node.services.engine, machine.number
        self._numbers.setdefault(engine.node, number)
        self._hops.setdefault(number, {})
        handle, author = engine.handle, engine.author

        def tapped_handle(event: Event, *, now: float) -> list[Effect]:
            if isinstance(event, MessageReceived):
                if isinstance(event.message, Gossip | Operations):
                    self._received(number, event.peer, event.message)
            elif isinstance(event, OperationsStored):
                self._stored(number, event)
            return _told(machine, handle(event, now=now))

        def tapped_author(*arguments: Any) -> tuple[SignedOperation, list[Effect]]:
            signed, effects = author(*arguments)
            self._checker.authored(number, signed)
            self._born[signed.id] = self._now()
            self._hops[number][signed.id] = 0
            return signed, effects

        for name, tapped in (("handle", tapped_handle), ("author", tapped_author)):
            setattr(engine, name, tapped)

    def forget(self, number: int) -> None:
        """Note that a machine lost its disk: what comes again is new to it."""
        self._hops[number] = {}

    def _received(self, number: int, peer: bytes, message: Gossip | Operations) -> None:
        known = self._hops[number]
        at_source = self._hops.get(self._numbers.get(peer, -1), {})
        for wire in message.operations:
            id_ = self._id(wire)
            if id_ is None:
                continue
            is_new = id_ not in known
            if is_new:
                known[id_] = at_source.get(id_, 0) + 1
            if isinstance(message, Gossip):
                self.deliveries += 1
                if is_new:
                    self.hops[known[id_]] += 1
                else:
                    self.duplicates += 1

    def _stored(self, number: int, event: OperationsStored) -> None:
        self._checker.stored(number, event.group, event.ids)
        for id_ in event.ids if number < self._nodes else ():
            holders = self._holders.setdefault(id_, set())
            if number not in holders:
                holders.add(number)
                if len(holders) == self._nodes and id_ in self._born:
                    self.delivery_s.append(self._now() - self._born[id_])

    def _id(self, wire: bytes) -> bytes | None:
        if wire not in self._ids:
            try:
                self._ids[wire] = SignedOperation.load(wire).id
            except RemoteProtocolError:
                self._ids[wire] = None
        return self._ids[wire]


def _told(machine: Machine, effects: list[Effect]) -> list[Effect]:
    """Return what a machine does instead of what its engine wants, if it is up to mischief."""
    if machine.mischief is None:
        return effects
    return list(_lies(machine, effects))


def _lies(machine: Machine, effects: Iterable[Effect]) -> Iterable[Effect]:
    assert machine.mischief is not None, "_told has looked"
    for effect in effects:
        if not isinstance(effect, Send):
            yield effect
        elif (message := machine.mischief.outgoing(effect.message)) is not None:
            yield effect if message is effect.message else replace(effect, message=message)
