"""The view kept up to date while operations arrive. It must always equal ``view_of`` over the same set.

Theory of operation. Delivery is causal, and REMOVE and HOLD name only what is in their refs; so whatever an
operation acts upon is here before it, and each kind changes little:

* ADD enters the list of its (author, type, slot), REMOVE takes one out, HOLD may move one from the *unheld*
  to the *held* list. The newest of *held* is visible, the *unheld* newer than it are pending.
* A fork hides all slots of its author, once. Since ``prev`` is always here, places 0..n of a log are all
  taken: an operation at or below the greatest seq seen in its log *is* the second one at its place.
* A POLICY that changes ``holders`` sorts all slots anew; that is linear, and takes signatures of
  administrators, so nobody else can make it happen.

Slots that changed are only marked; reading :attr:`Visibility.view` then updates two sorted lists. So an
operation costs microseconds and logarithmic searches, whatever the size of the history (SCENARIOS T49).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Set as AbstractSet
from typing import TypeAlias

from .bodies import Add, Hold, PolicyAct, Remove
from .genesis import Genesis
from .operations import Operation, read_body
from .policy import Policy
from .view import ADMITTED_UNJUDGED, View, Visible, has_quorum

Rank: TypeAlias = tuple[int, bytes]
"""(depth, id): of two ADDs in a slot the greater one is the newer."""


class _Candidate:
    """An ADD and who holds it."""

    __slots__ = ("add", "author", "depth", "holders", "is_removed", "shown", "tag")

    def __init__(self, tag: bytes, author: bytes, depth: int, add: Add) -> None:
        self.tag = tag
        self.author = author
        self.depth = depth
        self.add = add
        self.holders: set[bytes] = set()
        self.is_removed = False
        self.shown: Visible | None = None

    def show(self) -> Visible:
        """Return how the view shows it; the same object until its holders change."""
        if self.shown is None or self.shown.holders != len(self.holders):
            add = self.add
            self.shown = Visible(
                tag=self.tag,
                author=self.author,
                slot=add.slot,
                type=add.type,
                content=add.content,
                weight=add.weight,
                payload=add.payload,
                digest=add.digest,
                depth=self.depth,
                holders=len(self.holders),
            )
        return self.shown

    def copy(self) -> _Candidate:
        """Return an independent copy."""
        twin = _Candidate(self.tag, self.author, self.depth, self.add)
        twin.holders = set(self.holders)
        twin.is_removed = self.is_removed
        twin.shown = self.shown
        return twin


class _Slot:
    """The ADDs of one (author, type, slot) that nobody removed, in ascending rank, and what was published."""

    __slots__ = ("held", "pending", "unheld", "visible")

    def __init__(self) -> None:
        self.held: list[Rank] = []
        self.unheld: list[Rank] = []
        self.visible: tuple[Visible, ...] = ()
        self.pending: tuple[Visible, ...] = ()

    def put(self, rank: Rank, *, is_held: bool) -> None:
        """Enter an ADD."""
        insort(self.held if is_held else self.unheld, rank)

    def take(self, rank: Rank, *, is_held: bool) -> None:
        """Take an ADD out."""
        ranks = self.held if is_held else self.unheld
        del ranks[bisect_left(ranks, rank)]

    def copy(self) -> _Slot:
        """Return an independent copy."""
        twin = _Slot()
        twin.held, twin.unheld = list(self.held), list(self.unheld)
        twin.visible, twin.pending = self.visible, self.pending
        return twin


class _SortedRows:
    """Shown contributions in the order of the view."""

    __slots__ = ("_as_tuple", "_rows")

    def __init__(self) -> None:
        self._rows: list[Visible] = []
        self._as_tuple: tuple[Visible, ...] | None = ()

    def replace(self, out: list[Visible], new: list[Visible]) -> None:
        """Take rows out and put new ones in; one by one if they are few, else by sorting all anew."""
        if not out and not new:
            return
        self._as_tuple = None
        if 8 * (len(out) + len(new)) > len(self._rows):
            gone = {row.tag for row in out}
            self._rows = [row for row in self._rows if row.tag not in gone] + new
            self._rows.sort(key=_order)
            return
        for row in out:
            del self._rows[bisect_left(self._rows, _order(row), key=_order)]
        for row in new:
            insort(self._rows, row, key=_order)

    def as_tuple(self) -> tuple[Visible, ...]:
        """Return the rows; the same object until they change."""
        if self._as_tuple is None:
            self._as_tuple = tuple(self._rows)
        return self._as_tuple

    def copy(self) -> _SortedRows:
        """Return an independent copy."""
        twin = _SortedRows()
        twin._rows, twin._as_tuple = list(self._rows), self._as_tuple
        return twin


class Visibility:
    """The view of a growing set. Feed it every operation once, after its past."""

    def __init__(self, genesis: Genesis, group: bytes) -> None:
        self._genesis = genesis
        self._group = group
        self._policy = genesis.policy
        self._policy_id: bytes | None = None
        self._policy_versions: dict[bytes, int] = {}
        """Id and version of every POLICY that has an effect."""
        self._candidates: dict[bytes, _Candidate] = {}
        self._slots: dict[bytes, dict[tuple[str, str], _Slot]] = {}
        """Author -> (type, slot) -> its ADDs."""
        self._forked: set[bytes] = set()
        self._unread = 0
        self._changed: dict[tuple[bytes, str, str], None] = {}
        """Slots to publish anew. A dict, because the order of a set depends on the hash seed."""
        self._visible = _SortedRows()
        self._pending = _SortedRows()
        self._view: View | None = None

    def apply(self, operation_id: bytes, operation: Operation, depth: int, *, is_fork: bool) -> None:
        """Take in one operation whose past is here. Never raises on content."""
        body = read_body(operation)
        if is_fork and operation.author not in self._forked:
            self._forked.add(operation.author)
            self._mark(operation.author)
            self._view = None
        if isinstance(body, Add):
            self._add(operation_id, operation.author, depth, body)
        elif isinstance(body, Remove):
            self._remove(operation, body)
        elif isinstance(body, Hold):
            self._hold(operation, body)
        elif isinstance(body, PolicyAct):
            self._change_policy(operation_id, operation, body)
        else:
            self._unread += 1
            self._view = None

    @property
    def view(self) -> View:
        """The view of everything applied; the same object until it changes."""
        if self._changed:
            self._publish()
        if self._view is None:
            self._view = View(
                policy=self._policy,
                policy_id=self._policy_id,
                visible=self._visible.as_tuple(),
                forked=frozenset(self._forked),
                pending=self._pending.as_tuple(),
                unread=self._unread,
                unjudged="" if self._genesis.is_open else ADMITTED_UNJUDGED,
            )
        return self._view

    @property
    def adds(self) -> frozenset[bytes]:
        """Tags of all readable ADDs, whatever became of them."""
        return frozenset(self._candidates)

    @property
    def removes(self) -> frozenset[bytes]:
        """Tags of the ADDs that were removed."""
        return frozenset(tag for tag, candidate in self._candidates.items() if candidate.is_removed)

    @property
    def effective_policies(self) -> AbstractSet[bytes]:
        """Ids of the POLICYs that have an effect."""
        return self._policy_versions.keys()

    def copy(self) -> Visibility:
        """Return an independent copy."""
        twin = Visibility(self._genesis, self._group)
        twin._policy, twin._policy_id = self._policy, self._policy_id
        twin._policy_versions = dict(self._policy_versions)
        twin._candidates = {tag: candidate.copy() for tag, candidate in self._candidates.items()}
        twin._slots = {
            author: {key: slot.copy() for key, slot in slots.items()} for author, slots in self._slots.items()
        }
        twin._forked = set(self._forked)
        twin._unread = self._unread
        twin._changed = dict(self._changed)
        twin._visible, twin._pending = self._visible.copy(), self._pending.copy()
        twin._view = self._view
        return twin

    def _add(self, tag: bytes, author: bytes, depth: int, add: Add) -> None:
        self._candidates[tag] = _Candidate(tag, author, depth, add)
        slot = self._slots.setdefault(author, {}).setdefault((add.type, add.slot), _Slot())
        slot.put((depth, tag), is_held=self._policy.holders == 0)
        self._changed[author, add.type, add.slot] = None

    def _remove(self, operation: Operation, remove: Remove) -> None:
        for tag in set(remove.targets).intersection(operation.refs):
            candidate = self._candidates.get(tag)
            if candidate is None or candidate.author != operation.author or candidate.is_removed:
                continue
            candidate.is_removed = True
            self._slot_of(candidate).take((candidate.depth, tag), is_held=self._is_held(candidate))

    def _hold(self, operation: Operation, hold: Hold) -> None:
        for tag in set(hold.tags).intersection(operation.refs):
            candidate = self._candidates.get(tag)
            if candidate is None or operation.author == candidate.author:
                continue
            if operation.author in candidate.holders:
                continue
            was_held = self._is_held(candidate)
            candidate.holders.add(operation.author)
            if candidate.is_removed:
                continue
            slot = self._slot_of(candidate)
            if self._is_held(candidate) and not was_held:
                slot.take((candidate.depth, tag), is_held=False)
                slot.put((candidate.depth, tag), is_held=True)

    def _change_policy(self, operation_id: bytes, operation: Operation, act: PolicyAct) -> None:
        versions = (self._policy_versions.get(ref, 0) for ref in operation.refs)
        before = max(versions, default=0) or self._genesis.policy.version
        if act.policy.version != before + 1 or not has_quorum(self._genesis, self._group, act):
            return
        self._policy_versions[operation_id] = act.policy.version
        if (act.policy.version, operation_id) > (self._policy.version, self._policy_id or b""):
            previous, self._policy, self._policy_id = self._policy, act.policy, operation_id
            self._view = None
            if previous.holders != act.policy.holders:
                self._sort_anew(act.policy)

    def _sort_anew(self, policy: Policy) -> None:
        """Divide all slots into held and unheld by another number of holders."""
        for author, slots in self._slots.items():
            self._mark(author)
            for slot in slots.values():
                ranks = sorted(slot.held + slot.unheld)
                enough = {tag for _, tag in ranks if len(self._candidates[tag].holders) >= policy.holders}
                slot.held = [rank for rank in ranks if rank[1] in enough]
                slot.unheld = [rank for rank in ranks if rank[1] not in enough]

    def _is_held(self, candidate: _Candidate) -> bool:
        return len(candidate.holders) >= self._policy.holders

    def _slot_of(self, candidate: _Candidate) -> _Slot:
        """Return the slot of an ADD, which is about to change."""
        key = (candidate.add.type, candidate.add.slot)
        self._changed[candidate.author, *key] = None
        return self._slots[candidate.author][key]

    def _mark(self, author: bytes) -> None:
        for kind, name in self._slots.get(author, ()):
            self._changed[author, kind, name] = None

    def _publish(self) -> None:
        """Bring the sorted lists up to date with the slots that changed."""
        out: tuple[list[Visible], list[Visible]] = ([], [])
        new: tuple[list[Visible], list[Visible]] = ([], [])
        for author, kind, name in self._changed:
            slot = self._slots[author][kind, name]
            before = (slot.visible, slot.pending)
            slot.visible, slot.pending = self._choose(author, slot)
            for index, after in enumerate((slot.visible, slot.pending)):
                kept = {*before[index]}.intersection(after)
                out[index].extend(row for row in before[index] if row not in kept)
                new[index].extend(row for row in after if row not in kept)
        self._changed.clear()
        self._visible.replace(out[0], new[0])
        self._pending.replace(out[1], new[1])
        self._view = None

    def _choose(self, author: bytes, slot: _Slot) -> tuple[tuple[Visible, ...], tuple[Visible, ...]]:
        """Return what a slot shows and what it would show if it were held (rule 5 of the view)."""
        if author in self._forked or not self._genesis.is_open:
            return (), ()
        newest = slot.held[-1:]
        newer = slot.unheld[bisect_right(slot.unheld, newest[0]) if newest else 0 :]
        visible = tuple(self._candidates[tag].show() for _, tag in newest)
        return visible, tuple(self._candidates[tag].show() for _, tag in newer)


def _order(row: Visible) -> tuple[bytes, bytes]:
    return row.digest, row.tag
