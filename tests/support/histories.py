"""Adversarial histories of a group, drawn step by step so that Hypothesis can shrink them.

Authors 0 to 2 are honest; author 3 equivocates, names what it does not own, and lies. All of them meet at
random, so that their states are different sets that all contain their own past.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from crdt_merge_protocol.genesis import Genesis
from crdt_merge_protocol.operations import Add, Hold, Kind, Remove, SignedOperation
from crdt_merge_protocol.state import CRDTMergeState
from hypothesis import strategies as st

from .authors import KEYS, Author, hash_of, make_genesis, sign_policy

HONEST = 3
DISHONEST = 3
ACTIONS = (
    "add", "add", "add", "add", "remove", "remove", "remove_foreign", "hold", "hold", "hold",
    "policy", "policy_unsigned", "unknown", "unreadable", "restart", "meet", "meet", "meet", "fork", "fork",
)  # fmt: skip


@dataclass(frozen=True)
class History:
    """What some authors did, and what each of them knows of it."""

    genesis: Genesis
    states: tuple[CRDTMergeState, ...]
    operations: tuple[SignedOperation, ...]
    """All of them, each after its past."""


Step = tuple[int, int, int]


def play(holders: int, steps: Iterable[Step]) -> History:
    """Return the history of these steps."""
    genesis = make_genesis(admins=KEYS[:2], quorum=2, holders=holders)
    authors = [Author(genesis, number) for number in range(HONEST + 1)]
    marks: list[tuple[bytes, int, bytes | None]] = [(authors[DISHONEST].log, 0, None)]
    for action, who, pick in steps:
        name = ACTIONS[action % len(ACTIONS)]
        author = authors[DISHONEST if name in ("fork", "remove_foreign") else who % len(authors)]
        if name == "fork":
            author.log, author.seq, author.prev = marks[pick % len(marks)]
            add = Add(slot="s", type="model", content=hash_of(str(pick)), weight=1, payload=None).encode()
            author.emit(Kind.ADD if pick % 2 else 77, add, deps=())  # Concurrent to its twin.
        else:
            _act(name, author, authors[pick % len(authors)], pick)
        if author is authors[DISHONEST]:
            marks.append((author.log, author.seq, author.prev))
    union = CRDTMergeState(genesis)
    for author in authors:
        union.join(author.state)
    return History(genesis, tuple(author.state for author in authors), tuple(union.causal()))


def _act(name: str, author: Author, other: Author, pick: int) -> None:
    state = author.state
    known = [signed.id for signed in state.causal()]
    holders = (0, 1, 0, 2)[pick % 4]
    if name == "add":
        kind = "fisher" if pick % 7 == 0 else "model"
        author.add(f"content{pick % 5}", slot=f"slot{pick % 2}", kind=kind, weight=1 + pick % 2)
    elif name == "meet":
        author.pull(other)
        other.pull(author)
    elif name == "restart":
        author.restart()
    elif name == "unknown":
        author.emit((77, Kind.BAN, Kind.REVOKE, Kind.RECEIPT)[pick % 4], b"\x01\x90", known[:2])
    elif name == "unreadable":
        kinds = (Kind.ADD, Kind.REMOVE, Kind.POLICY, Kind.HOLD)
        author.emit(kinds[pick % 4], (b"", b"\x02\x90", b"\x01\xc1")[pick % 3])
    elif name == "policy":
        author.change_policy(KEYS[:2], holders=holders)
    elif name == "policy_unsigned" and pick % 2:
        author.change_policy((KEYS[0], KEYS[0], KEYS[3]), holders=holders)
    elif name == "policy_unsigned":  # Well signed, but nothing in refs leads to a version above the second.
        policy = state.view.policy.next(holders=holders)
        author.emit(Kind.POLICY, sign_policy(state.group, policy, KEYS[:2]).encode())
    elif known and name in ("remove", "remove_foreign", "hold"):
        _name_tags(name, author, known, pick)


def _name_tags(name: str, author: Author, known: list[bytes], pick: int) -> None:
    """Remove or hold two tags: mostly one's own or others', sometimes of no ADD, or without naming them."""
    adds = sorted(author.state.adds)
    own = [tag for tag in adds if author.state.get(tag).operation.author == author.node_id]
    foreign = [tag for tag in adds if tag not in own]
    pool = (own if name == "remove" else foreign) if pick % 6 else known
    pool = pool or known
    tags = tuple(sorted({pool[pick % len(pool)], pool[(pick // 3) % len(pool)]}))
    refs = tags[:1] if pick % 5 == 0 else tags
    if name == "hold":
        author.emit(Kind.HOLD, Hold(tags=tags).encode(), refs)
    else:
        author.emit(Kind.REMOVE, Remove(targets=tags).encode(), refs)


def shuffled(operations: Iterable[SignedOperation], rng: random.Random) -> list[SignedOperation]:
    """Return operations in a random order in which each comes after its past."""
    waiting = list(operations)
    order: list[SignedOperation] = []
    done: set[bytes] = set()
    while waiting:
        ready = [signed for signed in waiting if signed.operation.parents <= done]
        chosen = rng.choice(ready)
        waiting.remove(chosen)
        done.add(chosen.id)
        order.append(chosen)
    return order


def summary(state: CRDTMergeState) -> tuple[object, ...]:
    """Return everything that follows from the set of a state."""
    return (
        state.sync_root,
        len(state),
        state.view,
        state.view.fingerprint,
        state.heads(),
        state.choose_deps(),
        state.version_vector,
        state.adds,
        state.removes,
        [signed.id for signed in state.causal()],
    )


STEPS = st.tuples(st.integers(0, len(ACTIONS) - 1), st.integers(0, HONEST), st.integers(0, 999))
RANDOMS = st.integers(0, 2**32).map(random.Random)


def play_randomly(rng: random.Random) -> History:
    """Return a long history: drawn step by step, Hypothesis seldom makes one in which much meets."""
    steps = [(rng.randrange(len(ACTIONS)), rng.randrange(HONEST + 1), rng.randrange(1000)) for _ in range(30)]
    return play(rng.choice((0, 0, 1, 2)), steps)


HISTORIES = st.one_of(
    st.builds(play, st.sampled_from((0, 0, 1, 2)), st.lists(STEPS, max_size=25)), RANDOMS.map(play_randomly)
)
