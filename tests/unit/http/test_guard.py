"""Who is answered: nobody who names another host, nobody who wants to change anything, nobody for ever."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from crdt_merge_node.http import connections, guard
from crdt_merge_node.http.guard import host_of
from support.http import TIMEOUT_S, read_answer, serving

pytestmark = pytest.mark.asyncio


async def test_every_answer_carries_the_headers_that_keep_other_sites_out(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        answers = [
            await served.get(path, origin="http://evil.example") for path in ("/", "/healthz", "/nowhere")
        ]
        answers.append(await served.get("/healthz", host="evil.example"))

    assert [answer.status for answer in answers] == [200, 200, 404, 421]
    for answer in answers:
        assert {
            name.decode(): value.decode() for name, value in guard.HEADERS
        }.items() <= answer.headers.items()
        assert not any(name.startswith("access-control") for name in answer.headers)
        assert "server" not in answer.headers


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "127.0.0.1@evil.example", "0x7f.1"],
)
async def test_a_name_that_somebody_pointed_at_this_host_is_refused(tmp_path: Path, host: str) -> None:
    """DNS rebinding: the page of another site reaches 127.0.0.1, but under its own name."""
    async with serving(tmp_path) as served:
        answer = await served.get("/api/status.json", host=f"{host}:{served.port}")

    assert answer.status == 421
    assert answer.json()["schema"] == "error/1"
    assert "http.allowed_hosts" in answer.json()["hint"]


async def test_own_names_and_any_address_are_let_in(tmp_path: Path) -> None:
    names = [
        "localhost",
        "LOCALHOST:1",
        "127.0.0.1",
        "[::1]:80",
        "10.1.2.3:7947",
        "metrics.example",
        "a.localhost",
    ]
    async with serving(tmp_path, allowed_hosts=("metrics.example",)) as served:
        answers = [await served.get("/healthz", host=name) for name in names]

    assert [answer.status for answer in answers] == [200] * len(names)


async def test_the_name_of_a_host_is_read_as_clients_write_it() -> None:
    assert host_of("[fe80::1]:80") == "fe80::1"
    assert host_of("Node.Example.:7947") == "node.example"
    assert host_of("") == ""


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
async def test_nothing_can_be_changed(tmp_path: Path, method: str) -> None:
    async with serving(tmp_path) as served:
        answer = await served.get("/api/status.json", method=method)

    assert answer.status == 405
    assert answer.headers["allow"] == "GET, HEAD"


async def test_a_body_a_long_address_and_a_missing_host_are_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        body = await served.get("/healthz", content_length="5")
        chunked = await served.get("/healthz", transfer_encoding="chunked")
        long = await served.get("/healthz?" + "x" * guard.URL_BYTES_MAX)
        nameless = await served.raw(b"GET /healthz HTTP/1.0\r\n\r\n")
        garbage = await served.raw(b"\x16\x03\x01 this is no HTTP\r\n\r\n")

    assert [answer.status for answer in (body, chunked, long, nameless, garbage)] == [413, 413, 414, 421, 400]


async def test_an_answer_to_head_has_no_body(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        answer = await served.get("/", method="HEAD")

    assert answer.status == 200
    assert int(answer.headers["content-length"]) > 0
    assert answer.body == b""


async def test_a_head_of_a_request_that_is_too_large_ends_the_line(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        reader, writer = await served.connect()
        writer.write(b"GET / HTTP/1.1\r\n" + b"x-long: " + b"y" * 40_000)
        async with asyncio.timeout(TIMEOUT_S):
            answer = await read_answer(reader)
        writer.close()

    assert answer.status == 400


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HT"])
async def test_a_head_that_never_ends_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.05)
    async with serving(tmp_path) as served:
        reader, writer = await served.connect()
        writer.write(sent)
        async with asyncio.timeout(TIMEOUT_S):
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await reader.readexactly(1)
        writer.close()


async def test_a_second_request_must_be_whole_in_time_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as served:
        reader, writer = await served.connect()
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        first = await read_answer(reader)
        monkeypatch.setattr(connections, "HEAD_S", 0.05)
        writer.write(b"GET /hea")
        async with asyncio.timeout(TIMEOUT_S):
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await reader.readexactly(1)
        writer.close()

    assert first.status == 200


async def test_who_does_not_read_what_it_asked_for_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "STALL_S", 0.05)
    ended = asyncio.Event()
    lost = connections.BoundedConnection.connection_lost

    def tell(connection: connections.BoundedConnection, error: Exception | None) -> None:
        lost(connection, error)
        ended.set()

    monkeypatch.setattr(connections.BoundedConnection, "connection_lost", tell)
    async with serving(tmp_path) as served:
        with socket.create_connection(("127.0.0.1", served.port)) as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.sendall(b"GET /vendor/cytoscape.mjs HTTP/1.1\r\nhost: localhost\r\n\r\n" * 64)
            async with asyncio.timeout(TIMEOUT_S):
                await ended.wait()

        assert not served.server._state.connections


async def test_more_connections_than_it_serves_are_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "CONNECTIONS_MAX", 2)
    async with serving(tmp_path) as served:
        held = [await served.connect() for _ in range(2)]
        for _, writer in held:
            writer.write(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        answers = [await read_answer(reader) for reader, _ in held]
        refused = await served.get("/healthz")
        for _, writer in held:
            writer.close()

    assert [answer.status for answer in answers] == [200, 200]
    assert refused.status == 503


async def test_a_line_that_idles_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from crdt_merge_node.http import server

    monkeypatch.setattr(server, "KEEP_ALIVE_S", 0.05)
    async with serving(tmp_path) as served:
        reader, writer = await served.connect()
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        async with asyncio.timeout(TIMEOUT_S):
            answer = await read_answer(reader)
            rest = await reader.read()
        writer.close()

    assert answer.status == 200
    assert rest == b""
