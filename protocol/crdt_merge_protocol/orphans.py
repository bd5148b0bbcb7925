"""Operations that arrived before what they build on (PROTOCOL R3), in bounded memory (SCENARIOS T18).

An orphan waits under every id it misses. The buffer holds at most 4,096 operations and 16 MiB in total and
an eighth of that per peer; whoever exceeds a bound loses its own oldest orphan, never somebody else's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from .limits import ORPHAN_BYTES_MAX, ORPHANS_MAX, ORPHANS_PER_PEER_MAX
from .operations import SignedOperation


class OrphanBuffer:
    """Keeps orphans until what they miss is accepted."""

    def __init__(self) -> None:
        self._orphans: dict[bytes, tuple[SignedOperation, bytes, set[bytes]]] = {}
        self._waiting: defaultdict[bytes, set[bytes]] = defaultdict(set)
        self._of_peer: defaultdict[bytes, dict[bytes, None]] = defaultdict(dict)
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._orphans)

    def __contains__(self, operation_id: bytes) -> bool:
        return operation_id in self._orphans

    def add(self, signed: SignedOperation, peer: bytes, missing: Iterable[bytes]) -> None:
        """Keep an operation of ``peer`` that misses these ids."""
        if signed.id in self._orphans:
            return
        self._orphans[signed.id] = (signed, peer, set(missing))
        self._of_peer[peer][signed.id] = None
        self._bytes += len(signed.encoded)
        for needed in self._orphans[signed.id][2]:
            self._waiting[needed].add(signed.id)
        while (
            len(self._of_peer[peer]) > ORPHANS_PER_PEER_MAX
            or len(self._orphans) > ORPHANS_MAX
            or self._bytes > ORPHAN_BYTES_MAX
        ):
            self._drop(next(iter(self._of_peer[peer])))

    def accept(self, operation_id: bytes) -> list[SignedOperation]:
        """Note that an operation is accepted; return the orphans that now miss nothing, in id order."""
        ready = []
        for waiting in sorted(self._waiting.pop(operation_id, ())):
            signed, _, missing = self._orphans[waiting]
            missing.discard(operation_id)
            if not missing:
                self._drop(waiting)
                ready.append(signed)
        return ready

    def forget_peer(self, peer: bytes) -> None:
        """Drop what a peer that has gone left behind; a sync with another brings it in causal order."""
        for operation_id in list(self._of_peer.get(peer, ())):
            self._drop(operation_id)
        self._of_peer.pop(peer, None)

    def _drop(self, operation_id: bytes) -> None:
        signed, peer, missing = self._orphans.pop(operation_id)
        self._of_peer[peer].pop(operation_id, None)
        self._bytes -= len(signed.encoded)
        for needed in missing:
            self._waiting[needed].discard(operation_id)
            if not self._waiting[needed]:
                del self._waiting[needed]
