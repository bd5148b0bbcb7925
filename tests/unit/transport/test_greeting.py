"""Who is heard: the table of refusals, each with a reason on both sides (SCENARIOS T29, B9, B10, B63)."""

from __future__ import annotations

import asyncio
import dataclasses
import ssl
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from crdt_merge_node.errors import PeerRefusedError, PeerUnreachableError, TlsError, TransportError
from crdt_merge_node.ports import SeededRng
from crdt_merge_node.transport.certificates import LEAF_DAYS, CertificateAuthority, node_uri
from crdt_merge_node.transport.contexts import ALPN_BULK, ALPN_GOSSIP, client_context
from crdt_merge_node.transport.endpoint import EndpointConfig
from crdt_merge_node.transport.identity import Identity
from crdt_merge_protocol.identity import NodeKey
from crdt_merge_protocol.limits import HANDSHAKE_TIMEOUT_S, HELLO_TIMEOUT_S
from crdt_merge_protocol.messages.membership import Goodbye, Hello, Peers, Refuse
from cryptography.x509.oid import ExtendedKeyUsageOID
from support.transport_world import RawProtocol, RawTls, member, odd_member, today

BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
URI = "crdt-merge://{cluster}/{node}"


def hello(members: SimpleNamespace, **changes: Any) -> Hello:
    """Return a proper hello of node b, or an improper one."""
    proper = Hello(
        version_min=1,
        version_max=1,
        cluster=members.a.cluster,
        node=members.b.node,
        nonce=bytes(16),
        agent="test",
        addresses=(),
    )
    return dataclasses.replace(proper, **changes)


async def dial_refused(world: Any, dialler: Any, acceptor: Any, **options: Any) -> TransportError:
    """Dial and return what was raised."""
    with pytest.raises(TransportError) as caught:
        await dialler.endpoint.dial(acceptor.address, **options)
    await world.settle()
    assert acceptor.accepted == []
    return caught.value


# --- certificates -------------------------------------------------------------------------------------


def test_a_stranger_judges_first_and_the_other_side_learns_it(world: Any, members: SimpleNamespace) -> None:
    """TLS shows the accepting side's certificate before the dialler's."""

    async def scenario() -> None:
        acceptor, stranger = await world.node(members.a), await world.node(members.stranger)
        error = await dial_refused(world, stranger, acceptor)

        assert isinstance(error, PeerRefusedError)
        assert "its certificate was not signed by this cluster's CA" in error.message
        (reason,) = acceptor.reasons
        assert "your certificate was not signed by this cluster's CA" in reason

    world.run(scenario())


def wrong_ca(root: Path, members: SimpleNamespace) -> Identity:
    other = CertificateAuthority.create("prod", bytes(32), now=today())
    return odd_member(root / "odd", members, uris=[URI], purposes=BOTH, authority=other)


def expired(root: Path, members: SimpleNamespace) -> Identity:
    long_ago = today() - 2 * LEAF_DAYS * 86400
    return member(root / "odd", members.authority, SeededRng(3), now=long_ago)


def not_yet_valid(root: Path, members: SimpleNamespace) -> Identity:
    tomorrow = today() + 86400
    return member(root / "odd", members.authority, SeededRng(3), now=tomorrow)


def for_one_end_only(root: Path, members: SimpleNamespace) -> Identity:
    return odd_member(root / "odd", members, uris=[URI], purposes=BOTH[:1])


def without_purpose(root: Path, members: SimpleNamespace) -> Identity:
    return odd_member(root / "odd", members, uris=[URI], purposes=())


def without_uri(root: Path, members: SimpleNamespace) -> Identity:
    return odd_member(root / "odd", members, uris=["https://example.org/"], purposes=BOTH)


def two_uris(root: Path, members: SimpleNamespace) -> Identity:
    return odd_member(root / "odd", members, uris=[URI, URI], purposes=BOTH)


def foreign_uri(root: Path, members: SimpleNamespace) -> Identity:
    uri = f"crdt-merge://{'0' * 64}/{{node}}"
    return odd_member(root / "odd", members, uris=[uri], purposes=BOTH)


def someone_else(root: Path, members: SimpleNamespace) -> Identity:
    """The certificate of b in the hands of a node that says it is another."""
    return dataclasses.replace(members.b, node_key=NodeKey(bytes(31) + b"!"))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (wrong_ca, "certificate was not signed by this cluster's CA"),
        (expired, "certificate has expired"),
        (not_yet_valid, "not valid yet"),
        (for_one_end_only, "certificate is not meant for this use"),
        (without_purpose, "the certificate lacks a key usage or a URI, or is malformed"),
        (without_uri, 'the URI "https://example.org/" of the certificate names no node'),
        (two_uris, "the certificate has 2 URIs where one names the node"),
        (foreign_uri, "of another cluster"),
        (someone_else, "the hello is of node"),
    ],
)
def test_a_dialler_with_a_wrong_certificate_is_refused_and_both_sides_know_why(
    world: Any, members: SimpleNamespace, tmp_path: Path, make: Callable[..., Identity], words: str
) -> None:
    async def scenario() -> None:
        acceptor = await world.node(members.a)
        dialler = await world.node(make(tmp_path, members))
        error = await dial_refused(world, dialler, acceptor)

        assert isinstance(error, PeerRefusedError)
        assert f"{acceptor.address} refused this node" in error.message
        assert words in error.message
        ((remote, reason),) = acceptor.refused
        assert remote.startswith("127.0.0.1:")
        assert words in reason

    world.run(scenario())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (wrong_ca, "certificate was not signed by this cluster's CA"),
        (expired, "certificate has expired"),
        (without_purpose, "the certificate lacks a key usage or a URI, or is malformed"),
        (foreign_uri, "of another cluster"),
        (someone_else, "the hello is of node"),
    ],
)
def test_an_acceptor_with_a_wrong_certificate_is_refused_by_the_dialler(
    world: Any, members: SimpleNamespace, tmp_path: Path, make: Callable[..., Identity], words: str
) -> None:
    async def scenario() -> None:
        acceptor = await world.node(make(tmp_path, members))
        acceptor.endpoint._on_connection = acceptor.hear
        dialler = await world.node(members.a)
        with pytest.raises(PeerRefusedError) as caught:
            await dialler.endpoint.dial(acceptor.address)
        await world.settle()

        assert f"this node refused {acceptor.address}" in caught.value.message
        assert words in caught.value.message
        told = acceptor.reasons or [connection.closed.result() for connection in acceptor.accepted]
        assert words in told[0]

    world.run(scenario())


def test_a_spiffe_certificate_of_our_ca_is_good(world: Any, members: SimpleNamespace, tmp_path: Path) -> None:
    async def scenario() -> None:
        uris = ["spiffe://example.org/nodes/{node}"]
        dialler = await world.node(odd_member(tmp_path / "odd", members, uris=uris, purposes=BOTH))
        acceptor = await world.node(members.a)
        connection = await dialler.endpoint.dial(acceptor.address)

        assert members.a.node == connection.peer
        assert dialler.identity.node == acceptor.accepted[0].peer

    world.run(scenario())


# --- TLS ----------------------------------------------------------------------------------------------


def without_certificate(members: SimpleNamespace) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(members.b.ca_path)
    context.set_alpn_protocols([ALPN_GOSSIP])
    return context


def tls_1_2(members: SimpleNamespace) -> ssl.SSLContext:
    context = client_context(members.b, ALPN_GOSSIP)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def without_alpn(members: SimpleNamespace) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(members.b.ca_path)
    context.load_cert_chain(members.b.certificate_path, members.b.tls_key_path)
    return context


def unknown_alpn(members: SimpleNamespace) -> ssl.SSLContext:
    return client_context(members.b, "crdt-merge-gossip/2")


@pytest.mark.parametrize("hears_joiners", [False, True])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (without_certificate, "only members are heard here"),
        (tls_1_2, "TLS 1.3"),
        (without_alpn, "no application protocol in common"),
        (unknown_alpn, "no application protocol in common"),
    ],
)
def test_a_tls_client_without_our_manners_is_refused_with_a_reason_on_both_sides(
    world: Any,
    members: SimpleNamespace,
    make: Callable[[SimpleNamespace], ssl.SSLContext],
    words: str,
    hears_joiners: bool,
) -> None:
    async def scenario() -> None:
        acceptor = await world.node(members.a, join_service=object() if hears_joiners else None)
        client = await RawTls(make(members)).connect(world, acceptor)

        assert words in client.told
        assert words in acceptor.reasons[0]
        assert acceptor.accepted == []

    world.run(scenario())


@pytest.mark.parametrize(
    ("first_bytes", "words", "answer"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "plaintext HTTP", b"HTTP/1.1 400 Bad Request\r\n"),
        (b"CONNECT x:1 HTTP/1.1\r\n\r\n", "plaintext proxy request", b"This port speaks TLS 1.3"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "not TLS", b"This port speaks TLS 1.3"),
        (bytes(100), "not TLS", b"This port speaks TLS 1.3"),
        (b"\x16\x03\x01\xff\xff" + bytes(100), "not TLS", b"\x15\x03"),
    ],
)
def test_what_is_not_tls_is_told_so_in_its_own_words(
    world: Any, members: SimpleNamespace, first_bytes: bytes, words: str, answer: bytes
) -> None:
    """SCENARIOS B7."""

    async def scenario() -> None:
        acceptor = await world.node(members.a)
        transport, raw = await world.net.connect(RawProtocol, *acceptor.endpoint.address)
        transport.write(first_bytes)
        await world.settle()

        assert raw.received.startswith(answer)
        assert raw.is_ended
        assert words in acceptor.reasons[0]

    world.run(scenario())


def test_a_dialler_who_meets_no_tls_says_so(world: Any, members: SimpleNamespace) -> None:
    async def scenario() -> None:
        listener = await world.net.listen(RawProtocol, "127.0.0.1", 22)
        dialler = await world.node(members.a)
        dialling = asyncio.create_task(dialler.endpoint.dial("127.0.0.1:22"))
        await world.settle()
        world.net.pipes[0][1].write(b"SSH-2.0-OpenSSH_9.9\r\n")

        with pytest.raises(TlsError, match="what it sent is not TLS"):
            await dialling
        listener.close()

    world.run(scenario())


def test_a_stalled_handshake_ends_in_time(world: Any, members: SimpleNamespace) -> None:
    """SCENARIOS T15: silence, or a handshake that stops in the middle."""

    async def scenario() -> None:
        acceptor = await world.node(members.a)
        _, silent = await world.net.connect(RawProtocol, *acceptor.endpoint.address)
        transport, half = await world.net.connect(RawProtocol, *acceptor.endpoint.address)
        transport.write(b"\x16\x03\x01\x02\x00\x01")
        await asyncio.sleep(HANDSHAKE_TIMEOUT_S - 0.1)
        assert (silent.is_ended, half.is_ended) == (False, False)
        await asyncio.sleep(0.2)

        assert (silent.is_ended, half.is_ended) == (True, True)
        assert [reason.partition(": ")[2].rstrip(".") for reason in acceptor.reasons] == [
            "no TLS handshake within 5 s"
        ] * 2

    world.run(scenario())


def test_a_dialler_waits_for_a_handshake_no_longer_than_the_limit(
    world: Any, members: SimpleNamespace
) -> None:
    async def scenario() -> None:
        listener = await world.net.listen(RawProtocol, "127.0.0.1", 9)
        dialler = await world.node(members.a)

        with pytest.raises(PeerUnreachableError, match="no TLS handshake within 5 s"):
            await dialler.endpoint.dial("127.0.0.1:9")
        assert pytest.approx(HANDSHAKE_TIMEOUT_S) == world.loop.time()
        listener.close()

    world.run(scenario())


def test_nobody_at_the_address_is_unreachable(world: Any, members: SimpleNamespace) -> None:
    async def scenario() -> None:
        dialler = await world.node(members.a)

        with pytest.raises(PeerUnreachableError, match="Connection refused"):
            await dialler.endpoint.dial("127.0.0.1:9")

    world.run(scenario())


# --- hello --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"version_min": 0, "version_max": 0}, "E1201", "wire versions 0..0 are no range"),
        ({"version_min": 2, "version_max": 1}, "E1201", "wire versions 2..1 are no range"),
        ({"version_min": 2, "version_max": 2**32 - 1}, "E1205", "have none in common"),
        ({"cluster": bytes(32)}, "E1203", "cluster 000000000000 is not cluster"),
        ({"node": bytes(32)}, "E1201", "the hello is of node 000000000000 and the certificate of node"),
    ],
)
def test_a_wrong_hello_is_refused_with_a_code_and_a_reason(
    world: Any, members: SimpleNamespace, changes: dict[str, Any], code: str, words: str
) -> None:
    """SCENARIOS B10, T30."""

    async def scenario() -> None:
        acceptor = await world.node(members.a)
        client = await RawTls(client_context(members.b, ALPN_GOSSIP)).connect(world, acceptor)
        client.send(hello(members, **changes))
        await world.settle()

        (refusal,) = client.messages
        assert isinstance(refusal, Refuse)
        assert code == refusal.code
        assert words in refusal.reason
        assert words in acceptor.reasons[0]
        assert client.is_closed

    world.run(scenario())


def test_a_future_peer_that_still_speaks_our_version_is_heard(world: Any, members: SimpleNamespace) -> None:
    async def scenario() -> None:
        acceptor = await world.node(members.a)
        client = await RawTls(client_context(members.b, ALPN_GOSSIP)).connect(world, acceptor)
        client.send(hello(members, version_max=2**32 - 1))
        await world.settle()

        assert isinstance(client.messages[0], Hello)
        assert members.b.node == acceptor.accepted[0].peer
        client.pump.abort()

    world.run(scenario())


def test_whoever_says_no_hello_is_refused_in_time(world: Any, members: SimpleNamespace) -> None:
    async def scenario() -> None:
        acceptor = await world.node(members.a)
        client = await RawTls(client_context(members.b, ALPN_GOSSIP)).connect(world, acceptor)
        await asyncio.sleep(HELLO_TIMEOUT_S + 0.1)

        assert client.told == "no hello within 2 s"
        assert "no hello within 2 s" in acceptor.reasons[0]

    world.run(scenario())


def test_data_before_the_hello_is_refused(world: Any, members: SimpleNamespace) -> None:
    """SCENARIOS B9."""

    async def scenario() -> None:
        acceptor = await world.node(members.a)
        client = await RawTls(client_context(members.b, ALPN_GOSSIP)).connect(world, acceptor)
        client.send(Peers(peers=()), hello(members))
        await world.settle()

        assert client.told == "Peers before a hello"
        assert acceptor.accepted == []

    world.run(scenario())


@pytest.mark.parametrize("farewell", [Refuse(code="E9", reason="not today"), Goodbye(reason="not today")])
def test_a_dialler_that_changes_its_mind_is_noted_with_its_reason(
    world: Any, members: SimpleNamespace, farewell: Any
) -> None:
    async def scenario() -> None:
        acceptor = await world.node(members.a)
        client = await RawTls(client_context(members.b, ALPN_GOSSIP)).connect(world, acceptor)
        client.send(farewell)
        await world.settle()

        assert "not today" in acceptor.reasons[0]

    world.run(scenario())


# --- members ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who_blocks", ["acceptor", "dialler"])
def test_a_blocked_member_is_refused_and_never_announced(
    world: Any, members: SimpleNamespace, who_blocks: str
) -> None:
    async def scenario() -> None:
        acceptor, dialler = await world.node(members.a), await world.node(members.b)
        blocker, blocked = (acceptor, dialler) if who_blocks == "acceptor" else (dialler, acceptor)
        blocker.blocked[blocked.identity.node] = "blocked by the operator"
        error = await dial_refused(world, dialler, acceptor)

        assert isinstance(error, PeerRefusedError)
        assert "blocked by the operator" in error.message
        assert "blocked by the operator" in acceptor.reasons[0]

    world.run(scenario())


def test_a_node_that_dials_itself_finds_out(world: Any, members: SimpleNamespace) -> None:
    async def scenario() -> None:
        node = await world.node(members.a)
        error = await dial_refused(world, node, node)

        assert "both ends are the same node" in error.message

    world.run(scenario())


def test_another_member_than_expected_is_refused(world: Any, members: SimpleNamespace) -> None:
    async def scenario() -> None:
        acceptor, dialler = await world.node(members.a), await world.node(members.b)
        error = await dial_refused(world, dialler, acceptor, expect=members.c.node)

        assert f"node {members.c.node.hex()[:12]} was expected" in error.message
        assert f"node {members.c.node.hex()[:12]} was expected" in acceptor.reasons[0]

    world.run(scenario())


def test_bulk_connections_are_told_from_gossip(world: Any, members: SimpleNamespace) -> None:
    async def scenario() -> None:
        acceptor, dialler = await world.node(members.a), await world.node(members.b)
        here = await dialler.endpoint.dial(acceptor.address, alpn=ALPN_BULK, expect=members.a.node)

        assert [here.alpn, acceptor.accepted[0].alpn] == [ALPN_BULK, ALPN_BULK]

    world.run(scenario())


def test_closing_tells_everybody_and_ends_what_was_beginning(world: Any, members: SimpleNamespace) -> None:
    async def scenario() -> None:
        here, there = await world.pair(members.a, members.b)
        here.on_message = there.on_message = lambda *_: None
        dialler, acceptor = world.nodes
        _, half = await world.net.connect(RawProtocol, *acceptor.endpoint.address)
        await acceptor.endpoint.close()

        assert here.closed.result() == "the peer closed: the node is shutting down"
        assert half.is_ended
        with pytest.raises(PeerUnreachableError, match="Connection refused"):
            await dialler.endpoint.dial("127.0.0.1:40001")
        with pytest.raises(PeerUnreachableError, match="shutting down"):
            await acceptor.endpoint.dial(dialler.address)

    world.run(scenario())


def test_a_cancelled_dial_leaves_nothing_behind(world: Any, members: SimpleNamespace) -> None:
    async def scenario() -> None:
        acceptor, dialler = await world.node(members.a), await world.node(members.b)
        world.net.segment = 10
        dialling = asyncio.create_task(dialler.endpoint.dial(acceptor.address))
        for _ in range(30):
            await asyncio.sleep(0)
        dialling.cancel()
        await world.settle()

        assert dialling.cancelled()
        assert all(end.is_closing() for end in world.net.pipes[0])
        assert acceptor.accepted == []

    world.run(scenario())


def test_a_node_announces_where_it_can_be_dialled(world: Any, members: SimpleNamespace) -> None:
    """On all interfaces and without advertised addresses: the one by which the peer came."""

    async def scenario() -> None:
        config = EndpointConfig(host="0.0.0.0", port=7946)
        everywhere = await world.node(members.a, config=config)
        world.net.factories["192.0.2.7", 7946] = world.net.factories["0.0.0.0", 7946]
        named = await world.node(members.b, config=EndpointConfig(port=0, advertise=("b.example:1",)))
        connection = await named.endpoint.dial("192.0.2.7:7946")

        assert connection.hello.addresses == ("192.0.2.7:7946",)
        assert everywhere.accepted[0].hello.addresses == ("b.example:1",)
        assert everywhere.endpoint.advertised == ()

    world.run(scenario())


def test_a_certificate_names_node_and_cluster(members: SimpleNamespace) -> None:
    assert f"crdt-merge://{members.a.cluster.hex()}/{members.b.node.hex()}" == node_uri(
        members.a.cluster, members.b.node
    )
