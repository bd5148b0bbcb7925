"""A node that serves HTTP, and a client that can be as slow and as rude as a test wants."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from crdt_merge_node.config.model import HttpSection
from crdt_merge_node.http.server import HttpServer
from crdt_merge_node.ports import TcpNet
from crdt_merge_node.services import Services

from .whole_nodes import Site, WholeNode

TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


class Served:
    """A node, its HTTP server, and questions to it."""

    def __init__(self, node: WholeNode, services: Services, server: HttpServer) -> None:
        self.node = node
        self.services = services
        self.server = server
        self.url = services.web.url
        self.port = urlsplit(self.url).port or 0

    async def connect(self, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, **options)

    async def raw(self, request: bytes) -> Answer:
        """Send these bytes; return the first answer."""
        reader, writer = await self.connect()
        writer.write(request)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await read_answer(reader)
        finally:
            writer.close()

    async def get(self, path: str, *, method: str = "GET", host: str = "", **headers: str) -> Answer:
        """Ask for a path."""
        lines = [
            f"{method} {path} HTTP/1.1",
            f"host: {host or f'127.0.0.1:{self.port}'}",
            "connection: close",
        ]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        return await self.raw("\r\n".join(lines).encode() + b"\r\n\r\n")


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """Read one answer with a length, or all there is."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in head[1:] if line)}
    length = headers.get("content-length")
    status = int(head[0].split()[1])
    if length is None or status == 304:
        return Answer(status, headers, b"")
    body = (
        await reader.read() if headers.get("connection") == "close" else await reader.readexactly(int(length))
    )
    return Answer(status, headers, body)


@asynccontextmanager
async def serving(
    directory: Path, *, node: WholeNode | None = None, **settings: Any
) -> AsyncIterator[Served]:
    """Serve HTTP for a node, a fresh one if none is given, on a free port unless told otherwise."""
    if node is None:
        async with Site(directory).nodes(1) as (fresh,), serving(directory, node=fresh, **settings) as served:
            yield served
        return
    http = HttpSection(**{"port": 0} | settings)
    services = dataclasses.replace(
        node.services, config=node.services.config.model_copy(update={"http": http})
    )
    server = HttpServer(services, TcpNet())
    await server.start()
    try:
        yield Served(node, services, server)
    finally:
        await server.close()
