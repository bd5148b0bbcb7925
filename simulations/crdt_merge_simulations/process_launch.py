"""Start a program on the shortest leash: it is killed when the process that started it ends, however it ends.

    python -m crdt_merge_simulations.process_launch PARENT NAMESPACE run …      a daemon
    python -m crdt_merge_simulations.process_launch PARENT -- PROGRAM …         any program

PARENT is the process id of who asks. NAMESPACE is the file of a network namespace to enter first, or ``-``.
The kernel sends SIGKILL and not SIGTERM, because a stopped process would never see SIGTERM. Asked for by the
child itself and not between fork and exec, because a process that uses gRPC must not fork.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_CLONE_NEWNET = 0x40000000


def main() -> None:
    """Tie this process to its parent, enter the namespace, become the program."""
    parent, namespace = int(sys.argv.pop(1)), sys.argv.pop(1)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the process that started this one is gone already")
    if namespace == "--":
        os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606  No shell is wanted.
    if namespace != "-":
        with open(namespace, "rb") as file:
            if libc.setns(file.fileno(), _CLONE_NEWNET):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), namespace)
    from crdt_merge_node.cli import main as run_command

    run_command()


if __name__ == "__main__":
    main()
