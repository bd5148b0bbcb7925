"""The first invitation: made by ``init`` itself, before there is a daemon to ask.

It goes into the same book as every other, in the store that the daemon will open; from its start on, the
daemon admits with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crdt_merge_protocol.messages.join import SECRET_BYTES

from crdt_merge_node.ports import Clock, Fs, Rng, local_addresses
from crdt_merge_node.storage import DataDir, Store

from .addresses import is_wildcard, join_address
from .identity import Identity
from .invites import StoredInvites, create_invite


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstInvite:
    """A token, and what a person needs to know to use it."""

    token: str
    expires: int
    """Wall time in seconds since 1970."""
    addresses: tuple[str, ...]
    """Where the next machine will knock."""


def expected_addresses(host: str, port: int, advertise: Sequence[str]) -> tuple[str, ...]:
    """Return where others will reach the daemon that runs with these settings; nothing if nobody can tell.

    Port 0 means any free one: it is known only once the daemon runs.
    """
    if advertise:
        return tuple(advertise)
    if not port:
        return ()
    return local_addresses(port) if is_wildcard(host) else (join_address(host, port),)


async def make_first_invite(
    data_dir: Path,
    identity: Identity,
    addresses: Sequence[str],
    *,
    expires_s: int,
    fs: Fs,
    clock: Clock,
    rng: Rng,
) -> FirstInvite:
    """Make a one-time token in the store of a node that does not run yet, and return it once it is durable.

    Raises:
        StorageError: The store cannot be made.
    """
    data = DataDir.open(data_dir, fs=fs)
    try:
        store = await Store.open(data, fs=fs, clock=clock, rng=rng)
        try:
            await store.bind_cluster(identity.cluster)
            expires = int(clock.now()) + expires_s
            token = await create_invite(
                StoredInvites(store),
                cluster=identity.cluster,
                addresses=addresses,
                secret=rng.bytes(SECRET_BYTES),
                expires_at=expires,
            )
        finally:
            await store.close()
    finally:
        data.close()
    return FirstInvite(token=token, expires=expires, addresses=tuple(addresses))
