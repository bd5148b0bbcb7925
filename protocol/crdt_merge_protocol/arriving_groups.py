"""Groups on their way here: heard of, asked for, or being written to the disk.

A group is its genesis. Whoever names a group that is not here is asked for it; what is asked for and what
this node makes itself goes to the disk first, and only then is it a replica. All of it together is bounded.
"""

from __future__ import annotations

from .errors import LocalProtocolError
from .events import Effect, Lane, Send, StoreGroup
from .genesis import Genesis
from .limits import GROUPS_MAX
from .messages.gossip import GenesisFound, WantGenesis
from .replica import Replica
from .strangers import Strangers


class ArrivingGroups:
    """Which groups are on their way, and what peers announced of them meanwhile."""

    def __init__(self, replicas: dict[bytes, Replica]) -> None:
        self.strangers = Strangers()
        self._replicas = replicas
        self._storing: set[bytes] = set()
        """Groups whose genesis is on its way to the disk."""

    def is_any_from(self, peer: bytes) -> bool:
        """Tell whether a group is being written, or a peer has named one that is not here."""
        return bool(self._storing) or self.strangers.has_named(peer)

    def create(self, genesis: Genesis) -> list[Effect]:
        """Begin a group of this node's own.

        Raises:
            LocalProtocolError: The cluster has as many groups as it can have.
        """
        if self._is_full():
            raise LocalProtocolError(
                f"there are {GROUPS_MAX} groups already, which is as many as there can be."
            )
        self._storing.add(genesis.group)
        return [StoreGroup(group=genesis.group, genesis=genesis.encode())]

    def announced(self, peer: bytes, group: bytes, root: bytes, count: int) -> bool:
        """Note a root of a group that is not here; False if the peer has told of too many."""
        return self.strangers.announced(peer, group, root, count)

    def ask(self, peer: bytes, groups: list[bytes]) -> list[Effect]:
        """Ask a peer for groups that it named, but for those that are being written."""
        wanted = tuple(group for group in dict.fromkeys(groups) if group not in self._storing)
        if not wanted or self._is_full():
            return []
        return [Send(peer=peer, message=WantGenesis(groups=wanted), lane=Lane.MEMBERSHIP)]

    def give(self, peer: bytes, groups: tuple[bytes, ...]) -> list[Effect]:
        """Answer a peer that asks for groups: those that are here."""
        return [
            Send(
                peer=peer,
                message=GenesisFound(genesis=self._replicas[group].genesis_bytes),
                lane=Lane.MEMBERSHIP,
            )
            for group in dict.fromkeys(groups)
            if group in self._replicas
        ]

    def take(self, encoded: bytes) -> list[Effect]:
        """Write a group that a peer gave to the disk, unless it is known or there are too many.

        Raises:
            RemoteProtocolError: It is no genesis.
        """
        group = Genesis.decode(encoded).group
        if group in self._replicas or group in self._storing or self._is_full():
            return []
        self._storing.add(group)
        return [StoreGroup(group=group, genesis=encoded)]

    def ended(self, group: bytes) -> None:
        """Note that a group is on the disk, or found no room there."""
        self._storing.discard(group)

    def take_announced(self, group: bytes) -> list[tuple[bytes, bytes, int]]:
        """Return (peer, root, count) as announced for a group that is here now, by peer."""
        return self.strangers.take(group)

    def forget_peer(self, peer: bytes) -> None:
        """Drop what a peer that has gone announced."""
        self.strangers.forget_peer(peer)

    def _is_full(self) -> bool:
        return len(self._replicas) + len(self._storing) >= GROUPS_MAX
