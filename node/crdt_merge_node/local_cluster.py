"""A cluster of real daemons on this machine: own processes, own directories, mutual TLS on loopback.

What a person would type is what runs here: ``init``, ``run``, ``invite``, ``init --join TOKEN``, each as a
process of its own. Daemons die with the process that started them, however it ends, and closing the cluster
leaves nothing behind. ``dev`` and ``demo`` are made of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from .control.client import AsyncClient
from .control.socket_path import control_socket
from .errors import ControlError, DaemonNotRunningError

READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0
POLL_S = 0.02
_LOG_TAIL_BYTES = 2000


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "crdt_merge_node", *arguments]


@dataclass(slots=True)
class Member:
    """One daemon and its directory."""

    name: str
    data_dir: Path
    id: str = ""
    port: int = 0
    """0 until the first start, then kept over restarts."""
    http_port: int | None = None
    """Of dashboard and probes; None: none. 0 until the first start."""
    dashboard: str = ""
    """Its address for a browser."""
    process: asyncio.subprocess.Process | None = None
    _client: AsyncClient | None = field(default=None, repr=False)

    @property
    def log_path(self) -> Path:
        """Where the daemon's log goes."""
        return self.data_dir.with_suffix(".log")

    @property
    def client(self) -> AsyncClient:
        """A client of the daemon; the same until it stops."""
        if self._client is None:
            self._client = AsyncClient(control_socket(self.data_dir))
        return self._client

    async def command(self, *arguments: str) -> dict[str, Any]:
        """Run ``crdt-merge-node ARGUMENTS --json`` on this node; return the last object it printed."""
        process = await asyncio.create_subprocess_exec(
            *_command("--data-dir", str(self.data_dir), *arguments, "--json"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            output, errors = await process.communicate()
        finally:
            if process.returncode is None:  # Nobody waits for it any more.
                process.kill()
                await process.wait()
        if process.returncode:
            raise ControlError(f"{' '.join(arguments[:2])} on {self.name}: {errors.decode().strip()}")
        answer: dict[str, Any] = json.loads(output.decode().strip().split("\n")[-1])
        return answer

    async def start(self) -> None:
        """Start the daemon; return when it answers."""
        environment = os.environ | {
            "CRDT_MERGE_NODE_NODE__NAME": self.name,
            "CRDT_MERGE_NODE_LISTEN__HOST": "127.0.0.1",
            "CRDT_MERGE_NODE_LISTEN__PORT": str(self.port),
            "CRDT_MERGE_NODE_HTTP__PORT": "" if self.http_port is None else str(self.http_port),
            "CRDT_MERGE_NODE_LOG__FORMAT": "json",
        }
        with self.log_path.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "crdt_merge_node.leash", str(os.getpid())),
                *("--data-dir", str(self.data_dir), "run"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        await self._wait_ready()

    async def stop(self) -> None:
        """Ask the daemon to stop; kill it if it does not."""
        await self._signal(signal.SIGTERM)

    async def kill(self) -> None:
        """Kill the daemon as a power cut would: nothing of it runs any more."""
        await self._signal(signal.SIGKILL)

    async def _signal(self, number: int) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()
        process, self.process = self.process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            process.kill()
            await process.wait()

    async def _wait_ready(self) -> None:
        assert self.process is not None, "it has just been started"
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                while not await self._is_ready():
                    if self.process.returncode is not None:
                        raise ControlError(
                            f"{self.name} exited with {self.process.returncode}:\n{self._log_tail()}"
                        )
                    await asyncio.sleep(POLL_S)  # The socket that would tell is not there yet.
        except TimeoutError:
            raise ControlError(
                f"{self.name} did not answer within {READY_TIMEOUT_S:g} s:\n{self._log_tail()}"
            ) from None

    async def _is_ready(self) -> bool:
        try:
            status = await self.client.status()
        except DaemonNotRunningError:
            if self._client is not None:
                await self._client.close()
                self._client = None
            return False
        self.id, self.port = status.node, int(status.listen.rpartition(":")[2])
        self.dashboard = status.dashboard
        if self.dashboard:
            self.http_port = urlsplit(self.dashboard).port
        return True

    def _log_tail(self) -> str:
        return self.log_path.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")


class LocalCluster:
    """Daemons on loopback that live as long as the ``async with`` block."""

    def __init__(
        self, count: int, *, directory: Path | None = None, prefix: str = "node", has_http: bool = False
    ) -> None:
        self._own_directory = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix="cmn-"))
        self.members = [
            Member(
                f"{prefix}-{number}",
                self.directory / f"{prefix}-{number}",
                http_port=0 if has_http else None,
            )
            for number in range(1, count + 1)
        ]

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop all daemons and remove their directories."""
        await asyncio.gather(*(member.stop() for member in self.members), return_exceptions=True)
        if self._own_directory:
            shutil.rmtree(self.directory, ignore_errors=True)

    async def _start(self) -> None:
        first, *others = self.members
        await first.command("init")
        await first.start()

        async def join(member: Member) -> None:
            invite = await first.client.invite(expires_s=300.0)
            await member.command("init", "--join", invite.token)
            await member.start()

        await asyncio.gather(*(join(member) for member in others))

    async def connected(self, *, timeout_s: float = READY_TIMEOUT_S) -> float:
        """Wait until every daemon is connected to every other; return the seconds it took."""
        return await self.until(self._is_mesh, timeout_s=timeout_s, what="the full mesh")

    async def _is_mesh(self) -> bool:
        statuses = await asyncio.gather(*(member.client.status() for member in self.members))
        return all(
            sum(peer.state == "alive" for peer in status.peers) == len(self.members) - 1
            for status in statuses
        )

    @staticmethod
    async def until(condition: Any, *, timeout_s: float, what: str) -> float:
        """Poll an async condition until it holds; return the seconds it took."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while not await condition():
            if loop.time() - began > timeout_s:
                raise ControlError(f"{what} did not come about within {timeout_s:g} s.")
            await asyncio.sleep(POLL_S)
        return loop.time() - began
