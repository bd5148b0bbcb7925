"""``python -m crdt_merge_simulations.process_launch PARENT PROGRAM …``: a program on the shortest leash.

It is killed when the process PARENT, which started it, ends, however that ends. Asked for by the child itself
and not between fork and exec, because a process that has threads must not run Python there.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from .process_nursery import PR_SET_PDEATHSIG


def main() -> None:
    """Tie this process to its parent and become the program."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the process that started this one is gone already")
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606  No shell is wanted.


if __name__ == "__main__":
    main()
