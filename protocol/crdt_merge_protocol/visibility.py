"""The view kept up to date while operations arrive. It must always equal ``view_of`` over the same set.

Theory of operation. Delivery is causal, and REMOVE and HOLD name only what is in their refs; so whatever an
operation acts upon is here before it, and each kind changes little:

* ADD enters the list of its (author, type, slot), REMOVE takes one out, HOLD may move one from the *unheld*
  to the *held* list. The newest of *held* is visible, the *unheld* newer than it are pending.
* A fork hides all slots of its author, once. What counts of a log is, in an open group, its places 0..n: an
  operation at or below the greatest seq that counts *is* the second one at its place. Where authors are
  admitted, counting begins at different places of two branches, so all places are remembered.
* A BAN or ERASE looks through all ADDs for contents that were not banned before. A POLICY that changes
  ``holders`` sorts all slots anew. Both are linear, and take signatures of administrators; sent again they
  cost nothing, so nobody else can make it happen.
* A REVOKE lets less of an author count: the traces of that author are taken out of everything, by a look at
  every ADD, and what the author said is taken in anew. What others said stands as it was.

Slots that changed are only marked; reading :attr:`Visibility.view` then updates two sorted lists. So an
operation costs microseconds and logarithmic searches, whatever the size of the history (SCENARIOS T49).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet

from .bodies import Add, Admit, Ban, Body, Erase, Hold, PolicyAct, Receipt, Remove, Revoke
from .deciding import Deciding
from .genesis import Genesis
from .operations import Operation
from .policy import Policy
from .slots import Candidate, Fate, Slot, SortedRows
from .standing import Standing
from .view import View, Visible


class Visibility:
    """The view of a growing set. Feed it every operation once, after its past."""

    def __init__(self, genesis: Genesis) -> None:
        self._genesis = genesis
        self._policy = genesis.policy
        self._policy_id: bytes | None = None
        self._candidates: dict[bytes, Candidate] = {}
        self._slots: dict[bytes, dict[tuple[str, str], Slot]] = {}
        """Author -> (type, slot) -> its ADDs."""
        self._decided = Deciding()
        self._newest: dict[tuple[bytes, bytes], int] = {}
        """In an open group: (author, log) -> the greatest seq that counts."""
        self._places: set[tuple[bytes, bytes, int]] = set()
        """In a group that admits its authors: every (author, log, seq) that counts."""
        self._forked: set[bytes] = set()
        self._unread = 0
        self._changed: dict[tuple[bytes, str, str], None] = {}
        """Slots to publish anew. A dict, because the order of a set depends on the hash seed."""
        self._visible = SortedRows()
        self._pending = SortedRows()
        self._view: View | None = None

    def apply(
        self,
        operation_id: bytes,
        operation: Operation,
        body: Body | None,
        depth: int,
        *,
        standing: Standing,
    ) -> None:
        """Take in one operation whose past is here. Never raises on content."""
        author = operation.author
        is_counted = standing.is_all_counted or standing.is_counted(operation_id, author)
        if is_counted and author not in self._forked and self._is_second(operation):
            self._forked.add(author)
            self._mark(author)
            self._view = None
        if isinstance(body, Add):
            self._add(operation_id, author, depth, body, is_counted=is_counted)
        elif isinstance(body, Hold):
            if is_counted:
                self._hold(operation, body)
        elif isinstance(body, Remove):
            is_act = operation_id in standing.acts
            if is_act or is_counted:
                self._remove(operation, body, is_act=is_act)
        elif body is None:
            self._unread += 1
            self._view = None
        elif isinstance(body, Receipt):
            if standing.is_standing(operation_id, author):
                self._note_receipt(operation, body)
        elif operation_id in standing.acts:
            self._act(operation_id, operation, body)

    def revise(
        self,
        authors: AbstractSet[bytes],
        gone: Mapping[bytes, Body | None],
        said: Iterable[tuple[bytes, Operation, Body | None]],
        *,
        standing: Standing,
    ) -> None:
        """Judge anew what some authors said, of whom less counts now.

        Args:
            authors: They.
            gone: Ids and bodies of their operations that were dropped.
            said: Their other operations, all of which were applied before, in causal order.
            standing: What counts now.
        """
        self._unsay(authors, gone)
        for operation_id, operation, body in said:
            author = operation.author
            is_counted = standing.is_counted(operation_id, author)
            if is_counted and author not in self._forked and self._is_second(operation):
                self._forked.add(author)
            if isinstance(body, Add):
                candidate = self._candidates[operation_id]
                candidate.is_counted = is_counted
                self._put_in(candidate)
            elif isinstance(body, Receipt):
                if standing.is_standing(operation_id, author):
                    self._note_receipt(operation, body)
            elif is_counted and isinstance(body, Hold):
                self._hold(operation, body)
            elif is_counted and isinstance(body, Remove) and operation_id not in standing.acts:
                self._remove(operation, body, is_act=False)

    def _unsay(self, authors: AbstractSet[bytes], gone: Mapping[bytes, Body | None]) -> None:
        """Take out all that some authors have said, but for acts; their ADDs wait to be put in again."""
        for author in sorted(authors):
            self._mark(author)
        for candidate in self._candidates.values():
            if candidate.author in authors:
                self._take_out(candidate)
                candidate.is_counted = False
                candidate.is_removed = candidate.is_removed_by_act
            if not candidate.holders.isdisjoint(authors):
                self._unhold(candidate, authors)
        for operation_id, body in gone.items():
            self._candidates.pop(operation_id, None)
            self._unread -= body is None
        decided = self._decided
        decided.erased_tags.difference_update(gone)
        decided.receipts = {pair for pair in decided.receipts if pair[1] not in authors}
        self._note_decided()
        self._forked -= authors
        self._newest = {log: seq for log, seq in self._newest.items() if log[0] not in authors}
        self._places = {place for place in self._places if place[0] not in authors}

    def _unhold(self, candidate: Candidate, authors: AbstractSet[bytes]) -> None:
        """Forget that some authors hold an ADD."""
        self._take_out(candidate)
        candidate.holders -= authors
        self._put_in(candidate)

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
                decided=self._decided.freeze(),
                unread=self._unread,
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

    def fates(self, standing: Standing) -> Iterator[tuple[bytes, Add, Fate]]:
        """Yield (tag, ADD, what may yet become of it) of every readable ADD. Linear."""
        past = {tag for slots in self._slots.values() for slot in slots.values() for _, tag in slot.past()}
        for tag, candidate in self._candidates.items():
            add = candidate.add
            if add.content in self._decided.banned or not standing.is_standing(tag, candidate.author):
                yield tag, add, Fate.LOST
            else:
                yield tag, add, Fate.PAST if candidate.is_removed or tag in past else Fate.WANTED

    def copy(self) -> Visibility:
        """Return an independent copy."""
        twin = Visibility(self._genesis)
        twin._policy, twin._policy_id = self._policy, self._policy_id
        twin._candidates = {tag: candidate.copy() for tag, candidate in self._candidates.items()}
        twin._slots = {
            author: {key: slot.copy() for key, slot in slots.items()} for author, slots in self._slots.items()
        }
        twin._decided = self._decided.copy()
        twin._newest, twin._places = dict(self._newest), set(self._places)
        twin._forked = set(self._forked)
        twin._unread = self._unread
        twin._changed = dict(self._changed)
        twin._visible, twin._pending = self._visible.copy(), self._pending.copy()
        twin._view = self._view
        return twin

    def _is_second(self, operation: Operation) -> bool:
        """Note the place of an operation that counts; tell whether another one that counts is there."""
        log = (operation.author, operation.log)
        if self._genesis.is_open:
            newest = self._newest.get(log, -1)
            if operation.seq <= newest:
                return True
            self._newest[log] = operation.seq
            return False
        place = (*log, operation.seq)
        if place in self._places:
            return True
        self._places.add(place)
        return False

    def _add(self, tag: bytes, author: bytes, depth: int, add: Add, *, is_counted: bool) -> None:
        candidate = self._candidates[tag] = Candidate(tag, author, depth, add, is_counted=is_counted)
        if add.content in self._decided.erased:
            self._decided.erased_tags.add(tag)
            self._note_decided()
        self._put_in(candidate)

    def _put_in(self, candidate: Candidate) -> None:
        """Enter an ADD into its slot, unless it is out."""
        if self._is_out(candidate):
            return
        author, add = candidate.author, candidate.add
        slots = self._slots.setdefault(author, {})
        slot = slots.get((add.type, add.slot))
        if slot is None:
            slot = slots[add.type, add.slot] = Slot()
        is_held = len(candidate.holders) >= self._policy.holders
        slot.put((candidate.depth, candidate.tag), is_held=is_held)
        self._changed[author, add.type, add.slot] = None

    def _remove(self, operation: Operation, remove: Remove, *, is_act: bool) -> None:
        for tag in set(remove.targets).intersection(operation.refs):
            candidate = self._candidates.get(tag)
            if candidate is None or not (is_act or candidate.author == operation.author):
                continue
            self._take_out(candidate)
            candidate.is_removed = True
            candidate.is_removed_by_act |= is_act

    def _take_out(self, candidate: Candidate) -> None:
        """Take an ADD out of its slot, where it is unless it is out."""
        if not self._is_out(candidate):
            rank = (candidate.depth, candidate.tag)
            self._slot_of(candidate).take(rank, is_held=self._is_held(candidate))

    def _is_out(self, candidate: Candidate) -> bool:
        """Tell whether an ADD is in no slot: it does not count, is removed, or banned."""
        return (
            not candidate.is_counted or candidate.is_removed or candidate.add.content in self._decided.banned
        )

    def _hold(self, operation: Operation, hold: Hold) -> None:
        for tag in set(hold.tags).intersection(operation.refs):
            candidate = self._candidates.get(tag)
            if candidate is None or operation.author == candidate.author:
                continue
            if operation.author in candidate.holders:
                continue
            was_held = self._is_held(candidate)
            candidate.holders.add(operation.author)
            if self._is_out(candidate):
                continue
            slot = self._slot_of(candidate)
            if self._is_held(candidate) and not was_held:
                slot.take((candidate.depth, tag), is_held=False)
                slot.put((candidate.depth, tag), is_held=True)

    def _act(self, operation_id: bytes, operation: Operation, act: Body) -> None:
        """Take in an act that has an effect."""
        if isinstance(act, PolicyAct):
            self._change_policy(operation_id, act)
        elif isinstance(act, Ban):
            self._ban(act.contents)
        elif isinstance(act, Erase):
            self._erase(operation_id, operation, act)
        elif isinstance(act, Admit):
            self._decided.admitted.add(act.author)
            self._note_decided()
        elif isinstance(act, Revoke):
            self._decided.revoked.add(act.key)
            self._note_decided()

    def _note_decided(self) -> None:
        self._decided.changed()
        self._view = None

    def _ban(self, contents: Iterable[bytes]) -> None:
        new = set(contents) - self._decided.banned
        if not new:
            return
        for candidate in self._candidates.values():
            if candidate.add.content in new:
                self._take_out(candidate)
        self._decided.banned |= new
        self._note_decided()

    def _erase(self, operation_id: bytes, operation: Operation, erase: Erase) -> None:
        self._ban(erase.contents)
        decided = self._decided
        decided.erasures.add(operation_id)
        decided.erased_tags |= self._candidates.keys() & set(erase.tags).intersection(operation.refs)
        new = set(erase.contents) - decided.erased
        if new:
            decided.erased |= new
            adds = self._candidates.items()
            decided.erased_tags |= {tag for tag, candidate in adds if candidate.add.content in new}
        self._note_decided()

    def _note_receipt(self, operation: Operation, receipt: Receipt) -> None:
        erasures = self._decided.erasures.intersection(receipt.erasures, operation.refs)
        self._decided.receipts |= {(erasure, operation.author) for erasure in erasures}
        self._note_decided()

    def _change_policy(self, operation_id: bytes, act: PolicyAct) -> None:
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

    def _is_held(self, candidate: Candidate) -> bool:
        return len(candidate.holders) >= self._policy.holders

    def _slot_of(self, candidate: Candidate) -> Slot:
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

    def _choose(self, author: bytes, slot: Slot) -> tuple[tuple[Visible, ...], tuple[Visible, ...]]:
        """Return what a slot shows and what it would show if it were held (rule 5 of the view)."""
        if author in self._forked:
            return (), ()
        newest = slot.held[-1:]
        newer = slot.unheld[bisect_right(slot.unheld, newest[0]) if newest else 0 :]
        visible = tuple(self._candidates[tag].show() for _, tag in newest)
        return visible, tuple(self._candidates[tag].show() for _, tag in newer)
