"""Whatever a peer sends: protocol errors only, bounded memory, and a state that has not moved (S12, B1-B20).

``CRDT_MERGE_TEST_FRAMES`` sets how many frames are tried, and ``CRDT_MERGE_TEST_SEED`` which.
"""

import contextlib
import os
import tracemalloc
from collections import Counter, deque

import pytest
from crdt_merge_protocol.engine import Engine
from crdt_merge_protocol.errors import RemoteProtocolError
from crdt_merge_protocol.events import (
    DialFailed,
    DialPeer,
    Disconnect,
    MessageReceived,
    PeerDown,
    PeerUp,
    RememberPeer,
    Send,
    StoreGroup,
    StoreOperations,
    Tick,
)
from crdt_merge_protocol.genesis import Genesis
from crdt_merge_protocol.limits import (
    DATA_BODY_BYTES_MAX,
    FRAME_HEADER_BYTES,
    MIB,
    ORPHANS_PER_PEER_MAX,
    SYNC_INBOUND_MAX,
    SYNC_OUTBOUND_MAX,
)
from crdt_merge_protocol.messages.base import REGISTRY
from crdt_merge_protocol.messages.sync import SYNC_MESSAGES, Open
from crdt_merge_protocol.reconciler import Ended
from crdt_merge_protocol.wire import FrameDecoder, encode_frame
from support.authors import KEYS, Author, make_genesis
from support.hostile import Mutator, large_messages, sample_messages, sample_operations

FRAMES = int(os.environ.get("CRDT_MERGE_TEST_FRAMES", "20000"))
SEED = int(os.environ.get("CRDT_MERGE_TEST_SEED", "12"))
MEMORY_FRAMES = FRAMES // 20
"""Watching every allocation costs ten times the time."""


def test_the_samples_hold_every_registered_type() -> None:
    ours = {number for number, kind in REGISTRY.items() if kind.__module__.startswith("crdt_merge_protocol")}

    assert {message.TYPE for message in sample_messages()} == ours


def test_the_samples_are_valid() -> None:
    messages = sample_messages() + large_messages()

    assert [FrameDecoder().feed(encode_frame(message)) for message in messages] == [[one] for one in messages]


def test_mutated_frames_raise_protocol_errors_only() -> None:
    """S12. What is accepted nevertheless is a message that has one encoding: the one that was read."""
    mutator = Mutator(SEED)
    samples = [encode_frame(message) for message in sample_messages()]
    met: Counter[str] = Counter()
    for _ in range(FRAMES):
        frame = mutator.damage(mutator.rng.choice(samples))
        decoder = FrameDecoder()
        received = []
        try:
            for piece in mutator.pieces(frame):
                received += decoder.feed(piece)
                assert decoder.buffered_bytes <= FRAME_HEADER_BYTES + DATA_BODY_BYTES_MAX
        except RemoteProtocolError as error:
            met[type(error).__name__] += 1
            continue
        met["message" if received else "waiting"] += 1
        for message in received:
            assert FrameDecoder().feed(encode_frame(message)) == [message]
            assert message.to_body() in frame

    assert (
        min(met[what] for what in ("MalformedMessageError", "LimitExceededError", "waiting")) > FRAMES // 100
    )
    assert 0 < met["message"] < FRAMES // 4


def test_no_frame_makes_the_decoder_allocate_more_than_it_is_worth() -> None:
    """B1, B13, B15: what a frame claims costs nothing, what it holds a bounded multiple of its bytes."""
    mutator = Mutator(SEED + 1)
    samples = [encode_frame(message) for message in sample_messages()]
    samples += [encode_frame(message) for message in large_messages()]
    frames = [mutator.damage(mutator.rng.choice(samples)) for _ in range(MEMORY_FRAMES)]
    tracemalloc.start()
    try:
        for frame in frames:
            decoder = FrameDecoder()
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            with contextlib.suppress(RemoteProtocolError):
                decoder.feed(frame)
            _, peak = tracemalloc.get_traced_memory()
            assert peak - before <= 4 * len(frame) + 2 * MIB, f"{frame[:40]!r} of {len(frame)} bytes"
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("message", large_messages(), ids=lambda message: type(message).__name__)
def test_a_claimed_length_holds_back_no_more_than_one_frame(message: object) -> None:
    """B3: a frame that never ends, one byte short."""
    frame = encode_frame(message)  # type: ignore[arg-type]
    decoder = FrameDecoder()
    for start in range(0, len(frame) - 1, 4096):
        assert decoder.feed(frame[start : min(start + 4096, len(frame) - 1)]) == []

    assert decoder.buffered_bytes == len(frame) - 1
    assert decoder.feed(frame[-1:]) == [message]


class Besieged:
    """An engine that one peer talks to. The peer is an engine too; its frames are damaged on the way.

    Nothing that the besieged engine wants stored becomes durable, so its state must stay what it was.
    """

    def __init__(self, seed: int) -> None:
        self.mutator = Mutator(seed)
        genesis = make_genesis()
        founder, other = Author(genesis, 0), Author(genesis, 1)
        shared = [founder.add(f"content {n}", slot=f"s{n % 7}") for n in range(60)]
        other.pull(founder)
        theirs = [other.add(f"other {n}", slot=f"t{n % 5}") for n in range(40)]
        ours = [founder.add(f"mine {n}") for n in range(20)]
        self.honest = {signed.id: signed.wire() for signed in (*shared, *theirs, *sample_operations())}
        self.group = genesis.group
        self.now = 100.0
        self.engine = self._engine(0, genesis, [*shared, *ours])
        self.peer = self._engine(1, genesis, [*shared, *theirs])
        self.queue: deque[bytes] = deque()
        self.met: Counter[str] = Counter()
        self.state = self.engine.replicas[self.group].state
        self.before = self._facts()
        self.session = b"sess"
        self.connect()

    def _engine(self, number: int, genesis: Genesis, operations: list) -> Engine:
        rng = self.mutator.rng
        engine = Engine(KEYS[number], random_bytes=rng.randbytes)
        replica = engine.open_group(genesis)
        for signed in operations:
            replica.state.apply(signed)
        return engine

    def _facts(self) -> tuple:
        return (self.state.sync_root, len(self.state), self.state.view.fingerprint, self.state.heads())

    def connect(self) -> None:
        """Meet again, after the connection was closed; often, a sync begins."""
        self.queue.clear()
        self.decoder = FrameDecoder()
        self._give_peer(PeerUp(peer=self.engine.node, addresses=("127.0.0.1:1",)))
        self._give_engine(PeerUp(peer=self.peer.node, addresses=("127.0.0.1:2",)))
        if self.mutator.rng.random() < 0.2:
            for frame in list(self.queue):
                self._arrive(frame)
            self.queue.clear()
            self.now += 1.5
            self._give_engine(Tick())
            self._give_peer(Tick())

    def disconnect(self) -> None:
        self._give_engine(PeerDown(peer=self.peer.node, reason="closed"))
        self._give_peer(PeerDown(peer=self.engine.node, reason="closed"))
        self.connect()

    def step(self) -> None:
        """Let one damaged frame arrive: the peer's next one, or one of any type at all."""
        rng = self.mutator.rng
        if self.queue and rng.random() < 0.5:
            frame = self.queue.popleft()
            if rng.random() < 0.3:
                self._arrive(frame)  # Undamaged, to get deeper into the dialogue.
                return
        else:
            samples = sample_messages_of(self.group, self.session)
            frame = encode_frame(rng.choice(samples))
        self._arrive(self.mutator.damage(frame))
        if rng.random() < 0.02:
            self.now += rng.choice((0.1, 1.0, 12.0))
            self._give_engine(Tick())

    def _arrive(self, frame: bytes) -> None:
        try:
            messages = self.decoder.feed(frame)
        except RemoteProtocolError as error:
            self.met[type(error).__name__] += 1
            self.disconnect()
            return
        for message in messages:
            self.met[type(message).__name__] += 1
            if not self._give_engine(MessageReceived(peer=self.peer.node, message=message)):
                self.disconnect()
                return
        if self.decoder.buffered_bytes:  # It waits for bytes that are not coming (B3).
            self.disconnect()

    def _give_peer(self, event: object) -> None:
        for effect in self.peer.handle(event, now=self.now):  # type: ignore[arg-type]
            if isinstance(effect, Send):
                self.queue.append(encode_frame(effect.message))

    def _give_engine(self, event: object) -> bool:
        """Feed an event; check the effects; tell whether the peer is still connected."""
        stays = True
        for effect in self.engine.handle(event, now=self.now):  # type: ignore[arg-type]
            self.met[type(effect).__name__] += 1
            match effect:
                case Disconnect():
                    assert effect.peer == self.peer.node
                    stays = False
                case Send():
                    assert effect.peer == self.peer.node
                    if isinstance(effect.message, Open):
                        self.session = effect.message.session
                    if isinstance(effect.message, SYNC_MESSAGES):
                        self._give_peer(MessageReceived(peer=self.engine.node, message=effect.message))
                case StoreOperations():
                    for signed in effect.operations:
                        assert self.honest.get(signed.id) == signed.wire(), "an operation that nobody signed"
                case StoreGroup():
                    assert Genesis.decode(effect.genesis).group == effect.group
                case DialPeer():
                    self._give_engine(DialFailed(dial=effect.dial, reason="nobody there"))
                case RememberPeer():
                    assert len(effect.addresses) <= 8
                case Ended():
                    assert effect.peer == self.peer.node
                case _:
                    raise AssertionError(f"{effect} because of {event}")
        return stays

    def check(self) -> None:
        replica = self.engine.replicas[self.group]
        assert self._facts() == self.before
        assert list(self.engine.replicas) == [self.group]
        assert replica.in_flight_count <= len(self.honest)
        assert replica.orphan_count <= ORPHANS_PER_PEER_MAX
        assert self.engine.reconciler.session_count <= SYNC_INBOUND_MAX + SYNC_OUTBOUND_MAX


_CACHE: dict[tuple[bytes, bytes], list] = {}


def sample_messages_of(group: bytes, session: bytes) -> list:
    """Return the samples of the gossip connection, for a session that is under way."""
    if (group, session) not in _CACHE:
        _CACHE.clear()
        messages = sample_messages(group=group, session=session)
        _CACHE[group, session] = [message for message in messages if message.TYPE < 80]
    return _CACHE[group, session]


def test_mutated_frames_only_disconnect_and_leave_the_state_alone() -> None:
    besieged = Besieged(SEED + 2)
    for number in range(FRAMES):
        besieged.step()
        if number % 1000 == 0:
            besieged.check()
    besieged.check()

    met = besieged.met
    assert min(met[what] for what in ("MalformedMessageError", "Disconnect", "Send")) > FRAMES // 100
    assert min(met[kind.__name__] for kind in SYNC_MESSAGES) > 0, "some dialogue was never reached"


def test_an_engine_under_fire_does_not_grow() -> None:
    """After the first frames have filled what is bounded, ten times as many add nothing to speak of."""
    besieged = Besieged(SEED + 3)
    for _ in range(MEMORY_FRAMES // 4):
        besieged.step()
    tracemalloc.start()
    try:
        for _ in range(MEMORY_FRAMES):
            besieged.step()
        grown, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 32 * MIB
    assert grown < 4 * MIB
