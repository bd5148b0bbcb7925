"""Where the node of this command lives. Kept free of the full configuration: that takes 0.2 s to import."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from crdt_merge_node.errors import ConfigError

DATA_DIR_VARIABLES: Final = ("CRDT_MERGE_NODE_DATA_DIR", "CRDT_MERGE_NODE_NODE__DATA_DIR")
SOCKET_VARIABLE: Final = "CRDT_MERGE_NODE_CONTROL__SOCKET"
CONFIG_VARIABLE: Final = "CRDT_MERGE_NODE_CONFIG"
CONFIG_BYTES_MAX: Final = 1 << 20
PATH_BYTES_MAX: Final = 4095
"""``PATH_MAX`` of Linux without its final zero."""


def find_data_dir(flag: str | None, environ: Mapping[str, str]) -> Path:
    """Return the data directory: from the flag, else the environment, else the configuration's default.

    Raises:
        ConfigError: What was named is no path. Nothing else is taken in its place.
    """
    named = flag
    if named is None:
        named = next((environ[name] for name in DATA_DIR_VARIABLES if environ.get(name)), None)
    if named is not None:
        return _named(named)
    if os.geteuid() == 0:
        return Path("/var/lib/crdt-merge-node")
    base = environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(base).expanduser() / "crdt-merge-node"


def _named(text: str) -> Path:
    try:
        nbytes = len(text.encode())
        path = Path(text).expanduser().absolute()
    except (UnicodeEncodeError, RuntimeError) as error:
        why = "is not UTF-8" if isinstance(error, UnicodeEncodeError) else "names the home of nobody"
        raise ConfigError(f"the data directory {text[:100]!r} {why}.", hint="Name another one.") from None
    if not 0 < nbytes <= PATH_BYTES_MAX or not text.isprintable():
        raise ConfigError(
            f"the data directory {text[:100]!r} is no path: 1 to {PATH_BYTES_MAX} bytes that can be printed.",
            hint="Name one with --data-dir.",
        )
    return path


def find_socket(data_dir: Path, environ: Mapping[str, str]) -> Path:
    """Return the control socket: from the environment, else the configuration file, else the derived one."""
    from crdt_merge_node.control.socket_path import control_socket

    if named := environ.get(SOCKET_VARIABLE):
        return Path(named).expanduser().absolute()
    file = Path(environ.get(CONFIG_VARIABLE) or data_dir / "config.toml")
    try:
        # Neither a device, which has no end, nor a pipe, which may never begin.
        text = file.read_text() if file.is_file() and file.stat().st_size <= CONFIG_BYTES_MAX else ""
        named = tomllib.loads(text)["control"]["socket"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        # Whatever is wrong with the file, `run` says it; a command only looks for one value.
        named = None
    return (
        Path(named).expanduser().absolute() if isinstance(named, str) and named else control_socket(data_dir)
    )
