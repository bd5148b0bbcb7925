"""Progress on stderr: a line that changes on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from crdt_merge_node.cli.output import duration, note

if TYPE_CHECKING:
    from rich.status import Status

LINE_INTERVAL_S: Final = 10.0


class Watch:
    """Says what is being done, and for how long already."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._status: Status | None = None
        self._began = self._printed = time.monotonic()

    def say(self, text: str) -> None:
        """Say what is being done now."""
        self._text = text
        now = time.monotonic()
        if self._status is not None:
            self._status.update(f"{text} ({duration(now - self._began)})")
        elif now - self._printed >= LINE_INTERVAL_S:
            self._printed = now
            note(f"{text} ({duration(now - self._began)})")

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console

            self._status = Console(stderr=True).status(self._text)
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()
