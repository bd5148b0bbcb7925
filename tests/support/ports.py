"""Ports for processes that are told theirs, or come back to it after they were killed."""

from __future__ import annotations

import socket
from pathlib import Path
from random import SystemRandom
from typing import Final

_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_WIDTH: Final = 16_384
_TRIES_MAX: Final = 1000
_given: set[int] = set()


def free_port() -> int:
    """Return a free port of 127.0.0.1 that the system gives to nobody who asks for any.

    One that was tried and let go, as port 0 finds them, may be another test's a moment later, whose sockets
    are given ports of the same range all the time.
    """
    first = int(_RANGE.read_text().split()[0]) if _RANGE.exists() else 32_768
    for _ in range(_TRIES_MAX):
        port = SystemRandom().randrange(max(1024, first - _WIDTH), first)
        if port not in _given and _is_free(port):
            _given.add(port)
            return port
    raise AssertionError(f"no port below {first} is free")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
