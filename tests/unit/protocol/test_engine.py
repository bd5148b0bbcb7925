"""The engine in a full mesh: durable before told, bounded by who said it, and never broken by a message."""

from collections.abc import Iterable
from random import Random
from typing import TypeVar

import pytest
from crdt_merge_protocol import arriving_groups, intake
from crdt_merge_protocol.engine import Engine
from crdt_merge_protocol.errors import LocalProtocolError
from crdt_merge_protocol.events import (
    AttestationMismatch,
    DialPeer,
    Disconnect,
    Effect,
    Event,
    GroupChanged,
    GroupStored,
    MessageReceived,
    NotStored,
    OperationsStored,
    PeerBlocked,
    PeerDown,
    PeerUp,
    RememberPeer,
    Send,
    StoreGroup,
    StoreOperations,
    Tick,
)
from crdt_merge_protocol.intake import FULL_RETRY_S
from crdt_merge_protocol.limits import (
    ATTESTATIONS_PER_PEER_MAX,
    DIALS_MAX,
    GROUPS_MAX,
    HEARSAY_PER_PEER_MAX,
    WEIGHT_ONE,
)
from crdt_merge_protocol.messages.base import Message
from crdt_merge_protocol.messages.gossip import Attest, GenesisFound, Gossip, WantGenesis
from crdt_merge_protocol.messages.membership import Peers, Roots, peers_messages
from crdt_merge_protocol.messages.sync import Open
from crdt_merge_protocol.operations import Add, Kind, SignedOperation
from crdt_merge_protocol.wire import encode_frame
from support.authors import KEYS, Author, hash_of, make_genesis

E = TypeVar("E", bound=Effect)

GENESIS = make_genesis()
GROUP = GENESIS.group
BODY = Add(slot="main", type="model", content=hash_of("x"), weight=WEIGHT_ONE, payload=None).encode()
HIDDEN = Random(5)


class Node:
    """An engine and what a driver would do, as far as a test says so."""

    def __init__(self, number: int = 0, *, has_group: bool = True) -> None:
        self.engine = Engine(KEYS[number], random_bytes=Random(number).randbytes)
        self.id = self.engine.node
        self.now = 100.0
        if has_group:
            self.engine.open_group(GENESIS)

    def handle(self, event: Event) -> list[Effect]:
        return self.engine.handle(event, now=self.now)

    def up(self, peer: bytes, *, addresses: tuple[str, ...] = ()) -> list[Effect]:
        return self.handle(PeerUp(peer=peer, addresses=addresses))

    def receive(self, peer: bytes, message: Message) -> list[Effect]:
        return self.handle(MessageReceived(peer=peer, message=message))

    def make_durable(self, effects: Iterable[Effect]) -> list[Effect]:
        """Carry out the storage effects; return everything else, also what follows from them."""
        rest: list[Effect] = []
        for effect in effects:
            if isinstance(effect, StoreGroup):
                rest += self.make_durable(self.handle(GroupStored(genesis=effect.genesis)))
            elif isinstance(effect, StoreOperations):
                ids = tuple(signed.id for signed in effect.operations)
                rest += self.make_durable(self.handle(OperationsStored(group=effect.group, ids=ids)))
            else:
                rest.append(effect)
        return rest

    def author(self, group: bytes = GROUP) -> tuple[SignedOperation, list[Effect]]:
        return self.engine.author(group, Kind.ADD, BODY)

    @property
    def state(self):
        return self.engine.replicas[GROUP].state


def all_of(kind: type[E], effects: Iterable[Effect]) -> list[E]:
    return [effect for effect in effects if isinstance(effect, kind)]


def sent(kind: type[Message], effects: Iterable[Effect]) -> list[Send]:
    return [effect for effect in all_of(Send, effects) if isinstance(effect.message, kind)]


def gossip(*operations: SignedOperation | bytes, group: bytes = GROUP) -> Gossip:
    wires = [op.wire() if isinstance(op, SignedOperation) else op for op in operations]
    return Gossip(group=group, operations=tuple(wires))


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
def author() -> Author:
    return Author(GENESIS, 1)


PEER, OTHER = KEYS[1].node_id, KEYS[2].node_id


# --- operations -------------------------------------------------------------------------------------------


def test_nobody_is_told_of_an_operation_before_it_is_durable(node: Node) -> None:
    """DESIGN 3.5: the disk first, then the ack, then the announcement."""
    node.up(PEER)
    signed, effects = node.author()

    assert [type(effect) for effect in effects] == [StoreOperations]
    assert signed.id not in node.state

    effects = node.handle(OperationsStored(group=GROUP, ids=(signed.id,)))
    assert [send.peer for send in sent(Gossip, effects)] == [PEER]
    assert all_of(GroupChanged, effects)
    assert signed.id in node.state


def test_a_pushed_operation_is_stored_and_not_forwarded(node: Node, author: Author) -> None:
    """One payload per delivery in a full mesh."""
    node.up(PEER)
    node.up(OTHER)
    signed = author.add()
    effects = node.receive(PEER, gossip(signed))
    after = node.make_durable(effects)

    assert [effect.operations for effect in all_of(StoreOperations, effects)] == [(signed,)]
    assert signed.id in node.state
    assert sent(Gossip, after) == []


def test_a_changed_root_is_announced_soon_and_once(node: Node) -> None:
    node.up(PEER)
    node.handle(Tick())
    for _ in range(3):
        _, effects = node.author()
        node.make_durable(effects)
    deadline = node.engine.deadline(now=node.now)
    assert deadline is not None
    assert deadline <= node.now + 0.1
    node.now = deadline
    announced = sent(Roots, node.handle(Tick()))

    assert [send.message.roots for send in announced] == [((GROUP, node.state.sync_root, 3),)]


def test_a_bad_operation_ends_the_connection_and_keeps_what_was_good(node: Node, author: Author) -> None:
    node.up(PEER)
    good = author.add()
    effects = node.receive(PEER, gossip(good, b"garbage"))

    assert [effect.operations for effect in all_of(StoreOperations, effects)] == [(good,)]
    [ended] = all_of(Disconnect, effects)
    assert (ended.peer, ended.code) == (PEER, "E1201")


def test_who_breaks_the_protocol_is_left_alone_ever_longer(node: Node) -> None:
    """SCENARIOS T17: invalid is disconnect and backoff."""
    pauses = []
    for _ in range(3):
        node.up(PEER)
        node.receive(PEER, gossip(b"garbage"))
        node.handle(PeerDown(peer=PEER, reason="closed"))
        began = node.now
        while node.engine.overlay.refusal(PEER, now=node.now):
            node.now += 0.25
        pauses.append(node.now - began)

    assert pauses == [1.0, 2.0, 4.0]


def test_an_orphan_makes_us_ask_its_sender_for_the_past(node: Node, author: Author) -> None:
    node.up(PEER)
    author.add("first")
    effects = node.receive(PEER, gossip(author.add("second")))
    opened = sent(Open, node.handle(Tick()))

    assert all_of(StoreOperations, effects) == []
    assert [send.peer for send in opened] == [PEER]


def test_a_message_of_nobody_we_are_connected_to_does_nothing(node: Node, author: Author) -> None:
    assert node.receive(PEER, gossip(author.add())) == []


def test_when_too_much_is_on_its_way_to_the_disk_pushes_are_shed(
    node: Node, author: Author, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN 3.6: shed and repair; what was shed shows in the roots."""
    node.up(PEER)
    chain = [author.add(f"content {number}") for number in range(3)]
    monkeypatch.setattr(intake, "IN_FLIGHT_BYTES_MAX", len(chain[0].encoded))
    first = node.receive(PEER, gossip(chain[0]))
    second = node.receive(PEER, gossip(chain[1]))
    shed = node.receive(PEER, gossip(chain[2]))
    node.make_durable(first + second)

    assert all_of(StoreOperations, shed) == []
    assert all_of(StoreOperations, node.receive(PEER, gossip(chain[2])))


# --- a full disk --------------------------------------------------------------------------------------------


def test_after_a_full_disk_the_node_goes_on(node: Node, author: Author) -> None:
    """SCENARIOS T20: nothing is kept of what was not stored, and it is taken when it comes again."""
    node.up(PEER)
    lost, effects = node.author()
    theirs = author.add()
    effects += node.receive(PEER, gossip(theirs))
    node.handle(NotStored(groups=(GROUP,)))
    while_full = node.receive(PEER, gossip(theirs))
    node.now += FULL_RETRY_S
    later = node.receive(PEER, gossip(theirs))

    assert while_full == []
    assert len(all_of(StoreOperations, later)) == 1
    node.make_durable(later)
    signed, effects = node.author()
    node.make_durable(effects)
    assert {theirs.id, signed.id} <= {stored.id for stored in node.state.causal()}
    assert lost.id not in node.state
    assert node.state.view.forked == frozenset()


def test_while_the_disk_is_full_no_session_is_opened_and_then_one_is(node: Node) -> None:
    node.up(PEER)
    node.receive(PEER, Roots(roots=((GROUP, hash_of("root"), 5),)))
    node.handle(NotStored(groups=(GROUP,)))
    node.now += FULL_RETRY_S - 0.01
    before = sent(Open, node.handle(Tick()))
    node.now += 0.02
    after = sent(Open, node.handle(Tick()))

    assert (before, len(after)) == ([], 1)


def test_a_group_that_found_no_room_can_be_stored_later() -> None:
    node = Node(has_group=False)
    node.up(PEER)
    node.receive(PEER, GenesisFound(genesis=GENESIS.encode()))
    node.handle(NotStored(groups=(GROUP,)))

    assert all_of(StoreGroup, node.receive(PEER, GenesisFound(genesis=GENESIS.encode())))


# --- groups -------------------------------------------------------------------------------------------------


def test_a_group_is_learnt_by_its_root_and_reconciled_at_once() -> None:
    node = Node(has_group=False)
    node.up(PEER)
    asked = sent(WantGenesis, node.receive(PEER, Roots(roots=((GROUP, hash_of("root"), 5),))))
    found = node.receive(PEER, GenesisFound(genesis=GENESIS.encode()))
    again = node.receive(PEER, GenesisFound(genesis=GENESIS.encode()))
    after = node.make_durable(found)

    assert [send.message.groups for send in asked] == [(GROUP,)]
    assert again == [], "it is on its way to the disk"
    assert all_of(GroupChanged, after)
    assert [send.message.group for send in sent(Open, node.handle(Tick()))] == [GROUP]


def test_groups_that_nobody_has_seen_fill_only_the_share_of_who_names_them() -> None:
    """A liar names ever new groups; an honest peer is still heard."""
    node = Node(has_group=False)
    node.up(PEER)
    node.up(OTHER)
    for _ in range(5):
        lies = tuple((HIDDEN.randbytes(32), HIDDEN.randbytes(32), 1) for _ in range(512))
        node.receive(PEER, Roots(roots=lies))
    asked = sent(WantGenesis, node.receive(OTHER, Roots(roots=((GROUP, hash_of("root"), 5),))))

    assert len(node.engine.arriving.strangers) == GROUPS_MAX + 1
    assert [send.message.groups for send in asked] == [(GROUP,)]
    node.handle(PeerDown(peer=PEER, reason="closed"))
    assert len(node.engine.arriving.strangers) == 1


def test_there_are_not_more_groups_than_there_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arriving_groups, "GROUPS_MAX", 2)
    node = Node()
    node.up(PEER)
    others = [make_genesis(weight_cap=number) for number in range(1, 4)]
    assert all_of(StoreGroup, node.receive(PEER, GenesisFound(genesis=others[0].encode())))

    assert node.receive(PEER, GenesisFound(genesis=others[1].encode())) == []
    with pytest.raises(LocalProtocolError, match="2 groups already"):
        node.engine.create_group(others[2])


def test_a_genesis_asked_for_a_thousand_times_is_sent_once(node: Node) -> None:
    node.up(PEER)

    assert len(sent(GenesisFound, node.receive(PEER, WantGenesis(groups=(GROUP,) * 1000)))) == 1


def test_a_genesis_that_nobody_could_administer_ends_the_connection(node: Node) -> None:
    node.up(PEER)
    [ended] = all_of(Disconnect, node.receive(PEER, GenesisFound(genesis=b"\x90")))

    assert ended.code.startswith("E12")


# --- peers --------------------------------------------------------------------------------------------------


def test_what_a_peer_says_of_itself_is_remembered_and_passed_on(node: Node) -> None:
    node.up(PEER, addresses=("10.0.0.1:7946",))
    effects = node.up(OTHER, addresses=("10.0.0.2:7946",))
    told = {(send.peer, send.message.peers) for send in sent(Peers, effects)}

    assert all_of(RememberPeer, effects) == [RememberPeer(peer=OTHER, addresses=("10.0.0.2:7946",))]
    assert told == {
        (OTHER, ((PEER, ("10.0.0.1:7946",)),)),
        (PEER, ((OTHER, ("10.0.0.2:7946",)),)),
    }


def test_hearsay_is_dialled_but_neither_stored_nor_passed_on(node: Node) -> None:
    node.up(PEER, addresses=("10.0.0.1:7946",))
    heard = node.receive(PEER, Peers(peers=((KEYS[3].node_id, ("10.9.9.9:1",)),)))
    dials = all_of(DialPeer, node.handle(Tick()))
    told = sent(Peers, node.up(OTHER, addresses=("10.0.0.2:7946",)))

    assert all_of(RememberPeer, heard) == []
    assert [effect.dial.address for effect in dials] == ["10.9.9.9:1"]
    assert all(KEYS[3].node_id not in dict(send.message.peers) for send in told)


def test_a_flood_of_made_up_peers_is_bounded_and_dialled_a_few_at_a_time(node: Node) -> None:
    node.up(PEER)
    for _ in range(20):
        made_up = tuple((HIDDEN.randbytes(32), (f"10.0.0.{n % 250}:{n + 1}",)) for n in range(256))
        node.receive(PEER, Peers(peers=made_up))
    dials = all_of(DialPeer, node.handle(Tick()))

    assert len(node.engine.overlay.peers) <= HEARSAY_PER_PEER_MAX + 1
    assert len(dials) <= DIALS_MAX
    assert all_of(DialPeer, node.handle(Tick())) == []


@pytest.mark.parametrize(
    "address",
    [
        "",
        "nowhere",
        "host:0",
        "host:65536",
        "host:x",
        "a" * 64 + ".example:1",
        "h\x00st:1",
        "höst:1",
        "a..b:1",
    ],
)
def test_an_address_that_would_break_the_resolver_is_not_dialled(node: Node, address: str) -> None:
    """It is a peer's word; the resolver raises for some of these instead of failing."""
    node.up(PEER)
    node.receive(PEER, Peers(peers=((KEYS[3].node_id, (address,)),)))
    node.up(OTHER, addresses=(address,))
    node.handle(PeerDown(peer=OTHER, reason="closed"))
    node.now += 60.0

    assert all_of(DialPeer, node.handle(Tick())) == []


def test_introductions_of_many_peers_fit_their_frames() -> None:
    """Addresses are as long as peers like; together they must not overflow a frame."""
    addresses = tuple(f"{'a' * 60}.{'b' * 60}.{number}.example.org:7946" for number in range(8))
    peers = [(HIDDEN.randbytes(32), addresses) for _ in range(300)]
    told = peers_messages(peers)

    assert [peer for message in told for peer in message.peers] == peers
    assert all(encode_frame(message) for message in told)
    assert len(told) < 10


def test_a_new_connection_in_place_of_another_ends_the_sessions_of_that(node: Node) -> None:
    node.up(PEER)
    node.receive(PEER, Roots(roots=((GROUP, hash_of("root"), 5),)))
    node.now += 2.0
    assert sent(Open, node.handle(Tick()))
    node.up(PEER)

    assert node.engine.reconciler.session_count == 0


def test_a_blocked_peer_is_cut_refused_and_dialled_again_when_unblocked(node: Node) -> None:
    node.up(PEER, addresses=("10.0.0.1:7946",))
    cut = all_of(Disconnect, node.handle(PeerBlocked(peer=PEER, is_blocked=True)))
    node.handle(PeerDown(peer=PEER, reason="blocked"))
    node.now += 60.0
    refusal = node.engine.overlay.refusal(PEER, now=node.now)
    while_blocked = all_of(DialPeer, node.handle(Tick()))
    node.handle(PeerBlocked(peer=PEER, is_blocked=False))
    after = all_of(DialPeer, node.handle(Tick()))

    assert [effect.peer for effect in cut] == [PEER]
    assert refusal is not None
    assert "blocked" in refusal
    assert while_blocked == []
    assert [effect.dial.address for effect in after] == ["10.0.0.1:7946"]
    assert node.engine.overlay.refusal(PEER, now=node.now) is None


# --- attestations -------------------------------------------------------------------------------------------


def attest(output: str, *, key: bytes | None = None, profile: str = "") -> Attest:
    key = hash_of("key") if key is None else key
    return Attest(group=GROUP, resolve_key=key, output_digest=hash_of(output), profile=profile)


def test_two_outputs_for_one_resolve_key_are_an_alarm_on_both_sides(node: Node) -> None:
    node.up(PEER)
    node.engine.attest(attest("ours"))
    [theirs_later] = all_of(AttestationMismatch, node.receive(PEER, attest("theirs")))
    other = Node(3)
    other.up(PEER)
    other.receive(PEER, attest("theirs"))
    [ours_later] = all_of(AttestationMismatch, other.engine.attest(attest("ours")))

    assert theirs_later == ours_later
    assert (ours_later.peer, ours_later.ours, ours_later.theirs) == (
        PEER,
        hash_of("ours"),
        hash_of("theirs"),
    )


def test_outputs_are_compared_within_one_numerics_profile(node: Node) -> None:
    node.up(PEER)
    node.engine.attest(attest("ours", profile="avx2"))

    assert node.receive(PEER, attest("theirs", profile="neon")) == []


def test_that_two_others_disagree_is_their_alarm(node: Node) -> None:
    node.up(PEER)
    node.up(OTHER)
    node.receive(PEER, attest("one"))

    assert node.receive(OTHER, attest("two")) == []


def test_a_flood_of_attestations_pushes_out_only_those_of_the_flooder(node: Node) -> None:
    node.up(PEER)
    node.up(OTHER)
    node.engine.attest(attest("ours"))
    node.receive(OTHER, attest("honest", key=hash_of("elsewhere")))
    for number in range(4 * ATTESTATIONS_PER_PEER_MAX):
        node.receive(PEER, attest("flood", key=number.to_bytes(32, "big")))
    attestations = node.engine.attestations

    assert [own.output_digest for own in attestations.own(newest=16)] == [hash_of("ours")]
    assert attestations.writers(GROUP, hash_of("elsewhere")) == {OTHER: hash_of("honest")}
    assert attestations.writers(GROUP, bytes(32)) == {}
    assert all_of(AttestationMismatch, node.receive(OTHER, attest("theirs")))


def test_who_connects_later_hears_what_was_attested(node: Node) -> None:
    node.engine.attest(attest("ours"))

    assert [send.message.output_digest for send in sent(Attest, node.up(PEER))] == [hash_of("ours")]


def test_attestations_of_a_group_that_is_not_here_are_not_kept() -> None:
    node = Node(has_group=False)
    node.up(PEER)
    node.receive(PEER, attest("theirs"))

    assert node.engine.attestations.writers(GROUP, hash_of("key")) == {}
