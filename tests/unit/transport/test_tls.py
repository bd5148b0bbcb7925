"""The TLS pump: what leaves before a close, how long a close takes, how bytes are gathered."""

from __future__ import annotations

import asyncio
import gc
import ssl
from types import SimpleNamespace
from typing import Any

import pytest
from crdt_merge_node.errors import PeerRefusedError, PeerUnreachableError, TlsError
from crdt_merge_node.transport.contexts import ALPN_GOSSIP, client_context, server_context
from crdt_merge_node.transport.refusals import Fault, explain, transport_error
from crdt_merge_node.transport.tls import (
    READ_BUFFER_BYTES,
    RECORD_BYTES,
    TURN_READS,
    PumpBuffers,
    TlsPump,
)
from crdt_merge_protocol.limits import LINGER_S


class App:
    """Notes every call of its pump."""

    def __init__(self, context: ssl.SSLContext, *, is_server: bool) -> None:
        self.data: list[bytes] = []
        self.calls: list[str] = []
        self.error: Exception | None = None
        self.pump = TlsPump(context, self, is_server=is_server, buffers=PumpBuffers())

    def tls_connecting(self) -> None:
        self.calls.append("connecting")

    def tls_ready(self) -> None:
        self.calls.append("ready")

    def tls_data(self, data: memoryview) -> None:
        self.data.append(bytes(data))

    def tls_writable(self) -> None:
        self.calls.append("writable")

    def tls_closed(self, error: Exception | None) -> None:
        self.calls.append("closed")
        self.error = error


async def connect(world: Any, members: SimpleNamespace) -> tuple[App, App]:
    """Return a client and a server with TLS between them."""
    client = App(client_context(members.b, ALPN_GOSSIP), is_server=False)
    server = App(server_context(members.a, hears_joiners=False), is_server=True)
    listener = await world.net.listen(lambda: server.pump, "127.0.0.1", 1)
    await world.net.connect(lambda: client.pump, "127.0.0.1", 1)
    await world.settle()
    listener.close()
    assert client.calls == server.calls == ["connecting", "ready"]
    return client, server


def test_records_are_gathered_before_they_go_up(world: Any, members: SimpleNamespace) -> None:
    async def scenario() -> None:
        client, server = await connect(world, members)
        sent = bytes(range(256)) * 4096
        client.pump.write(sent)
        await world.settle()

        assert b"".join(server.data) == sent
        assert len(server.data) <= 2 * len(sent) // READ_BUFFER_BYTES
        client.pump.abort()

    world.run(scenario())


def test_back_pressure_reaches_the_app(world: Any, members: SimpleNamespace) -> None:
    async def scenario() -> None:
        client, server = await connect(world, members)
        pipe = world.net.pipes[0][0]
        pipe.is_stalled = True
        client.pump.write(bytes(1 << 20))
        assert not client.pump.is_writable
        pipe.is_stalled = False
        pipe.deliver()
        await world.settle()

        assert client.pump.is_writable
        assert client.calls[-1] == "writable"
        assert sum(map(len, server.data)) == 1 << 20
        client.pump.abort()

    world.run(scenario())


def test_a_close_is_announced_and_everything_before_it_arrives(world: Any, members: SimpleNamespace) -> None:
    async def scenario() -> None:
        client, server = await connect(world, members)
        client.pump.write(b"last words")
        client.pump.close()
        client.pump.close()
        client.pump.write(b"too late")
        await world.settle()

        assert b"".join(server.data) == b"last words"
        assert (client.error, server.error) == (None, None)
        assert client.calls.count("closed") == server.calls.count("closed") == 1
        assert client.pump.lost.done()
        assert server.pump.lost.done()

    world.run(scenario())


def test_both_may_close_at_once(world: Any, members: SimpleNamespace) -> None:
    async def scenario() -> None:
        client, server = await connect(world, members)
        client.pump.close()
        server.pump.close()
        await world.settle()

        assert client.pump.lost.done()
        assert server.pump.lost.done()

    world.run(scenario())


def test_a_peer_that_never_ends_is_cut_after_the_linger(world: Any, members: SimpleNamespace) -> None:
    async def scenario() -> None:
        client, server = await connect(world, members)
        world.net.pipes[0][1].pause_reading()
        server.pump.write(b"unread")
        client.pump.close()
        began = world.loop.time()
        await client.pump.lost

        assert world.loop.time() - began == pytest.approx(LINGER_S)
        await server.pump.lost

    world.run(scenario())


def test_a_pause_holds_what_was_decrypted_already(world: Any, members: SimpleNamespace) -> None:
    """More than one scratch buffer arrives at once; the app wants only the first part now."""

    async def scenario() -> None:
        client, server = await connect(world, members)
        seen: list[int] = []

        def take(data: memoryview) -> None:
            seen.append(len(data))
            server.pump.pause_reading()

        server.tls_data = take  # type: ignore[method-assign]
        client.pump.write(bytes(3 * READ_BUFFER_BYTES))
        await world.settle()
        assert len(seen) == 1
        while sum(seen) < 3 * READ_BUFFER_BYTES:
            before = len(seen)
            server.pump.resume_reading()
            await world.settle()
            assert len(seen) == before + 1
        client.pump.abort()

    world.run(scenario())


def test_a_cut_is_not_an_end(world: Any, members: SimpleNamespace) -> None:
    async def scenario() -> None:
        client, server = await connect(world, members)
        world.net.pipes[0][0].close()
        await world.settle()

        assert isinstance(server.error, ssl.SSLEOFError)
        assert isinstance(client.error, ConnectionResetError)

    world.run(scenario())


def test_a_record_that_was_altered_on_the_way_ends_the_connection(
    world: Any, members: SimpleNamespace
) -> None:
    """SCENARIOS T29: nothing of an altered record goes up, and both sides know."""

    async def scenario() -> None:
        client, server = await connect(world, members)
        pipe = world.net.pipes[0][0]
        pipe.is_stalled = True
        client.pump.write(b"payload")
        pipe._queue[-1] ^= 1
        pipe.is_stalled = False
        pipe.deliver()
        await world.settle()

        assert server.data == []
        assert isinstance(server.error, ssl.SSLError)
        assert isinstance(client.error, ssl.SSLError)
        assert explain(client.error).fault is Fault.PEER_REFUSED

    world.run(scenario())


def test_no_session_can_be_resumed(world: Any, members: SimpleNamespace) -> None:
    """Without tickets, whoever talks has shown a certificate on this very connection."""

    async def scenario() -> None:
        client, server = await connect(world, members)
        server.pump.write(b"x")
        await world.settle()

        assert client.pump._tls.session is None or not client.pump._tls.session.has_ticket
        client.pump.abort()
        await asyncio.sleep(0)

    world.run(scenario())


def tls_error(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, reason)
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (tls_error("TLSV1_ALERT_UNKNOWN_CA"), PeerRefusedError, "your certificate was not signed by"),
        (tls_error("SSLV3_ALERT_CERTIFICATE_EXPIRED"), PeerRefusedError, "your certificate has expired"),
        (tls_error("TLSV13_ALERT_CERTIFICATE_REQUIRED"), PeerRefusedError, "your certificate is missing"),
        (tls_error("TLSV1_ALERT_PROTOCOL_VERSION"), PeerRefusedError, "only TLS 1.3 is spoken here"),
        (tls_error("TLSV1_ALERT_USER_CANCELLED"), PeerRefusedError, "user cancelled"),
        (tls_error("UNSUPPORTED_PROTOCOL"), PeerRefusedError, "it does not speak TLS 1.3"),
        (tls_error("HTTP_REQUEST"), TlsError, "plaintext HTTP request"),
        (tls_error("SOME_NEW_REASON"), TlsError, "TLS failed (some new reason)"),
        (ssl.SSLEOFError(), PeerUnreachableError, "without a reason"),
        (None, PeerUnreachableError, "without a reason"),
        (ConnectionResetError("reset by peer"), PeerUnreachableError, "reset by peer"),
        (TimeoutError("no TLS handshake within 5 s"), PeerUnreachableError, "within 5 s"),
    ],
    ids=str,
)
def test_every_end_has_words(error: Exception | None, kind: type[Exception], words: str) -> None:
    raised = transport_error("h:1", error)

    assert type(raised) is kind
    assert words in raised.message
    assert "h:1" in raised.message


def test_who_sends_without_end_leaves_other_connections_their_turn(
    world: Any, members: SimpleNamespace
) -> None:
    """Libuv would read one socket 32 times before it looks at another: 8 MiB."""

    async def scenario() -> None:
        client, server = await connect(world, members)
        here, there = client.pump._transport, server.pump._transport
        assert here is not None
        assert there is not None
        ciphertext: list[bytes] = []
        here.write = ciphertext.append  # type: ignore[method-assign,assignment]
        client.pump.write(bytes(8 * READ_BUFFER_BYTES))
        paused: list[bool] = []
        there.pause_reading = lambda: paused.append(True)  # type: ignore[method-assign]
        there.resume_reading = paused.clear  # type: ignore[method-assign]
        rest = memoryview(b"".join(ciphertext))
        turns = []
        while rest:
            before = sum(map(len, server.data))
            while rest and not paused:
                count = min(READ_BUFFER_BYTES, len(rest))
                server.pump.get_buffer(count)[:count] = rest[:count]
                server.pump.buffer_updated(count)
                rest = rest[count:]
            turns.append(sum(map(len, server.data)) - before)
            await asyncio.sleep(0)

        assert sum(turns) == 8 * READ_BUFFER_BYTES
        assert max(turns) <= TURN_READS * READ_BUFFER_BYTES
        client.pump.abort()

    world.run(scenario())


def test_what_was_read_is_free_again_without_the_collector(world: Any, members: SimpleNamespace) -> None:
    """A traceback that led from an error to the frame that held it kept chunks until a collection."""

    async def scenario() -> None:
        client, server = await connect(world, members)
        place = bytearray(RECORD_BYTES)
        landed: list[int] = []
        server.pump.land(lambda: memoryview(place)[sum(landed) :] or None, landed.append)
        gc.disable()
        try:
            client.pump.write(bytes(RECORD_BYTES // 2))
            await world.settle()
            place.append(0)  # Python refuses that while there is a view.
        finally:
            gc.enable()

        assert sum(landed) == RECORD_BYTES // 2
        client.pump.abort()

    world.run(scenario())
