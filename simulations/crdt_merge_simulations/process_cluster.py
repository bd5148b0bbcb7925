"""Real daemons on this machine, by the dozen: made, started, killed, frozen, asked.

Every daemon is an own process with an own address, an own directory and mutual TLS, and runs the command line
that an operator would type. Two things are done in bulk: identities are made by the functions that ``init``
and ``init --join`` use, one hundred in half a second instead of minutes; and processes come from a
:class:`~crdt_merge_simulations.process_nursery.Nursery`. Starts are staggered.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from crdt_merge_node.control.client import AsyncClient, ClientClosedError
from crdt_merge_node.control.socket_path import control_socket
from crdt_merge_node.errors import ControlError, DaemonNotRunningError
from crdt_merge_node.ports import SystemClock, SystemFs, SystemRng
from crdt_merge_node.transport.certificates import CertificateAuthority
from crdt_merge_node.transport.identity import prepare_keys, write_membership
from crdt_merge_protocol.errors import CrdtMergeError

from .process_nursery import Child, Nursery

READY_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 15.0
POLL_S: Final = 0.05
STARTS_AT_ONCE: Final = 4
PORT: Final = 7946
SEEDS_PER_NODE: Final = 3
RESOLVE_BYTES: Final = 4 << 30
"""Address space that a resolve may plan with: 1 MiB per contribution, of which small tensors touch little."""
_LOG_TAIL_BYTES: Final = 2000


@dataclass(slots=True)
class Daemon:
    """One node: its directory, and its process while it runs."""

    number: int
    data_dir: Path
    address: str
    """Host of its own; the port is :data:`PORT` everywhere."""
    namespace: str
    seeds: tuple[str, ...]
    id: str = ""
    process: Child | None = None
    is_frozen: bool = False
    starts: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by who starts, stops or freezes it."""
    up: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while it answers."""
    _client: AsyncClient | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """What the log and the daemon itself call it."""
        return f"n{self.number}"

    @property
    def log_path(self) -> Path:
        """Where the daemon's log goes."""
        return self.data_dir.with_suffix(".log")

    @property
    def is_up(self) -> bool:
        """Whether it runs and can answer."""
        return self._client is not None and self.process is not None and not self.is_frozen

    @property
    def client(self) -> AsyncClient:
        """A client of the running daemon.

        Raises:
            DaemonNotRunningError: It is down or frozen.
        """
        if self._client is None or self.process is None or self.is_frozen:
            raise DaemonNotRunningError(f"{self.name} is down.")
        return self._client

    @contextlib.asynccontextmanager
    async def asking(self, timeout_s: float) -> AsyncIterator[AsyncClient]:
        """Give a client for one question, which ends with an error if the daemon does meanwhile.

        Raises:
            DaemonNotRunningError: It is down or frozen, or was stopped before it answered.
            TimeoutError: It did not answer in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                yield self.client
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # gRPC cancels who waits when a channel is closed.
            raise DaemonNotRunningError(f"{self.name} was stopped before it answered.") from None
        except ClientClosedError:  # And says this to who asks after that.
            raise DaemonNotRunningError(f"{self.name} was stopped before it was asked.") from None

    async def spawn(self, nursery: Nursery) -> None:
        """Start the process; it is not ready yet."""
        assert self.process is None, "a daemon is started when it is down"
        control_socket(self.data_dir).unlink(missing_ok=True)
        self.process = await nursery.bear(
            ["--data-dir", str(self.data_dir), "run"],
            settings=self._settings(),
            namespace=self.namespace,
            log=self.log_path,
        )
        self.starts += 1

    def _settings(self) -> dict[str, str]:
        return {
            "CRDT_MERGE_NODE_NODE__NAME": self.name,
            "CRDT_MERGE_NODE_LISTEN__HOST": self.address,
            "CRDT_MERGE_NODE_LISTEN__PORT": str(PORT),
            "CRDT_MERGE_NODE_LISTEN__ADVERTISE": f"{self.address}:{PORT}",
            "CRDT_MERGE_NODE_PEERS__SEEDS": ",".join(f"{seed}:{PORT}" for seed in self.seeds),
            "CRDT_MERGE_NODE_HTTP__PORT": "",
            "CRDT_MERGE_NODE_STORAGE__RESERVE_BYTES": str(4 << 20),
            "CRDT_MERGE_NODE_RESOLVE__MEMORY_BYTES": str(RESOLVE_BYTES),
            "CRDT_MERGE_NODE_RESOLVE__WORKERS": "1",
            "CRDT_MERGE_NODE_LOG__FORMAT": "json",
        }

    async def ready(self) -> None:
        """Wait until the daemon answers.

        Raises:
            ControlError: It ended instead; the message has the end of its log.
        """
        process = self.process
        assert process is not None, "it has just been started"
        async with asyncio.timeout(READY_TIMEOUT_S):
            while True:
                if process.returncode is not None:
                    raise ControlError(f"{self.name} exited with {process.returncode}:\n{self.log_tail()}")
                if (client := await self._try_client()) is not None:
                    self._client = client
                    self.up.set()
                    return
                await asyncio.sleep(POLL_S)

    async def _try_client(self) -> AsyncClient | None:
        try:
            client = AsyncClient(control_socket(self.data_dir))
        except DaemonNotRunningError:
            return None
        try:
            await client.version()
        except DaemonNotRunningError:
            await client.close()
            return None
        return client

    async def signal(self, number: int) -> None:
        """End the process with a signal, and with SIGKILL if that does not do it in time."""
        process, self.process = self.process, None
        client, self._client = self._client, None
        self.is_frozen = False
        self.up.clear()
        if client is not None:
            with contextlib.suppress(CrdtMergeError):
                await client.close()
        if process is None:
            return
        process.send_signal(number)
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            process.send_signal(signal.SIGKILL)
            await process.wait()

    def freeze(self, *, is_short: bool = False) -> None:
        """SIGSTOP: sockets stay open and nobody answers.

        Args:
            is_short: The node is only slow: whoever asks it something shall wait for the answer.
        """
        if self.process is not None:
            self.process.send_signal(signal.SIGSTOP)
            if not is_short:
                self.is_frozen = True
                self.up.clear()

    def thaw(self) -> None:
        """SIGCONT."""
        self.is_frozen = False
        if self._client is not None:
            self.up.set()
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)

    def rss_bytes(self) -> int:
        """Return the resident memory of the process, 0 if it is down."""
        if self.process is None:
            return 0
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        except FileNotFoundError:
            return 0
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))

    def log_tail(self) -> str:
        """Return the end of the log."""
        return self.log_path.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")


class ProcessCluster:
    """All daemons of a run."""

    def __init__(self, daemons: list[Daemon], *, on_death: Callable[[Daemon, int], None]) -> None:
        self.daemons = daemons
        self.clones: list[Daemon] = []
        self.nursery = Nursery()
        self._on_death = on_death
        self._watches: set[asyncio.Task[None]] = set()
        self._starting = asyncio.Semaphore(STARTS_AT_ONCE)
        self.is_closing = False

    def clone_of(self, daemon: Daemon, *, address: str, number: int, namespace: str) -> Daemon:
        """Return a node that will run on a copy of another one's disk."""
        clone = Daemon(
            number=number,
            data_dir=daemon.data_dir.with_name(f"n{number}"),
            address=address,
            namespace=namespace,
            seeds=daemon.seeds,
            id=daemon.id,
        )
        self.clones.append(clone)
        return clone

    def __getitem__(self, number: int) -> Daemon:
        return self.daemons[number]

    @property
    def living(self) -> list[Daemon]:
        """Those that run and answer, in order."""
        return [daemon for daemon in self.daemons if daemon.is_up]

    def make_identities(self) -> None:
        """Make one cluster and a member of it in every directory."""
        fs, rng, now = SystemFs(), SystemRng(), SystemClock().now()
        authority = CertificateAuthority.create("processes", rng.bytes(32), now=now)
        for daemon in self.daemons:
            node_key, tls_key = prepare_keys(daemon.data_dir, fs=fs, rng=rng)
            certificate = authority.issue(tls_key.public_key(), node_key.node_id, now=now)
            write_membership(
                daemon.data_dir, certificate, authority.certificate, name="processes", introducers=(), fs=fs
            )
            daemon.id = node_key.node_id.hex()

    async def start(self, daemon: Daemon) -> None:
        """Start a daemon that is down; return when it answers. Who calls holds its lock."""
        async with self._starting:
            await daemon.spawn(self.nursery)
            self._watch(daemon)
            await daemon.ready()

    async def start_all(self, daemons: Iterable[Daemon]) -> float:
        """Start many, staggered; return the seconds until the last one was ready."""
        began = asyncio.get_running_loop().time()

        async def start(daemon: Daemon) -> None:
            async with daemon.lock:
                if daemon.process is None:
                    await self.start(daemon)

        async with asyncio.TaskGroup() as group:
            for daemon in daemons:
                group.create_task(start(daemon))
        return asyncio.get_running_loop().time() - began

    async def close(self) -> None:
        """Kill everything that runs."""
        self.is_closing = True
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*(daemon.signal(signal.SIGKILL) for daemon in (*self.daemons, *self.clones)))
        await self.nursery.close()

    def _watch(self, daemon: Daemon) -> None:
        """Notice a daemon that ends by itself."""

        async def wait(process: Child) -> None:
            status = await process.wait()
            if daemon.process is process and not self.is_closing:
                self._on_death(daemon, status)

        assert daemon.process is not None, "it has just been started"
        task = asyncio.create_task(wait(daemon.process))
        self._watches.add(task)
        task.add_done_callback(self._watches.discard)
