"""Whether a job gets compiled loops, having them compiled, and installing them in a worker process.

Numba, with LLVM, is an extra of the package (``fast``). Without it, where the kernel forbids memory that is
first written and then executed (systemd's MemoryDenyWriteExecute), or when anything else goes wrong, numpy
does the work: the bits are the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from crdt_merge_protocol.limits import MIB
from crdt_merge_protocol.strategies.acceleration import install

LOADED_BYTES: Final = 16 * MIB
"""Private memory that LLVM and the loops take in a process: 7 MiB were measured, and 8 MiB
of masks."""
COMPILING_BYTES: Final = 160 * MIB
"""The same, of a process that compiles them; several workers wait for one."""
WORTH_ELEMENTS: Final = 50_000_000
"""Elements read, over all passes, from which on compiled loops are worth loading. Loading costs each worker
0.05 s of processor time; each element saves 1 ns. See protocol/decisions/0005-compiled-loops.md."""
WORTH_DRAWN_ELEMENTS: Final = 30_000_000
"""The same where much is drawn: each element saves 2 to 4 ns."""
WORTH_COMPILING_ELEMENTS: Final = 1_000_000_000
"""The same, from which on they are worth compiling where they are not yet: 30 s, once per user."""
CACHE_VARIABLE: Final = "CRDT_MERGE_KERNELS"
"""Where machine code is kept, instead of the user's cache directory; ``off``: there is none."""
_OFF: Final = "off"
_COMPILE_TIMEOUT_S: Final = 900


def compiled_bytes(elements: int, *, is_random: bool = False) -> int:
    """Return what compiled loops take in each worker of a job that reads so many elements; 0: it gets none.

    Where they still have to be compiled, they are, by a process of its own, if that is worth it.

    Args:
        elements: Over all passes.
        is_random: Whether the strategy draws.
    """
    enough = WORTH_DRAWN_ELEMENTS if is_random else WORTH_ELEMENTS
    if elements < enough or importlib.util.find_spec("numba") is None:
        return 0
    place = _place()
    if place is None:
        return 0
    if any(place.glob(f"{release()}-*.o")):
        return LOADED_BYTES
    return COMPILING_BYTES if elements >= WORTH_COMPILING_ELEMENTS else 0


def install_compiled() -> str:
    """Install compiled loops in this process; compile them first where that has not been done.

    Returns:
        Why there are none, for people; empty if they are installed.
    """
    install(None)
    try:
        path = _code_file()
        from .compiled import CompiledAccelerator
        from .compiled_code import CompiledCode

        accelerator = CompiledAccelerator(CompiledCode(path.read_bytes()))
        accelerator.check()
    except Exception as error:  # noqa: BLE001 - no LLVM, no executable memory, a broken cache: all the same.
        return f"{type(error).__name__}: {error}"
    install(accelerator)
    return ""


def compile_loops() -> str:
    """Compile the loops for this host and user unless that has been done.

    Returns:
        Why that is impossible, for people; empty if they are there.
    """
    try:
        _code_file()
    except Exception as error:  # noqa: BLE001 - as in install_compiled.
        return f"{type(error).__name__}: {error}"
    return ""


def release() -> str:
    """Return what tells the loops of one release from those of another."""
    hasher = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("compiled_*.py")):
        hasher.update(path.read_bytes())
    return hasher.hexdigest()[:16]


def _code_file() -> Path:
    """Return the file with the machine code for this host.

    Raises:
        OSError: There is no place for it.
        ImportError: There is no LLVM.
        subprocess.SubprocessError: Compiling failed.
    """
    from .compiled_code import host

    place = _place()
    if place is None:
        raise OSError("there is no directory for machine code that only this user may write to")
    path = place / f"{release()}-{host()}.o"
    if path.exists():
        return path
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # Of several workers one compiles.
        if not path.exists():
            _compile(path)
    for old in place.glob("*.o"):
        if old != path:
            old.unlink(missing_ok=True)
    return path


def _compile(path: Path) -> None:
    subprocess.run(  # noqa: S603 - our own interpreter and module.
        # -P: a file named numpy.py in the working directory is not numpy.
        [sys.executable, "-P", "-m", "crdt_merge_node.resolve.compiled_build", str(path)],
        check=True,
        timeout=_COMPILE_TIMEOUT_S,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _place() -> Path | None:
    """Return where machine code is kept: where only this user writes, because what is there is run."""
    chosen = os.environ.get(CACHE_VARIABLE, "")
    if chosen == _OFF:
        return None
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    with contextlib.suppress(OSError, RuntimeError):
        place = Path(chosen) if chosen else Path(base).expanduser() / "crdt-merge-node" / "kernels"
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = place.stat()
        if found.st_uid == os.getuid() and not found.st_mode & 0o022 and os.access(place, os.W_OK):
            return place
    return None
