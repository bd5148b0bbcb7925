"""Looking after a running node: its certificate, its backups, its leaving, peers that will not come back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from crdt_merge_node.backing_up import back_up
from crdt_merge_node.control.model import (
    BackupReport,
    CertificateInfo,
    LeavePlan,
    LeaveReport,
    PeerInfo,
    Progress,
)
from crdt_merge_node.errors import InvalidRequestError
from crdt_merge_node.leaving import leave
from crdt_merge_node.services import Services
from crdt_merge_node.telemetry.logging import get_logger

from . import reports
from .binding import in_own_name
from .naming import find_peer

log = get_logger()


@in_own_name
class Upkeep:
    """The part of ``NodeApi`` that is about the node itself."""

    _services: Services

    async def peer_forget(self, peer: str) -> PeerInfo:
        """Give up a peer that will not come back: it is not dialled any more, until it comes by itself."""
        found = find_peer(self._services, peer)
        if found in self._services.driver.connections:
            raise InvalidRequestError(
                f"peer {found.hex()[:12]} is connected, so it has not gone.",
                hint=f"To refuse it: crdt-merge-node peer block {found.hex()[:12]}",
            )
        await self._services.driver.forget(found)
        log.info("peer.given_up", peer=found)
        return reports.peer_info(self._services, found)

    async def certificate_show(self) -> CertificateInfo:
        """Return the terms of this node's certificate, and how renewing it goes."""
        return self._services.certificate.info()

    async def certificate_renew(self) -> CertificateInfo:
        """Get a new certificate now, whether it is due or not."""
        return await self._services.certificate.renew()

    def leave(
        self, *, copies: int, wait_s: float, accept_loss: bool
    ) -> AsyncIterator[LeavePlan | Progress | LeaveReport]:
        """Leave the cluster for good, and stop."""
        return leave(self._services, copies=copies, wait_s=wait_s, accept_loss=accept_loss)

    def backup(self, *, path: str, with_keys: bool, copy: bool) -> AsyncIterator[Progress | BackupReport]:
        """Write everything that this node stores to a new directory; an unfinished one is finished."""
        return back_up(self._services, Path(path), with_keys=with_keys, is_copying=copy)
