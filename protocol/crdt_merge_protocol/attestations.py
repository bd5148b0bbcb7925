"""Who wrote which bytes for which resolve key. Equal keys must have equal outputs (DESIGN 3.2).

Messages, not operations: they steer nothing, they only raise an alarm. Memory is bounded per writer, so that
a peer that floods pushes out what it said itself, never what this node or others wrote.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from .events import AttestationMismatch
from .limits import ATTESTATIONS_PER_GROUP_MAX, ATTESTATIONS_PER_PEER_MAX
from .messages.gossip import Attest

ATTESTATIONS_ON_CONNECT: Final = 16
"""Of each group, told to a new neighbour."""

Written = OrderedDict[tuple[bytes, str], bytes]
"""(resolve key, numerics profile) -> output digest, the oldest first."""


class Attestations:
    """The attestations that this node has made and heard."""

    def __init__(self, node: bytes) -> None:
        self._node = node
        self._by_group: dict[bytes, dict[bytes, Written]] = {}

    def record(self, node: bytes, attest: Attest) -> dict[bytes, bytes]:
        """Note what ``node`` wrote; return the other nodes whose output for the same key differs.

        Outputs are compared within one numerics profile only (STRATEGIES 1.12).
        """
        key = (attest.resolve_key, attest.profile)
        writers = self._by_group.setdefault(attest.group, {})
        written = writers.setdefault(node, OrderedDict())
        written[key] = attest.output_digest
        written.move_to_end(key)
        newest = ATTESTATIONS_PER_GROUP_MAX if node == self._node else ATTESTATIONS_PER_PEER_MAX
        if len(written) > newest:
            written.popitem(last=False)
        return {
            other: theirs[key]
            for other, theirs in sorted(writers.items())
            if other != node and theirs.get(key, attest.output_digest) != attest.output_digest
        }

    def mismatches(self, node: bytes, attest: Attest) -> list[AttestationMismatch]:
        """Note what ``node`` wrote; return every disagreement between a peer and this node."""
        differing = self.record(node, attest)
        if node == self._node:
            found = [(peer, output, attest.output_digest) for peer, output in differing.items()]
        else:
            ours = differing.get(self._node)
            found = [] if ours is None else [(node, attest.output_digest, ours)]
        return [
            AttestationMismatch(
                group=attest.group, resolve_key=attest.resolve_key, peer=peer, theirs=theirs, ours=ours
            )
            for peer, theirs, ours in found
        ]

    def own(self, *, newest: int = ATTESTATIONS_ON_CONNECT) -> Iterator[Attest]:
        """Return this node's newest attestations of every group."""
        for group, writers in sorted(self._by_group.items()):
            written = writers.get(self._node, OrderedDict())
            for key, profile in list(written)[-newest:]:
                yield Attest(
                    group=group, resolve_key=key, output_digest=written[key, profile], profile=profile
                )

    def is_kept(self, group: bytes, resolve_key: bytes) -> bool:
        """Tell whether an attestation of this node is still among the newest."""
        written = self._by_group.get(group, {}).get(self._node, OrderedDict())
        return any(key == resolve_key for key, _ in written)

    def writers(self, group: bytes, resolve_key: bytes) -> dict[bytes, bytes]:
        """Return node -> output digest for one resolve key, over all profiles."""
        return {
            node: output
            for node, written in sorted(self._by_group.get(group, {}).items())
            for (key, _), output in written.items()
            if key == resolve_key
        }
