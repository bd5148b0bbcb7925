"""The genesis of a group: its name, administrators, quorum and first policy, fixed for life (PROTOCOL R0).

A group *is* the hash of its genesis, so a genesis proves itself and operations of one group mean nothing in
another (SCENARIOS T3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from .canonical import decode, digest, encode
from .errors import LocalProtocolError, MalformedMessageError, RemoteProtocolError
from .fields import Fields
from .identity import check_public_key
from .limits import GENESIS_BYTES_MAX, POLICY_SIGNATURES_MAX
from .policy import FIRST_VERSION, NONCE_BYTES, Policy

GENESIS_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Genesis:
    """The constitution of a group. Administrators may be given in any order; they are kept sorted."""

    nonce: bytes
    """16 random bytes: two groups of one name are two groups."""
    name: str
    """For people; not unique."""
    admins: tuple[bytes, ...]
    """Node ids whose signatures count for privileged acts."""
    quorum: int
    """How many of them must sign: m of n."""
    is_open: bool
    """Every author counts. Otherwise only admitted ones, which this release does not judge yet."""
    policy: Policy

    def __post_init__(self) -> None:
        object.__setattr__(self, "admins", tuple(sorted(self.admins)))

    def encode(self) -> bytes:
        """Return the canonical bytes.

        Raises:
            LocalProtocolError: No node would accept them.
        """
        data = encode(
            [
                GENESIS_VERSION,
                self.nonce,
                self.name,
                list(self.admins),
                self.quorum,
                self.is_open,
                self.policy.encode(),
            ]
        )
        try:
            self.decode(data)
        except RemoteProtocolError as error:
            raise LocalProtocolError(f"this genesis would be refused: {error}") from None
        return data

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the genesis in canonical bytes.

        Raises:
            RemoteProtocolError: Not a genesis, or one that nobody could administer (SCENARIOS B74).
        """
        fields = Fields(decode(data, bytes_max=GENESIS_BYTES_MAX), what="genesis")
        version = fields.integer()
        if version != GENESIS_VERSION:
            raise MalformedMessageError(f"genesis version {version} is unknown, {GENESIS_VERSION} is read.")
        genesis = cls(
            nonce=fields.blob(size=NONCE_BYTES),
            name=fields.name(),
            admins=fields.sorted_ids(count_max=POLICY_SIGNATURES_MAX, count_min=1),
            quorum=fields.integer(low=1),
            is_open=fields.boolean(),
            policy=Policy.decode(fields.blob(size_max=GENESIS_BYTES_MAX)),
        )
        fields.end()
        genesis._check()
        return genesis

    @property
    def group(self) -> bytes:
        """The id of the group, 32 bytes."""
        return digest("crdt-merge/group/1", self.encode())

    def _check(self) -> None:
        for admin in self.admins:
            check_public_key(admin)
        if self.quorum > len(self.admins):
            raise MalformedMessageError(
                f"a quorum of {self.quorum} cannot be met by {len(self.admins)} administrators."
            )
        if self.policy.version != FIRST_VERSION:
            raise MalformedMessageError(
                f"the first policy has version {FIRST_VERSION}, not {self.policy.version}."
            )
