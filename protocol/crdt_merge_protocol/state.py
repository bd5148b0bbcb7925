"""The replicated state of a group: a set of signed operations, and what follows from it (PROTOCOL 1).

The state is a grow-only set and join is its union, so the laws of a CRDT hold by construction; everything
else (roots, view, heads, version vector) is a function of the set alone and is kept up to date as it grows.
In the paper's notation: A and R are :attr:`CRDTMergeState.adds` and :attr:`~CRDTMergeState.removes`, V is
:attr:`~CRDTMergeState.version_vector`, H the trie behind :attr:`~CRDTMergeState.sync_root`.

1. Delivery is causal: an operation enters after its prev, deps and refs (R3).
2. What the envelope promises about the past is checked on entry (R5); signatures are checked before, by
   :meth:`SignedOperation.parse`.
3. Nothing that a body says can keep an operation out (R2, R22), except that a REVOKE drops what it lets
   count no more and nothing that stays was made after (R7). That is a function of the set as well: what is
   *kept* of a union is kept of either side.
4. What is dropped, or arrives and is not kept, is *aside*: no part of the state, but remembered until the
   caller has it forgotten. What is then made after it brings it in again, whoever knew the REVOKE first.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet

from .errors import LocalProtocolError, MalformedMessageError
from .genesis import Genesis
from .limits import DEPS_MAX
from .merkle import Trie
from .operations import Act, Add, Body, Operation, Revoke, SignedOperation, read_body
from .slots import Fate
from .standing import Standing
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
        self._visibility = Visibility(genesis)
        self._standing = Standing(genesis, self.group)
        self.aside_bytes = 0
        """Of operations that are no part of the state, but remembered."""
        self._aside: dict[bytes, SignedOperation] = {}
        self._dropped: dict[bytes, None] = {}
        """Aside since :meth:`take_dropped` was last called. A dict, to have an order."""

    def __contains__(self, operation_id: object) -> bool:
        return operation_id in self._operations

    def __len__(self) -> int:
        return len(self._operations)

    def get(self, operation_id: bytes) -> SignedOperation | None:
        """Return an operation, or None if it is not here."""
        return self._operations.get(operation_id)

    def find(self, operation_id: bytes) -> SignedOperation | None:
        """Return an operation that is here or aside, or None."""
        return self._operations.get(operation_id) or self._aside.get(operation_id)

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
        if missing and self._aside:
            missing = [parent for parent in missing if parent not in self._aside]
        return tuple(sorted(missing)) if missing else ()

    def apply(self, signed: SignedOperation) -> bool:
        """Take in an operation whose signature was verified; False if it was here, or is not kept.

        Nothing changes if it raises.

        Raises:
            LocalProtocolError: A part of its past is missing.
            MalformedMessageError: It belongs to another group, or does not continue its own log (R5).
        """
        operation, operation_id = signed.operation, signed.id
        if operation_id in self._operations:
            return False
        if operation_id in self._aside:
            self._dropped[operation_id] = None  # It may have been stored for nothing.
            return False
        if operation.group != self.group:
            raise MalformedMessageError(
                f"operation {operation_id.hex()[:12]} belongs to group {operation.group.hex()[:12]}, "
                f"not to {self.group.hex()[:12]}."
            )
        parents = operation.parents
        is_complete = parents <= self._operations.keys()
        if not is_complete and self.missing(signed):
            raise LocalProtocolError(f"operation {operation_id.hex()[:12]} was applied before its past.")
        self._check_log(operation)
        body = read_body(operation)
        standing = self._standing
        is_act = isinstance(body, Act) and standing.judge(operation_id, operation, body)
        if (
            standing.is_anybody_revoked
            and not is_act
            and not standing.is_standing(operation_id, operation.author)
        ):
            self.set_aside(signed)
            self._dropped[operation_id] = None
            return False
        for past in () if is_complete else self.aside_past([signed]):
            self._take_aside(past.id)
            self._dropped.pop(past.id, None)
            self._enter(past, read_body(past.operation), past.operation.parents)
        self._enter(signed, body, parents)
        if is_act and isinstance(body, Revoke) and standing.revoke(body, self._operations):
            self._drop(body.key)
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
        twin._standing = self._standing.copy()
        twin.aside_bytes = self.aside_bytes
        twin._aside, twin._dropped = dict(self._aside), dict(self._dropped)
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

    def fates(self) -> Iterator[tuple[bytes, Add, Fate]]:
        """Yield (tag, ADD, what may yet become of it) of every readable ADD. Linear."""
        return self._visibility.fates(self._standing)

    @property
    def acts(self) -> frozenset[bytes]:
        """Ids of the acts of administrators that have an effect."""
        return frozenset(self._standing.acts)

    @property
    def version_vector(self) -> dict[tuple[bytes, bytes], int]:
        """(author, log) -> greatest seq here; everything below it is here too."""
        return dict(self._logs)

    def heads(self) -> frozenset[bytes]:
        """Return the operations that no other one was made after."""
        return frozenset(self._heads)

    def choose_deps(self) -> tuple[bytes, ...]:
        """Return what a new operation should be made after: heads, at most 64, sorted.

        Acts that have an effect come first, so that they are in the past of what follows them, then the
        deepest heads (PROTOCOL R1). More concurrent heads than that are joined by later operations.
        """
        acts = self._standing.acts & self._heads
        chosen = sorted(acts, key=lambda id_: (-self._depths[id_], id_))[:DEPS_MAX]
        ranks: list[tuple[int, bytes]] = []
        while self._deepest and len(chosen) < DEPS_MAX:
            rank = heapq.heappop(self._deepest)
            if rank[1] in self._heads:
                ranks.append(rank)
                if rank[1] not in acts:
                    chosen.append(rank[1])
        for rank in ranks:
            heapq.heappush(self._deepest, rank)
        return tuple(sorted(chosen))

    def causal(self, ids: Iterable[bytes] | None = None) -> list[SignedOperation]:
        """Return operations in (depth, id) order, hence each after its past; all of them by default.

        ``ids`` may have been dropped, as long as they were not forgotten.

        Raises:
            LocalProtocolError: One of ``ids`` is not here.
        """
        if ids is None:
            self._causal.sort()
            return [self._operations[operation_id] for _, operation_id in self._causal]
        ranks = sorted((self.depth(operation_id), operation_id) for operation_id in set(ids))
        here, aside = self._operations, self._aside
        return [here[id_] if id_ in here else aside[id_] for _, id_ in ranks]

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

    @property
    def has_dropped(self) -> bool:
        """Whether :meth:`take_dropped` may have something to say."""
        return bool(self._dropped)

    @property
    def is_anybody_revoked(self) -> bool:
        """Whether there is a REVOKE with an effect. Until then nothing is excluded, and nothing aside."""
        return self._standing.is_anybody_revoked

    def is_aside(self, operation_id: bytes) -> bool:
        """Tell whether an operation was dropped, or came and was not kept, and is remembered."""
        return operation_id in self._aside

    def is_excluded(self, signed: SignedOperation) -> bool:
        """Tell whether no REVOKE that is here lets an operation count, so that it is not kept by itself."""
        operation = signed.operation
        if self._standing.is_standing(signed.id, operation.author):
            return False
        body = read_body(operation)
        return not (isinstance(body, Act) and self._standing.may_act(operation, body))

    def aside_past(self, operations: Iterable[SignedOperation]) -> list[SignedOperation]:
        """Return what is aside of the past of some operations, in causal order."""
        found: list[SignedOperation] = []
        if not self._aside:
            return found
        seen: set[bytes] = set()
        for signed in operations:
            pending = [(parent, False) for parent in sorted(signed.operation.parents)]
            while pending:
                operation_id, is_done = pending.pop()
                past = self._aside.get(operation_id)
                if past is None:
                    continue
                if is_done:
                    found.append(past)
                elif operation_id not in seen:
                    seen.add(operation_id)
                    pending.append((operation_id, True))
                    pending.extend((parent, False) for parent in sorted(past.operation.parents))
        return found

    def set_aside(self, signed: SignedOperation) -> None:
        """Remember an operation that is excluded, and that nothing kept is made after yet."""
        if signed.id not in self._aside:
            self._aside[signed.id] = signed
            self.aside_bytes += len(signed.encoded)

    def take_dropped(self, *, but: AbstractSet[bytes] = frozenset()) -> tuple[bytes, ...]:
        """Return what was dropped since the last call, but for some; it need not be stored any more.

        They may be made after each other: whoever deletes one deletes all, or none.
        """
        ready = [operation_id for operation_id in self._dropped if operation_id not in but]
        for operation_id in ready:
            del self._dropped[operation_id]
        return tuple(ready)

    def forget_aside(self, *, but: AbstractSet[bytes] = frozenset(), is_all: bool = True) -> None:
        """Forget what is aside. What is made after it cannot be applied any more.

        Args:
            but: What is remembered all the same.
            is_all: Also what was part of the state once, which a sync session may be about to send.
        """
        for operation_id in [one for one in self._aside if one not in but]:
            if is_all or operation_id not in self._depths:
                self._take_aside(operation_id)
                self._depths.pop(operation_id, None)
                self._standing.forget(operation_id)

    def _take_aside(self, operation_id: bytes) -> None:
        self.aside_bytes -= len(self._aside.pop(operation_id).encoded)

    def _check_log(self, operation: Operation) -> None:
        """Refuse an operation whose ``prev`` is not the one before it in its own log (R5, SCENARIOS B24)."""
        if operation.prev is None:
            return
        before = (self._operations.get(operation.prev) or self._aside[operation.prev]).operation
        if (before.author, before.log, before.seq + 1) != (operation.author, operation.log, operation.seq):
            raise MalformedMessageError(f"operation {operation.seq} of a log does not continue it.")

    def _enter(self, signed: SignedOperation, body: Body | None, parents: frozenset[bytes]) -> None:
        operation, operation_id = signed.operation, signed.id
        depth = 1 + max(map(self._depths.__getitem__, parents), default=0)
        self._operations[operation_id] = signed
        self._depths[operation_id] = depth
        self._causal.append((depth, operation_id))
        self.trie.insert(operation_id)
        self._heads -= parents
        self._heads.add(operation_id)
        heapq.heappush(self._deepest, (-depth, operation_id))
        if len(self._deepest) > 2 * len(self._heads) + DEPS_MAX:
            self._rebuild_deepest()
        place = (operation.author, operation.log)
        if operation.seq > self._logs.get(place, -1):
            self._logs[place] = operation.seq
        if not self.genesis.is_open:
            self._standing.carry(operation_id, parents, body)
        self._visibility.apply(operation_id, operation, body, depth, standing=self._standing)

    def _rebuild_deepest(self) -> None:
        self._deepest = [(-self._depths[head], head) for head in self._heads]
        heapq.heapify(self._deepest)

    def _drop(self, revoked: bytes) -> None:
        """Judge anew after a REVOKE of a key: put aside what is not kept, and see what the rest means.

        A quick look at every operation, and a thorough one at those of the key, and of others that were
        revoked before and of whom something was kept only for the sake of this one. Only signatures of
        administrators make it happen.
        """
        standing, operations = self._standing, self._operations
        self._causal.sort()
        wanted: set[bytes] = set()
        kept: list[tuple[int, bytes]] = []
        gone: dict[bytes, Body | None] = {}
        authors = {revoked}
        for rank in reversed(self._causal):
            operation_id = rank[1]
            operation = operations[operation_id].operation
            if (
                standing.is_standing(operation_id, operation.author)
                or operation_id in wanted
                or operation_id in standing.acts
            ):
                kept.append(rank)
                wanted.update(operation.deps, operation.refs)
                if operation.prev is not None:
                    wanted.add(operation.prev)
                continue
            self.set_aside(operations.pop(operation_id))
            self._dropped[operation_id] = None
            self.trie.discard(operation_id)
            gone[operation_id] = read_body(operation)
            authors.add(operation.author)
        self._causal = kept[::-1]
        self._heads = operations.keys() - wanted
        self._rebuild_deepest()
        self._say_anew(authors, gone)

    def _say_anew(self, authors: AbstractSet[bytes], gone: Mapping[bytes, Body | None]) -> None:
        """Bring what some authors said, of whom less counts and is here now, to what it means now."""
        said: list[tuple[bytes, Operation, Body | None]] = []
        self._logs = {place: seq for place, seq in self._logs.items() if place[0] not in authors}
        for _, operation_id in self._causal:
            operation = self._operations[operation_id].operation
            if operation.author in authors:
                said.append((operation_id, operation, read_body(operation)))
                place = (operation.author, operation.log)
                self._logs[place] = max(self._logs.get(place, -1), operation.seq)
        self._visibility.revise(authors, gone, said, standing=self._standing)
