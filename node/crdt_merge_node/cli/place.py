"""Where the node of this command lives. Kept free of the full configuration: that takes 0.2 s to import."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

DATA_DIR_VARIABLES: Final = ("CRDT_MERGE_NODE_DATA_DIR", "CRDT_MERGE_NODE_NODE__DATA_DIR")
SOCKET_VARIABLE: Final = "CRDT_MERGE_NODE_CONTROL__SOCKET"
CONFIG_VARIABLE: Final = "CRDT_MERGE_NODE_CONFIG"


def find_data_dir(flag: str | None, environ: Mapping[str, str]) -> Path:
    """Return the data directory: from the flag, else the environment, else the configuration's default."""
    named = flag or next((environ[name] for name in DATA_DIR_VARIABLES if environ.get(name)), None)
    if named:
        return Path(named).expanduser().absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/crdt-merge-node")
    base = environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(base).expanduser() / "crdt-merge-node"


def find_socket(data_dir: Path, environ: Mapping[str, str]) -> Path:
    """Return the control socket: from the environment, else the configuration file, else the derived one."""
    from crdt_merge_node.control.socket_path import control_socket

    if named := environ.get(SOCKET_VARIABLE):
        return Path(named).expanduser().absolute()
    file = Path(environ.get(CONFIG_VARIABLE) or data_dir / "config.toml")
    try:
        named = tomllib.loads(file.read_text())["control"]["socket"]
    except (OSError, ValueError, KeyError, TypeError):
        # Whatever is wrong with the file, `run` says it; a command only looks for one value.
        named = None
    return (
        Path(named).expanduser().absolute() if isinstance(named, str) and named else control_socket(data_dir)
    )
