"""``python -m crdt_merge_node.leash …``: the command line, ending with the process that started it.

For daemons of a local cluster. Asked for by the child itself and not between fork and exec, because a process
that uses gRPC must not fork.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Ask the kernel for SIGTERM when the parent is gone, then run the command."""
    parent = int(sys.argv.pop(1))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit("the process that started this one is gone already")
    from .cli import main as run_command

    run_command()


if __name__ == "__main__":
    main()
