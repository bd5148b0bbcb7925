"""The port for the network: stream connections, and which addresses this host has."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Protocol


class Listener(Protocol):
    """A listening socket."""

    @property
    def address(self) -> tuple[str, int]:
        """The bound host and port; the real port if 0 was asked for."""
        ...

    def close(self) -> None:
        """Accept nothing more. Connections that were accepted live on."""
        ...


class Net(Protocol):
    """Stream connections over asyncio transports."""

    async def listen(self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> Listener:
        """Listen; every accepted connection gets a protocol of its own."""
        ...

    async def connect(
        self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """Connect. Raises ``OSError``; the caller sets the timeout."""
        ...


class _TcpListener:
    """A listening TCP socket of the running loop."""

    def __init__(self, server: asyncio.Server) -> None:
        self._server = server
        name = server.sockets[0].getsockname()
        self._address = (str(name[0]), int(name[1]))

    @property
    def address(self) -> tuple[str, int]:
        return self._address

    def close(self) -> None:
        self._server.close()


class TcpNet:
    """TCP on the running event loop."""

    async def listen(self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> Listener:
        """Listen on an address of this host."""
        loop = asyncio.get_running_loop()
        return _TcpListener(await loop.create_server(factory, host, port, backlog=512))

    async def connect(
        self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """Connect to an address."""
        return await asyncio.get_running_loop().create_connection(factory, host, port)


def local_addresses(port: int) -> tuple[str, ...]:
    """Return ``host:port`` of this host's own addresses that others could dial, without asking a network.

    Connecting a datagram socket sends nothing; it only makes the kernel choose the source address.
    """
    found: list[str] = []
    for family, target in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((target, 9))
            host = str(probe.getsockname()[0])
            found.append(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    return tuple(found) or (f"127.0.0.1:{port}",)
