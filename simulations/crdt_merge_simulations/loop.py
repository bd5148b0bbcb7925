"""An event loop on virtual time that runs the programs of many machines, and can kill one of them.

Nothing here waits: when no callback is ready, the clock jumps to the next timer. Threads do not exist: what
is handed to an executor runs on the loop, a seeded delay later. Every callback belongs to the
:class:`~.simulated_process.Process` in whose context it was scheduled:

* a *killed* process runs nothing any more. Its callbacks and tasks are kept, not cancelled, so that no
  ``finally`` block and no destructor runs before the end of the run, as after SIGKILL;
* a *frozen* process (SIGSTOP) has its callbacks held until it thaws.

Determinism: callbacks run in the order of (time, order of scheduling), and tasks and futures hash by sequence
number, so that a set of them is iterated alike in every run whatever their addresses (SCENARIOS 3). The hash
over (time, process) of every callback is the *trace* of the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import heapq
import itertools
import struct
import sys
import traceback
import warnings
from asyncio import events
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from contextvars import Context
from pathlib import Path
from typing import Any, Final, TypeVar

from .simulated_process import PROCESS, Handle, Process, SimulatedFuture, SimulatedTask, Timer

T = TypeVar("T")

STEPS_WITHOUT_TIME_MAX: Final = 2_000_000
"""Callbacks at one instant; beyond that nothing but a busy loop is conceivable."""
_CANCELLED_TIMERS_MIN: Final = 1024
_AWAITS_MAX: Final = 100
"""In ``finally`` blocks of one coroutine."""


class DeadlockError(RuntimeError):
    """Everybody waits, and no timer will ever wake anybody."""


class LivelockError(RuntimeError):
    """Callbacks schedule callbacks for ever and time stands still."""


class SimulatedLoop(asyncio.AbstractEventLoop):
    """Virtual time. Use it within :func:`simulated_loop`, which also takes the dead away."""

    def __init__(self) -> None:
        self.callbacks = 0
        """That have run."""
        self.problems: list[str] = []
        """Exceptions that nobody caught or looked at."""
        self.trace = hashlib.sha256()
        self._now = 0.0
        self._sequence = itertools.count(1)
        self._ready: deque[Handle | Timer] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._cancelled_timers = 0
        self._steps_now = 0
        self._graveyard: list[object] = []
        self._is_closed = False
        self._is_running = False

    # --- time and callbacks -------------------------------------------------------------------------

    def time(self) -> float:
        """Return virtual seconds since the loop was made."""
        return self._now

    def call_soon(  # type: ignore[override]  # As before typeshed knew argument tuples.
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """Run a callback in this instant, after those that are ready."""
        handle = Handle(callback, args, self, context)
        handle.process = PROCESS.get() if context is None else context.get(PROCESS)
        if not self._is_closed:
            self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Run a callback after ``delay`` seconds."""
        return self.call_at(self._now + max(0.0, delay), callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Run a callback at a time."""
        timer = Timer(when, callback, args, self, context)
        timer.process = PROCESS.get() if context is None else context.get(PROCESS)
        if not self._is_closed:
            heapq.heappush(self._timers, (when, next(self._sequence), timer))
        return timer

    def _timer_handle_cancelled(self, _timer: asyncio.TimerHandle) -> None:
        """Count; asyncio calls this. Drivers move their one timer often, so the heap must be swept."""
        self._cancelled_timers += 1
        if self._cancelled_timers > max(_CANCELLED_TIMERS_MIN, len(self._timers) // 2):
            self._timers = [entry for entry in self._timers if not entry[2].cancelled()]
            heapq.heapify(self._timers)
            self._cancelled_timers = 0

    # --- running ------------------------------------------------------------------------------------

    def run_until_complete(self, future: Any) -> Any:
        """Run until a future or coroutine is done; return its result."""
        with self._running():
            task = asyncio.ensure_future(future, loop=self)
            while not task.done():
                self._step()
        return task.result()

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(finalizer=self._finalize)
        events._set_running_loop(self)  # noqa: SLF001  (a loop that is none of asyncio's own must)
        self._is_running = True
        try:
            yield
        finally:
            self._is_running = False
            events._set_running_loop(None)  # noqa: SLF001
            sys.set_asyncgen_hooks(*hooks)

    def _finalize(self, generator: AsyncGenerator[Any, Any]) -> None:
        """Close an abandoned generator in a task, as every loop does."""
        if not self._is_closed:
            self.call_soon(self.create_task, generator.aclose())

    def _step(self) -> None:
        """Run what is ready; if nothing is, move the clock first."""
        if not self._ready:
            self._advance()
        for _ in range(len(self._ready)):
            handle = self._ready.popleft()
            if handle.cancelled():
                continue
            process = handle.process
            number = 0
            if process is not None:
                if not process.is_alive:
                    self._graveyard.append(handle)
                    continue
                if process.is_frozen:
                    process.held.append(handle)
                    continue
                number = process.number + 1
            self.callbacks += 1
            self._steps_now += 1
            self.trace.update(struct.pack("<dI", self._now, number))
            handle._run()  # noqa: SLF001  (the loop's part of a handle)
        if self._steps_now > STEPS_WITHOUT_TIME_MAX:
            raise LivelockError(f"{self._steps_now} callbacks at {self._now:.6f} s")

    def _advance(self) -> None:
        timers = self._timers
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
            self._cancelled_timers -= 1
        if not timers:
            raise DeadlockError(f"at {self._now:.6f} s everybody waits and nobody will come")
        if timers[0][0] > self._now:
            self._now = timers[0][0]
            self._steps_now = 0
        while timers and timers[0][0] <= self._now:
            timer = heapq.heappop(timers)[2]
            if timer.cancelled():
                self._cancelled_timers -= 1
            else:
                self._ready.append(timer)

    # --- processes ----------------------------------------------------------------------------------

    def kill(self, process: Process) -> None:
        """End a process as SIGKILL does: from now on nothing of it runs, not even a ``finally``."""
        if not process.is_alive:
            return
        process.is_alive = False
        for task in asyncio.all_tasks(self):
            if isinstance(task, SimulatedTask) and task.process is process:
                _let_die(task)
                self._graveyard.append(task)
        self._graveyard += process.held
        process.held.clear()
        for clean in list(process.at_death.values()):
            clean()
        process.at_death.clear()

    def thaw(self, process: Process) -> None:
        """Let a frozen process go on; what became due meanwhile happens now."""
        process.is_frozen = False
        self._ready.extend(process.held)
        process.held.clear()

    # --- what asyncio asks of a loop ----------------------------------------------------------------

    def create_future(self) -> asyncio.Future[Any]:
        """Return a future of this loop."""
        return SimulatedFuture(next(self._sequence), loop=self)

    def create_task(  # type: ignore[override]  # typeshed's coroutine types are wider than any caller.
        self, coro: Coroutine[Any, Any, T], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[T]:
        """Start a coroutine, for the process of ``context``."""
        return SimulatedTask(next(self._sequence), coro, loop=self, name=name, context=context)

    def run_in_executor(  # type: ignore[override]
        self,
        executor: object,  # noqa: ARG002  (there are no threads)
        func: Callable[..., T],
        *args: Any,
    ) -> asyncio.Future[T]:
        """Run blocking work on the loop, a while later."""
        future = self.create_future()
        process = PROCESS.get()
        self.call_later(process.delay() if process else 0.0, _run_for, future, func, args)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Note what nobody caught."""
        process = PROCESS.get()
        if not self._is_closed and (process is None or process.is_alive):
            error = context.get("exception")
            self.problems.append(f"{context.get('message')}: {error!r}{_place(error)}")

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        """Note what nobody caught."""
        self.call_exception_handler(context)

    def get_debug(self) -> bool:
        """Return False: debugging costs much and shows nothing here."""
        return False

    def is_running(self) -> bool:
        """Tell whether callbacks are being run."""
        return self._is_running

    def is_closed(self) -> bool:
        """Tell whether the run is over."""
        return self._is_closed

    def close(self) -> None:
        """End the run; whatever a destructor schedules from now on is ignored."""
        self._is_closed = True

    def _unwind(self) -> None:
        dead = [each for each in self._graveyard if isinstance(each, SimulatedTask)]
        for task in (*dead, *asyncio.all_tasks(self)):
            _let_die(task)
            _unwind(task)

    def bury(self) -> None:
        """Drop all that is left, with closed eyes: destructors of the dead may complain.

        What the dead begin on their way out is begun on this loop, which is over. On another that this
        thread may have, it would wait until that one ends, or even run.
        """
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        running = events._get_running_loop()  # noqa: SLF001  (for what the dead begin)
        events._set_running_loop(self)  # noqa: SLF001
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._unwind()
                self._graveyard.clear()
                self._ready.clear()
                self._timers.clear()
                gc.collect()
                self._unwind()
        finally:
            events._set_running_loop(running)  # noqa: SLF001
            sys.unraisablehook = hook


def _place(error: object) -> str:
    """Return where an exception was raised."""
    trace = traceback.extract_tb(error.__traceback__) if isinstance(error, BaseException) else []
    return f" at {Path(trace[-1].filename).name}:{trace[-1].lineno}" if trace else ""


def _let_die(task: asyncio.Task[Any]) -> None:
    """Let asyncio not complain that a task was never finished."""
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001  (there is no other way)


def _unwind(task: asyncio.Task[Any]) -> None:
    """End a coroutine that nothing waits for. What it awaits on its way out is not granted either."""
    coroutine = task.get_coro()
    for _ in range(_AWAITS_MAX):
        try:
            coroutine.close()
        except BaseException:  # noqa: BLE001, S112  (whatever the dead say is of no interest)
            continue
        return


def _run_for(future: asyncio.Future[Any], function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    if future.cancelled():
        return  # A pool forgets what was cancelled before a thread took it.
    try:
        result = function(*arguments)
    except StopIteration as error:
        future.set_exception(RuntimeError(f"{error!r} in a thread"))
    except Exception as error:  # noqa: BLE001  (a thread hands every outcome to the future)
        future.set_exception(error)
    else:
        future.set_result(result)


@contextlib.contextmanager
def simulated_loop() -> Generator[SimulatedLoop]:
    """Yield a loop; no garbage is collected by chance meanwhile, and at the end the dead are buried."""
    loop = SimulatedLoop()  # type: ignore[abstract]  # What it lacks, daemons do not use.
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()  # What was there before is not looked through again and again.
    gc.disable()
    try:
        yield loop
    finally:
        loop.close()
        loop.bury()
        gc.unfreeze()
        if was_enabled:
            gc.enable()
