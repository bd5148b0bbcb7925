"""Who is answered at all: the checks before and the headers after every request, whatever it asks for.

A page of another site, open in the same browser, must learn nothing from a node on loopback. Three things see
to it. No header ever allows another origin to read (CORS). A request must name this node: a name that an
attacker pointed at 127.0.0.1 (DNS rebinding) arrives in ``Host`` and is refused. An address in ``Host`` is
let in, since an address cannot be pointed elsewhere, and probes and forwarded ports arrive so. And nothing
can be changed here: GET and HEAD only.

Names come from peers, so pages run under a policy that allows no script but the files of this node.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, MutableMapping
from typing import Any, Final

from crdt_merge_protocol.errors import CrdtMergeError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crdt_merge_node.documents import error_document
from crdt_merge_node.errors import ControlError, InvalidRequestError
from crdt_merge_node.telemetry.logging import get_logger

log = get_logger()

METHODS: Final = frozenset({"GET", "HEAD"})
URL_BYTES_MAX: Final = 2048
"""The longest of ours has some 200; browsers have their own limits from 2,000 on."""
HEADERS: Final = (
    (
        b"content-security-policy",
        b"default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
_STATUS_BY_EXIT: Final = {2: 400, 4: 404, 5: 403, 6: 504}


class RefusalError(Exception):
    """A request that is not answered with what it asks for."""

    def __init__(self, status: int, error: CrdtMergeError) -> None:
        super().__init__(error.message)
        self.status = status
        self.error = error


class Guard:
    """An application whose every request was checked and whose every answer carries :data:`HEADERS`."""

    def __init__(self, app: ASGIApp, *, own_names: Iterable[str]) -> None:
        self._app = app
        self._own_names = frozenset(name.lower().rstrip(".") for name in own_names) | {"localhost"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        has_begun = False

        async def send_guarded(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                _add_headers(message)
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, receive, send_guarded)
        except RefusalError as refusal:
            await _answer(send_guarded, refusal.status, refusal.error, must_close=True)
        except CrdtMergeError as error:
            await _answer(send_guarded, _STATUS_BY_EXIT.get(error.exit_code, 500), error)
        except Exception as error:
            log.exception("http.failed", path=scope["path"][:URL_BYTES_MAX], error=error)
            if has_begun:  # Nothing but the end of the line can say that this is not all.
                raise
            failure = ControlError(
                f"the daemon failed to answer: {type(error).__name__}.",
                hint="This is a bug; its log has the traceback.",
            )
            await _answer(send_guarded, 500, failure)

    def _check(self, scope: Scope) -> None:
        headers = _Headers(scope["headers"])
        if scope["method"] not in METHODS:
            raise _refuse(405, f"{scope['method'][:16]} is not served: this is read-only.", "Use the CLI.")
        if len(scope["raw_path"]) + len(scope["query_string"]) > URL_BYTES_MAX:
            raise _refuse(414, f"an address has at most {URL_BYTES_MAX} bytes here.")
        if headers.has("transfer-encoding") or headers.get("content-length", "0") != "0":
            raise _refuse(413, "a request has no body here.")
        host = host_of(headers.get("host", ""))
        if not self._is_own(host):
            raise _refuse(
                421,
                f"this node is not called {host[:255]!r}.",
                "Use its address, or add the name to http.allowed_hosts of the configuration.",
            )

    def _is_own(self, host: str) -> bool:
        if host in self._own_names or host.endswith(".localhost"):
            return True
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return True


class _Headers:
    """The first value of each header."""

    def __init__(self, raw: Iterable[tuple[bytes, bytes]]) -> None:
        self._values: dict[str, str] = {}
        for name, value in raw:
            self._values.setdefault(name.decode("latin-1").lower(), value.decode("latin-1").strip())

    def has(self, name: str) -> bool:
        return name in self._values

    def get(self, name: str, default: str) -> str:
        return self._values.get(name, default)


def host_of(header: str) -> str:
    """Return the lower-case name or address of a ``Host`` header, without port and brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower().rstrip(".")


def _refuse(status: int, message: str, hint: str = "") -> RefusalError:
    return RefusalError(status, InvalidRequestError(message, hint=hint))


def _add_headers(message: MutableMapping[str, Any]) -> None:
    present = {name for name, _ in message.get("headers", ())}
    message["headers"] = [
        *message.get("headers", ()),
        *((name, value) for name, value in HEADERS if name not in present),
        *([] if b"cache-control" in present else [(b"cache-control", b"no-store")]),
    ]


async def _answer(send: Send, status: int, error: CrdtMergeError, *, must_close: bool = False) -> None:
    body = json.dumps(error_document(error)).encode() + b"\n"
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if must_close:
        headers.append((b"connection", b"close"))
    if status == 405:
        headers.append((b"allow", b"GET, HEAD"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
