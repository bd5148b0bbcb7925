"""TLS settings: 1.3 only, both sides authenticated, no resumption, our application protocols (PROTOCOL 4)."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final, Protocol

ALPN_GOSSIP: Final = "crdt-merge-gossip/1"
ALPN_BULK: Final = "crdt-merge-bulk/1"
ALPN_JOIN: Final = "crdt-merge-join/1"


class TlsFiles(Protocol):
    """Where OpenSSL finds what it authenticates with (it reads PEM files by path)."""

    @property
    def certificate_path(self) -> Path:
        """PEM file of the certificate."""
        ...

    @property
    def tls_key_path(self) -> Path:
        """PEM file of its key."""
        ...

    @property
    def ca_path(self) -> Path:
        """PEM file of the CA certificate."""
        ...


def server_context(identity: TlsFiles, *, hears_joiners: bool) -> ssl.SSLContext:
    """Return the settings of the accepting side.

    Args:
        identity: Where certificate, key and CA are.
        hears_joiners: Let a caller without certificate through the handshake, for the join protocol alone. A
            certificate that is shown must verify in any case.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, identity)
    context.verify_mode = ssl.CERT_OPTIONAL if hears_joiners else ssl.CERT_REQUIRED
    context.num_tickets = 0  # No resumption: whoever talks has shown a certificate on this connection.
    context.set_alpn_protocols([ALPN_GOSSIP, ALPN_BULK, ALPN_JOIN])
    return context


def client_context(identity: TlsFiles, alpn: str) -> ssl.SSLContext:
    """Return the settings of the dialling side for one application protocol."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, identity)
    context.set_alpn_protocols([alpn])
    return context


def joiner_context() -> ssl.SSLContext:
    """Return the settings of a joiner, who has no certificate and does not hold the CA's yet.

    It verifies nothing here: :mod:`.join` compares the CA with the token before it says anything.
    """
    context = _bare_context(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([ALPN_JOIN])
    return context


class TlsContexts(Protocol):
    """Gives an endpoint its TLS settings; a simulation gives others."""

    def server(self, identity: TlsFiles, *, hears_joiners: bool) -> ssl.SSLContext:
        """Return the settings of the accepting side."""
        ...

    def client(self, identity: TlsFiles, alpn: str) -> ssl.SSLContext:
        """Return the settings of the dialling side for one application protocol."""
        ...


class OpenSslContexts:
    """The real settings."""

    def server(self, identity: TlsFiles, *, hears_joiners: bool) -> ssl.SSLContext:
        """Return the settings of the accepting side."""
        return server_context(identity, hears_joiners=hears_joiners)

    def client(self, identity: TlsFiles, alpn: str) -> ssl.SSLContext:
        """Return the settings of the dialling side for one application protocol."""
        return client_context(identity, alpn)


def _context(protocol: ssl._SSLMethod, identity: TlsFiles) -> ssl.SSLContext:
    context = _bare_context(protocol)
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_cert_chain(identity.certificate_path, identity.tls_key_path)
    context.load_verify_locations(identity.ca_path)
    return context


def _bare_context(protocol: ssl._SSLMethod) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    # The names are node ids, not host names: `greeting` compares the certificate with the hello.
    context.check_hostname = False
    return context
