"""What the TLS pump needs of OpenSSL, without cryptography: for runs in which TLS is not the question.

The pump, the greeting and the endpoint stay the production ones; only the two objects that they take from
``ssl`` are others. Certificates are shown and read as always but not verified; records carry a checksum, so a
corrupted byte ends the connection as it does under TLS. Bytes are reproducible, which TLS's are not.
"""

from __future__ import annotations

import ssl
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from crdt_merge_node.transport.contexts import TlsFiles, client_context, server_context
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

_HEADER_BYTES: Final = 8
"""Length and CRC-32 of a record; an empty record says that no more will come."""


class PlaintextContext:
    """Stands for an ``ssl.SSLContext``."""

    def __init__(self, certificate: bytes, alpn: str) -> None:
        self._certificate = certificate
        self._alpn = alpn

    def wrap_bio(
        self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *, server_side: bool
    ) -> PlaintextObject:
        """Return one end of a connection."""
        return PlaintextObject(incoming, outgoing, self._certificate, self._alpn, is_server=server_side)


class PlaintextObject:
    """Stands for an ``ssl.SSLObject``."""

    def __init__(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        certificate: bytes,
        alpn: str,
        *,
        is_server: bool,
    ) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._certificate = certificate
        self._alpn = alpn
        self._is_server = is_server
        self._has_greeted = self._is_ended = False
        self._peer_certificate: bytes | None = None
        self._raw = bytearray()
        self._plain = memoryview(b"")

    def do_handshake(self) -> None:
        """Exchange certificates; the dialler names the application protocol."""
        if not self._is_server:
            self._greet()
        if (said := self._next_record()) is None:
            raise ssl.SSLWantReadError
        alpn, _, self._peer_certificate = said.partition(b"\0")
        if self._is_server:
            self._alpn = alpn.decode()
            self._greet()

    def _greet(self) -> None:
        if not self._has_greeted:
            self._has_greeted = True
            self.write(self._alpn.encode() + b"\0" + self._certificate)

    def write(self, data: bytes | memoryview) -> int:
        """Send a record."""
        self._outgoing.write(len(data).to_bytes(4, "big") + zlib.crc32(data).to_bytes(4, "big"))
        self._outgoing.write(data)
        return len(data)

    def read(self, nbytes: int, buffer: Any) -> int:
        """Return how many bytes were put into ``buffer``; 0 at the end."""
        while not self._plain:
            if self._is_ended:
                return 0
            record = self._next_record()
            if record is None:
                raise ssl.SSLWantReadError
            self._is_ended = not record
            self._plain = memoryview(record)
        count = min(nbytes, len(self._plain))
        buffer[:count] = self._plain[:count]
        self._plain = self._plain[count:]
        return count

    def unwrap(self) -> None:
        """Say that no more will come."""
        self.write(b"")

    def selected_alpn_protocol(self) -> str:
        """Return the protocol that the dialler named."""
        return self._alpn

    def getpeercert(self, binary_form: bool) -> bytes | None:  # noqa: ARG002  (ssl's signature)
        """Return the peer's certificate in DER."""
        return self._peer_certificate

    def _next_record(self) -> bytes | None:
        self._raw += self._incoming.read()
        if len(self._raw) >= _HEADER_BYTES:
            nbytes = int.from_bytes(self._raw[:4], "big")
            if len(self._raw) >= _HEADER_BYTES + nbytes:
                checksum = int.from_bytes(self._raw[4:8], "big")
                record = bytes(self._raw[_HEADER_BYTES : _HEADER_BYTES + nbytes])
                del self._raw[: _HEADER_BYTES + nbytes]
                if zlib.crc32(record) != checksum:
                    raise _error("DECRYPTION_FAILED_OR_BAD_RECORD_MAC")
                return record
        if self._incoming.eof:
            raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "EOF occurred in violation of protocol")
        return None


def _error(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(ssl.SSL_ERROR_SSL, f"[SSL: {reason}]")
    error.library, error.reason = "SSL", reason
    return error


@dataclass(frozen=True, slots=True)
class PlaintextContexts:
    """Gives an endpoint what it takes from OpenSSL otherwise."""

    certificate: x509.Certificate

    def server(self, identity: TlsFiles, *, hears_joiners: bool) -> ssl.SSLContext:  # noqa: ARG002
        """Return the accepting side's settings."""
        return self._context("")

    def client(self, identity: TlsFiles, alpn: str) -> ssl.SSLContext:  # noqa: ARG002
        """Return the dialling side's settings."""
        return self._context(alpn)

    def _context(self, alpn: str) -> ssl.SSLContext:
        # The pump calls ``wrap_bio`` and nothing else.
        return cast(ssl.SSLContext, PlaintextContext(self.certificate.public_bytes(Encoding.DER), alpn))


@dataclass(frozen=True, slots=True)
class RealContexts:
    """OpenSSL, on copies of the identity files: it reads them by path, and cannot read a simulated disk."""

    directory: Path

    def server(self, identity: TlsFiles, *, hears_joiners: bool) -> ssl.SSLContext:  # noqa: ARG002
        """Return the accepting side's settings."""
        return server_context(self, hears_joiners=hears_joiners)

    def client(self, identity: TlsFiles, alpn: str) -> ssl.SSLContext:  # noqa: ARG002
        """Return the dialling side's settings."""
        return client_context(self, alpn)

    @property
    def certificate_path(self) -> Path:
        """PEM file of the certificate."""
        return self.directory / "tls.crt"

    @property
    def tls_key_path(self) -> Path:
        """PEM file of its key."""
        return self.directory / "tls.key"

    @property
    def ca_path(self) -> Path:
        """PEM file of the CA certificate."""
        return self.directory / "ca.crt"
