"""Listening for HTTP in the daemon's own loop.

uvicorn brings its connections only. Its server would wake the loop ten times a second and take the signals of
the process; listening and closing are two dozen lines.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, cast

from starlette.types import ASGIApp
from uvicorn import Config as UvicornConfig
from uvicorn.server import ServerState

from crdt_merge_node.api import LocalNode
from crdt_merge_node.config.model import parse_address
from crdt_merge_node.control.model import Severity
from crdt_merge_node.ports import Listener, Net
from crdt_merge_node.services import Services
from crdt_merge_node.telemetry.logging import get_logger

from .connections import BoundedConnection
from .guard import Guard
from .history import History
from .routes import application

log = get_logger()

HEAD_BYTES_MAX: Final = 16 * 1024
"""Of a request's head; Apache takes 8 KiB a line, nginx 32 KiB in all."""
KEEP_ALIVE_S: Final = 15
"""For which a line may idle between two requests: longer than the dashboard waits."""
CLOSE_S: Final = 1.0
ALARM: Final = "http.unavailable"
_ANYWHERE: Final = frozenset({"0.0.0.0", "::", ""})  # noqa: S104  Compared with, not bound.


class HttpServer:
    """The HTTP side of one node. A port that is taken is an alarm, never a failed start."""

    def __init__(self, services: Services, net: Net) -> None:
        self._services = services
        self._api = LocalNode(services)
        self._history = History(services)
        self._net = net
        self._state = ServerState()
        self._listener: Listener | None = None

    async def start(self) -> None:
        """Listen, if the port is free, and let the rest of the node know the address."""
        settings = self._services.config.http
        assert settings.port is not None, "a server is made where one is wanted"
        app = application(self._services, self._api, self._history)
        config = _uvicorn_config(Guard(app, own_names=_own_names(self._services)))

        def connection() -> asyncio.Protocol:
            return BoundedConnection(config=config, server_state=self._state, app_state={})

        try:
            self._listener = await self._net.listen(connection, settings.host, settings.port)
        except OSError as error:
            self._alarm(error)
            return
        self._history.start()
        self._services.web.url = url_of(self._listener.address)
        log.info("http.opened", address=self._services.web.url)

    async def close(self) -> None:
        """Accept nothing more, give requests a moment to end, cut off the rest."""
        self._services.web.url = ""
        await self._history.close()
        if self._listener is not None:
            self._listener.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        if self._state.tasks:
            await asyncio.wait(self._state.tasks, timeout=CLOSE_S)
        for task in list(self._state.tasks):
            task.cancel()
        for connection in list(self._state.connections):
            cast(BoundedConnection, connection).transport.abort()
        await asyncio.sleep(0)

    def _alarm(self, error: OSError) -> None:
        settings = self._services.config.http
        where = f"{settings.host}:{settings.port}"
        message = f"dashboard, probes and metrics are off: {where}: {error.strerror or error}."
        log.warning("http.unavailable", address=where, error=error)
        self._services.alarms.set(
            ALARM,
            severity=Severity.WARNING,
            code="http.unavailable",
            message=message,
            hint="Set http.port to a free port (0: any; empty: off) and start the node again.",
        )


def _uvicorn_config(app: ASGIApp) -> UvicornConfig:
    config = UvicornConfig(
        cast(Any, app),
        interface="asgi3",
        http=BoundedConnection,
        ws="none",
        lifespan="off",
        log_config=None,
        # What clients do wrong is no news; what we do wrong is logged by the guard.
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        h11_max_incomplete_event_size=HEAD_BYTES_MAX,
    )
    config.load()
    return config


def _own_names(services: Services) -> set[str]:
    """Return the names by which clients may call this node, beside addresses and localhost."""
    settings = services.config.http
    advertised = {parse_address(address)[0] for address in services.config.listen.advertise}
    return {settings.host, *settings.allowed_hosts, *advertised} - _ANYWHERE


def url_of(address: tuple[str, int]) -> str:
    """Return the address to type into a browser on this machine."""
    host, port = address
    if host in _ANYWHERE:
        host = "[::1]" if host == "::" else "127.0.0.1"
    elif ":" in host:
        host = f"[{host}]"
    return f"http://{host}:{port}/"
