"""Messages for a certificate: JOIN_OFFER, JOIN_REQUEST, JOIN_GRANT, RENEW_REQUEST, RENEW_GRANT.

The admitting node speaks first and shows the CA certificate, so that a joiner can compare it with its token
*before* it gives the token's secret away. A member, whose own certificate the handshake has verified, asks
for a new one instead and needs no token. A request that fails is answered with REFUSE.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Self

from crdt_merge_protocol.limits import NAME_CHARS_MAX

from .base import ControlMessage, Fields, register

CERTIFICATE_BYTES_MAX: Final = 4096
SECRET_BYTES: Final = 16
INTRODUCERS_MAX: Final = 64


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class JoinOffer(ControlMessage):
    """First message, by the node that admits: which cluster this is."""

    TYPE: ClassVar[int] = 96

    ca: bytes
    """CA certificate, DER."""
    cluster_name: str

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        return cls(
            ca=fields.blob(size_max=CERTIFICATE_BYTES_MAX), cluster_name=fields.text(size_max=NAME_CHARS_MAX)
        )


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class JoinRequest(ControlMessage):
    """The joiner's request for a certificate."""

    TYPE: ClassVar[int] = 97

    secret: bytes
    """The secret of the token."""
    node: bytes
    """Node id to be certified."""
    request: bytes
    """PKCS #10 signing request, DER; proves possession of the TLS key."""
    proof: bytes
    """Signature by the node key, so that nobody is certified under another node's id."""

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        return cls(
            secret=fields.blob(size=SECRET_BYTES),
            node=fields.id(),
            request=fields.blob(size_max=CERTIFICATE_BYTES_MAX),
            proof=fields.blob(size=64),
        )


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class JoinGrant(ControlMessage):
    """The certificate that makes the joiner a member, and whom to dial first."""

    TYPE: ClassVar[int] = 98

    certificate: bytes
    """DER."""
    introducers: tuple[str, ...]
    """``host:port`` of members."""

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        certificate = fields.blob(size_max=CERTIFICATE_BYTES_MAX)
        addresses = fields.items(count_max=INTRODUCERS_MAX)
        texts = Fields(addresses, what=cls.__name__)
        return cls(certificate=certificate, introducers=tuple(texts.text(size_max=256) for _ in addresses))


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class RenewRequest(ControlMessage):
    """A member's request for a new certificate; which member, the certificate of the connection says."""

    TYPE: ClassVar[int] = 99

    request: bytes
    """PKCS #10 signing request, DER; proves possession of the TLS key."""

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        return cls(request=fields.blob(size_max=CERTIFICATE_BYTES_MAX))


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class RenewGrant(ControlMessage):
    """The new certificate, and the CA's, which may have been renewed too."""

    TYPE: ClassVar[int] = 100

    certificate: bytes
    """DER."""
    ca: bytes
    """CA certificate, DER; of the same key, hence of the same cluster."""

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the fields in wire order."""
        return cls(
            certificate=fields.blob(size_max=CERTIFICATE_BYTES_MAX),
            ca=fields.blob(size_max=CERTIFICATE_BYTES_MAX),
        )
