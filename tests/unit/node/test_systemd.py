"""What the service manager is told: sd_notify(3) as a datagram socket hears it."""

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from crdt_merge_node.systemd import ServiceManager
from support.bulk import run


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        listener.setblocking(False)
        yield listener, path


def _heard(listener: socket.socket) -> list[str]:
    heard = []
    while True:
        try:
            heard.append(listener.recv(4096).decode())
        except BlockingIOError:
            return heard


def _run(environment: dict[str, str], *, for_s: float) -> None:
    async def live() -> None:
        told = ServiceManager(environment)
        told.ready("node 1f2e\nlistens")
        await asyncio.sleep(for_s)
        told.stopping()
        await asyncio.sleep(for_s)  # Silence from here on.

    run(live())


def test_the_manager_hears_ready_and_stopping(manager: tuple[socket.socket, str]) -> None:
    listener, path = manager

    _run({"NOTIFY_SOCKET": path}, for_s=60.0)

    assert _heard(listener) == [f"READY=1\nSTATUS=node 1f2e listens\nMAINPID={os.getpid()}", "STOPPING=1"]


def test_the_watchdog_is_fed_twice_per_interval(manager: tuple[socket.socket, str]) -> None:
    listener, path = manager

    _run({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, for_s=59.0)

    assert _heard(listener)[1:] == ["WATCHDOG=1"] * 4 + ["STOPPING=1"]


def test_a_watchdog_of_another_process_is_not_fed(manager: tuple[socket.socket, str]) -> None:
    listener, path = manager

    _run({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, for_s=59.0)

    assert len(_heard(listener)) == 2


@pytest.mark.parametrize("interval", ["", "soon", "-1", "٣"])
def test_an_interval_that_is_none_feeds_nothing(manager: tuple[socket.socket, str], interval: str) -> None:
    listener, path = manager

    _run({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": interval}, for_s=59.0)

    assert len(_heard(listener)) == 2


def test_an_abstract_socket_is_reached() -> None:
    name = f"crdt-merge-node-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        listener.setblocking(False)

        _run({"NOTIFY_SOCKET": f"@{name}"}, for_s=1.0)

        assert len(_heard(listener)) == 2


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": "/nowhere/at/all"}])
def test_nobody_to_tell_is_no_error(environment: dict[str, str]) -> None:
    _run(environment, for_s=1.0)
