"""Where the control socket is: a pure function of the data directory, so that daemon and CLI agree.

It lies in the data directory. A Unix socket's path is limited to 107 bytes, though; for a longer one a
private directory in /tmp takes its place. ``$XDG_RUNTIME_DIR`` plays no part on purpose: a daemon started
by systemd and a shell under sudo have different ones, and the CLI would report a running daemon as gone.
Whoever may connect may do everything, so the directory must belong to one user and be closed to the rest.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Final

from crdt_merge_node.errors import ControlError, DaemonNotRunningError

SOCKET_PATH_BYTES_MAX: Final = 107
"""``sun_path`` of Linux has 108 bytes with its final zero."""
_NAME: Final = "control.sock"


def control_socket(data_dir: Path) -> Path:
    """Return the path of the control socket of the node whose data is in ``data_dir``."""
    data_dir = data_dir.absolute()
    path = data_dir / _NAME
    if len(str(path).encode()) <= SOCKET_PATH_BYTES_MAX:
        return path
    # The owner's id, not the caller's: root asks about the daemon of another user.
    owner = data_dir.stat().st_uid if data_dir.exists() else os.geteuid()
    name = hashlib.sha256(str(data_dir).encode()).hexdigest()[:16]
    return Path("/tmp") / f"crdt-merge-{owner}" / f"{name}.sock"  # noqa: S108  Checked by claim_socket.


def claim_socket(path: Path) -> None:
    """Make the directory of a control socket, and refuse one that others can write to.

    Raises:
        ControlError: The directory belongs to somebody else, or something that is no socket is in the way.
    """
    if len(str(path).encode()) > SOCKET_PATH_BYTES_MAX:
        raise ControlError(
            f"the control socket {path} is longer than {SOCKET_PATH_BYTES_MAX} bytes.",
            hint="Set control.socket to a shorter path.",
        )
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.parent.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise ControlError(
            f"{path.parent} must be a directory of this user that nobody else can write to.",
            hint=f"Look at it with `ls -ld {path.parent}`, then fix its owner and mode.",
        )
    if os.path.lexists(path) and not stat.S_ISSOCK(path.lstat().st_mode):
        raise ControlError(f"{path} is in the way: it is not a socket.", hint="Move it elsewhere.")


def not_running(path: Path) -> DaemonNotRunningError:
    """Return the error for a control socket on which nobody answers."""
    return DaemonNotRunningError(
        f"no daemon answers on {path}.",
        hint="Start one with `crdt-merge-node run`, or name its directory with --data-dir.",
    )


def require_socket(path: Path) -> None:
    """Check that a daemon's socket is at ``path``; whether it answers is another question.

    Raises:
        DaemonNotRunningError: There is none.
        ControlError: It belongs neither to us, nor to root, nor to the owner of its private directory.
    """
    if not check_socket(path):
        raise not_running(path)


def check_socket(path: Path) -> bool:
    """Return whether there is a socket at ``path``; refuse one that another user put there.

    Raises:
        ControlError: As in :func:`require_socket`.
    """
    try:
        found, directory = path.lstat(), path.parent.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    trusted = {0, os.geteuid()} if os.geteuid() else {0, directory.st_uid}
    if found.st_uid not in trusted:
        raise ControlError(
            f"the socket {path} belongs to user {found.st_uid}, not to you.",
            hint="Run the command as the user of the daemon.",
        )
    return stat.S_ISSOCK(found.st_mode)
