"""Starts daemons from a process that has imported everything already.

Most of a daemon's start is imports: more than a second of processor time. One hundred of them would keep two
cores busy for minutes, and hundreds of restarts in a long run as well. So one process, the nursery, imports
what a daemon needs, touches nothing of it, and forks; a child runs the command line with its own settings and
shares the memory of the imports. No thread and no gRPC channel exists before the fork.

The nursery is told what to do by lines of JSON on its standard input, and answers on its standard output:
``{"born": PID}`` in the order of the requests, ``{"ended": PID, "status": STATUS}`` whenever a child ends. It
dies with the process that started it, and its children die with it, by SIGKILL: a stopped process would never
see another signal.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

PR_SET_PDEATHSIG: Final = 1
CLONE_NEWNET: Final = 0x40000000
WARM: Final = ("crdt_merge_node.cli.run", "crdt_merge_node.config", "crdt_merge_node.daemon", "uvloop")
_CHUNK: Final = 65536


class Child:
    """A daemon process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def returncode(self) -> int | None:
        """Exit status, or minus the number of the signal; None while it runs."""
        return self._ended.result() if self._ended.done() else None

    async def wait(self) -> int:
        """Return the exit status once there is one."""
        return await asyncio.shield(self._ended)

    def send_signal(self, number: int) -> None:
        """Send a signal; do nothing if the process has ended."""
        if not self._ended.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def end(self, status: int) -> None:
        """Note that the process has ended."""
        if not self._ended.done():
            self._ended.set_result(status)


class Nursery:
    """The world's side: asks for children and hears of their ends."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._births: deque[asyncio.Future[Child]] = deque()
        self._children: dict[int, Child] = {}
        self._reader: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start the nursery; it imports while others go on."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "crdt_merge_simulations.process_nursery", str(os.getpid())),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # A thread pool that numpy would make before the fork is of no use after it.
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        )
        self._reader = asyncio.create_task(self._read())

    async def bear(
        self, arguments: Sequence[str], *, settings: Mapping[str, str], namespace: str, log: Path
    ) -> Child:
        """Start a daemon.

        Args:
            arguments: Of ``crdt-merge-node``.
            settings: Variables of the environment, added to those of this process.
            namespace: File of a network namespace, or ``-``.
            log: File to append standard output and error to.
        """
        assert self._process is not None and self._process.stdin is not None, "the nursery is open"  # noqa: PT018
        birth: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        self._births.append(birth)
        request = {"arguments": list(arguments), "settings": dict(settings), "namespace": namespace}
        self._process.stdin.write(json.dumps({**request, "log": str(log)}).encode() + b"\n")
        return await asyncio.shield(birth)

    async def close(self) -> None:
        """End the nursery, and with it every child that still runs."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        if self._reader is not None:
            await self._reader

    async def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None, "the nursery is open"  # noqa: PT018
        async for line in self._process.stdout:
            news = json.loads(line)
            if "born" in news:
                child = self._children[news["born"]] = Child(news["born"])
                self._births.popleft().set_result(child)
            else:
                self._children.pop(news["ended"]).end(news["status"])
        for child in self._children.values():
            child.end(-signal.SIGKILL)


# --- the nursery itself -----------------------------------------------------------------------------------


def main() -> None:
    """Import, then bear children until standard input ends."""
    _leash(int(sys.argv[1]))
    _warm_up()
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    buffer = b""
    while True:
        ready, _, _ = select.select([0, wake], [], [])
        if wake in ready:
            os.read(wake, _CHUNK)
            _reap()
        if 0 in ready:
            data = os.read(0, _CHUNK)
            if not data:
                return
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                if (pid := os.fork()) == 0:
                    os.close(wake)
                    os.close(waker)
                    _live(json.loads(line))
                _tell(born=pid)


def _leash(parent: int) -> None:
    """Let the kernel kill this process when its parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _warm_up() -> None:
    """Import what a daemon imports, and keep the collector from touching, hence copying, all of it."""
    for name in WARM:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            _tell(ended=found[0], status=os.waitstatus_to_exitcode(found[1]))


def _tell(**news: int) -> None:
    os.write(1, json.dumps(news).encode() + b"\n")


def _live(request: dict[str, Any]) -> None:
    """Become the daemon. Never returns: the command line ends the process."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _leash(os.getppid())
    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(log)
    os.close(nothing)
    enter(request["namespace"])
    os.environ.update(request["settings"])
    sys.argv[1:] = request["arguments"]
    from crdt_merge_node.cli import main as run_command

    cast("Any", run_command)()
    os._exit(0)


def enter(namespace: str) -> None:
    """Enter the network namespace of a file; ``-`` stays where it is."""
    if namespace == "-":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    with open(namespace, "rb") as file:
        if libc.setns(file.fileno(), CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), namespace)


if __name__ == "__main__":
    main()
