"""Invitations: the token that one person hands to another, and the book of those still open.

A token names the cluster by the hash of its CA key, says where to knock, and carries a secret. The joiner
shows the secret only to a node that proved to be of that cluster. The book keeps a hash of the secret, so
that whoever reads the store cannot join. A token admits *one* node, once the request was found good: the
book notes which, and lets that same node ask again until the token expires, because its answer may have been
lost on the way.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from crdt_merge_protocol.canonical import decode, digest, encode
from crdt_merge_protocol.errors import RemoteProtocolError
from crdt_merge_protocol.limits import ADDRESSES_PER_PEER_MAX
from crdt_merge_protocol.messages.base import Fields
from crdt_merge_protocol.messages.join import SECRET_BYTES

from crdt_merge_node.errors import ConfigError

PREFIX: Final = "cmn1-"
TOKEN_CHARS_MAX: Final = 4096
_CHECK_BYTES: Final = 4

Verdict = Literal["ok", "unknown", "expired", "used"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What an invitation says."""

    cluster: bytes
    """Cluster id: the hash of the CA's public key."""
    addresses: tuple[str, ...]
    """``host:port`` of nodes that admit with this token."""
    secret: bytes
    expires_at: int
    """Wall time in seconds since 1970, by the clock of the node that made it; only that node judges it."""

    def to_text(self) -> str:
        """Return the token as one word: no case, no punctuation to lose, and a checksum."""
        data = encode([self.cluster, list(self.addresses), self.secret, self.expires_at])
        checked = data + hashlib.sha256(data).digest()[:_CHECK_BYTES]
        return PREFIX + base64.b32encode(checked).decode().rstrip("=").lower()

    @classmethod
    def from_text(cls, text: str) -> Token:
        """Return the token that a person pasted.

        Raises:
            ConfigError: It is no token, or part of it is missing.
        """
        word = text.strip().lower()
        if not word.startswith(PREFIX):
            raise ConfigError("this is not a token.", hint=f'A token starts with "{PREFIX}".')
        body = word.removeprefix(PREFIX).upper()
        try:
            checked = base64.b32decode(body[:TOKEN_CHARS_MAX] + "=" * (-len(body) % 8))
            data, check = checked[:-_CHECK_BYTES], checked[-_CHECK_BYTES:]
            if hashlib.sha256(data).digest()[:_CHECK_BYTES] != check:
                raise ConfigError("the token is damaged.", hint="Copy it again, whole.")
            fields = Fields(decode(data), what="token")
            cluster = fields.id()
            addresses = fields.items(count_max=ADDRESSES_PER_PEER_MAX)
            texts = Fields(addresses, what="token")
            token = cls(
                cluster=cluster,
                addresses=tuple(texts.text(size_max=256) for _ in addresses),
                secret=fields.blob(size=SECRET_BYTES),
                expires_at=fields.integer(),
            )
            fields.end()
        except (binascii.Error, ValueError, RemoteProtocolError):
            raise ConfigError("the token is damaged.", hint="Copy it again, whole.") from None
        return token


class InviteStore(Protocol):
    """The book of invitations. Survives restarts."""

    async def add(self, invite: bytes, expires_at: int) -> None:
        """Note an invitation by the digest of its secret; return once that is durable."""
        ...

    async def consume(self, invite: bytes, node: bytes, *, now: float) -> Verdict:
        """Give the invitation to ``node`` and return "ok", or say why not; return once that is durable.

        Asking again for the same node is "ok" until the invitation expires.
        """
        ...


class MetaStore(Protocol):
    """The part of the node's store that :class:`StoredInvites` writes to."""

    async def put_meta(self, key: str, value: bytes) -> None:
        """Store a small fact durably."""
        ...

    async def get_meta(self, key: str) -> bytes | None:
        """Return a small fact."""
        ...


class StoredInvites:
    """The book of invitations, kept in the node's store."""

    def __init__(self, store: MetaStore) -> None:
        self._store = store
        self._lock = asyncio.Lock()
        """Reading and writing a record is two steps; two joiners may come with one token."""

    async def add(self, invite: bytes, expires_at: int) -> None:
        """Note an invitation."""
        await self._store.put_meta(_key(invite), encode([expires_at, None]))

    async def consume(self, invite: bytes, node: bytes, *, now: float) -> Verdict:
        """Give the invitation to ``node``, or say why not."""
        async with self._lock:
            record = await self._store.get_meta(_key(invite))
            if record is None:
                return "unknown"
            fields = Fields(decode(record), what="invite")
            expires_at, owner = fields.integer(), fields.optional_id()
            if owner is not None and owner != node:
                return "used"
            if now >= expires_at:
                return "expired"
            if owner is None:
                await self._store.put_meta(_key(invite), encode([expires_at, node]))
            return "ok"


async def create_invite(
    invites: InviteStore, *, cluster: bytes, addresses: Sequence[str], secret: bytes, expires_at: int
) -> str:
    """Return the text of a new token that admits one node at any of ``addresses``.

    Args:
        secret: 16 unpredictable bytes.
        expires_at: Wall time in seconds since 1970.
    """
    if not addresses:
        raise ConfigError(
            "an invitation needs an address of this node.", hint="Set listen.advertise to host:port."
        )
    await invites.add(invite_digest(secret), expires_at)
    kept = tuple(addresses)[:ADDRESSES_PER_PEER_MAX]
    return Token(cluster=cluster, addresses=kept, secret=secret, expires_at=expires_at).to_text()


def invite_digest(secret: bytes) -> bytes:
    """Return under which digest the book keeps the secret of a token."""
    return digest("crdt-merge/invite/1", secret)


def _key(invite: bytes) -> str:
    return f"invite/{invite.hex()}"
