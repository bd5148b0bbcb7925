"""The replicated state of a group: a set of signed operations, and what follows from it (PROTOCOL 1).

The state is a grow-only set and join is its union, so the laws of a CRDT hold by construction; everything
else (roots, view, heads, version vector) is a function of the set alone and is kept up to date as it grows.
In the paper's notation: A and R are :attr:`CRDTMergeState.adds` and :attr:`~CRDTMergeState.removes`, V is
:attr:`~CRDTMergeState.version_vector`, H the trie behind :attr:`~CRDTMergeState.sync_root`.

1. Delivery is causal: an operation enters after its prev, deps and refs (R3).
2. What the envelope promises about the past is checked on entry (R5); signatures are checked before, by
   :meth:`SignedOperation.parse`.
3. Nothing that a body says can keep an operation out (R2, R22).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from .errors import LocalProtocolError, MalformedMessageError
from .genesis import Genesis
from .limits import DEPS_MAX
from .merkle import Trie
from .operations import Operation, SignedOperation
from .view import View
from .visibility import Visibility


class CRDTMergeState:
    """The operations of one group and their meaning. Copies are independent; operations are immutable."""

    def __init__(self, genesis: Genesis) -> None:
        self.genesis = genesis
        self.group = genesis.group
        self.trie = Trie()
        self._operations: dict[bytes, SignedOperation] = {}
        self._depths: dict[bytes, int] = {}
        self._heads: set[bytes] = set()
        self._deepest: list[tuple[int, bytes]] = []
        """Heap of (-depth, id) that has every head, and some that are heads no more."""
        self._logs: dict[tuple[bytes, bytes], int] = {}
        self._causal: list[tuple[int, bytes]] = []
        """All (depth, id); sorted when it is read, which is cheap because it nearly is."""
        self._visibility = Visibility(genesis, self.group)

    def __contains__(self, operation_id: object) -> bool:
        return operation_id in self._operations

    def __len__(self) -> int:
        return len(self._operations)

    def get(self, operation_id: bytes) -> SignedOperation | None:
        """Return an operation, or None if it is not here."""
        return self._operations.get(operation_id)

    def depth(self, operation_id: bytes) -> int:
        """Return 1 + the greatest depth of an operation's prev, deps and refs.

        Raises:
            LocalProtocolError: It is not here.
        """
        if operation_id not in self._depths:
            raise LocalProtocolError(f"operation {operation_id.hex()[:12]} is not here.")
        return self._depths[operation_id]

    def missing(self, signed: SignedOperation) -> tuple[bytes, ...]:
        """Return what must be delivered before an operation and is not here (PROTOCOL R3), sorted."""
        here = self._operations
        missing = [parent for parent in signed.operation.parents if parent not in here]
        return tuple(sorted(missing)) if missing else ()

    def apply(self, signed: SignedOperation) -> bool:
        """Take in an operation whose signature was verified; False if it was here.

        Nothing changes if it raises.

        Raises:
            LocalProtocolError: A part of its past is missing.
            MalformedMessageError: It belongs to another group, or does not continue its own log (R5).
        """
        operation, operation_id = signed.operation, signed.id
        if operation_id in self._operations:
            return False
        if operation.group != self.group:
            raise MalformedMessageError(
                f"operation {operation_id.hex()[:12]} belongs to group {operation.group.hex()[:12]}, "
                f"not to {self.group.hex()[:12]}."
            )
        parents = operation.parents
        if not parents <= self._operations.keys():
            raise LocalProtocolError(f"operation {operation_id.hex()[:12]} was applied before its past.")
        self._check_log(operation)
        self._enter(signed, 1 + max((self._depths[parent] for parent in parents), default=0), parents)
        return True

    def join(self, other: CRDTMergeState) -> None:
        """Take in everything that another state of the group holds; it stays as it is.

        Raises:
            LocalProtocolError: It is a state of another group.
        """
        if other.group != self.group:
            raise LocalProtocolError("states of two groups cannot be joined.")
        for signed in other.causal(other._operations.keys() - self._operations.keys()):
            self.apply(signed)

    def copy(self) -> CRDTMergeState:
        """Return an independent copy."""
        twin = CRDTMergeState(self.genesis)
        twin.trie = self.trie.copy()
        twin._operations = dict(self._operations)
        twin._depths = dict(self._depths)
        twin._heads, twin._deepest = set(self._heads), list(self._deepest)
        twin._logs = dict(self._logs)
        twin._causal = list(self._causal)
        twin._visibility = self._visibility.copy()
        return twin

    @property
    def sync_root(self) -> bytes:
        """Trie root over the operation ids, 32 bytes. Equal roots: equal sets, hence equal everything."""
        return self.trie.root

    @property
    def view(self) -> View:
        """What the set means. The same object until it means something else."""
        return self._visibility.view

    @property
    def adds(self) -> frozenset[bytes]:
        """Tags of all readable ADDs, whatever became of them."""
        return self._visibility.adds

    @property
    def removes(self) -> frozenset[bytes]:
        """Tags of the ADDs that were removed."""
        return self._visibility.removes

    @property
    def version_vector(self) -> dict[tuple[bytes, bytes], int]:
        """(author, log) -> greatest seq here; everything below it is here too."""
        return dict(self._logs)

    def heads(self) -> frozenset[bytes]:
        """Return the operations that no other one was made after."""
        return frozenset(self._heads)

    def choose_deps(self) -> tuple[bytes, ...]:
        """Return what a new operation should be made after: heads, at most 64, sorted.

        Policies in force come first, so that they are in the past of what follows them, then the deepest
        heads (PROTOCOL R1). More concurrent heads than that are joined by later operations.
        """
        policies = self._visibility.effective_policies & self._heads
        chosen = sorted(policies, key=lambda id_: (-self._depths[id_], id_))[:DEPS_MAX]
        ranks: list[tuple[int, bytes]] = []
        while self._deepest and len(chosen) < DEPS_MAX:
            rank = heapq.heappop(self._deepest)
            if rank[1] in self._heads:
                ranks.append(rank)
                if rank[1] not in policies:
                    chosen.append(rank[1])
        for rank in ranks:
            heapq.heappush(self._deepest, rank)
        return tuple(sorted(chosen))

    def causal(self, ids: Iterable[bytes] | None = None) -> list[SignedOperation]:
        """Return operations in (depth, id) order, hence each after its past; all of them by default.

        Raises:
            LocalProtocolError: One of ``ids`` is not here.
        """
        if ids is None:
            self._causal.sort()
            return [self._operations[operation_id] for _, operation_id in self._causal]
        ranks = sorted((self.depth(operation_id), operation_id) for operation_id in set(ids))
        return [self._operations[operation_id] for _, operation_id in ranks]

    def fork_proof(self, author: bytes) -> tuple[SignedOperation, SignedOperation] | None:
        """Return two operations by an author at one place of one log, the first by (depth, id), or None."""
        seen: dict[tuple[bytes, int], SignedOperation] = {}
        for signed in self.causal() if author in self.view.forked else ():
            if signed.operation.author != author:
                continue
            place = (signed.operation.log, signed.operation.seq)
            if place in seen:
                return seen[place], signed
            seen[place] = signed
        return None

    def _check_log(self, operation: Operation) -> None:
        """Refuse an operation whose ``prev`` is not the one before it in its own log (R5, SCENARIOS B24)."""
        if operation.prev is None:
            return
        before = self._operations[operation.prev].operation
        if (before.author, before.log, before.seq + 1) != (operation.author, operation.log, operation.seq):
            raise MalformedMessageError(f"operation {operation.seq} of a log does not continue it.")

    def _enter(self, signed: SignedOperation, depth: int, parents: frozenset[bytes]) -> None:
        operation, operation_id = signed.operation, signed.id
        self._operations[operation_id] = signed
        self._depths[operation_id] = depth
        self._causal.append((depth, operation_id))
        self.trie.insert(operation_id)
        self._heads -= parents
        self._heads.add(operation_id)
        heapq.heappush(self._deepest, (-depth, operation_id))
        if len(self._deepest) > 2 * len(self._heads) + DEPS_MAX:
            self._deepest = [(-self._depths[head], head) for head in self._heads]
            heapq.heapify(self._deepest)
        place = (operation.author, operation.log)
        newest = self._logs.get(place, -1)
        self._logs[place] = max(newest, operation.seq)
        # prev is always here, so all places up to the newest are taken (see visibility.py).
        self._visibility.apply(operation_id, operation, depth, is_fork=operation.seq <= newest)
