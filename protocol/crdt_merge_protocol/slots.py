"""What the incremental view (``visibility.py``) keeps of ADDs: each, those of a slot, those shown."""

from __future__ import annotations

from bisect import bisect_left, insort
from enum import Enum
from typing import TypeAlias

from .bodies import Add
from .view import Visible

Rank: TypeAlias = tuple[int, bytes]
"""(depth, id): of two ADDs in a slot the greater one is the newer."""


class Fate(Enum):
    """What may yet become of an ADD, and so of the bytes that it names."""

    WANTED = "wanted"
    """It counts, or would if the one that counts were banned: of a slot the newest and the one before."""
    PAST = "past"
    """Removed, or replaced more than once. It comes back if a stolen key did that, and is revoked."""
    LOST = "lost"
    """Banned, or excluded by a REVOKE: it never counts again."""


class Candidate:
    """An ADD and who holds it."""

    __slots__ = (
        "add",
        "author",
        "depth",
        "holders",
        "is_counted",
        "is_removed",
        "is_removed_by_act",
        "shown",
        "tag",
    )

    def __init__(self, tag: bytes, author: bytes, depth: int, add: Add, *, is_counted: bool) -> None:
        self.tag = tag
        self.author = author
        self.depth = depth
        self.add = add
        self.holders: set[bytes] = set()
        self.is_counted = is_counted
        self.is_removed = False
        self.is_removed_by_act = False
        self.shown: Visible | None = None

    def show(self) -> Visible:
        """Return how the view shows it; the same object until its holders change."""
        if self.shown is None or self.shown.holders != len(self.holders):
            self.shown = Visible.of(self.tag, self.author, self.add, self.depth, len(self.holders))
        return self.shown

    def copy(self) -> Candidate:
        """Return an independent copy."""
        twin = Candidate(self.tag, self.author, self.depth, self.add, is_counted=self.is_counted)
        twin.holders = set(self.holders)
        twin.is_removed, twin.is_removed_by_act = self.is_removed, self.is_removed_by_act
        twin.shown = self.shown
        return twin


class Slot:
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

    def past(self) -> list[Rank]:
        """Return what would not be shown either if the one that is were not there."""
        if len(self.held) < 2:
            return []
        last = self.held[-2]
        return self.held[:-2] + self.unheld[: bisect_left(self.unheld, last)]

    def copy(self) -> Slot:
        """Return an independent copy."""
        twin = Slot()
        twin.held, twin.unheld = list(self.held), list(self.unheld)
        twin.visible, twin.pending = self.visible, self.pending
        return twin


class SortedRows:
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
            self._rows.sort(key=order_of)
            return
        for row in out:
            del self._rows[bisect_left(self._rows, order_of(row), key=order_of)]
        for row in new:
            insort(self._rows, row, key=order_of)

    def as_tuple(self) -> tuple[Visible, ...]:
        """Return the rows; the same object until they change."""
        if self._as_tuple is None:
            self._as_tuple = tuple(self._rows)
        return self._as_tuple

    def copy(self) -> SortedRows:
        """Return an independent copy."""
        twin = SortedRows()
        twin._rows, twin._as_tuple = list(self._rows), self._as_tuple
        return twin


def order_of(row: Visible) -> tuple[bytes, bytes]:
    """Return the place of a shown contribution in a view."""
    return row.digest, row.tag
