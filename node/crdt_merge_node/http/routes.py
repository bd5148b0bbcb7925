"""What is served where. Documents are those of ``--json``: ``cli/JSON.md`` describes them."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from crdt_merge_node.api import LocalNode
from crdt_merge_node.api.naming import find_group
from crdt_merge_node.documents import document
from crdt_merge_node.errors import InvalidRequestError, NotFoundError
from crdt_merge_node.report.kept import read_kept
from crdt_merge_node.services import Services

from . import health
from .history import History
from .pages import page
from .roots import group_roots
from .stream import event_stream

Answer: TypeAlias = Callable[[Request], Awaitable[Response]]
Asked: TypeAlias = Callable[[Request], Awaitable[Mapping[str, Any]]]
INDEX: Final = "index.html"


def application(services: Services, api: LocalNode, history: History) -> Router:
    """Return what answers requests to a running node; errors leave it as exceptions."""
    documents = {
        "status": _status(api),
        "why": _why(api),
        "peers": _peers(api),
        "peer": _peer(api),
        "groups": _groups(api),
        "group": _group(api),
        "policy": _policy(api),
        "contributions": _contributions(api),
        "layers": _layers(services, api),
        "roots": _roots(services),
        "history": _history(history),
        "version": _version(api),
    }
    routes = [_route(f"/api/{name}.json", _as_json(ask)) for name, ask in documents.items()]

    async def healthz(_request: Request) -> Response:
        return json_response(health.health(services))

    async def readyz(_request: Request) -> Response:
        found = health.readiness(services)
        return json_response(found, status=200 if found["is_ready"] else 503)

    async def metrics(_request: Request) -> Response:
        # Three MiB of libraries, for nodes that somebody scrapes.
        from crdt_merge_node.telemetry.metrics import CONTENT_TYPE, render

        return Response(render(services), headers={"content-type": CONTENT_TYPE})

    routes += [
        _route("/metrics", metrics),
        _route("/api/events", event_stream(services)),
        _route("/healthz", healthz),
        _route("/readyz", readyz),
    ]
    return Router([*routes, _route("/{name:path}", _file)], redirect_slashes=False)


async def _file(request: Request) -> Response:
    found = page(request, request.path_params["name"] or INDEX)
    if found is None:
        raise NotFoundError("there is nothing at this address.", hint="/ is the dashboard.")
    return found


# --- documents ----------------------------------------------------------------------------------------


def _status(api: LocalNode) -> Asked:
    async def ask(_request: Request) -> Mapping[str, Any]:
        return document("status/1", await api.status())

    return ask


def _why(api: LocalNode) -> Asked:
    async def ask(request: Request) -> Mapping[str, Any]:
        return document("why/1", await api.why(request.query_params.get("group")))

    return ask


def _peers(api: LocalNode) -> Asked:
    async def ask(_request: Request) -> Mapping[str, Any]:
        return document("peer-list/1", peers=await api.peer_list())

    return ask


def _peer(api: LocalNode) -> Asked:
    async def ask(request: Request) -> Mapping[str, Any]:
        return document("peer-show/1", await api.peer_show(_named(request, "peer")))

    return ask


def _groups(api: LocalNode) -> Asked:
    async def ask(_request: Request) -> Mapping[str, Any]:
        return document("group-list/1", groups=await api.group_list())

    return ask


def _group(api: LocalNode) -> Asked:
    async def ask(request: Request) -> Mapping[str, Any]:
        return document("group-show/1", await api.group_show(_named(request)))

    return ask


def _policy(api: LocalNode) -> Asked:
    async def ask(request: Request) -> Mapping[str, Any]:
        return document("policy-show/1", policy=await api.policy_show(_named(request)))

    return ask


def _contributions(api: LocalNode) -> Asked:
    async def ask(request: Request) -> Mapping[str, Any]:
        return document("contribution-list/1", contributions=await api.contribution_list(_named(request)))

    return ask


def _layers(services: Services, api: LocalNode) -> Asked:
    async def ask(request: Request) -> Mapping[str, Any]:
        found = (await api.group_show(_named(request))).info
        return read_kept(services.config.node.data_dir, found.id, found.name, fs=services.fs)

    return ask


def _roots(services: Services) -> Asked:
    async def ask(request: Request) -> Mapping[str, Any]:
        return group_roots(services, find_group(services, _named(request)))

    return ask


def _history(history: History) -> Asked:
    async def ask(_request: Request) -> Mapping[str, Any]:
        return history.document()

    return ask


def _version(api: LocalNode) -> Asked:
    async def ask(_request: Request) -> Mapping[str, Any]:
        return document("version/1", daemon=await api.version())

    return ask


def _named(request: Request, what: str = "group") -> str:
    """Return the group, or whatever else, that is asked for."""
    name = request.query_params.get(what, "")
    if not name:
        raise InvalidRequestError(f"no {what} is named.", hint=f"Add ?{what}=NAME to the address.")
    return name


# --- answers ------------------------------------------------------------------------------------------


def _route(path: str, answer: Answer) -> Route:
    return Route(path, answer, methods=["GET", "HEAD"])


def _as_json(ask: Asked) -> Answer:
    async def answer(request: Request) -> Response:
        return json_response(await ask(request))

    return answer


def json_response(found: Mapping[str, Any], *, status: int = 200) -> Response:
    """Return a document as an answer."""
    return Response(json.dumps(found) + "\n", status_code=status, media_type="application/json")
