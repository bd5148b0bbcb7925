"""Long work, watched: bytes, rate and time left on a terminal, a line every ten seconds elsewhere.

With ``--json`` every event is one line: ``{"schema": …, "event": "plan" | "progress" | "result", …}``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from crdt_merge_node.control.model import Progress
from crdt_merge_node.errors import ControlError

from .options import Invocation
from .output import clean, duration, note, say_json, size

if TYPE_CHECKING:
    from rich.console import Console

LINE_INTERVAL_S: Final = 10.0
STEP_INTERVAL_S: Final = 2.0
JSON_INTERVAL_S: Final = 0.5
Now = Callable[[], float]


class View(Protocol):
    """Shows progress until it is closed."""

    def show(self, progress: Progress) -> None:
        """Take note of progress; whether it is printed now is the view's business."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Meter:
    """Rate and remaining time of the present step, measured since it began."""

    def __init__(self, now: Now) -> None:
        self._now = now
        self._step: str | None = None
        self._began = 0.0
        self._began_bytes = 0

    def measure(self, progress: Progress) -> tuple[float, float | None]:
        """Return (bytes per second, seconds left or None if nobody knows)."""
        now = self._now()
        if progress.step != self._step:
            self._step, self._began, self._began_bytes = progress.step, now, progress.done_bytes
        elapsed = now - self._began
        rate = (progress.done_bytes - self._began_bytes) / elapsed if elapsed > 0 else 0.0
        if rate <= 0 or progress.total_bytes <= 0:
            return max(rate, 0.0), None
        return rate, max(progress.total_bytes - progress.done_bytes, 0) / rate


class _Quiet:
    """A view that has nothing to open or to close."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class Silent(_Quiet):
    """Shows nothing: ``--quiet``."""

    def show(self, progress: Progress) -> None:
        """Take no note."""


class Lines(_Quiet):
    """A line every ten seconds on stderr, sooner for a new step; nothing for work that is done in two."""

    def __init__(self, now: Now = time.monotonic, write: Callable[[str], None] = note) -> None:
        self._meter, self._now, self._write = Meter(now), now, write
        self._step: str | None = None
        self._printed = now()

    def show(self, progress: Progress) -> None:
        """Print a line if one is due."""
        rate, left = self._meter.measure(progress)
        interval_s = LINE_INTERVAL_S if progress.step == self._step else STEP_INTERVAL_S
        if self._now() - self._printed < interval_s:
            return
        self._step, self._printed = progress.step, self._now()
        self._write(describe(progress, rate, left))


class JsonLines(_Quiet):
    """At most two objects a second on stdout, and one at the start of every step."""

    def __init__(self, schema: str, now: Now = time.monotonic) -> None:
        self._schema, self._meter, self._now = schema, Meter(now), now
        self._step: str | None = None
        self._due = 0.0

    def show(self, progress: Progress) -> None:
        """Print an object if one is due."""
        rate, left = self._meter.measure(progress)
        if progress.step == self._step and self._now() < self._due:
            return
        self._step, self._due = progress.step, self._now() + JSON_INTERVAL_S
        say_json(self._schema, event="progress", progress=progress, bytes_per_s=rate, seconds_left=left)


class Bar(_Quiet):
    """A bar on the terminal."""

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as RichProgress

        self._rich = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            console=console or Console(stderr=True),
            transient=True,
            redirect_stdout=False,
        )
        self._step: str | None = None
        self._task: Any = None

    def show(self, progress: Progress) -> None:
        """Move the bar; a new step starts a new one."""
        # Not before: the plan is printed first, and a live display would tear it.
        self._rich.start()
        total = progress.total_bytes or None
        if progress.step != self._step:
            if self._task is not None:
                self._rich.remove_task(self._task)
            self._step = progress.step
            self._task = self._rich.add_task(clean(progress.step), total=total, detail="")
        self._rich.update(
            self._task, completed=progress.done_bytes, total=total, detail=clean(progress.detail)
        )

    def __exit__(self, *_: object) -> None:
        self._rich.stop()


def describe(progress: Progress, rate: float, left: float | None) -> str:
    """Return progress in one line."""
    parts = [size(progress.done_bytes)]
    if progress.total_bytes:
        parts[0] += f" of {size(progress.total_bytes)}"
    if rate > 0:
        parts.append(f"{size(rate)}/s")
    if left is not None:
        parts.append(f"{duration(left)} left")
    if progress.detail:
        parts.append(clean(progress.detail))
    return f"{clean(progress.step)}: {', '.join(parts)}"


def view_for(invocation: Invocation, schema: str) -> View:
    """Return the view that fits where the output goes."""
    if invocation.is_quiet:
        return Silent()
    if invocation.is_json:
        return JsonLines(schema)
    return Bar() if sys.stderr.isatty() else Lines()


def follow(
    invocation: Invocation,
    schema: str,
    events: Iterable[Any],
    *,
    show_plan: Callable[[Any], None] | None = None,
    leaves: str = "",
) -> Any:
    """Watch a stream to its end and return its final value.

    Args:
        events: ``Progress`` and, last, the value; before them a plan, if ``show_plan`` is given.
        show_plan: Prints the plan for people; with ``--json`` it is printed as an event instead.
        leaves: What whoever interrupts the command should know about what is left of the work.

    Raises:
        ControlError: The stream ended without a value.
    """
    from crdt_merge_node.control.model import ContributionPlan, LeavePlan, ResolvePlan

    results: list[Any] = []
    try:
        with view_for(invocation, schema) as view:
            for event in events:
                if isinstance(event, Progress):
                    view.show(event)
                elif show_plan is not None and isinstance(event, ContributionPlan | LeavePlan | ResolvePlan):
                    if invocation.is_json:
                        say_json(schema, event="plan", plan=event)
                    else:
                        show_plan(event)
                else:
                    results.append(event)
    except KeyboardInterrupt:
        if leaves:
            note(leaves)
        raise
    if not results:
        raise ControlError("the daemon ended the work without a result.", hint="Its log has the cause.")
    return results[-1]
