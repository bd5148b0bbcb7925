"""What must hold, and the one who looks (SCENARIOS 4.6).

A world tells the :class:`Checker` what happened; the checker keeps its own books and compares. What is
costly is looked at now and then, by counting, so that equal runs look at equal moments. An invariant that
nobody looked at is reported as *not seen*, never as held.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from crdt_merge_protocol.limits import (
    IN_FLIGHT_BYTES_MAX,
    ORPHANS_MAX,
    SYNC_INBOUND_MAX,
    SYNC_OUTBOUND_MAX,
)
from crdt_merge_protocol.operations import SignedOperation
from crdt_merge_protocol.replica import Replica
from crdt_merge_protocol.resolve_key import resolve_key, used_root
from crdt_merge_protocol.state import CRDTMergeState
from crdt_merge_protocol.view import View, view_of

from .result import Check

CATALOGUE: Final[Mapping[str, str]] = {
    "I1": "no acknowledged operation is missing from its node",
    "I2": "what a node holds only grows, unless its disk is lost",
    "I3": "the view is the pure function of the set",
    "I4": "equal sets have equal views",
    "I5": "erased bytes are on no disk",
    "I6": "nobody honest is convicted of a fork",
    "I7": "buffers, queues and sessions stay within their caps",
    "I8": "nothing blocks a node for more than 50 ms",
    "I9": "no failure goes unnoticed",
    "I10": "no place in a log is used twice by an honest author",
    "I11": "an author reads what it wrote",
    "I12": "the audit log verifies",
    "I13": "all nodes hold all acknowledged operations once there is peace",
    "I14": "all resolve keys are equal once there is peace",
    "I15": "who forked is convicted everywhere",
    "I16": "every node confirms an erasure",
    "I17": "once there is peace, nothing waits in buffers and connections are within bounds",
    "I18": "what is new reaches everybody soon and hardly twice, and nobody is dialled in haste",
}
VIOLATIONS_KEPT: Final = 20
SAMPLING: Final = 64
"""Of so many looks at one node, one recomputes the view."""


class Checker:
    """Keeps the books of one run."""

    def __init__(self) -> None:
        self.checks = {id_: Check(id=id_, claim=claim) for id_, claim in CATALOGUE.items()}
        self.sometimes: Counter[str] = Counter()
        self._acknowledged: dict[int, set[bytes]] = {}
        self._unstored: dict[bytes, int] = {}
        """Operation that is on no disk yet -> whose it is."""
        self._stored: dict[tuple[int, bytes], set[bytes]] = {}
        self._places: dict[tuple[bytes, bytes, int], bytes] = {}
        self._meanings: dict[tuple[bytes, bytes], bytes] = {}
        self._counts: dict[tuple[bytes, bytes], int] = {}
        """(group, root) -> operations."""
        self._looks = 0
        self._excused: set[bytes] = set()
        """What some node dropped because of a REVOKE."""

    def expect(self, id_: str, holds: bool, text: str) -> None:
        """Note that an invariant was looked at, and what was wrong if it did not hold."""
        check = self.checks[id_]
        check.checked += 1
        if not holds and len(check.violations) < VIOLATIONS_KEPT:
            check.violations.append(text)

    # --- what happens -------------------------------------------------------------------------------------

    def authored(self, node: int, signed: SignedOperation) -> None:
        """An honest node signed an operation (I10)."""
        operation = signed.operation
        place = (operation.author, operation.log, operation.seq)
        known = self._places.setdefault(place, signed.id)
        self.expect("I10", known == signed.id, f"n{node} signed two operations {operation.seq} of one log")
        self._unstored[signed.id] = node

    def acknowledged(self, node: int, state: CRDTMergeState, operation_id: bytes) -> None:
        """A node told its user that an operation is durable (I1, I11)."""
        self._acknowledged.setdefault(node, set()).add(operation_id)
        is_here = operation_id in state or state.is_aside(operation_id)
        self.expect("I11", is_here, f"n{node} does not show {operation_id.hex()[:8]}")

    def stored(self, node: int, group: bytes, ids: Iterable[bytes]) -> None:
        """Operations are durable on a node (I1, I2): on that of their author before on any other."""
        new = frozenset(ids)
        self._stored.setdefault((node, group), set()).update(new)
        for id_ in sorted(new & self._unstored.keys()):
            author = self._unstored.pop(id_)
            self.expect("I1", author == node, f"n{author} told others of an operation that it did not hold")

    def dropped(self, node: int, state: CRDTMergeState, operations: Collection[SignedOperation]) -> None:
        """A node deleted operations, which only a REVOKE of their author's key can bring about (I2)."""
        revoked = state.view.decided.revoked
        self.expect(
            "I2",
            all(one.operation.author in revoked and one.id not in state for one in operations),
            f"n{node} deleted what counts",
        )
        ids = {one.id for one in operations}
        self.sometimes["operations were dropped"] += len(ids)
        self._excused |= ids
        if stored := self._stored.get((node, state.group)):
            stored -= ids

    def disk_lost(self, node: int, kept: Mapping[bytes, Collection[bytes]]) -> None:
        """A disk was lost or went back in time; ``kept``: group -> ids that it still holds."""
        for of_node, group in self._stored:
            if of_node == node:
                self._stored[of_node, group].intersection_update(kept.get(group, ()))
        survivors = frozenset().union(*map(frozenset, kept.values()))
        self._acknowledged.get(node, set()).intersection_update(survivors)

    # --- looking ------------------------------------------------------------------------------------------

    def look(self, node: int, replica: Replica, honest: Collection[bytes], *, thoroughly: bool) -> None:
        """Look at one group of one node (I2, I3, I4, I6, I7)."""
        self._looks += 1
        state = replica.state
        self.expect("I7", replica.orphan_count <= ORPHANS_MAX, f"n{node} keeps too many orphans")
        self.expect(
            "I7", replica.in_flight_bytes <= 2 * IN_FLIGHT_BYTES_MAX, f"n{node} has too much in flight"
        )
        count = self._counts.setdefault((state.group, state.sync_root), len(state))
        self.expect("I4", len(state) == count, f"n{node} has a root that {count} operations have, too")
        if not thoroughly and self._looks % SAMPLING:
            return
        stored = self._stored.get((node, state.group), set())
        gone = sum(id_ not in state and not state.is_aside(id_) for id_ in stored)
        self.expect("I2", not gone, f"n{node} no longer holds {gone} operations")
        view = state.view
        self.expect("I6", not view.forked & frozenset(honest), f"n{node} convicts an honest author")
        known = self._meanings.get((state.group, state.sync_root))
        if known is None:
            pure = view_of(state.genesis, state.causal())
            self.expect("I3", view == pure, f"the view of n{node} is not that of its set")
            known = self._meanings[state.group, state.sync_root] = view.fingerprint
        self.expect("I4", view.fingerprint == known, f"n{node} sees its set differently from others")

    def durable(self, node: int, state: CRDTMergeState) -> None:
        """Look whether all that a node shows is on its disk (I2): a crash would take the rest back."""
        stored = self._stored.get((node, state.group), ())
        self.expect("I2", len(state) <= len(stored), f"n{node} counts on what is not on its disk")

    def sessions(self, node: int, count: int) -> None:
        """Look at the number of sync sessions of a node (I7)."""
        self.expect(
            "I7", count <= SYNC_INBOUND_MAX + SYNC_OUTBOUND_MAX, f"n{node} runs {count} sessions at once"
        )

    def kept(self, node: int, states: Iterable[CRDTMergeState]) -> None:
        """Look whether a node still holds what it acknowledged (I1)."""
        held = list(states)
        acknowledged = self._acknowledged.get(node, set()) - self._excused
        lost = [id_ for id_ in acknowledged if not any(id_ in state for state in held)]
        self.expect("I1", not lost, f"n{node} lost {len(lost)} acknowledged operations")

    # --- peace --------------------------------------------------------------------------------------------

    def agreed(
        self,
        states: Mapping[int, Mapping[bytes, CRDTMergeState]],
        *,
        is_converged: bool,
        twins: Iterable[tuple[bytes, bytes, bytes]],
    ) -> None:
        """Look at all honest nodes after the peace (I13, I14, I15); ``states``: node -> group -> state.

        ``twins``: (author, id, id) of forks. A half that no honest node ever stored makes no fork to them.
        """
        self.expect("I13", is_converged, "the roots differ")
        groups = sorted({group for of_node in states.values() for group in of_node})
        for group in groups:
            missing = [node for node, of_node in states.items() if group not in of_node]
            self.expect("I13", not missing, f"{len(missing)} nodes never learnt of group {group.hex()[:8]}")
        everything = frozenset().union(*(self._acknowledged.get(node, ()) for node in states)) - self._excused
        for node, of_node in states.items():
            absent = [id_ for id_ in everything if not any(id_ in state for state in of_node.values())]
            self.expect("I13", not absent, f"n{node} lacks {len(absent)} acknowledged operations")
        for group in groups if is_converged else ():
            sets = {frozenset(s.id for s in of[group].causal()) for of in states.values() if group in of}
            self.expect("I13", len(sets) == 1, f"{len(sets)} sets of operations have one root")
        for group in groups:
            keys = {key_of(of_node[group].view) for of_node in states.values() if group in of_node}
            self.expect("I14", len(keys) == 1, f"{len(keys)} resolve keys in group {group.hex()[:8]}")
        for forker, *pair in sorted(twins):
            if not all(any(id_ in ids for ids in self._held(states)) for id_ in pair):
                continue
            self.sometimes["a fork was seen"] += 1
            free = [
                node
                for node, of_node in states.items()
                if not any(
                    forker in state.view.forked | state.view.decided.revoked for state in of_node.values()
                )
            ]
            self.expect("I15", not free, f"{forker.hex()[:8]} forked and {len(free)} nodes do not know")

    def _held(self, nodes: Collection[int]) -> list[set[bytes]]:
        return [ids for (node, _), ids in sorted(self._stored.items()) if node in nodes]


def key_of(view: View) -> bytes:
    """Return the resolve key of everything that is visible, 32 bytes."""
    return resolve_key(used_root(each.digest for each in view.visible), view.policy.recipe())
