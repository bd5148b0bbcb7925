"""Telling the service manager how the daemon is: ready, stopping, and still turning.

systemd passes a datagram socket in ``NOTIFY_SOCKET`` and, with ``WatchdogSec=``, the time within which it
wants to hear again in ``WATCHDOG_USEC``. One datagram of ``NAME=value`` lines is the whole protocol, so it is
written here rather than taken from a library.

The watchdog is fed by the event loop itself: a loop that hangs is restarted, one that is merely busy is not,
since the manager waits for two feeds.

Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from typing import Final

FEEDS_PER_INTERVAL: Final = 2
"""As sd_watchdog_enabled(3) recommends: at half of the time."""


class ServiceManager:
    """What to tell, or nobody to tell it to."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        """An abstract socket is written with @ and named with a zero byte."""
        self.interval_s = _watchdog_s(environment)
        """How often the manager wants to hear; 0: never."""
        self._feeding: asyncio.Task[None] | None = None

    def ready(self, status: str) -> None:
        """Say that the daemon does its work, and start feeding the watchdog, if there is one."""
        self._tell(f"READY=1\nSTATUS={_one_line(status)}\nMAINPID={os.getpid()}")
        if self._address and self.interval_s > 0.0 and self._feeding is None:
            self._feeding = asyncio.get_running_loop().create_task(self._feed())

    def stopping(self) -> None:
        """Say that the daemon is on its way out; the watchdog is fed no more."""
        self._tell("STOPPING=1")
        if self._feeding is not None:
            self._feeding.cancel()
            self._feeding = None

    async def _feed(self) -> None:
        while True:
            self._tell("WATCHDOG=1")
            await asyncio.sleep(self.interval_s / FEEDS_PER_INTERVAL)

    def _tell(self, message: str) -> None:
        """Send a datagram; a manager that has gone is no reason to stop."""
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setblocking(False)
            try:
                sender.sendto(message.encode(), self._address)
            except OSError:
                return


def _watchdog_s(environment: Mapping[str, str]) -> float:
    """Return the interval that is meant for this process, in seconds; 0 if there is none."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    text = environment.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isascii() and text.isdigit() else 0.0


def _one_line(text: str) -> str:
    return " ".join(text.split())
