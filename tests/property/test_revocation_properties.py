"""A REVOKE on its way through a split cluster, between nodes that hold it and nodes that do not (R7)."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from crdt_merge_protocol.events import MessageReceived
from crdt_merge_protocol.genesis import Genesis
from crdt_merge_protocol.limits import SYNC_LIST_THRESHOLD
from crdt_merge_protocol.messages.gossip import Gossip
from crdt_merge_protocol.operations import (
    Add,
    Hold,
    Kind,
    Operation,
    PolicyAct,
    Remove,
    Revoke,
    SignedOperation,
    sign_operation,
)
from crdt_merge_protocol.state import CRDTMergeState
from crdt_merge_protocol.view import view_of
from support.authors import hash_of, make_genesis
from support.overlays import Crowd, Node
from support.profile import TIMES

SEEDS = range(8 * max(TIMES, 1))
THIEF = 3
CONVERGED_S = 60.0


class Heist:
    """Four nodes, of which the last is a thief's, and everything that they ever signed."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(f"heist/{seed}")
        self.crowd = Crowd(4, seed=seed)
        self.admin = self.crowd.nodes[0].key
        self.thief = self.crowd.nodes[THIEF].key.node_id
        self.genesis: Genesis = make_genesis(admins=(self.admin,))
        self.crowd.found(self.genesis)
        for index in range(4):
            self.crowd.start(index, *(other for other in range(4) if other < index))
        assert self.crowd.run(20.0, stop=lambda: self.crowd.is_converged)
        self.made: dict[bytes, SignedOperation] = {}

    def say(self, index: int, number: int) -> None:
        """Contribute, hold or remove something at a node."""
        state = self.crowd.nodes[index].engine.state(self.crowd.group)
        tags = tuple(sorted(shown.tag for shown in state.view.visible))[:2]
        author = self.crowd.nodes[index].key.node_id
        own = tuple(shown.tag for shown in state.view.visible if shown.author == author)[:1]
        choice = self.rng.random()
        if choice < 0.2 and tags:
            self.sign(index, Kind.HOLD, Hold(tags=tags).encode(), tags)
        elif choice < 0.3 and own:
            self.sign(index, Kind.REMOVE, Remove(targets=own).encode(), own)
        else:
            add = Add(
                slot=f"s{number % 5}", type="model", content=hash_of(str(number)), weight=1, payload=None
            )
            self.sign(index, Kind.ADD, add.encode())

    def sign(self, index: int, kind: int, body: bytes, refs: tuple[bytes, ...] = ()) -> SignedOperation:
        signed = self.crowd.author(index, kind, body, refs)
        self.made[signed.id] = signed
        return signed

    def revoke(self, index: int) -> SignedOperation:
        """Let the thief's key count up to something that a node holds of it."""
        state = self.crowd.nodes[index].engine.state(self.crowd.group)
        known = [signed.id for signed in state.causal()]
        heads = tuple(sorted(self.rng.sample(known, min(len(known), self.rng.randint(0, 3)))))
        act = Revoke(key=self.thief, heads=heads, nonce=bytes(16)).signed_by(self.admin, self.crowd.group)
        return self.sign(index, Kind.REVOKE, act.encode(), heads)

    def back_date(self, count: int) -> list[SignedOperation]:
        """Return operations that the thief signs by hand, in logs and after things of its choice."""
        thief, chain = self.crowd.nodes[THIEF].key, []
        log = self.rng.randbytes(16)
        for seq in range(count):
            deps = tuple(
                sorted(self.rng.sample(sorted(self.made), min(len(self.made), self.rng.randint(0, 2))))
            )
            operation = Operation(
                group=self.crowd.group, author=thief.node_id, log=log, seq=seq,
                prev=chain[-1].id if chain else None, deps=deps, refs=(), kind=Kind.ADD,
                body=Add(slot="s0", type="model", content=bytes(32), weight=seq + 1, payload=None).encode(),
            )  # fmt: skip
            chain.append(sign_operation(operation, thief))
            self.made[chain[-1].id] = chain[-1]
        return chain

    def push(self, index: int, operations: list[SignedOperation]) -> None:
        """Have the thief push operations to a node, if the two are connected."""
        node, thief = self.crowd.nodes[index], self.crowd.nodes[THIEF]
        if THIEF in node.peers:
            message = Gossip(group=self.crowd.group, operations=tuple(one.wire() for one in operations))
            self.crowd.handle(node, MessageReceived(peer=thief.key.node_id, message=message))

    def pass_time(self) -> None:
        self.crowd.run(self.rng.choice((0.0, 0.02, 0.3, 3.0)))

    def settle(self) -> None:
        """Mend everything, and see all nodes become equal and quiet."""
        self.crowd.split({})
        assert self.crowd.run(CONVERGED_S, stop=lambda: self.crowd.is_converged)
        self.crowd.run(5.0)
        assert self.crowd.is_converged

    def check(self, node: Node) -> None:
        """Compare a node with the definition over everything that was ever signed, and its disk with it."""
        state = node.engine.state(self.crowd.group)
        assert state.view == view_of(self.genesis, state.causal())
        assert node.disk.keys() == {signed.id for signed in state.causal()}
        rebuilt = CRDTMergeState(self.genesis)
        for signed in node.disk.values():
            rebuilt.apply(signed)
        assert (rebuilt.sync_root, rebuilt.view) == (state.sync_root, state.view)


@pytest.mark.parametrize("seed", SEEDS)
def test_t32_nodes_become_equal_whoever_knew_of_the_revocation_first(seed: int) -> None:
    heist = Heist(seed)
    rng, crowd = heist.rng, heist.crowd
    number = 0
    for _ in range(rng.randint(2, 4)):
        crowd.split({index: rng.randrange(2) for index in range(4)})
        for _ in range(rng.randint(5, 25)):
            number += 1
            choice = rng.random()
            if choice < 0.12:
                heist.revoke(rng.randrange(THIEF))
            elif choice < 0.35:
                heist.push(rng.randrange(THIEF), heist.back_date(rng.randint(1, 6)))
            else:
                index = rng.randrange(4)
                state = crowd.nodes[index].engine.state(crowd.group)
                if index != THIEF or heist.thief not in state.view.decided.revoked:
                    heist.say(index, number)
            heist.pass_time()
        if rng.random() < 0.5:
            crowd.split({})
            crowd.run(rng.choice((0.5, 5.0)))
    heist.settle()

    for node in crowd.nodes:
        heist.check(node)
    assert not crowd.disconnects


@pytest.mark.parametrize("is_built_upon", [True, False])
def test_t32_more_than_a_list_of_excluded_operations_on_one_side_and_the_revocation_on_the_other(
    is_built_upon: bool,
) -> None:
    """Who holds the REVOKE never becomes the fuller side, and must tell of it all the same."""
    heist = Heist(99)
    crowd = heist.crowd
    crowd.split({0: 0, 1: 0, 2: 1, THIEF: 1})
    spam = Add(slot="spam", type="model", content=bytes(32), weight=1, payload=None).encode()
    for _ in range(SYNC_LIST_THRESHOLD + 100):
        heist.sign(THIEF, Kind.ADD, spam)
    crowd.run(3.0)
    spammed = {id_ for id_, signed in heist.made.items() if signed.operation.author == heist.thief}
    if is_built_upon:
        heist.say(2, 1)
    heist.say(0, 2)
    revoked = heist.revoke(0)
    crowd.run(3.0)
    assert len(crowd.nodes[2].engine.state(crowd.group)) > SYNC_LIST_THRESHOLD
    heist.settle()

    for node in crowd.nodes:
        heist.check(node)
        state = node.engine.state(crowd.group)
        assert revoked.id in state
        assert (len(spammed & set(state.trie)) == len(spammed)) is is_built_upon
        assert heist.thief not in {shown.author for shown in state.view.visible}
    assert not crowd.disconnects


def beside_an_older_release(
    spoil: Callable[[Heist], SignedOperation], count: int
) -> tuple[Heist, list[int], list[int]]:
    """Let the thief's node be of a release that cannot read REVOKE, and go on (PROTOCOL R22).

    Returns:
        The nodes, bytes sent and sessions ended in each of thirty minutes.
    """
    heist = Heist(7)
    crowd = heist.crowd
    for index in (1, 2):
        crowd.kill(index)
    crowd.run(3.0)
    blind = crowd.nodes[THIEF].engine.state(crowd.group)._standing
    blind.judge = lambda *_: False
    blind.may_act = lambda *_: False
    heist.say(0, 1)
    body = Revoke(key=heist.thief, heads=(), nonce=bytes(16)).signed_by(heist.admin, crowd.group).encode()
    heist.sign(0, Kind.REVOKE, body)
    crowd.run(3.0)
    for _ in range(count):
        spoil(heist)
    crowd.run(3.0)
    sent = []
    for _ in range(30):
        before = crowd.sent_bytes
        crowd.run(60.0)
        sent.append(crowd.sent_bytes - before)
    sizes = [len(crowd.nodes[index].engine.state(crowd.group)) for index in (0, THIEF)]
    return heist, sent, sizes


def spam(heist: Heist) -> SignedOperation:
    add = Add(slot="spam", type="model", content=bytes(32), weight=1, payload=None)
    return heist.sign(THIEF, Kind.ADD, add.encode())


def act_of_old(heist: Heist) -> SignedOperation:
    """Send what administrators did sign, without what would give it an effect; it is stored first."""
    policy = heist.genesis.policy.next().next()
    act = PolicyAct(policy=policy, nonce=bytes(16)).signed_by(heist.admin, heist.crowd.group)
    return heist.sign(THIEF, Kind.POLICY, act.encode())


@pytest.mark.parametrize("spoil", [spam, act_of_old])
def test_r22_beside_a_release_that_cannot_read_the_revocation_nothing_is_sent_in_haste(
    spoil: Callable[[Heist], SignedOperation],
) -> None:
    """The roots never become equal, and neither side is to try more often than against a liar (T12)."""
    heist, sent, sizes = beside_an_older_release(spoil, 5)

    assert sizes[1] == sizes[0] + 5
    assert not heist.crowd.is_converged
    assert max(sent) < 20_000
    assert max(sent[5:]) < 10_000
    heist.check(heist.crowd.nodes[0])
    assert not heist.crowd.disconnects
