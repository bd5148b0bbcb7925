"""The cluster's CA as a file that can be carried about: the encrypted key and the certificate, in PEM."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding

from crdt_merge_node.errors import ConfigError, NotFoundError, StorageError
from crdt_merge_node.ports import Clock, Fs, Rng

from .certificates import (
    CertificateAuthority,
    CertificateError,
    Term,
    certificate_from_pem,
    check_issued,
    key_from_encrypted_pem,
    key_to_encrypted_pem,
    key_to_pem,
)
from .identity import FILE_BYTES_MAX, Identity, load_authority, store_authority

_CERTIFICATE: Final = b"-----BEGIN CERTIFICATE-----"


def export_authority(data_dir: Path, target: Path, passphrase: bytes, *, fs: Fs) -> bytes:
    """Write the CA that a node holds to a new file of mode 0600; return the cluster id.

    Raises:
        NotFoundError: The node does not hold the CA.
        ConfigError: There is such a file already.
        StorageError: It cannot be written.
    """
    authority = load_authority(data_dir, fs)
    if authority is None:
        raise NotFoundError(
            f"the node in {data_dir} does not hold the cluster's CA.",
            hint="Export it on the node on which the cluster was made.",
        )
    data = key_to_encrypted_pem(authority.key, passphrase) + authority.certificate.public_bytes(Encoding.PEM)
    try:
        with fs.create(target, mode=0o600) as file:
            file.write_at(0, data)
            file.sync()
        fs.sync_dir(target.parent)
    except FileExistsError:
        raise ConfigError(
            f"{target} is there already and is not overwritten.", hint="Name another."
        ) from None
    except OSError as error:
        raise StorageError(f"{target} cannot be written: {error.strerror}.") from error
    return authority.cluster


def import_authority(data_dir: Path, source: Path, passphrase: bytes, *, fs: Fs, clock: Clock) -> bytes:
    """Let a node hold the CA that is in a file; return the cluster id.

    A node that holds it already keeps whichever certificate of it is valid longer.

    Raises:
        NotFoundError: There is no node.
        CertificateError: The passphrase is wrong, or it is not the CA of the node's cluster.
        StorageError: The file cannot be read.
    """
    identity = Identity.load(data_dir, fs)
    authority = _open(source, passphrase, fs=fs, clock=clock)
    if authority.cluster != identity.cluster:
        raise CertificateError(
            f"{source} holds the CA of cluster {authority.cluster.hex()[:12]}, this node is a member of "
            f"{identity.cluster.hex()[:12]}.",
            hint="Take the CA of this node's own cluster.",
        )
    present = certificate_from_pem(_whole(identity.ca_path, fs))
    if Term.of(present).expires_at > Term.of(authority.certificate).expires_at:
        authority = CertificateAuthority(authority.key, present)
    store_authority(data_dir, authority, fs=fs)
    return authority.cluster


def create_with_authority(
    data_dir: Path, source: Path, passphrase: bytes, *, fs: Fs, rng: Rng, clock: Clock
) -> Identity:
    """Make a node that is a member of the cluster whose CA is in a file, and holds the CA from then on.

    May be called again: a node that is there already is left as it is.

    Raises:
        CertificateError: The passphrase is wrong, the file is no CA, or the node is of another cluster.
        StorageError: The file cannot be read.
    """
    if Identity.is_present(data_dir, fs):
        import_authority(data_dir, source, passphrase, fs=fs, clock=clock)
        return Identity.load(data_dir, fs)
    authority = _open(source, passphrase, fs=fs, clock=clock)
    fs.mkdir(data_dir)
    store_authority(data_dir, authority, fs=fs)
    return Identity.create(data_dir, authority.name, fs=fs, rng=rng, now=clock.now())


def _open(source: Path, passphrase: bytes, *, fs: Fs, clock: Clock) -> CertificateAuthority:
    """Return the CA of an export that is valid now."""
    key_pem, certificate_pem = _read(source, fs)
    key = key_from_encrypted_pem(key_pem, passphrase)
    authority = CertificateAuthority.from_pem(key_to_pem(key), certificate_pem)
    check_issued(authority.certificate, authority.certificate, now=clock.now())
    return authority


def _read(source: Path, fs: Fs) -> tuple[bytes, bytes]:
    """Return the two PEM texts of an export."""
    data = _whole(source, fs)
    key, mark, certificate = data.partition(_CERTIFICATE)
    if not mark:
        raise CertificateError(f"{source} is no export of a CA.", hint="Make one with `ca export`.")
    return key, mark + certificate


def _whole(path: Path, fs: Fs) -> bytes:
    try:
        with fs.open_read(path, follow=True) as file:
            return file.read_at(0, FILE_BYTES_MAX)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}.") from error
