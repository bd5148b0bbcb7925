"""When which roots are announced to whom: changes soon and together, everything now and then."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from .limits import CONTROL_BODY_BYTES_MAX
from .messages.membership import Roots
from .replica import Replica

ANNOUNCE_DELAY_S: Final = 0.05
"""Changes within this are announced together."""
ANNOUNCE_ALL_INTERVAL_S: Final = 10.0
"""All roots are announced again this often, in case an announcement was shed."""
ROOTS_PER_MESSAGE: Final = 512


class Announcer:
    """Keeps what is to be announced, and when."""

    def __init__(self, jitter: Callable[[], float]) -> None:
        self._jitter = jitter
        self._changed: set[bytes] = set()
        self._due: float | None = None
        self._all_due: float | None = None

    def changed(self, group: bytes, *, now: float, wait_s: float = ANNOUNCE_DELAY_S) -> None:
        """Note that the root of a group is another one."""
        self._changed.add(group)
        if self._due is None:
            self._due = now + wait_s

    def next_due(self) -> float | None:
        """Return when :meth:`take` has something."""
        if self._due is None or self._all_due is None:
            return self._all_due if self._due is None else self._due
        return min(self._due, self._all_due)

    def take(self, groups: Iterable[bytes], *, now: float) -> list[bytes]:
        """Return the groups to announce now, of all ``groups`` there are; sorted."""
        if self._all_due is None or self._all_due <= now:
            self._changed.update(groups)
            self._due = now
            self._all_due = now + ANNOUNCE_ALL_INTERVAL_S * (0.9 + 0.2 * self._jitter())
        if self._due is None or self._due > now:
            return []
        chosen = sorted(self._changed)
        self._changed.clear()
        self._due = None
        return chosen


def announcements(replicas: Mapping[bytes, Replica], groups: Iterable[bytes]) -> list[Roots]:
    """Return the roots of groups in as few messages as they fit."""
    roots = []
    for group in groups:
        state = replicas[group].state
        roots.append((group, state.sync_root, len(state)))
    return [
        Roots(roots=tuple(roots[start : start + ROOTS_PER_MESSAGE]))
        for start in range(0, len(roots), ROOTS_PER_MESSAGE)
    ]


assert ROOTS_PER_MESSAGE * 80 < CONTROL_BODY_BYTES_MAX
