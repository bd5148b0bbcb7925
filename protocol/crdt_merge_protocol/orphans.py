"""Operations that arrived before what they build on (PROTOCOL R3), in bounded memory (SCENARIOS T18).

An orphan waits under *one* id that it misses; when that is accepted, the caller looks what else it misses.
So a peer pays for what it makes us keep: an operation may name a thousand ids. The buffer holds at most 4,096
operations and 16 MiB, and an eighth of either per peer. Whoever exceeds its share loses its own oldest
orphan; if all together exceed the total, the one who has most does.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .limits import ORPHAN_BYTES_MAX, ORPHAN_BYTES_PER_PEER_MAX, ORPHANS_MAX, ORPHANS_PER_PEER_MAX
from .operations import SignedOperation


@dataclass(frozen=True, slots=True)
class Orphan:
    """An operation, who sent it, and one id that it misses."""

    signed: SignedOperation
    peer: bytes
    missing: bytes


@dataclass(slots=True)
class _Share:
    """What one peer has in the buffer, the oldest first."""

    ids: dict[bytes, None] = field(default_factory=dict)
    nbytes: int = 0


class OrphanBuffer:
    """Keeps orphans until what they miss is accepted."""

    def __init__(self) -> None:
        self._orphans: dict[bytes, Orphan] = {}
        self._waiting: dict[bytes, set[bytes]] = {}
        self._shares: dict[bytes, _Share] = {}
        self._nbytes = 0

    def __len__(self) -> int:
        return len(self._orphans)

    def __contains__(self, operation_id: bytes) -> bool:
        return operation_id in self._orphans

    def add(self, signed: SignedOperation, peer: bytes, missing: bytes) -> None:
        """Keep an operation of ``peer`` that misses this id, perhaps among others."""
        if signed.id in self._orphans:
            return
        self._orphans[signed.id] = Orphan(signed, peer, missing)
        self._waiting.setdefault(missing, set()).add(signed.id)
        share = self._shares.setdefault(peer, _Share())
        share.ids[signed.id] = None
        share.nbytes += len(signed.encoded)
        self._nbytes += len(signed.encoded)
        while len(share.ids) > ORPHANS_PER_PEER_MAX or share.nbytes > ORPHAN_BYTES_PER_PEER_MAX:
            self._drop(next(iter(share.ids)))
        while len(self._orphans) > ORPHANS_MAX or self._nbytes > ORPHAN_BYTES_MAX:
            fullest = max(sorted(self._shares), key=lambda peer: self._shares[peer].nbytes)
            self._drop(next(iter(self._shares[fullest].ids)))

    def accept(self, operation_id: bytes) -> list[Orphan]:
        """Note that an operation is accepted; take out and return what waited for it, in id order."""
        return [self._drop(waiting) for waiting in sorted(self._waiting.get(operation_id, ()))]

    def forget_peer(self, peer: bytes) -> None:
        """Drop what a peer that has gone left behind; a sync with another brings it in causal order."""
        share = self._shares.get(peer)
        for operation_id in list(share.ids) if share else ():
            self._drop(operation_id)

    def _drop(self, operation_id: bytes) -> Orphan:
        orphan = self._orphans.pop(operation_id)
        nbytes = len(orphan.signed.encoded)
        self._nbytes -= nbytes
        share = self._shares[orphan.peer]
        del share.ids[operation_id]
        share.nbytes -= nbytes
        if not share.ids:
            del self._shares[orphan.peer]
        waiting = self._waiting[orphan.missing]
        waiting.discard(operation_id)
        if not waiting:
            del self._waiting[orphan.missing]
        return orphan
