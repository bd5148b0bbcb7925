"""The bytes of the models, fetched by every node from its peers: really encoded, sent, decoded, verified.

Each node runs the planner that decides in the daemon what to ask of whom. Around it is what the daemon's
exchange does, in a few lines: manifests first, then the blobs that they name; a peer that has not got
something yet says so and is asked again later. A node's uplink is a queue, so nothing is sent in no time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from crdt_merge_protocol.blobs import blob_digest_of, content_id
from crdt_merge_protocol.fetch import Ask, FetchPlanner, Item, ItemKind
from crdt_merge_protocol.messages.base import Message
from crdt_merge_protocol.messages.bulk import Absent, Chunk, Object, WantChunks, WantObject
from crdt_merge_protocol.wire import FrameDecoder, encode_frame

from .engine_node import SimulatedNode
from .tier3_cluster import Cluster
from .tier3_models import Models

UPLINK_BYTES_PER_S: Final = 125_000_000
"""1 Gbit/s for each node."""
SPREAD_S: Final = 600.0
MANIFEST_GUESS_BYTES: Final = 256
UNDER_WAY_MAX: Final = 16
"""Contributions that a node fetches at once; the planner looks at each whenever anything happens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How manifests and blobs got to all nodes."""

    is_complete: bool
    bytes_sent: int
    """Of all frames: requests, refusals, headers and contents."""
    bytes_needed: int
    """Of the contents, once to each node that had not made them."""
    virtual_s: float
    floor_s: float
    """What the needed bytes take if all uplinks are busy all the time."""
    wall_s: float


class _Party:
    """One node, what it has, and its planner."""

    def __init__(self, spreading: _Spreading, node: SimulatedNode) -> None:
        self.node = node
        self.has: set[bytes] = set()
        self.missing = 0
        self._spreading = spreading
        self._rng = spreading.world.stream("fetch", node.index)
        self._planner = FetchPlanner(rng=self._rng)
        self._backlog: list[bytes] = []
        self._under_way = 0
        self._links: dict[bytes, tuple[_Party, float]] = {}
        """Peer -> (party, one-way delay). Bulk connections stay, whatever becomes of those for gossip."""
        self._busy_until = 0.0
        self._wakeup: float | None = None

    def link(self, other: _Party, delay_s: float) -> None:
        """Let two parties ask each other."""
        self._links[other.node.id] = other, delay_s
        other._links[self.node.id] = self, delay_s

    def want_all(self, manifests: list[bytes]) -> None:
        """Want every manifest that is not here, and what it names."""
        now = self._spreading.world.now
        for peer in sorted(self._links):
            self._planner.add_provider(peer, now=now)
        self._backlog = [content for content in manifests if content not in self.has]
        self.missing = len(self._backlog)
        self._admit()
        self.pump()

    def _admit(self) -> None:
        """Want a few contributions at a time, as the daemon's fetcher does; each node in its own order."""
        now = self._spreading.world.now
        while self._backlog and self._under_way < UNDER_WAY_MAX:
            self._under_way += 1
            content = self._backlog.pop(self._rng.randrange(len(self._backlog)))
            self._planner.add(Item(ItemKind.OBJECT, content), nbytes=MANIFEST_GUESS_BYTES, now=now)

    def pump(self) -> None:
        """Ask what the planner wants asked."""
        world = self._spreading.world
        for ask in self._planner.next_requests(now=world.now):
            self.send(ask.provider, _question(ask))
        wakeup = self._planner.next_wakeup(now=world.now)
        if self.missing and wakeup is not None and (self._wakeup is None or wakeup < self._wakeup):
            self._wakeup = wakeup
            world.at(wakeup, self.node, self._wake, wakeup)

    def _wake(self, planned: float) -> None:
        if self._wakeup == planned:
            self._wakeup = None
            self.pump()

    def send(self, peer: bytes, message: Message) -> None:
        """Send a message after all that this node sends already."""
        world = self._spreading.world
        target, delay_s = self._links[peer]
        frame = self._spreading.encode(message)
        self._spreading.bytes_sent += len(frame)
        self._busy_until = max(self._busy_until, world.now) + len(frame) / UPLINK_BYTES_PER_S
        world.at(self._busy_until + delay_s, target.node, target.arrived, self.node.id, frame)

    def arrived(self, peer: bytes, frame: bytes) -> None:
        """Answer a question, or take an answer."""
        [message] = FrameDecoder().feed(frame)
        match message:
            case WantObject(id=id_):
                self.send(peer, self._spreading.object(id_) if id_ in self.has else Absent(id=id_))
            case WantChunks(blob=blob):
                self.send(peer, self._spreading.chunk(blob) if blob in self.has else Absent(id=blob))
            case Object(id=id_, data=data):
                self._take(peer, Item(ItemKind.OBJECT, id_), is_right=content_id(data) == id_)
            case Chunk(blob=blob, data=data):
                self._take(peer, Item(ItemKind.BLOB, blob), is_right=blob_digest_of(data) == blob)
            case Absent(id=id_):
                for kind in (ItemKind.OBJECT, ItemKind.BLOB):
                    self._planner.failed(peer, Item(kind, id_), now=self._spreading.world.now)
        self.pump()

    def _take(self, peer: bytes, item: Item, *, is_right: bool) -> None:
        planner, now = self._planner, self._spreading.world.now
        if not planner.received(peer, item, 0, now=now):
            return
        if not is_right:
            planner.rejected(peer, item, 0, now=now)
            return
        for ask in planner.accepted(item, 0, now=now):
            # A chunk that is under way cannot be called back over a queue without lanes; it comes twice.
            planner.progress(ask.provider, now=now)
        planner.discard(item)
        self.has.add(item.id)
        if item.kind is ItemKind.OBJECT:
            blob, nbytes = self._spreading.blob_of[item.id]
            planner.add(Item(ItemKind.BLOB, blob), nbytes=nbytes, now=now)
        else:
            self.missing -= 1
            self._under_way -= 1
            self._admit()
            self._spreading.missing -= 1


class _Spreading:
    """All parties, and the contents that they pass on."""

    def __init__(self, cluster: Cluster, models: Models) -> None:
        self.world = cluster.world
        self.bytes_sent = 0
        self.missing = 0
        self._models = models
        self._frames: dict[bytes, bytes] = {}
        manifests = [shown.content for shown in cluster.view(0).visible]
        self.blob_of = {content: (models.blob(content), models.spec.nbytes) for content in manifests}
        self._content_of = {blob: content for content, (blob, _) in self.blob_of.items()}
        self.parties = [_Party(self, node) for node in self.world.nodes]
        places = {node.id: node.index for node in self.world.nodes}
        for shown in cluster.view(0).visible:
            author = self.parties[places[shown.author]]
            author.has |= {shown.content, self.blob_of[shown.content][0]}
        for party in self.parties:
            for line in party.node.lines.values():
                party.link(self.parties[line.target.index], line.delay_s)
        for party in self.parties:
            party.want_all(manifests)
        self.missing = sum(party.missing for party in self.parties)

    def object(self, content: bytes) -> Object:
        """Return the answer that carries a manifest."""
        data = self._models.manifest(content)
        return Object(id=content, nbytes=len(data), offset=0, data=data)

    def chunk(self, blob: bytes) -> Chunk:
        """Return the answer that carries the only chunk of a blob."""
        data = self._models.data(self._content_of[blob])
        return Chunk(blob=blob, nbytes=len(data), index=0, data=data)

    def encode(self, message: Message) -> bytes:
        """Return the frame of a message; that of a chunk is the same whoever sends it, and made once."""
        if not isinstance(message, Chunk):
            return encode_frame(message)
        frame = self._frames.get(message.blob)
        if frame is None:
            frame = self._frames[message.blob] = bytes(encode_frame(message))
        return frame


def spread(cluster: Cluster, models: Models) -> Spread:
    """Let every node fetch what it sees, from the peers it is connected to, and return what that took."""
    wall, began = time.perf_counter(), cluster.world.now
    spreading = _Spreading(cluster, models)
    needed = spreading.missing * models.bytes_each
    is_complete = cluster.world.run(began + SPREAD_S, stop=lambda: not spreading.missing)
    return Spread(
        is_complete=is_complete,
        bytes_sent=spreading.bytes_sent,
        bytes_needed=needed,
        virtual_s=cluster.world.now - began,
        floor_s=needed / len(cluster.world.nodes) / UPLINK_BYTES_PER_S,
        wall_s=time.perf_counter() - wall,
    )


def _question(ask: Ask) -> Message:
    if ask.item.kind is ItemKind.OBJECT:
        return WantObject(id=ask.item.id)
    return WantChunks(blob=ask.item.id, indices=ask.pieces)
