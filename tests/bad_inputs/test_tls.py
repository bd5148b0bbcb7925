"""Callers with whom no connection may come about (SCENARIOS 6.2: B7, B9, B26, B63; T29)."""

import asyncio
import os
import ssl
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from crdt_merge_node.transport.certificates import CertificateAuthority, key_to_pem
from crdt_merge_node.transport.contexts import ALPN_BULK, ALPN_GOSSIP, ALPN_JOIN, client_context
from crdt_merge_node.transport.identity import Identity
from crdt_merge_protocol.messages.join import JoinOffer, JoinRequest
from crdt_merge_protocol.messages.membership import Hello, Ping
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from support.siege import PATIENCE_S, Siege
from support.transport_world import odd_member

pytestmark = pytest.mark.asyncio(loop_scope="module")

DAY_S = 86_400.0
URI = "crdt-merge://{cluster}/{node}"
BOTH = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]


def loose(identity: Identity, *alpn: str, shows: bool = True) -> ssl.SSLContext:
    """Return settings of a caller that believes any server, and shows its certificate or none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if shows:
        context.load_cert_chain(identity.certificate_path, identity.tls_key_path)
    return context


def certified(siege: Siege, authority: CertificateAuthority, *, now: float) -> Identity:
    """Return a member whose certificate was made by any authority at any time."""
    identity = siege.member()
    key = Ed25519PrivateKey.generate()
    issued = authority.issue(key.public_key(), identity.node, now=now)
    identity.tls_key_path.write_bytes(key_to_pem(key))
    identity.certificate_path.write_bytes(issued.public_bytes(Encoding.PEM))
    return identity


def today(siege: Siege) -> float:
    return siege.live.services.clock.now()


def stranger_ca(siege: Siege) -> CertificateAuthority:
    return CertificateAuthority.create("dev", os.urandom(32), now=today(siege))


def odd(siege: Siege, *uris: str, purposes: list = BOTH) -> Identity:
    members = SimpleNamespace(authority=siege.authority, a=siege.live.services.identity)
    return odd_member(siege.directory / os.urandom(6).hex(), members, uris=list(uris), purposes=purposes)


MEMBERS: dict[str, tuple[Callable[[Siege], Identity], str]] = {
    "expired": (lambda s: certified(s, s.authority, now=today(s) - 4000 * DAY_S), "expired"),
    "not valid yet": (lambda s: certified(s, s.authority, now=today(s) + 30 * DAY_S), "not valid yet"),
    "another CA": (lambda s: certified(s, stranger_ca(s), now=today(s)), "CA"),
    "no name": (odd, "certificate"),
    "a name of another cluster": (lambda s: odd(s, "crdt-merge://" + "ab" * 32 + "/{node}"), "cluster"),
    "two names": (lambda s: odd(s, URI, URI.format(cluster="{cluster}", node="cd" * 32)), "certificate"),
    "a name that is no node": (lambda s: odd(s, "crdt-merge://{cluster}/somebody"), "certificate"),
    "a name of 31 bytes": (lambda s: odd(s, "crdt-merge://{cluster}/" + "ab" * 31), "certificate"),
    "a web site": (lambda s: odd(s, "https://example.org/{node}"), "certificate"),
    "for servers only": (lambda s: odd(s, URI, purposes=BOTH[:1]), "certificate"),
    "for neither": (lambda s: odd(s, URI, purposes=[ExtendedKeyUsageOID.CODE_SIGNING]), "certificate"),
}


@pytest.mark.parametrize("alpn", [ALPN_GOSSIP, ALPN_BULK], ids=["gossip", "bulk"])
@pytest.mark.parametrize("case", MEMBERS)
async def test_b63_a_certificate_that_is_no_members_is_refused_with_the_reason(siege: Siege, case, alpn):
    make, reason = MEMBERS[case]
    identity = make(siege)
    async with (
        siege.unharmed(is_offence=None),
        siege.hostile(identity=identity, is_greeted=False, context=lambda i: loose(i, alpn)) as hostile,
    ):
        hostile.send(hostile.hello())

        assert reason in await hostile.is_sent_away()
        assert not [message for message in hostile.messages if isinstance(message, Hello)]


@pytest.mark.parametrize("alpn", [ALPN_GOSSIP, ALPN_BULK])
async def test_b63_a_caller_without_certificate_is_heard_on_nothing_but_joining(siege: Siege, alpn):
    async with (
        siege.unharmed(is_offence=None),
        siege.hostile(is_greeted=False, context=lambda i: loose(i, alpn, shows=False)) as hostile,
    ):
        hostile.send(hostile.hello())

        assert "certificate" in await hostile.is_sent_away()


@pytest.mark.parametrize("alpns", [(), ("h2", "http/1.1"), ("crdt-merge-gossip/2",), ("x" * 255,)])
async def test_b63_a_member_that_names_no_protocol_of_ours_is_refused(siege: Siege, alpns):
    """A missing ALPN fails no handshake: the node has to refuse it itself."""
    async with (
        siege.unharmed(is_offence=None),
        siege.hostile(is_greeted=False, context=lambda i: loose(i, *alpns)) as hostile,
    ):
        hostile.send(hostile.hello())

        assert "protocol" in await hostile.is_sent_away()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_b63_older_tls_is_refused(siege: Siege, version):
    """There is no renegotiation to refuse: TLS 1.3 has none, and tickets for resumption are not given."""

    def old(identity: Identity) -> ssl.SSLContext:
        context = loose(identity, ALPN_GOSSIP)
        context.minimum_version = context.maximum_version = version
        context.set_ciphers("ALL:@SECLEVEL=0")
        return context

    async with siege.unharmed(is_offence=None), siege.hostile(is_greeted=False, context=old) as hostile:
        assert "TLS 1.3" in await hostile.is_sent_away()


@pytest.mark.parametrize("who", ["another member", "the node itself", "nobody", "the identity point"])
async def test_b63_b9_the_right_certificate_and_a_hello_of_somebody_else(siege: Siege, who):
    node = {
        "another member": siege.honest.id,
        "the node itself": siege.live.id,
        "nobody": bytes(32),
        "the identity point": b"\x01" + bytes(31),
    }[who]
    async with siege.unharmed(is_offence=None), siege.hostile(is_greeted=False) as hostile:
        hostile.send(hostile.hello(node=node))

        assert "certificate of node" in await hostile.is_sent_away()


@pytest.mark.parametrize("size", [0, 31, 32, 33])
async def test_b26_a_hello_of_another_cluster_is_refused(siege: Siege, size):
    async with siege.unharmed(is_offence=None), siege.hostile(is_greeted=False) as hostile:
        hostile.send(hostile.hello(cluster=os.urandom(size)))

        assert await hostile.is_sent_away()


async def test_b63_a_certificate_that_looks_right_does_not_help_without_its_key(siege: Siege):
    """The honest peer's certificate is no secret; its key is."""
    honest, mine = siege.honest.services.identity, siege.member()
    mine.certificate_path.write_bytes(honest.certificate_path.read_bytes())

    with pytest.raises(ssl.SSLError):
        client_context(mine, ALPN_GOSSIP)


async def test_b72_two_connections_as_one_member_leave_one_of_them(siege: Siege):
    identity = siege.member()
    async with (
        siege.unharmed(is_offence=False),
        siege.hostile(identity=identity) as first,
        siege.hostile(identity=identity) as second,
    ):
        await first.is_sent_away()
        await second.is_still_heard()


# --- joining ------------------------------------------------------------------------------------------


def joining(identity: Identity) -> ssl.SSLContext:
    return loose(identity, ALPN_JOIN, shows=False)


REQUESTS = {
    "nonsense": lambda: b"\xff" * 40,
    "a ping": lambda: Ping(nonce=1),
    "a wrong secret": lambda: join_request(os.urandom(16)),
    "no secret": lambda: join_request(b""),
    "a request that is none": lambda: JoinRequest(
        secret=bytes(16), node=os.urandom(32), request=os.urandom(900), proof=bytes(64)
    ),
    "many at once": lambda: [Ping(nonce=n) for n in range(10_000)],
}


def join_request(secret: bytes) -> JoinRequest:
    from crdt_merge_node.transport.certificates import create_request

    request = create_request(Ed25519PrivateKey.generate())
    return JoinRequest(secret=secret.ljust(16, b"\0"), node=os.urandom(32), request=request, proof=bytes(64))


@pytest.mark.parametrize("case", REQUESTS)
async def test_b7_b63_a_joiner_without_a_token_gets_nothing_and_harms_nobody(siege: Siege, case):
    said = REQUESTS[case]()
    async with siege.unharmed(is_offence=None), siege.hostile(is_greeted=False, context=joining) as hostile:
        await hostile.hears(JoinOffer)
        if isinstance(said, bytes):
            hostile.raw(said)
        else:
            hostile.send(*(said if isinstance(said, list) else [said]))
        await hostile.is_sent_away()
    assert not [message for message in hostile.messages if isinstance(message, Hello)]


async def test_t16_a_stranger_cannot_make_the_node_keep_a_large_frame(siege: Siege):
    """Before anybody has shown a certificate, nothing longer than a control message is waited for."""
    async with siege.unharmed(is_offence=None), siege.hostile(is_greeted=False, context=joining) as hostile:
        await hostile.hears(JoinOffer)
        hostile.raw((1 << 20).to_bytes(4, "big") + bytes([83, 1]) + bytes(400_000))

        assert "longer than any" in await hostile.is_sent_away()


# --- what is no TLS -----------------------------------------------------------------------------------

PLAIN = {
    "an HTTP request": b"GET / HTTP/1.1\r\nHost: node\r\n\r\n",
    "a proxy request": b"CONNECT example.org:443 HTTP/1.1\r\n\r\n",
    "an SSH banner": b"SSH-2.0-OpenSSH_9.2\r\n",
    "nothing": b"",
    "zeros": bytes(5000),
    "noise": os.urandom(300_000),
    "an alert": b"\x15\x03\x03\x00\x02\x02\x28",
    "a thousand alerts": b"\x15\x03\x03\x00\x02\x01\x00" * 1000,
    "a record of 64 KiB": b"\x16\x03\x01\xff\xff" + bytes(70_000),
    "application data": b"\x17\x03\x03\x40\x00" + bytes(20_000),
    "empty records": b"\x16\x03\x01\x00\x00" * 10_000,
    "a hello that claims 16 MiB": b"\x16\x03\x01\x00\x04\x01\xff\xff\xff" * 100,
    "one byte": b"\x16",
    "SSLv2": b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + bytes(40),
}


@pytest.mark.parametrize("case", PLAIN)
async def test_b7_b63_what_is_no_tls_ends_without_a_trace(siege: Siege, case):
    host, _, port = siege.live.address.rpartition(":")
    async with siege.unharmed(is_offence=None):
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(PLAIN[case])
            writer.write_eof()
            async with asyncio.timeout(PATIENCE_S):
                await read_all(reader)
        finally:
            writer.close()
            await closed(writer)


async def read_all(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionError:
        return b""


async def closed(writer: asyncio.StreamWriter) -> None:
    try:
        await writer.wait_closed()
    except OSError:
        return


async def test_t16_a_member_cannot_make_the_node_keep_a_large_frame_before_it_greets(siege: Siege):
    async with siege.unharmed(is_offence=None), siege.hostile(is_greeted=False) as hostile:
        hostile.raw((1 << 20).to_bytes(4, "big") + bytes([83, 1]) + bytes(400_000))

        assert "longer than any hello" in await hostile.is_sent_away()
