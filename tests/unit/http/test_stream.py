"""Server-sent events: the past, then the present, and from where one left off."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from crdt_merge_node.control.model import EventsMissed, LogEvent
from crdt_merge_node.http import stream
from crdt_merge_node.http.stream import frame, frames
from crdt_merge_node.ports import SystemClock
from crdt_merge_node.telemetry.events import EventLog
from support.http import TIMEOUT_S, Served, serving

pytestmark = pytest.mark.asyncio


async def _read(reader: asyncio.StreamReader) -> tuple[str, dict[str, Any]]:
    """Return number and document of the next event."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            text = (await reader.readuntil(b"\n\n")).decode()
            lines = [line for line in text.splitlines() if line.startswith(("id: ", "data: "))]
            if len(lines) == 2:
                return lines[0].removeprefix("id: "), json.loads(lines[1].removeprefix("data: "))


async def _follow(served: Served, path: str = "/api/events", **headers: str) -> Any:
    reader, writer = await served.connect()
    extra = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    writer.write(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n{extra}\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"content-type: text/event-stream" in head
    return reader, writer


async def test_a_reader_is_told_what_was_and_what_happens(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        log = served.services.events
        log.record("info", "group.created", {"name": "<img src=x onerror=alert(1)>"})
        reader, writer = await _follow(served)
        seen = {}
        while "group.created" not in seen:
            number, found = await _read(reader)
            seen[found["event"]] = (number, found)
        log.record("debug", "peer.unreachable", {})
        log.record("warning", "peer.refused", {"reason": "no", "count": 3})
        number, live = await _read(reader)
        writer.close()

    assert seen["group.created"][1]["schema"] == "events/1"
    assert seen["group.created"][1]["fields"]["name"] == "<img src=x onerror=alert(1)>"
    assert (live["event"], live["level"], live["numbers"]) == ("peer.refused", "warning", {"count": 3})
    assert number == str(live["seq"])


async def test_a_reader_that_comes_back_hears_only_what_it_missed(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        log = served.services.events
        log.record("info", "peer.joined", {})
        seen = log.last_seq
        log.record("info", "peer.left", {})
        reader, writer = await _follow(served, last_event_id=str(seen))
        _, found = await _read(reader)
        writer.close()

    assert found["event"] == "peer.left"


async def test_levels_are_chosen_and_unknown_ones_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        served.services.events.record("error", "store.failed", {})
        reader, writer = await _follow(served, "/api/events?level=error")
        _, found = await _read(reader)
        writer.close()
        unknown = await served.get("/api/events?level=loud")
        number = await served.get("/api/events?after=-1")

    assert found["event"] == "store.failed"
    assert (unknown.status, number.status) == (400, 400)


async def test_there_is_room_for_so_many_readers_and_again_when_one_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "STREAMS_MAX", 1)
    async with serving(tmp_path) as served:
        reader, writer = await _follow(served)
        await reader.readuntil(b"retry: 2000")
        refused = await served.get("/api/events")
        writer.close()
        await asyncio.wait(served.server._state.tasks, timeout=TIMEOUT_S)
        reader, writer = await _follow(served)
        await reader.readuntil(b"retry: 2000")
        writer.close()

    assert refused.status == 503
    assert "readers follow" in refused.json()["message"]


async def test_a_silent_line_is_kept_open_by_comments_and_ends_with_the_node() -> None:
    log = EventLog(SystemClock())
    stream_of = frames(log.follow(), heartbeat_s=0.0)

    assert await anext(stream_of) == b"retry: 2000\n\n"
    assert await anext(stream_of) == b": still here\n\n"
    log.record("info", "peer.joined", {})
    while (found := await anext(stream_of)) == b": still here\n\n":
        pass
    assert b"peer.joined" in found
    log.close()
    assert [each async for each in stream_of if each != b": still here\n\n"] == []


async def test_a_reader_that_goes_away_leaves_nothing_behind() -> None:
    log = EventLog(SystemClock())
    stream_of = frames(log.follow(), heartbeat_s=0.0)
    await anext(stream_of)
    await anext(stream_of)
    await stream_of.aclose()

    assert not log._followers


async def test_an_event_cannot_break_out_of_its_line() -> None:
    event = LogEvent(
        seq=7, time=1.0, level="info", event="peer.left", fields={"reason": "a\n\ndata: b\r\nid: 9"}
    )
    text = frame(event).decode()

    assert text.startswith("id: 7\ndata: {")
    assert text.count("\n") == 3
    assert "\r" not in text
    assert frame(EventsMissed(count=3)) == b'event: missed\ndata: {"schema": "events/1", "missed": 3}\n\n'
