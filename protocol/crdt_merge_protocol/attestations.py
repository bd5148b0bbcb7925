"""Who wrote which bytes for which resolve key. Equal keys must have equal outputs (DESIGN 3.2).

Messages, not operations: they steer nothing, they only raise an alarm. Memory is bounded by keeping the most
recent keys of each group.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterator

from .limits import ATTESTATIONS_PER_GROUP_MAX
from .messages.gossip import Attest


class Attestations:
    """The attestations that this node has made and heard."""

    def __init__(self, node: bytes) -> None:
        self._node = node
        self._by_group: defaultdict[bytes, OrderedDict[tuple[bytes, str], dict[bytes, bytes]]] = defaultdict(
            OrderedDict
        )

    def record(self, node: bytes, attest: Attest) -> dict[bytes, bytes]:
        """Note what ``node`` wrote; return the other nodes whose output for the same key differs.

        Outputs are compared within one numerics profile only (STRATEGIES 1.12).
        """
        keys = self._by_group[attest.group]
        writers = keys.setdefault((attest.resolve_key, attest.profile), {})
        keys.move_to_end((attest.resolve_key, attest.profile))
        if len(keys) > ATTESTATIONS_PER_GROUP_MAX:
            keys.popitem(last=False)
        writers[node] = attest.output_digest
        return {
            other: output
            for other, output in writers.items()
            if other != node and output != attest.output_digest
        }

    def own(self, *, newest: int) -> Iterator[Attest]:
        """Return this node's newest attestations of every group."""
        for group, keys in sorted(self._by_group.items()):
            mine = [(key, profile) for (key, profile), writers in keys.items() if self._node in writers]
            for key, profile in mine[-newest:]:
                yield Attest(
                    group=group,
                    resolve_key=key,
                    output_digest=keys[key, profile][self._node],
                    profile=profile,
                )

    def writers(self, group: bytes, resolve_key: bytes) -> dict[bytes, bytes]:
        """Return node -> output digest for one resolve key, over all profiles."""
        return {
            node: output
            for (key, _), writers in self._by_group[group].items()
            if key == resolve_key
            for node, output in writers.items()
        }
