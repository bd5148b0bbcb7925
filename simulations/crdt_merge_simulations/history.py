"""What clients of real nodes asked, when, and what they were answered; and whether the answers fit together.

Every act is recorded twice: ``invoke`` when it is asked for, and ``ok``, ``fail`` (it certainly did not
happen) or ``info`` (nobody knows: the node died meanwhile) when it ends. From that and from what nodes list
follow three verdicts, after Jepsen's set checker:

* *lost*: an acknowledged contribution that no node lists any more;
* *resurrected*: a contribution that is visible although its removal was acknowledged;
* *stale*: a node that does not show what it acknowledged itself, or, once all is calm, not what others show.

A node whose disk was lost or replaced by an old copy may forget what had not reached anybody else: an
acknowledgement means durable on that disk (PROTOCOL R21). So such a loss counts only if the node's disk was
not the only place: when another node had listed it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Literal

Phase = Literal["invoke", "ok", "fail", "info"]
HIDDEN: Final = "hidden"
DAMAGE_NAMED_MAX: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the history."""

    time: float
    """Seconds since the start of the work."""
    node: int
    phase: Phase
    what: str
    """``add``, ``remove``, ``policy``, ``fault`` …"""
    index: int
    """Of the act or fault in the plan."""
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """An acknowledged contribution."""

    node: int
    group: str
    slot: str
    tag: str
    invoked: float
    acked: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """An acknowledged removal."""

    node: int
    group: str
    tags: tuple[str, ...]
    acked: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskLoss:
    """A node forgot what it had stored after ``since``: wiped (minus infinity) or an old copy restored."""

    node: int
    time: float
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """What a node listed of a group: tag -> state."""

    node: int
    group: str
    invoked: float
    completed: float
    states: Mapping[str, str]


@dataclass(slots=True)
class Verdicts:
    """What does not fit together, in words; and how much was looked at."""

    lost: list[str] = field(default_factory=list)
    resurrected: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    forgiven: int = 0
    """Acknowledged on a disk that was lost before anybody else had it."""
    checked: int = 0


class History:
    """Everything that was asked and answered in a run."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.added: list[Added] = []
        self.removed: list[Removed] = []
        self.losses: list[DiskLoss] = []
        self.reads: list[Read] = []

    def record(self, time: float, node: int, phase: Phase, what: str, index: int, *, text: str = "") -> None:
        """Write one line."""
        self.entries.append(
            Entry(time=round(time, 3), node=node, phase=phase, what=what, index=index, text=text)
        )

    def write(self, path: Path) -> None:
        """Write the lines as JSON, one per line."""
        path.write_text("".join(json.dumps(asdict(entry)) + "\n" for entry in self.entries), encoding="utf-8")

    def judge(self, final: Iterable[Read]) -> Verdicts:
        """Compare what was acknowledged with what was listed.

        Args:
            final: One listing per node and group, taken when all was calm.
        """
        last = list(final)
        verdicts = Verdicts(checked=len(self.added) + len(self.removed))
        self._judge_adds(last, verdicts)
        self._judge_removes(last, verdicts)
        self._judge_own_reads(last, verdicts)
        _judge_calm(last, verdicts)
        return verdicts

    def _judge_adds(self, final: list[Read], verdicts: Verdicts) -> None:
        known = {tag for read in final for tag in read.states}
        for add in self.added:
            if add.tag in known:
                continue
            if self._was_forgotten(add.node, add.acked) and not self._seen_elsewhere(add.tag, add.node):
                verdicts.forgiven += 1
            else:
                verdicts.lost.append(
                    f"{add.tag[:12]} ({add.group}/{add.slot}) of n{add.node}, acknowledged at {add.acked:.3f}"
                )

    def _judge_removes(self, final: list[Read], verdicts: Verdicts) -> None:
        for remove in self.removed:
            reads = [read for read in (*self.reads, *final) if read.group == remove.group]
            for tag in remove.tags:
                gone = [
                    read for read in reads if read.invoked > remove.acked and read.states.get(tag) == HIDDEN
                ]
                if self._was_forgotten(remove.node, remove.acked) and not any(
                    read.node != remove.node for read in gone
                ):
                    verdicts.forgiven += 1
                    continue
                verdicts.resurrected += [
                    f"{tag[:12]} is {read.states[tag]} on n{read.node} at {read.completed:.3f},"
                    f" removed by n{remove.node} at {remove.acked:.3f}"
                    for read in reads
                    if read.states.get(tag, HIDDEN) != HIDDEN and self._must_know(read, remove, final, gone)
                ]

    def _must_know(self, read: Read, remove: Removed, final: list[Read], gone: list[Read]) -> bool:
        """Whether a node had to know of a removal: all was calm, it removed, or it had shown it gone."""
        if read in final:
            return True
        since = [remove.acked] if read.node == remove.node else []
        since += [earlier.completed for earlier in gone if earlier.node == read.node]
        return any(
            moment < read.invoked and not self._was_forgotten(read.node, moment, until=read.completed)
            for moment in since
        )

    def _judge_own_reads(self, final: list[Read], verdicts: Verdicts) -> None:
        own: dict[tuple[int, str], list[Added]] = {}
        for add in self.added:
            own.setdefault((add.node, add.group), []).append(add)
        for read in (*self.reads, *final):
            for add in own.get((read.node, read.group), ()):
                is_due = add.acked < read.invoked and not self._was_forgotten(
                    add.node, add.acked, until=read.completed
                )
                verdicts.checked += is_due
                if is_due and add.tag not in read.states:
                    verdicts.stale.append(
                        f"n{read.node} did not list its own {add.tag[:12]} at {read.completed:.3f},"
                        f" acknowledged at {add.acked:.3f}"
                    )

    def _was_forgotten(self, node: int, moment: float, *, until: float = float("inf")) -> bool:
        return any(loss.node == node and loss.since <= moment <= loss.time <= until for loss in self.losses)

    def _seen_elsewhere(self, tag: str, node: int) -> bool:
        return any(read.node != node and tag in read.states for read in self.reads)


def _judge_calm(final: list[Read], verdicts: Verdicts) -> None:
    """All nodes show the same, once all is calm."""
    first: dict[str, Read] = {}
    for read in final:
        expected = first.setdefault(read.group, read)
        verdicts.checked += 1
        if read.states != expected.states:
            differing = sorted(
                tag
                for tag in read.states.keys() | expected.states.keys()
                if read.states.get(tag) != expected.states.get(tag)
            )
            named = ", ".join(tag[:12] for tag in differing[:DAMAGE_NAMED_MAX])
            verdicts.stale.append(f"{read.group}: n{read.node} and n{expected.node} differ in {named}")
