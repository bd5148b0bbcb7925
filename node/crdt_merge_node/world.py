"""What a node runs in: real unless a test or the simulator replaces it."""

from __future__ import annotations

from concurrent.futures import Executor

from .ports import Clock, Fs, Net, Rng, SystemClock, SystemFs, SystemRng, TcpNet
from .transport import OpenSslContexts, TlsContexts


class World:
    """The four ports, TLS, and how the database is run: real unless replaced."""

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        rng: Rng | None = None,
        fs: Fs | None = None,
        net: Net | None = None,
        contexts: TlsContexts | None = None,
        executor: Executor | None = None,
        vfs: str | None = None,
    ) -> None:
        self.clock: Clock = clock or SystemClock()
        self.rng: Rng = rng or SystemRng()
        self.fs: Fs = fs or SystemFs()
        self.net: Net = net or TcpNet()
        self.contexts: TlsContexts = contexts or OpenSslContexts()
        self.executor = executor
        """Of the store; a thread of its own if none."""
        self.vfs = vfs
        """APSW name of the virtual file system of the database; the system's if none."""
