"""Any two sets of operations become equal, in causal order, nothing twice, whatever happens in between."""

from __future__ import annotations

import random
from contextlib import ExitStack
from unittest import mock

from crdt_merge_protocol import sync_exchange, sync_list, sync_stream
from crdt_merge_protocol.errors import RemoteProtocolError
from crdt_merge_protocol.merkle import Trie
from crdt_merge_protocol.messages.sync import Operations
from crdt_merge_protocol.messages.walk import decode_entries, encode_entries
from crdt_merge_protocol.operations import SignedOperation
from crdt_merge_protocol.sync_walk import Walk
from crdt_merge_protocol.wire import FrameDecoder, encode_frame
from hypothesis import given
from hypothesis import strategies as st
from support.histories import DISHONEST, play, summary
from support.profile import examples
from support.sync_pair import MemoryState, Pair, State, make_operation

PROFILE = examples(40)
SEEDS = st.integers(0, 2**32)
LIMITS = st.sampled_from(["as they are", "lists", "lists and a narrow window", "no walk"])


def with_limits(name: str) -> ExitStack:
    """Shrink limits so that small sets meet them."""
    stack = ExitStack()
    if name != "as they are":
        stack.enter_context(mock.patch.object(sync_exchange, "SYNC_LIST_THRESHOLD", 4))
        stack.enter_context(mock.patch.object(sync_list, "SYNC_PAGE_IDS_MAX", 5))
        stack.enter_context(mock.patch.object(sync_exchange, "_FRAME_ENTRY_BYTES", 180))
    if "window" in name:
        stack.enter_context(mock.patch.object(sync_stream, "SYNC_WINDOW_BYTES", 1_500))
    if name == "no walk":
        stack.enter_context(mock.patch.object(sync_exchange, "SYNC_ROUNDS_MAX", 1))
    return stack


def grown(rng: random.Random) -> tuple[MemoryState, MemoryState]:
    """Return two states that grew together and apart, with forks, merges and long chains."""
    first, second = MemoryState(), MemoryState()
    shares = rng.choice([(1, 0, 0), (20, 1, 1), (5, 5, 5), (0, 1, 8), (3, 1, 0)])
    heads: list[list[bytes]] = [[], []]
    for _ in range(rng.randrange(150)):
        who = rng.choices((0, 1, 2), shares)[0]
        known = heads[0] if who == 0 else heads[who - 1]
        if who == 0:
            known = [one for one in known if one in second]
        parents = set(rng.sample(known[-6:], min(len(known[-6:]), rng.randrange(3))))
        signed = make_operation(rng.getrandbits(64), parents)
        for number, state in enumerate((first, second)):
            if who in (0, number + 1):
                state.apply(signed)
                heads[number].append(signed.id)
    return first, second


def check_transfer(pair: Pair, before: tuple[set[bytes], set[bytes]]) -> None:
    """Nothing that was here came, and nothing came twice; the sender counts what the receiver counts."""
    for number, side in enumerate(pair.sides):
        assert len(set(side.received_ids)) == len(side.received_ids)
        assert not set(side.received_ids) & before[number]
        other = pair.sides[1 - number]
        sent = [
            wire for message in other.sent if isinstance(message, Operations) for wire in message.operations
        ]
        assert len(sent) == len(set(sent)) == other.session.counters.sent_count
        assert (
            sum(map(len, sent)) == other.session.counters.sent_bytes == side.session.counters.received_bytes
        )


def converge(first: State, second: State, *, sessions_max: int, rng: random.Random) -> None:
    for _ in range(sessions_max):
        before = set(first.trie), set(second.trie)
        pair = Pair(first, second, seed=rng.getrandbits(32)).run()
        check_transfer(pair, before)
        assert pair.outcomes in {("equal", "equal"), ("unequal", "unequal")}
        if pair.outcomes[0] == "equal":
            assert set(first.trie) == set(second.trie) == before[0] | before[1]
            return
        first, second = (second, first) if rng.random() < 0.5 else (first, second)
    raise AssertionError(f"{sessions_max} sessions were not enough")


@PROFILE
@given(SEEDS, st.integers(0, 250), st.integers(0, 40), st.integers(0, 40))
def test_a_walk_finds_exactly_the_differences(seed: int, common: int, first: int, second: int) -> None:
    """Over ids with long shared prefixes, which hashes of operations never have."""
    rng = random.Random(seed)
    heads = rng.sample([b"", b"\x00" * 4, b"\xab" * 15, b"\xab" * 29, b"\xab\xcd\xef"], 3)
    clouds = [
        {(rng.choice(heads) + rng.randbytes(2) + bytes(32))[:32] for _ in range(count)}
        for count in (common, first, second)
    ]
    sets = clouds[0] | clouds[1], clouds[0] | clouds[2]
    walks = [Walk(Trie(ids), b"k" * 32, is_first=not number) for number, ids in enumerate(sets)]
    turn = 0
    while entries := walks[turn % 2].step():
        turn += 1
        assert turn <= 130
        for entry in decode_entries(encode_entries(entries)):
            walks[turn % 2].absorb(entry)
    for walk, mine, theirs in ((walks[0], *sets), (walks[1], *sets[::-1])):
        assert walk.to_send == mine - theirs
        assert walk.wanted <= {walk.short(identifier) for identifier in theirs - mine}


@PROFILE
@given(SEEDS, LIMITS)
def test_any_two_sets_become_their_union(seed: int, limits: str) -> None:
    rng = random.Random(seed)
    first, second = grown(rng)
    union = set(first.trie) | set(second.trie)
    with with_limits(limits):
        # A list serves one direction; then a list or a walk serves the other.
        converge(first, second, sessions_max=1 if limits == "as they are" else 20, rng=rng)
    assert set(first.trie) == union


@PROFILE
@given(SEEDS, LIMITS)
def test_slow_disks_reordering_and_inserts_end_without_error(seed: int, limits: str) -> None:
    rng = random.Random(seed)
    first, second = grown(rng)
    inserted = 0

    def insert() -> None:
        nonlocal inserted
        if rng.random() < 0.05:
            inserted += 1
            state = rng.choice((first, second))
            state.apply(make_operation(1 << 80 | inserted, {signed.id for signed in state.causal()[-2:]}))

    with with_limits(limits):
        for _ in range(3):
            before = set(first.trie), set(second.trie)
            pair = Pair(first, second, seed=rng.getrandbits(32)).run_in_any_order(rng, between=insert)
            check_transfer(pair, before)
            assert all(side.session.is_finished for side in pair.sides)
            assert all(outcome in ("equal", "unequal") for outcome in pair.outcomes)
        converge(first, second, sessions_max=20, rng=rng)


@PROFILE
@given(SEEDS, LIMITS)
def test_a_flipped_bit_is_an_error_or_nothing(seed: int, limits: str) -> None:
    """SCENARIOS S12: no other exception, no loop, and no operation before its past."""
    rng = random.Random(seed)
    first, second = grown(rng)
    target = rng.randrange(10)
    with with_limits(limits):
        pair = Pair(first, second, seed=seed)
        pair.post(0, pair.sides[0].session.start())
        count = 0
        while any(pair.in_flight):
            sender = rng.choice([number for number in (0, 1) if pair.in_flight[number]])
            frame = bytearray(encode_frame(pair.in_flight[sender].pop(0)))
            if count >= target and rng.random() < 0.5:
                frame[rng.randrange(len(frame))] ^= 1 << rng.randrange(8)
            count += 1
            assert count < 2_000
            try:
                messages = FrameDecoder().feed(bytes(frame))
                for message in messages:
                    pair.deliver(1 - sender, message)
            except RemoteProtocolError:
                break
    # MemoryState raises KeyError on an operation before its past; getting here is the claim.
    assert count > 0


@PROFILE
@given(st.integers(0, 2), st.lists(st.tuples(*[st.integers(0, 999)] * 3), min_size=10, max_size=60))
def test_signed_operations_of_adversarial_histories_converge(
    holders: int, steps: list[tuple[int, int, int]]
) -> None:
    history = play(holders, steps)
    for state in history.states[:DISHONEST]:
        target, source = history.states[DISHONEST].copy(), state.copy()
        union = target.copy()
        union.join(source)
        pair = Pair(target, source)
        for side in pair.sides:
            side.parse = SignedOperation.parse
        assert pair.run().outcomes == ("equal", "equal")
        assert summary(target) == summary(source) == summary(union)
