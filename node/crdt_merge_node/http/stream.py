"""``/api/events``: what happens on the node, as it happens (server-sent events).

A browser that lost its line says what it saw last and is told what came since, as far as the node remembers.
A comment every few seconds keeps middle boxes from closing the line, and finds clients that are gone.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final, TypeAlias

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from crdt_merge_node.control.model import EventsMissed, LogEvent
from crdt_merge_node.documents import document
from crdt_merge_node.errors import ControlError, InvalidRequestError
from crdt_merge_node.services import Services
from crdt_merge_node.telemetry.events import LEVELS

from .guard import RefusalError

HEARTBEAT_S: Final = 15.0
STREAMS_MAX: Final = 16
"""At a time: each is a line that stays open."""
LAST: Final = 200
"""Events of the past that a new reader is told."""
_KIND: Final = "text/event-stream"

Happened: TypeAlias = LogEvent | EventsMissed


def event_stream(services: Services) -> Callable[[Request], Awaitable[Response]]:
    """Return what answers with what happened lately and then with what happens, until the node stops."""
    readers = 0

    async def answer(request: Request) -> Response:
        after = _number(request.headers.get("last-event-id") or request.query_params.get("after", ""))
        level = request.query_params.get("level", "info")
        if level not in LEVELS:
            raise InvalidRequestError(f'"{level}" is no level.', hint=f"Use one of: {', '.join(LEVELS)}.")
        if request.method == "HEAD":
            return Response(media_type=_KIND)
        if readers >= STREAMS_MAX:
            message = f"{STREAMS_MAX} readers follow the events already."
            raise RefusalError(503, ControlError(message, hint="Close one, or use the CLI."))
        found = services.events.follow(after=after, last=LAST, level=level)
        return StreamingResponse(counted(frames(found)), media_type=_KIND)

    async def counted(stream: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
        nonlocal readers
        readers += 1
        try:
            async with contextlib.aclosing(stream):
                async for each in stream:
                    yield each
        finally:
            readers -= 1

    return answer


async def frames(
    found: AsyncGenerator[Happened], *, heartbeat_s: float = HEARTBEAT_S
) -> AsyncGenerator[bytes]:
    """Yield events as they go over the line, with a comment wherever nothing happens for long."""
    waiting: asyncio.Task[Happened] | None = None
    try:
        yield b"retry: 2000\n\n"
        while True:
            waiting = waiting or asyncio.ensure_future(_next(found))
            done, _ = await asyncio.wait({waiting}, timeout=heartbeat_s)
            if not done:
                yield b": still here\n\n"
                continue
            try:
                happened = waiting.result()
            except StopAsyncIteration:
                return
            waiting = None
            yield frame(happened)
    finally:
        if waiting is not None:
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
                await waiting
        await found.aclose()


async def _next(found: AsyncGenerator[Happened]) -> Happened:
    return await anext(found)


def frame(happened: Happened) -> bytes:
    """Return one event as it goes over the line; its number is what a reader later comes back with."""
    if isinstance(happened, EventsMissed):
        found = document("events/1", missed=happened.count)
        return f"event: missed\ndata: {json.dumps(found)}\n\n".encode()
    return f"id: {happened.seq}\ndata: {json.dumps(document('events/1', happened))}\n\n".encode()


def _number(text: str) -> int | None:
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise InvalidRequestError(f"{text[:32]!r} is no number of an event.")
    return int(text)
