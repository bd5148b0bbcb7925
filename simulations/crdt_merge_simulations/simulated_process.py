"""A program on a simulated machine, and what belongs to it: callbacks, timers, futures and tasks."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar
from random import Random
from typing import Any, Final

EXECUTOR_S: Final = (0.0002, 0.004)
"""How long work in a thread takes, before a slow machine is taken into account."""


class Process:
    """One life of a program on a machine: from its start to its end."""

    def __init__(self, number: int, *, rng: Random) -> None:
        self.number = number
        """Which machine; part of the trace."""
        self.rng = rng
        self.is_alive = True
        self.is_frozen = False
        self.slowness = 1.0
        """Factor for everything that takes time on this machine."""
        self.held: list[Handle | Timer] = []
        self.at_death: dict[int, Callable[[], None]] = {}
        """Called at the kill, in order: what the kernel does for a dead process."""
        self.context = contextvars.copy_context()
        self.context.run(PROCESS.set, self)

    def delay(self) -> float:
        """Return how long some work in a thread takes, in seconds."""
        seconds = self.rng.uniform(*EXECUTOR_S)
        if self.rng.random() < 0.02:
            seconds *= 50.0  # A busy disk.
        return seconds * self.slowness


PROCESS: Final[ContextVar[Process | None]] = ContextVar("process", default=None)
"""Whose code is running; None: the world's own."""
OUTSIDE: Final = contextvars.Context()
"""Belongs to no process: the network, and whoever directs the run."""


class Handle(asyncio.Handle):
    """A callback that knows its process."""

    __slots__ = ("process",)
    process: Process | None


class Timer(asyncio.TimerHandle):
    """The same, at a time."""

    __slots__ = ("process",)
    process: Process | None


class SimulatedFuture(asyncio.Future[Any]):
    """A future that hashes by sequence number."""

    def __init__(self, number: int, *, loop: asyncio.AbstractEventLoop) -> None:
        self._number = number
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class SimulatedTask(asyncio.Task[Any]):
    """A task that hashes by sequence number and knows its process."""

    def __init__(
        self,
        number: int,
        coroutine: Coroutine[Any, Any, Any],
        *,
        loop: asyncio.AbstractEventLoop,
        name: str | None,
        context: Context | None,
    ) -> None:
        self._number = number
        self.process = PROCESS.get() if context is None else context.get(PROCESS)
        super().__init__(coroutine, loop=loop, name=name or f"task-{number}", context=context)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other
