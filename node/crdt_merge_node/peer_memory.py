"""What is remembered of peers over restarts: where they were, and who has left. ``boot`` reads it."""

from __future__ import annotations

from crdt_merge_protocol.events import RememberPeer

from .errors import StorageError, StoreFailedError
from .storage import Store
from .telemetry.logging import get_logger

log = get_logger()


class PeerMemory:
    """Writes small facts of peers to the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def remember(self, effect: RememberPeer) -> None:
        """Write down where a peer can be dialled, and that it has not left."""
        key, value = f"peer/{effect.peer.hex()}", "\n".join(effect.addresses).encode()
        left = f"left/{effect.peer.hex()}"
        if await self._store.get_meta(key) == value and await self._store.get_meta(left) is None:
            return
        try:
            await self._store.update_meta({key: value, left: None})
        except StoreFailedError:
            raise
        except StorageError as error:
            log.debug("peer.forgotten", peer=effect.peer, error=error)

    async def try_note_left(self, peer: bytes) -> None:
        """Write down that a peer has left, if there is room."""
        try:
            await self.note_left(peer)
        except StoreFailedError:
            raise
        except StorageError as error:
            log.debug("peer.forgotten", peer=peer, error=error)

    async def note_left(self, peer: bytes) -> None:
        """Write down that a peer has left.

        Raises:
            StorageError: It could not be written.
        """
        await self._store.update_meta({f"peer/{peer.hex()}": None, f"left/{peer.hex()}": b"1"})
