"""Renewing a certificate: a member asks a node that holds the CA (PROTOCOL 4, SCENARIOS T31).

    holder of the CA                         member, with the certificate that it has
    JOIN_OFFER {CA certificate}      ->      the same cluster? Only then:
                                     <-      RENEW_REQUEST {CSR}
    of the node that the handshake
    has shown, for the key in the CSR
    RENEW_GRANT {certificate, CA}    ->      check both, store them; use them for new connections

The node key is not touched, so nothing changes for whoever the node signs for.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from crdt_merge_protocol.errors import MalformedMessageError, RemoteProtocolError
from crdt_merge_protocol.limits import JOIN_TIMEOUT_S
from crdt_merge_protocol.messages.join import JoinOffer, RenewGrant, RenewRequest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from crdt_merge_node.errors import PeerRefusedError
from crdt_merge_node.ports import Clock, Net

from .certificates import (
    CertificateError,
    Term,
    certificate_from_der,
    check_issued,
    cluster_id,
    create_request,
    read_peer_certificate,
    spki,
)
from .join import open_dialogue


@dataclass(frozen=True, slots=True)
class Renewed:
    """What a holder of the CA gave."""

    certificate: x509.Certificate
    ca: x509.Certificate


async def ask_renewal(
    address: str,
    *,
    node: bytes,
    cluster: bytes,
    tls_key: Ed25519PrivateKey,
    valid_until: float,
    context: ssl.SSLContext,
    net: Net,
    clock: Clock,
) -> Renewed:
    """Return a new certificate for ``node`` from whoever answers at an address, checked.

    Args:
        address: ``host:port`` of a node that may hold the CA.
        node: Who asks.
        cluster: Id of the cluster.
        tls_key: Key of the certificate, present and future.
        valid_until: Wall time at which the present one expires; a new one that ends sooner is refused.
        context: Shows the present certificate and verifies that of the other side.
        net: The network.
        clock: By which the new one must be valid.

    Raises:
        PeerRefusedError: It does not hold the CA, will not, or gave something else.
        PeerUnreachableError: Nobody answers.
        TransportError: The handshake failed, for instance because the present certificate has expired.
    """
    dialogue = await open_dialogue(address, net, context)
    try:
        offer = await dialogue.receive(timeout_s=JOIN_TIMEOUT_S)
        if not isinstance(offer, JoinOffer):
            raise MalformedMessageError(f"{type(offer).__name__} instead of a join offer")
        _check_cluster(certificate_from_der(offer.ca), cluster)
        dialogue.send(RenewRequest(request=create_request(tls_key)))
        grant = await dialogue.receive(timeout_s=JOIN_TIMEOUT_S)
        if not isinstance(grant, RenewGrant):
            raise MalformedMessageError(f"{type(grant).__name__} instead of a certificate")
        renewed = Renewed(certificate_from_der(grant.certificate), certificate_from_der(grant.ca))
        _check(renewed, grant, node=node, cluster=cluster, tls_key=tls_key, now=clock.now())
        _check_term(renewed.certificate, valid_until)
    except RemoteProtocolError as error:
        dialogue.refuse(error)
        raise
    except CertificateError as error:
        dialogue.refuse(error)
        raise PeerRefusedError(f"this node refused {address}: {error.message}") from None
    finally:
        dialogue.pump.close()
    return renewed


def _check_cluster(ca: x509.Certificate, cluster: bytes) -> None:
    if cluster_id(ca) != cluster:
        raise CertificateError("the CA certificate that was shown is of another cluster.")


def _check_term(certificate: x509.Certificate, valid_until: float) -> None:
    if Term.of(certificate).expires_at < valid_until:
        raise CertificateError("the certificate that was issued expires before the present one.")


def _check(
    renewed: Renewed,
    grant: RenewGrant,
    *,
    node: bytes,
    cluster: bytes,
    tls_key: Ed25519PrivateKey,
    now: float,
) -> None:
    _check_cluster(renewed.ca, cluster)
    check_issued(renewed.ca, renewed.ca, now=now)
    check_issued(renewed.certificate, renewed.ca, now=now)
    if spki(renewed.certificate.public_key()) != spki(tls_key.public_key()):
        raise CertificateError("the certificate that was issued is for another key.")
    if read_peer_certificate(grant.certificate, cluster).node != node:
        raise CertificateError("the certificate that was issued is for another node.")
