"""One simulated machine: a disk, two clocks, an address, and at most one running process of the daemon.

The daemon is the production one, from ``running_node`` down to the SQL. What surrounds it is simulated: the
disk (``disk.py``), the network (``network.py``), time and threads (``loop.py``), randomness and TLS
(``plaintext.py``). A machine also plays the supervisor: a daemon that ends by itself is started again.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

from crdt_merge_node.config import Config
from crdt_merge_node.config.model import ListenSection, NodeSection, PeersSection, StorageSection
from crdt_merge_node.errors import CorruptError
from crdt_merge_node.ports import SeededRng
from crdt_merge_node.runtime import RunningNode, running_node
from crdt_merge_node.storage import Store
from crdt_merge_node.transport import TlsContexts
from crdt_merge_node.transport.certificates import CertificateAuthority
from crdt_merge_node.transport.identity import prepare_keys, write_membership
from crdt_merge_node.world import World as Ports
from crdt_merge_protocol.identity import NodeKey
from crdt_merge_protocol.state import CRDTMergeState
from cryptography import x509
from pydantic import ByteSize

from .disk import PowerCutError, SimulatedDisk
from .disk_sqlite import SimulatedVfs
from .execution import InlineExecutor
from .loop import SimulatedLoop
from .mischief import Mischief
from .network import PORT, MachineNet, Network, host_of
from .planning import stream
from .simulated_process import OUTSIDE, Process

DATA: Final = Path("/node")
USER: Final = Path("/user")
"""Where a user of the machine keeps files."""
CLUSTER: Final = "simulated"
RESTART_S: Final = 0.5
"""After which a supervisor starts a daemon again that ended by itself."""
DAY_S: Final = 86_400.0
_vfs_numbers = itertools.count()


@dataclass(slots=True)
class MachineClock:
    """The clock port of a machine: it need not agree with anybody's."""

    loop: SimulatedLoop
    wall: float
    """What it showed when virtual time began."""
    uptime: float

    def now(self) -> float:
        """Return wall time in seconds since 1970."""
        return self.wall + self.loop.time()

    def monotonic(self) -> float:
        """Return seconds since some start."""
        return self.uptime + self.loop.time()


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all machines of a run share."""

    seed: int
    loop: SimulatedLoop
    network: Network
    authority: CertificateAuthority
    wall: float
    """Wall time at the start, by which certificates are valid."""
    contexts: Callable[[x509.Certificate, SimulatedDisk], TlsContexts]
    ready: Callable[[Machine], None]
    """Told when a daemon is ready."""
    ended: Callable[[Machine, BaseException], None]
    """Told when a daemon ended by itself."""


class Machine:
    """A machine and its daemon, of whom one life follows the other."""

    def __init__(
        self,
        surroundings: Surroundings,
        number: int,
        seeds: tuple[str, ...],
        *,
        original: Machine | None = None,
    ) -> None:
        """Make a machine with a new identity, or one with a copy of another's disk.

        Args:
            original: Whose disk is copied as it is now, keys included.
        """
        self.number = number
        self.name: str = f"n{number}" if original is None else f"{original.name}-clone"
        self.seeds = seeds
        self.boots = 0
        self.process: Process | None = None
        self.node: RunningNode | None = None
        """While it is ready."""
        self.is_wanted = False
        """Whether the supervisor keeps the daemon running."""
        self.disks_lost = 0
        """How often the disk was lost, or went back in time."""
        self.is_full = False
        self.cut_in: tuple[int, Callable[[], None]] | None = None
        """After so many more disk calls, do this in the middle of the next."""
        self.fails_next_write = False
        self.mischief: Mischief | None = None
        """What it does to the messages of its engine at the moment."""
        self.vfses: list[SimulatedVfs] = []
        """SQLite needs them for as long as connections live."""
        self._around = surroundings
        rng = stream(surroundings.seed, "clock", number)
        skew = rng.choice((rng.gauss(0.0, 2.0), rng.uniform(-DAY_S, DAY_S), rng.uniform(-400, 400) * DAY_S))
        self.clock = MachineClock(surroundings.loop, surroundings.wall + skew, rng.uniform(0.0, 1e6))
        self._identity_number: int = number if original is None else original._identity_number  # noqa: SLF001
        if original is None:
            self.key, self.disk = self._first_disk()
        else:
            self.key, self.disk = original.key, original.disk.copy()
            self._certificate: x509.Certificate = original._certificate  # noqa: SLF001
        self._contexts = surroundings.contexts(self._certificate, self.disk)
        self._stop: asyncio.Future[BaseException] | None = None

    # --- the disk -----------------------------------------------------------------------------------

    def _first_disk(self) -> tuple[NodeKey, SimulatedDisk]:
        disk = SimulatedDisk()
        key, tls_key = prepare_keys(DATA, fs=disk, rng=self._key_rng())
        self._certificate = self._around.authority.issue(
            tls_key.public_key(), key.node_id, now=self._around.wall
        )
        self._complete(disk)
        return key, disk

    def _key_rng(self) -> SeededRng:
        return SeededRng(f"{self._around.seed}/keys/{self._identity_number}")

    def _complete(self, disk: SimulatedDisk) -> None:
        write_membership(
            DATA, self._certificate, self._around.authority.certificate, name=CLUSTER, introducers=(), fs=disk
        )
        disk.mkdir(USER)
        for directory in (Path("/"), DATA, DATA / "identity"):
            disk.sync_dir(directory)

    def use_disk(self, disk: SimulatedDisk) -> None:
        """Put another disk in; the daemon must not be running."""
        disk.fault = self._disk_call
        self.disk = disk
        self._fit()

    def lose_disk(self) -> None:
        """Put an empty disk in, with the same identity."""
        disk = SimulatedDisk()
        prepare_keys(DATA, fs=disk, rng=self._key_rng())
        self._complete(disk)
        self.disks_lost += 1
        self.use_disk(disk)

    def set_full(self, *, is_full: bool) -> None:
        """Leave no room on the disk, or give it back."""
        self.is_full = is_full
        self._fit()

    def _fit(self) -> None:
        self.disk.capacity_bytes = self.disk.used_bytes if self.is_full else 1 << 30

    def _disk_call(self, _index: int, name: str, path: Path) -> None:
        """Make a disk call fail if a fault is due."""
        if self.cut_in is not None:
            calls, action = self.cut_in
            if calls <= 0:
                self.cut_in = None
                action()
                raise PowerCutError
            self.cut_in = (calls - 1, action)
        if self.fails_next_write and name in ("write", "sync") and path.is_relative_to(DATA):
            self.fails_next_write = False
            raise OSError(errno.EIO, "Input/output error")

    def put_file(self, path: Path, data: bytes) -> None:
        """Let the user write a file, durably; faults are for the daemon alone.

        Raises:
            OSError: No room.
        """
        disk, disk.fault = self.disk, None
        try:
            if disk.stat(path) is not None:
                disk.unlink(path)
            with disk.create(path) as file:
                file.write_at(0, data)
                file.sync()
            disk.sync_dir(path.parent)
        finally:
            disk.fault = self._disk_call

    # --- lives of the daemon ------------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        """Whether there is a process, ready or not."""
        return self.process is not None

    def start(self) -> None:
        """Start the daemon, and from now on keep it running."""
        self.is_wanted = True
        if self.process is not None:
            return
        self.boots += 1
        seed = self._around.seed
        self.process = Process(self.number, rng=stream(seed, "process", self.number, self.boots))
        self.use_disk(self.disk)
        rng = Random(f"{seed}/sqlite/{self.number}/{self.boots}")  # noqa: S311
        self.vfses.append(SimulatedVfs(self.disk, name=f"machine-{next(_vfs_numbers)}", rng=rng))
        self._around.loop.create_task(self._run(self.process), context=self.process.context)

    async def _run(self, process: Process) -> None:
        """Be the daemon's process."""
        error: BaseException
        try:
            async with running_node(self._config(), self._ports(), is_served=False) as node:
                self.node = node
                self._stop = node.failed
                _delay_writes(node.services.store, process)
                self._around.ready(self)
                error = await node.failed
                self.node = None
        except Exception as raised:  # noqa: BLE001  (the supervisor sees only that it ended)
            error = raised
        self._around.loop.call_soon(self._exited, process, error, context=OUTSIDE)

    def _exited(self, process: Process, error: BaseException) -> None:
        if self.process is not process:
            return
        self.kill(restart_s=None)
        self._around.ended(self, error)
        if isinstance(error, CorruptError):
            self.lose_disk()  # Its operator begins anew, with the old key.
        if self.is_wanted:
            self._around.loop.call_later(RESTART_S, self.start, context=OUTSIDE)

    def _config(self) -> Config:
        return Config(
            node=NodeSection(data_dir=DATA, name=self.name),
            listen=ListenSection(host=host_of(self.number), port=PORT),
            peers=PeersSection(seeds=self.seeds),
            storage=StorageSection(reserve_bytes=ByteSize(0)),
        )

    def _ports(self) -> Ports:
        return Ports(
            clock=self.clock,
            rng=SeededRng(f"{self._around.seed}/rng/{self.number}/{self.boots}"),
            fs=self.disk,
            net=MachineNet(self._around.network, self.number),
            contexts=self._contexts,
            executor=InlineExecutor(),
            vfs=self.vfses[-1].name,
        )

    def states(self) -> dict[bytes, CRDTMergeState]:
        """Return group -> state if the daemon is ready; nothing if it is not."""
        if self.node is None:
            return {}
        replicas = self.node.services.engine.replicas
        return {group: replicas[group].state for group in sorted(replicas)}

    def say_goodbye(self) -> None:
        """Tell the daemon to stop, as SIGTERM does; it is not started again."""
        self.is_wanted = False
        if self._stop is not None and not self._stop.done() and self.process is not None:
            self.process.context.run(self._stop.set_result, StoppedError("told to stop"))

    def kill(self, *, restart_s: float | None, is_power_cut: bool = False) -> None:
        """End the process at once; with a power cut also lose what was not synced.

        Args:
            restart_s: Start it again after so many seconds; None: somebody else will.
        """
        process, self.process, self.node, self._stop = self.process, None, None, None
        self.cut_in = None
        if process is not None:
            self._around.loop.kill(process)
            self.disk.fault = None  # SQLite's file system keeps the disk; it must not keep all the world.
            if is_power_cut:
                self.disk.is_dead = self.disk.is_void = True
                rng = stream(self._around.seed, "power", self.number, self.boots)
                self.use_disk(self.disk.after_power_cut(rng))
            else:
                self.use_disk(self.disk.after_kill())
        if restart_s is not None:
            self._around.loop.call_later(restart_s, self.start, context=OUTSIDE)


class StoppedError(Exception):
    """The daemon was told to stop."""


def _delay_writes(store: Store, process: Process) -> None:
    """Let the database's thread be busy before it begins: the executor here would do everything at once.

    Between asking for durability and having it there must be time in which a machine can die.
    """
    loop, free_at = asyncio.get_running_loop(), 0.0

    def delayed(write: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        async def later(*args: Any) -> None:
            nonlocal free_at
            free_at = max(free_at, loop.time()) + process.delay()
            await asyncio.sleep(free_at - loop.time())
            await write(*args)

        return later

    for name in ("append", "add_group", "update_meta"):
        setattr(store, name, delayed(getattr(store, name)))
