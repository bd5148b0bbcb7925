"""Peers that lie (SCENARIOS 4.5): what a Byzantine node does to the messages of an otherwise honest engine.

A :class:`Mischief` stands between the engine of a node and its connections. It holds messages back, changes
them, or makes up frames that no engine would send, with the node's own key: what a peer with a valid
certificate can do, and no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final

from crdt_merge_protocol.identity import NodeKey
from crdt_merge_protocol.limits import DATA_BODY_BYTES_MAX
from crdt_merge_protocol.messages.base import Message
from crdt_merge_protocol.messages.gossip import Gossip
from crdt_merge_protocol.messages.membership import Ping, Roots
from crdt_merge_protocol.messages.sync import Operations
from crdt_merge_protocol.operations import Add, Kind, Operation, SignedOperation, sign_operation
from crdt_merge_protocol.state import CRDTMergeState
from crdt_merge_protocol.wire import FLAG_CRITICAL, encode_frame

LIARS: Final = frozenset({"liar", "withholder"})


@dataclass(slots=True)
class Mischief:
    """What a node does to its own messages at the moment."""

    kind: str
    """``liar`` or ``withholder``."""
    rng: Random

    def outgoing(self, message: Message) -> Message | None:
        """Return what is sent instead of a message; None: nothing."""
        if self.kind == "liar" and isinstance(message, Roots):
            return Roots(
                roots=tuple((group, self.rng.randbytes(32), count + 7) for group, _, count in message.roots)
            )
        if self.kind == "withholder" and isinstance(message, Operations | Gossip):
            return None
        return message


def fork(key: NodeKey, state: CRDTMergeState, rng: Random) -> tuple[SignedOperation, SignedOperation]:
    """Return two operations for one place in a new log of ``key`` (PROTOCOL R6)."""
    log, deps = rng.randbytes(16), state.choose_deps()

    def one(name: str) -> SignedOperation:
        add = Add(slot=name, type="model", content=rng.randbytes(32), weight=1 << 32, payload=None)
        return _sign(key, state.group, log, deps, add)

    return one("left"), one("right")


def orphans(key: NodeKey, group: bytes, count: int, rng: Random) -> list[Gossip]:
    """Return messages full of operations whose past does not exist."""
    messages = []
    for _ in range(count):
        add = Add(slot="x", type="model", content=rng.randbytes(32), weight=1 << 32, payload=None)
        signed = _sign(key, group, rng.randbytes(16), (rng.randbytes(32),), add)
        messages.append(Gossip(group=group, operations=(signed.wire(),)))
    return messages


def colliding(key: NodeKey, state: CRDTMergeState, rng: Random) -> list[SignedOperation]:
    """Return operations whose ids XOR to zero, by elimination over 257 of them (SCENARIOS T10).

    A fingerprint that combines ids by XOR is the same with them and without.
    """
    deps = state.choose_deps()
    made: list[SignedOperation] = []
    pivots: dict[int, tuple[int, int]] = {}
    while True:
        add = Add(slot=f"x{len(made)}", type="model", content=rng.randbytes(32), weight=1 << 32, payload=None)
        made.append(_sign(key, state.group, rng.randbytes(16), deps, add))
        rest, used = int.from_bytes(made[-1].id, "big"), 1 << (len(made) - 1)
        while rest and (pivot := pivots.get(rest.bit_length())):
            rest, used = rest ^ pivot[0], used ^ pivot[1]
        if not rest:
            return [signed for place, signed in enumerate(made) if used >> place & 1]
        pivots[rest.bit_length()] = rest, used


def garbage(rng: Random) -> bytes:
    """Return bytes that are no frame, or a frame that nobody may send."""
    good = encode_frame(Ping(nonce=rng.getrandbits(32)))
    match rng.randrange(6):
        case 0:
            return rng.randbytes(rng.randint(6, 200))
        case 1:
            return (0xFFFFFFFF).to_bytes(4, "big") + good[4:]
        case 2:
            return (DATA_BODY_BYTES_MAX + 1).to_bytes(4, "big") + good[4:]
        case 3:
            return (3).to_bytes(4, "big") + bytes([250, FLAG_CRITICAL]) + b"abc"
        case 4:
            return (5).to_bytes(4, "big") + good[4:6] + b"\xdd\xff\xff\xff\xff"
        case _:
            return good + rng.randbytes(20)


def _sign(key: NodeKey, group: bytes, log: bytes, deps: tuple[bytes, ...], add: Add) -> SignedOperation:
    operation = Operation(
        group=group,
        author=key.node_id,
        log=log,
        seq=0,
        prev=None,
        deps=deps,
        refs=(),
        kind=Kind.ADD,
        body=add.encode(),
    )
    return sign_operation(operation, key)
