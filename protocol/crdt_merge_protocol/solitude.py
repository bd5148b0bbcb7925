"""Whether a node is alone: then the address book dials everybody that it knows (PROTOCOL 3)."""

from __future__ import annotations

from typing import Final

ISOLATED_S: Final = 10.0
"""Without any neighbour for this long, every known address is dialled."""


class Solitude:
    """Since when there has been no neighbour."""

    def __init__(self) -> None:
        self.is_isolated = True
        """No neighbour since the start, or for 10 s."""
        self._alone_since: float | None = None
        self._had_links = False

    def begin(self, *, has_links: bool, now: float) -> None:
        """Begin to count."""
        self._had_links = has_links
        self._alone_since = None if has_links else now

    def linked(self) -> None:
        """Note that there is a neighbour."""
        self._alone_since, self._had_links, self.is_isolated = None, True, False

    def note(self, *, has_links: bool, now: float) -> None:
        """Note whether there is any neighbour."""
        if has_links:
            self.linked()
            return
        if self._alone_since is None:
            self._alone_since = now
        self.is_isolated = not self._had_links or now >= self._alone_since + ISOLATED_S

    def next_due(self, due: float) -> float:
        """Return when :meth:`note` would find it isolated, or ``due`` if that is before."""
        if self._alone_since is not None and self._had_links and not self.is_isolated:
            return min(due, self._alone_since + ISOLATED_S)
        return due
