"""Adversarial histories of a group, drawn step by step so that Hypothesis can shrink them.

Authors 0 to 2 are honest; author 3 is a thief, who equivocates, names what it does not own, dates back, sends
acts of administrators again, and never heeds a REVOKE: whom it meets gets its operations with all their past.
All of them meet at random, so that their states are different sets that all contain their own past.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from crdt_merge_protocol.acts import Act
from crdt_merge_protocol.genesis import Genesis
from crdt_merge_protocol.operations import (
    Add,
    Admit,
    Ban,
    Erase,
    Hold,
    Kind,
    Receipt,
    Remove,
    Revoke,
    SignedOperation,
)
from crdt_merge_protocol.state import CRDTMergeState
from hypothesis import strategies as st

from .authors import KEYS, Author, hash_of, make_genesis, sign_policy, signed_act

HONEST = 3
DISHONEST = 3
ADMINS = KEYS[:2]
ACTIONS = (
    "add", "add", "add", "add", "remove", "remove", "remove_foreign", "hold", "hold", "hold",
    "policy", "policy_unsigned", "unknown", "unreadable", "restart", "meet", "meet", "meet", "fork", "fork",
    "remove_signed", "ban", "erase", "receipt", "admit", "admit", "revoke", "revoke", "unsigned",
    "steal", "steal", "steal", "steal", "hand", "hand",
)  # fmt: skip


@dataclass(frozen=True)
class History:
    """What some authors did, and what each of them knows of it."""

    genesis: Genesis
    states: tuple[CRDTMergeState, ...]
    operations: tuple[SignedOperation, ...]
    """All that were ever made, each after its past, kept or not."""


Step = tuple[int, int, int]


class _Play:
    """A history while it is being made."""

    def __init__(self, holders: int, *, is_open: bool) -> None:
        self.genesis = make_genesis(admins=ADMINS, quorum=2, holders=holders, is_open=is_open)
        self.authors = [Author(self.genesis, number) for number in range(HONEST + 1)]
        self.thief = self.authors[DISHONEST]
        self.made: dict[bytes, SignedOperation] = {}
        self.marks: list[tuple[bytes, int, bytes | None]] = [(self.thief.log, 0, None)]
        for author in self.authors:
            author.made = self.made

    def step(self, name: str, who: int, pick: int) -> None:
        """Have an author do something."""
        foul = name in ("fork", "remove_foreign")
        author = self.thief if foul else self.authors[who % len(self.authors)]
        if name == "fork":
            author.log, author.seq, author.prev = self.marks[pick % len(self.marks)]
            add = Add(slot="s", type="model", content=hash_of(str(pick)), weight=1, payload=None).encode()
            author.emit(Kind.ADD if pick % 2 else 77, add, deps=())  # Concurrent to its twin.
        elif name == "steal":
            self.steal(random.Random(pick))
        elif name == "hand":
            self.hand(self.authors[pick % HONEST], list(self.made)[-1 - pick % 5 :][:1])
        else:
            _act(name, author, self.authors[pick % len(self.authors)], pick)
        if author is self.thief and name != "steal":
            self.marks.append((author.log, author.seq, author.prev))

    def steal(self, rng: random.Random) -> None:
        """Let the thief sign anything at any place of its logs, after anything, and hand it to some."""
        known = list(self.made)
        deps = rng.sample(known, min(len(known), rng.randint(0, 3)))
        adds = [one for one in known if self.made[one].operation.kind == Kind.ADD]
        tags = tuple(sorted(rng.sample(adds, min(len(adds), 3))))
        acts = [one for one in self.made.values() if Kind.POLICY <= one.operation.kind <= Kind.ERASE]
        kind, body, refs = (
            Kind.ADD,
            Add(slot="s", type="model", content=bytes(32), weight=1, payload=None),
            (),
        )
        choice = rng.randrange(4)
        if choice == 0 and tags:
            kind, body, refs = rng.choice((Kind.REMOVE, Kind.HOLD)), None, tags
            body = Remove(targets=tags) if kind == Kind.REMOVE else Hold(tags=tags)
        encoded = body.encode()
        if choice == 1 and acts:
            act = rng.choice(acts).operation
            kind, encoded, refs = act.kind, act.body, act.refs if rng.random() < 0.7 else act.refs[:1]
        log, seq, prev = rng.choice(self.marks)
        place = {"log": log, "seq": seq, "prev": prev, "deps": tuple(sorted(deps))}
        signed = self.thief.make(kind, encoded, refs, **place)
        self.made[signed.id] = signed
        self.marks.append((log, seq + 1, signed.id))
        for author in (self.thief, *rng.sample(self.authors, rng.randint(0, HONEST))):
            self.hand(author, [signed.id])

    def hand(self, author: Author, ids: list[bytes]) -> None:
        """Deliver operations with all their past."""
        past: set[bytes] = set()
        pending = list(ids)
        while pending:
            id_ = pending.pop()
            if id_ not in past:
                past.add(id_)
                pending.extend(self.made[id_].operation.parents)
        for id_, signed in self.made.items():  # Made, hence in causal order.
            if id_ in past:
                author.state.apply(signed)


def play(holders: int, steps: Iterable[Step], *, is_open: bool = True) -> History:
    """Return the history of these steps."""
    game = _Play(holders, is_open=is_open)
    for action, who, pick in steps:
        game.step(ACTIONS[action % len(ACTIONS)], who, pick)
    states = tuple(author.state for author in game.authors)
    return History(game.genesis, states, tuple(game.made.values()))


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
        author.change_policy(ADMINS, holders=holders)
    elif name == "policy_unsigned" and pick % 2:
        author.change_policy((KEYS[0], KEYS[0], KEYS[3]), holders=holders)
    elif name == "policy_unsigned":  # Well signed, but nothing in refs leads to a version above the second.
        policy = state.view.policy.next(holders=holders)
        author.emit(Kind.POLICY, sign_policy(state.group, policy, ADMINS).encode())
    elif known and name in ("remove", "remove_foreign", "hold"):
        _name_tags(name, author, known, pick)
    elif known:
        _administer(name, author, known, random.Random(pick))


def _administer(name: str, author: Author, known: list[bytes], rng: random.Random) -> None:
    """Do what takes signatures of administrators, and what answers it."""
    signers = ADMINS
    if name == "unsigned":
        name = rng.choice(("remove_signed", "ban", "erase", "admit", "revoke"))
        signers = rng.choice(((), (KEYS[0], KEYS[0]), (KEYS[1], KEYS[3])))
    refs = tuple(sorted(rng.sample(known, min(len(known), rng.randint(0, 3)))))
    adds = sorted(author.state.adds)
    tags = tuple(sorted(rng.sample(adds, min(len(adds), 2))))
    contents = tuple(sorted({hash_of(f"content{rng.randrange(5)}") for _ in range(2)}))
    act: Act
    if name == "receipt":
        erasures = sorted(author.state.view.decided.erasures) or known
        author.emit(Kind.RECEIPT, Receipt(erasures=(erasures[0],)).encode(), erasures[: rng.randint(0, 1)])
        return
    if name == "ban":
        act, refs = Ban(contents=contents[:1], nonce=bytes(16)), ()
    elif name == "erase":
        named = tags or refs or tuple(known[:1])
        act, refs = Erase(contents=contents[: rng.randint(0, 2)], tags=named, nonce=bytes(16)), tags
    elif name == "admit":
        act = Admit(author=KEYS[rng.randrange(HONEST + 1)].node_id, nonce=bytes(16))
    elif name == "remove_signed":
        act, refs = Remove(targets=tags or tuple(known[:1]), nonce=bytes(16)), tags[: rng.randint(1, 2)]
    else:
        key = KEYS[rng.choice((DISHONEST, DISHONEST, DISHONEST, DISHONEST, rng.randrange(HONEST)))]
        act = Revoke(key=key.node_id, heads=refs, nonce=bytes(16))
        refs = refs if rng.random() < 0.8 else refs[1:]
    author.emit(act.KIND, signed_act(author.state.group, act, signers).encode(), refs)


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
    steps = [(rng.randrange(len(ACTIONS)), rng.randrange(HONEST + 1), rng.randrange(1000)) for _ in range(45)]
    return play(rng.choice((0, 0, 1, 2)), steps, is_open=rng.random() < 0.7)


HISTORIES = st.one_of(
    st.builds(
        play,
        st.sampled_from((0, 0, 1, 2)),
        st.lists(STEPS, max_size=25),
        is_open=st.sampled_from((True, False)),
    ),
    RANDOMS.map(play_randomly),
)
