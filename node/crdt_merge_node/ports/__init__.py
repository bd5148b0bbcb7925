"""The four ports through which the world enters: clock, randomness, file system, network.

Everything above takes these as arguments and nothing else reads the time, rolls dice, opens files of the
data directory or makes sockets; ``tests/unit/storage/test_ports.py`` enforces it. That is what lets a
test or the simulator replace the world. Each port is a typed Protocol with its real implementation beside
it; that of ``files`` is long and has a module of its own, ``system_files``. The network's is loaded when it
is used first: it brings asyncio, which a merge of files has no use for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .clock import Clock, SystemClock
from .files import DiskSpace, File, FileStat, Fs, Lock, replace_file
from .process import available_memory_bytes, process_id, silence
from .rng import Rng, SeededRng, SystemRng
from .system_files import SystemFs, is_locked

if TYPE_CHECKING:
    from .net import Listener, Net, TcpNet, local_addresses

__all__ = [
    "Clock",
    "DiskSpace",
    "File",
    "FileStat",
    "Fs",
    "Listener",
    "Lock",
    "Net",
    "Rng",
    "SeededRng",
    "SystemClock",
    "SystemFs",
    "SystemRng",
    "TcpNet",
    "available_memory_bytes",
    "is_locked",
    "local_addresses",
    "process_id",
    "replace_file",
    "silence",
]


def __getattr__(name: str) -> Any:
    """Load the port for the network."""
    if name not in {"Listener", "Net", "TcpNet", "local_addresses"}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import net

    return getattr(net, name)
