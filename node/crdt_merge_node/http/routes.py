"""What is served where."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from crdt_merge_node.services import Services

from . import health

Answer: TypeAlias = Callable[[Request], Awaitable[Response]]


def application(services: Services) -> Starlette:
    """Return what answers requests to a running node."""

    async def healthz(_request: Request) -> Response:
        return json_response(health.health(services))

    async def readyz(_request: Request) -> Response:
        found = health.readiness(services)
        return json_response(found, status=200 if found["is_ready"] else 503)

    return Starlette(routes=[_route("/healthz", healthz), _route("/readyz", readyz)])


def _route(path: str, answer: Answer) -> Route:
    return Route(path, answer, methods=["GET", "HEAD"])


def json_response(document: Mapping[str, Any], *, status: int = 200) -> Response:
    """Return a document as an answer."""
    return Response(json.dumps(document) + "\n", status_code=status, media_type="application/json")
