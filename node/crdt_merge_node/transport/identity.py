"""The identity files of a node: who it is, and which cluster it belongs to.

    identity/node.key      32 bytes: the seed of the Ed25519 node key, which signs operations
    identity/tls.key       PEM: the key of the TLS certificate
    identity/tls.crt       PEM: the certificate that makes this node a member
    identity/ca.crt        PEM: the certificate of the cluster's CA
    identity/cluster.json  cluster id, name, and where to find the first peers; written last
    ca/ca.key, ca/ca.crt   only where nodes can be admitted

``cluster.json`` is the mark of a complete identity: without it an interrupted ``init`` or ``join`` is simply
run again, and goes on with the keys that are there. Private keys that others may read are refused
(SCENARIOS B71).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from crdt_merge_protocol.identity import PUBLIC_KEY_BYTES, NodeKey
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from crdt_merge_node.errors import ConfigError, CorruptError, NotFoundError
from crdt_merge_node.ports import Fs, Rng, replace_file

from .certificates import (
    CertificateAuthority,
    CertificateError,
    certificate_from_pem,
    cluster_id,
    key_from_pem,
    key_to_pem,
    read_peer_certificate,
    spki,
)

_RESTORE: Final = "Put back a copy of these files, or make a new node with another --data-dir."
FILE_BYTES_MAX: Final = 64 * 1024
_FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Identity:
    """A node that is a member of a cluster. Satisfies ``tls.TlsFiles``."""

    directory: Path
    """``<data dir>/identity``."""
    node_key: NodeKey
    cluster: bytes
    cluster_name: str
    introducers: tuple[str, ...]
    """``host:port`` of peers known when this node joined."""
    certificate_expires_at: float
    """Wall time in seconds since 1970."""

    @property
    def node(self) -> bytes:
        """The node id."""
        return self.node_key.node_id

    @property
    def certificate_path(self) -> Path:
        """PEM file of the certificate."""
        return self.directory / "tls.crt"

    @property
    def tls_key_path(self) -> Path:
        """PEM file of the certificate's key."""
        return self.directory / "tls.key"

    @property
    def ca_path(self) -> Path:
        """PEM file of the CA certificate."""
        return self.directory / "ca.crt"

    @classmethod
    def is_present(cls, data_dir: Path, fs: Fs) -> bool:
        """Tell whether there is a complete identity."""
        return fs.stat(data_dir / "identity" / "cluster.json") is not None

    @classmethod
    def create(cls, data_dir: Path, cluster_name: str, *, fs: Fs, rng: Rng, now: float) -> Identity:
        """Make a new cluster with this node as its first member, who holds the CA.

        Raises:
            ConfigError: There is an identity already.
        """
        if cls.is_present(data_dir, fs):
            raise ConfigError(
                f"{data_dir} already holds a node.",
                hint="Start it with `crdt-merge-node run`, or give another --data-dir.",
            )
        node_key, tls_key = prepare_keys(data_dir, fs=fs, rng=rng)
        authority = load_authority(data_dir, fs)
        if authority is None:
            authority = CertificateAuthority.create(cluster_name, rng.bytes(32), now=now)
            store_authority(data_dir, authority, fs=fs)
        certificate = authority.issue(tls_key.public_key(), node_key.node_id, now=now)
        write_membership(
            data_dir, certificate, authority.certificate, name=cluster_name, introducers=(), fs=fs
        )
        return cls.load(data_dir, fs)

    @classmethod
    def load(cls, data_dir: Path, fs: Fs) -> Identity:
        """Read and check the identity files.

        Raises:
            NotFoundError: There is no identity yet.
            CorruptError: A file is damaged.
            ConfigError: The files do not belong together, or others can read a private key.
        """
        directory = data_dir / "identity"
        if not cls.is_present(data_dir, fs):
            raise NotFoundError(f"{data_dir} holds no node.", hint="Run `crdt-merge-node init` first.")
        node_key = _load_node_key(directory / "node.key", fs)
        facts = _read_facts(directory / "cluster.json", fs)
        try:
            tls_key = key_from_pem(_read_private(directory / "tls.key", fs))
            certificate = certificate_from_pem(_read(directory / "tls.crt", fs))
            ca = certificate_from_pem(_read(directory / "ca.crt", fs))
            peer = read_peer_certificate(certificate.public_bytes(Encoding.DER), cluster_id(ca))
        except CertificateError as error:
            raise CorruptError(f"{directory}: {error.message}", hint=_RESTORE) from None
        if spki(tls_key.public_key()) != spki(certificate.public_key()):
            raise ConfigError(f"{directory}: tls.key is not the key of tls.crt.", hint=_RESTORE)
        if peer.node != node_key.node_id:
            raise ConfigError(
                f"{directory}: node.key is the key of node {node_key.node_id.hex()[:12]} and tls.crt the "
                f"certificate of node {peer.node.hex()[:12]}.",
                hint=_RESTORE,
            )
        if facts["cluster"] != cluster_id(ca).hex():
            raise ConfigError(
                f"{directory}: cluster.json and ca.crt are of different clusters.", hint=_RESTORE
            )
        introducers = tuple(facts["introducers"])
        return cls(directory, node_key, cluster_id(ca), facts["name"], introducers, peer.expires_at)


def prepare_keys(data_dir: Path, *, fs: Fs, rng: Rng) -> tuple[NodeKey, Ed25519PrivateKey]:
    """Return the node key and the TLS key of a node to be, making what is not there yet."""
    directory = data_dir / "identity"
    fs.mkdir(data_dir)
    fs.mkdir(directory)
    if fs.stat(directory / "node.key") is None:
        replace_file(fs, directory / "node.key", rng.bytes(PUBLIC_KEY_BYTES))
    if fs.stat(directory / "tls.key") is None:
        replace_file(
            fs, directory / "tls.key", key_to_pem(Ed25519PrivateKey.from_private_bytes(rng.bytes(32)))
        )
    node_key = _load_node_key(directory / "node.key", fs)
    try:
        return node_key, key_from_pem(_read_private(directory / "tls.key", fs))
    except CertificateError as error:
        raise CorruptError(f"{directory / 'tls.key'}: {error.message}") from None


def write_membership(
    data_dir: Path,
    certificate: x509.Certificate,
    ca: x509.Certificate,
    *,
    name: str,
    introducers: tuple[str, ...],
    fs: Fs,
) -> None:
    """Complete an identity: certificate, CA, and last the file that marks it complete."""
    directory = data_dir / "identity"
    facts = {
        "format": _FORMAT,
        "cluster": cluster_id(ca).hex(),
        "name": name,
        "introducers": list(introducers),
    }
    replace_file(fs, directory / "tls.crt", certificate.public_bytes(Encoding.PEM))
    replace_file(fs, directory / "ca.crt", ca.public_bytes(Encoding.PEM))
    replace_file(fs, directory / "cluster.json", json.dumps(facts, indent=2).encode() + b"\n")


def store_renewed(data_dir: Path, certificate: x509.Certificate, ca: x509.Certificate, *, fs: Fs) -> None:
    """Put a new certificate in the place of the old one; each file is whole at any moment.

    The CA's certificate goes first. A crash between the two leaves two files that belong together as well,
    because a renewed CA keeps its key.
    """
    directory = data_dir / "identity"
    replace_file(fs, directory / "ca.crt", ca.public_bytes(Encoding.PEM))
    replace_file(fs, directory / "tls.crt", certificate.public_bytes(Encoding.PEM))


def store_authority(data_dir: Path, authority: CertificateAuthority, *, fs: Fs) -> None:
    """Keep the cluster's CA on this node; the key goes last, because it is what counts."""
    directory = data_dir / "ca"
    fs.mkdir(directory)
    replace_file(fs, directory / "ca.crt", authority.certificate.public_bytes(Encoding.PEM))
    replace_file(fs, directory / "ca.key", key_to_pem(authority.key))


def read_certificates(data_dir: Path, fs: Fs) -> tuple[x509.Certificate, x509.Certificate]:
    """Return this node's certificate and the CA's.

    Raises:
        CorruptError: A file is damaged.
    """
    directory = data_dir / "identity"
    try:
        return (
            certificate_from_pem(_read(directory / "tls.crt", fs)),
            certificate_from_pem(_read(directory / "ca.crt", fs)),
        )
    except CertificateError as error:
        raise CorruptError(f"{directory}: {error.message}", hint=_RESTORE) from None


def load_tls_key(data_dir: Path, fs: Fs) -> Ed25519PrivateKey:
    """Return the key of this node's certificate.

    Raises:
        CorruptError: The file is damaged.
        ConfigError: Others can read it.
    """
    path = data_dir / "identity" / "tls.key"
    try:
        return key_from_pem(_read_private(path, fs))
    except CertificateError as error:
        raise CorruptError(f"{path}: {error.message}", hint=_RESTORE) from None


def load_authority(data_dir: Path, fs: Fs) -> CertificateAuthority | None:
    """Return the cluster's CA if this node holds it.

    Raises:
        CorruptError: A file is damaged.
        ConfigError: Others can read the key.
    """
    directory = data_dir / "ca"
    if fs.stat(directory / "ca.key") is None:
        return None
    try:
        return CertificateAuthority.from_pem(
            _read_private(directory / "ca.key", fs), _read(directory / "ca.crt", fs)
        )
    except CertificateError as error:
        raise CorruptError(f"{directory}: {error.message}", hint=_RESTORE) from None


def _load_node_key(path: Path, fs: Fs) -> NodeKey:
    seed = _read_private(path, fs)
    if len(seed) != PUBLIC_KEY_BYTES:
        raise CorruptError(f"{path}: {len(seed)} bytes, a node key has {PUBLIC_KEY_BYTES}.", hint=_RESTORE)
    return NodeKey(seed)


def _read_facts(path: Path, fs: Fs) -> dict[str, Any]:
    try:
        facts = json.loads(_read(path, fs))
        is_known = (
            facts["format"] == _FORMAT
            and isinstance(facts["cluster"], str)
            and isinstance(facts["name"], str)
            and all(isinstance(address, str) for address in facts["introducers"])
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CorruptError(f"{path}: not what this release writes.", hint=_RESTORE) from None
    if not is_known:
        raise CorruptError(f"{path}: not what this release writes.", hint=_RESTORE)
    return dict(facts)


def _read_private(path: Path, fs: Fs) -> bytes:
    found = fs.stat(path)
    if found is not None and found.is_file and found.mode & 0o077:
        raise ConfigError(
            f"{path}: mode {found.mode:04o} lets others read a private key.", hint=f"Run `chmod 600 {path}`."
        )
    return _read(path, fs)


def _read(path: Path, fs: Fs) -> bytes:
    try:
        with fs.open_read(path) as file:
            nbytes = file.size()
            if nbytes > FILE_BYTES_MAX:
                raise CorruptError(
                    f"{path}: {nbytes} bytes are too many for an identity file.", hint=_RESTORE
                )
            return file.read_at(0, nbytes)
    except OSError as error:
        raise CorruptError(f"{path}: {error.strerror or error}.", hint=_RESTORE) from None
