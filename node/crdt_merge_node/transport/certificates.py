"""X.509 for a cluster: one CA, and a certificate per node whose URI names the node id (PROTOCOL 4).

The TLS key is a key of its own: renewing a certificate, or keeping the TLS key elsewhere, changes no author.
A certificate says "member" and nothing else; there are no roles in it. Times carry an hour of slack
backwards, because the clocks of edge hosts differ (SCENARIOS T6).
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from crdt_merge_protocol.canonical import digest
from crdt_merge_protocol.errors import BadSignatureError
from crdt_merge_protocol.identity import check_public_key
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from crdt_merge_node.errors import TlsError

CA_DAYS: Final = 3650
LEAF_DAYS: Final = 825
"""The longest life that common TLS libraries accept of a leaf (CA/Browser Forum, 2018)."""
SLACK_S: Final = 3600
CSR_BYTES_MAX: Final = 4096
_URI_SCHEME: Final = "crdt-merge"
_SPIFFE_SCHEME: Final = "spiffe"
_PURPOSES: Final = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)

_NAME_SUFFIX: Final = " cluster CA"


class CertificateError(TlsError):
    """A certificate or a request for one is not what this cluster issues."""

    code = "E1604"
    exit_code = 5


RENEWAL_SHARE: Final = 2 / 3
"""Of its life, after which a certificate is renewed: a third is left in which nobody need be there."""
RENEWAL_SPREAD: Final = 0.05
"""Of its life, by which renewals are brought forward: nodes made together do not all ask together."""


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """What a verified certificate says."""

    node: bytes
    expires_at: float
    """Wall time in seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Term:
    """From when until when a certificate is valid, and when it is to be renewed: seconds since 1970."""

    begins_at: float
    renewed_at: float
    expires_at: float

    @classmethod
    def of(cls, certificate: x509.Certificate) -> Term:
        """Return the term of a certificate.

        When it is renewed follows from its serial number, which is random: asking again says the same.
        """
        begins_at = certificate.not_valid_before_utc.timestamp()
        expires_at = certificate.not_valid_after_utc.timestamp()
        drawn = digest("crdt-merge/renewal/1", certificate.serial_number.to_bytes(20, "big"))
        share = RENEWAL_SHARE - RENEWAL_SPREAD * int.from_bytes(drawn[:4], "big") / 2**32
        return cls(begins_at, begins_at + share * (expires_at - begins_at), expires_at)


@dataclass(frozen=True, slots=True)
class CertificateAuthority:
    """The key that admits nodes to a cluster, and its certificate."""

    key: Ed25519PrivateKey
    certificate: x509.Certificate

    @property
    def cluster(self) -> bytes:
        """The cluster id."""
        return cluster_id(self.certificate)

    @property
    def name(self) -> str:
        """What people call the cluster, as far as the certificate has room for it."""
        names = self.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return str(names[0].value).removesuffix(_NAME_SUFFIX) if names else ""

    @classmethod
    def create(cls, name: str, seed: bytes, *, now: float) -> CertificateAuthority:
        """Return a new authority whose key is made from 32 unpredictable bytes."""
        key = Ed25519PrivateKey.from_private_bytes(seed)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name[:40]}{_NAME_SUFFIX}")])
        return cls(key, _self_sign(key, subject, now=now))

    def renewed(self, *, now: float) -> CertificateAuthority:
        """Return this authority with a certificate that is valid longer.

        Key and name stay: what either certificate vouches for, the other does too, and so does every node
        that still holds the old one.
        """
        return CertificateAuthority(self.key, _self_sign(self.key, self.certificate.subject, now=now))

    @classmethod
    def from_pem(cls, key_pem: bytes, certificate_pem: bytes) -> CertificateAuthority:
        """Return the authority stored in two PEM texts.

        Raises:
            CertificateError: They are not a key and its certificate.
        """
        certificate = certificate_from_pem(certificate_pem)
        key = key_from_pem(key_pem)
        if spki(certificate.public_key()) != spki(key.public_key()):
            raise CertificateError("the CA key does not belong to the CA certificate.")
        return cls(key, certificate)

    def issue(self, public_key: Ed25519PublicKey, node: bytes, *, now: float) -> x509.Certificate:
        """Return a certificate that makes ``node`` a member, for the TLS key ``public_key``."""
        begin, end = _validity(now, LEAF_DAYS)
        issuer = x509.SubjectKeyIdentifier.from_public_key(self.key.public_key())
        uri = node_uri(self.cluster, node)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(min(end, self.certificate.not_valid_after_utc))
            # RFC 5280, 4.2.1.6: with an empty subject the alternative name is critical.
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(is_ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(_PURPOSES), critical=False)
            .add_extension(_authority_identifier(issuer), critical=False)
        )
        return builder.sign(self.key, None)


def _self_sign(key: Ed25519PrivateKey, subject: x509.Name, *, now: float) -> x509.Certificate:
    begin, end = _validity(now, CA_DAYS)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(is_ca=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(_authority_identifier(identifier), critical=False)
    )
    return builder.sign(key, None)


def cluster_id(ca: x509.Certificate) -> bytes:
    """Return the cluster id: a hash of the CA's public key, so that a renewed CA certificate keeps it."""
    return digest("crdt-merge/cluster/1", spki(ca.public_key()))


def node_uri(cluster: bytes, node: bytes) -> str:
    """Return the URI that a certificate of ``node`` carries."""
    return f"{_URI_SCHEME}://{cluster.hex()}/{node.hex()}"


def create_request(key: Ed25519PrivateKey) -> bytes:
    """Return a certificate signing request in DER. It proves possession of ``key`` and asks for no name."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, None).public_bytes(Encoding.DER)


def read_request(der: bytes) -> Ed25519PublicKey:
    """Return the key of a signing request whose signature verifies.

    Raises:
        CertificateError: It is not such a request.
    """
    try:
        if len(der) > CSR_BYTES_MAX:
            raise CertificateError(f"a certificate request of {len(der)} bytes is too long.")
        request = x509.load_der_x509_csr(der)
        key = request.public_key()
        is_signed = request.is_signature_valid
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        raise CertificateError("the certificate request is malformed.") from None
    if not is_signed or not isinstance(key, Ed25519PublicKey):
        raise CertificateError("the certificate request is not signed with an Ed25519 key.")
    return key


def read_peer_certificate(der: bytes, cluster: bytes) -> PeerCertificate:
    """Return what a certificate says that OpenSSL has verified against the cluster's CA.

    OpenSSL accepts a leaf without any extended key usage, and knows nothing of our names; both are checked
    here.

    Raises:
        CertificateError: It is not a certificate of a node of ``cluster``.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        extensions = certificate.extensions
        purposes = set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        raise CertificateError("the certificate lacks a key usage or a URI, or is malformed") from None
    if not purposes.issuperset(_PURPOSES):
        raise CertificateError("the certificate is not meant for both ends of a connection")
    if len(uris) != 1:
        raise CertificateError(f"the certificate has {len(uris)} URIs where one names the node")
    return PeerCertificate(_node_of(uris[0], cluster), certificate.not_valid_after_utc.timestamp())


def _node_of(uri: str, cluster: bytes) -> bytes:
    try:
        parts = urlsplit(uri)
        node = bytes.fromhex(parts.path.rpartition("/")[2])
        check_public_key(node)
    except (ValueError, BadSignatureError):
        raise CertificateError(f'the URI "{uri[:100]}" of the certificate names no node') from None
    if parts.query or parts.fragment or parts.scheme not in (_URI_SCHEME, _SPIFFE_SCHEME):
        raise CertificateError(f'the URI "{uri[:100]}" of the certificate is of no known form')
    if parts.scheme == _URI_SCHEME and uri != node_uri(cluster, node):
        raise CertificateError(f'the URI "{uri[:100]}" of the certificate is of another cluster')
    return node


def check_issued(certificate: x509.Certificate, ca: x509.Certificate, *, now: float) -> None:
    """Check that ``ca`` signed ``certificate`` and that both are valid at ``now``.

    Raises:
        CertificateError: They are not.
    """
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        raise CertificateError("the certificate was not signed by this cluster's CA.") from None
    at = _date(now)
    for checked in (certificate, ca):
        if not checked.not_valid_before_utc <= at <= checked.not_valid_after_utc:
            raise CertificateError("the certificate is not valid now (is the clock right?).")


def spki(key: object) -> bytes:
    """Return a public key in the form that certificates carry it.

    Raises:
        CertificateError: Not an Ed25519 key.
    """
    if not isinstance(key, Ed25519PublicKey):
        raise CertificateError("only Ed25519 keys are used in this cluster.")
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def key_to_pem(key: Ed25519PrivateKey) -> bytes:
    """Return a private key as PEM."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def key_from_pem(pem: bytes) -> Ed25519PrivateKey:
    """Return the private key in ``pem``.

    Raises:
        CertificateError: It is no Ed25519 key in PEM.
    """
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise CertificateError("a private key file is malformed.") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise CertificateError("only Ed25519 keys are used in this cluster.")
    return key


def key_to_encrypted_pem(key: Ed25519PrivateKey, passphrase: bytes) -> bytes:
    """Return a private key as PEM that only the passphrase opens (PKCS #8, RFC 5958, PBES2)."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase))


def key_from_encrypted_pem(pem: bytes, passphrase: bytes) -> Ed25519PrivateKey:
    """Return the private key in ``pem``.

    Raises:
        CertificateError: Another passphrase, or no encrypted Ed25519 key.
    """
    try:
        key = load_pem_private_key(pem, password=passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise CertificateError("the passphrase is wrong, or the file holds no encrypted key.") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise CertificateError("only Ed25519 keys are used in this cluster.")
    return key


def certificate_from_pem(pem: bytes) -> x509.Certificate:
    """Return the certificate in ``pem``.

    Raises:
        CertificateError: It is no certificate.
    """
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise CertificateError("a certificate file is malformed.") from None


def certificate_from_der(der: bytes) -> x509.Certificate:
    """Return the certificate in ``der``.

    Raises:
        CertificateError: It is no certificate.
    """
    try:
        return x509.load_der_x509_certificate(der)
    except ValueError:
        raise CertificateError("a certificate is malformed.") from None


def _authority_identifier(of: x509.SubjectKeyIdentifier) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(of)


def _validity(now: float, days: int) -> tuple[dt.datetime, dt.datetime]:
    return _date(now - SLACK_S), _date(now + days * 86400)


def _date(at: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(at, dt.UTC)


def _key_usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )
