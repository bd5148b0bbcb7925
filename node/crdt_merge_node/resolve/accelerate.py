"""Whether a job gets compiled loops, and installing them in a worker process.

Numba is an extra of the package (``fast``). Without it, where the kernel forbids memory that is both writable
and executable (systemd's MemoryDenyWriteExecute), or when anything else goes wrong, numpy does the work: the
bits are the same.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from pathlib import Path
from typing import Final

from crdt_merge_protocol.limits import MIB
from crdt_merge_protocol.strategies.acceleration import install

COMPILED_BYTES: Final = 120 * MIB
"""Private memory that numba and its code take in a process: 76 to 121 MiB in all were measured with them, 25
without; the first compilation of a user takes most."""
WORTH_ELEMENTS: Final = 2_000_000_000
"""Elements read, over all passes, from which on compiled loops are worth loading. Loading costs each worker
2.0 to 2.3 s of processor time (compiling, once per user, 8 s); per float32 an average saved 0.9 ns and TIES
1.9 ns, so two workers break even at about this many. See protocol/decisions/0005-compiled-loops.md."""
_CACHE_VARIABLE: Final = "NUMBA_CACHE_DIR"
_OFF_VARIABLE: Final = "NUMBA_DISABLE_JIT"


def is_worth_compiling(elements: int) -> bool:
    """Tell whether a job that reads so many elements is to load compiled loops, if this host has them."""
    return (
        elements >= WORTH_ELEMENTS
        and os.environ.get(_OFF_VARIABLE, "0") == "0"
        and importlib.util.find_spec("numba") is not None
    )


def install_compiled() -> str:
    """Install compiled loops in this process.

    Returns:
        Why there are none, for people; empty if they are installed.
    """
    _name_cache()
    try:
        from .compiled import CompiledAccelerator

        accelerator = CompiledAccelerator()
        accelerator.check()
    except Exception as error:  # noqa: BLE001 - no numba, no executable memory, a broken cache: all the same.
        install(None)
        return f"{type(error).__name__}: {error}"
    install(accelerator)
    return ""


def _name_cache() -> None:
    """Let numba keep its machine code where only this user writes; nowhere, if there is no such place."""
    if os.environ.get(_CACHE_VARIABLE):
        return
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    place = Path(base).expanduser() / "crdt-merge-node" / "kernels"
    with contextlib.suppress(OSError, RuntimeError):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = place.stat()
        if found.st_uid == os.getuid() and not found.st_mode & 0o022 and os.access(place, os.W_OK):
            os.environ[_CACHE_VARIABLE] = str(place)
