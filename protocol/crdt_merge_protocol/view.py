"""The view: what a set of operations means (PROTOCOL R6, R8, R10, R12, R13, R16, R22).

``view_of`` is the definition, written to be read and not to be fast: a pure function of the genesis and the
set. Nothing here looks at an order of arrival, a clock or a vote, so equal sets have equal views on all
nodes. The view that a node keeps while operations arrive is ``visibility.py``; it is tested against this one.

Which acts have an effect and which operations count is settled first, in ``rights.py``. Then:

1. Two operations that count, with equal (author, log, seq), are a fork. The pair is the proof; it hides the
   author's ADDs.
2. A REMOVE that counts removes the ADDs of its own author that it names in both targets and refs, also if
   that author has forked. One that administrators signed removes others' as well, whoever sends it.
3. A BAN or ERASE hides every ADD of its contents. The tags of an ERASE count if they are in refs. A RECEIPT
   counts for the ERASEs with an effect that it names in refs, if it stands; its author need not be admitted.
4. The policy in force is, of the POLICYs with an effect, the one with the greatest (version, id).
5. A HOLD that counts does so for an ADD that it names in both tags and refs, unless it is the ADD's own
   author's. Authors are counted, not HOLDs.
6. Hidden are ADDs that do not count, are removed, banned, by forked authors, or held by fewer than
   ``policy.holders`` others. Only then the greatest (depth, id) of each (author, type, slot) is chosen, so
   that a hidden ADD never hides another.
7. What cannot be read has no effect.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from .bodies import Add, Admit, Ban, Erase, Hold, PolicyAct, Receipt, Remove, Revoke
from .canonical import digest
from .genesis import Genesis
from .operations import SignedOperation
from .policy import Policy
from .rights import Judged, judge


@dataclass(frozen=True, slots=True, kw_only=True)
class Visible:
    """One contribution as the view shows it."""

    tag: bytes
    """Id of the ADD."""
    author: bytes
    slot: str
    type: str
    content: bytes
    weight: int
    """Over 2^32."""
    payload: bytes | None
    digest: bytes
    """Contribution digest: what orders and deduplicates it in a merge."""
    depth: int
    holders: int
    """Other authors that hold its bytes."""

    @classmethod
    def of(cls, tag: bytes, author: bytes, add: Add, depth: int, holders: int) -> Self:
        """Return how an ADD is shown."""
        return cls(
            tag=tag,
            author=author,
            slot=add.slot,
            type=add.type,
            content=add.content,
            weight=add.weight,
            payload=add.payload,
            digest=add.digest,
            depth=depth,
            holders=holders,
        )

    @property
    def order(self) -> tuple[bytes, bytes]:
        """Sort key within a view."""
        return self.digest, self.tag


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """What administrators have decided for good, policy aside."""

    admitted: frozenset[bytes] = frozenset()
    """Authors with an ADMIT. In an open group everybody counts all the same."""
    revoked: frozenset[bytes] = frozenset()
    """Keys with a REVOKE."""
    banned: frozenset[bytes] = frozenset()
    """Content ids that a BAN or ERASE names: nothing shows them, whoever adds them and whenever."""
    erased: frozenset[bytes] = frozenset()
    """Content ids that an ERASE names: banned, and their bytes are to be destroyed and never taken again."""
    erased_tags: frozenset[bytes] = frozenset()
    """Ids of the ADDs whose metadata is to be destroyed: those of erased contents, and those named by tag."""
    erasures: frozenset[bytes] = frozenset()
    """Ids of the ERASEs that have an effect."""
    receipts: frozenset[tuple[bytes, bytes]] = frozenset()
    """(id of an ERASE, author): whose node states to have destroyed what it names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The meaning of a set of operations. Equal sets have equal views."""

    policy: Policy
    policy_id: bytes | None
    """Id of the POLICY in force; None is that of the genesis."""
    visible: tuple[Visible, ...]
    """Sorted by (digest, tag)."""
    forked: frozenset[bytes]
    """Authors convicted of a fork."""
    pending: tuple[Visible, ...]
    """Hidden only for too few HOLDs: newer than the visible one of their slot. Sorted like ``visible``."""
    decided: Decided
    unread: int
    """Operations whose kind or body this release cannot read."""

    @property
    def banned(self) -> frozenset[bytes]:
        """Content ids that are banned, erased ones among them."""
        return self.decided.banned

    @property
    def fingerprint(self) -> bytes:
        """32 bytes to compare the views of two nodes by; says less than the sync root, never more."""
        tags = [b"".join(shown.tag for shown in part) for part in (self.visible, self.pending)]
        return digest(
            "crdt-merge/view/1", self.policy.encode(), self.policy_id or b"", *tags, *sorted(self.forked)
        )


def view_of(genesis: Genesis, operations: Iterable[SignedOperation]) -> View:
    """Return the view of a set of operations that contains its own past.

    Raises:
        LocalProtocolError: An operation is missing that another one was made after.
    """
    judged = judge(genesis, operations)
    policy, policy_id = _policy(genesis, judged)
    decided = _decided(judged)
    forked = _forked(judged)
    candidates = _candidates(judged, forked, decided.banned)
    slots: dict[tuple[bytes, str, str], list[tuple[int, bytes]]] = {}
    for tag, shown in candidates.items():
        slots.setdefault((shown.author, shown.type, shown.slot), []).append((shown.depth, tag))
    visible, pending = [], []
    for ranks in slots.values():
        held = [rank for rank in ranks if candidates[rank[1]].holders >= policy.holders]
        newest = max(held, default=(0, b""))
        visible += [candidates[id_] for _, id_ in held if id_ == newest[1]]
        pending += [candidates[rank[1]] for rank in ranks if rank > newest]
    return View(
        policy=policy,
        policy_id=policy_id,
        visible=tuple(sorted(visible, key=lambda shown: shown.order)),
        forked=forked,
        pending=tuple(sorted(pending, key=lambda shown: shown.order)),
        decided=decided,
        unread=sum(judged.said[id_] is None for id_ in judged.kept),
    )


def _policy(genesis: Genesis, judged: Judged) -> tuple[Policy, bytes | None]:
    """Return the policy in force and the id of its operation (rule 4)."""
    policies = {id_: act.policy for id_, act in judged.acts.items() if isinstance(act, PolicyAct)}
    current = max(policies, key=lambda id_: (policies[id_].version, id_), default=None)
    return (genesis.policy, None) if current is None else (policies[current], current)


def _decided(judged: Judged) -> Decided:
    """Return what administrators have decided (rule 3)."""
    acts = judged.acts
    erasures = {id_: act for id_, act in acts.items() if isinstance(act, Erase)}
    erased = {content for act in erasures.values() for content in act.contents}
    banned = {content for act in acts.values() if isinstance(act, Ban) for content in act.contents}
    named = {tag for id_, act in erasures.items() for tag in set(act.tags) & _refs(judged, id_)}
    adds = {id_: add for id_, add in judged.said.items() if isinstance(add, Add) and id_ in judged.kept}
    receipts = {
        (erasure, signed.operation.author)
        for id_, signed in judged.known.items()
        if isinstance(receipt := judged.said[id_], Receipt) and id_ in judged.standing
        for erasure in set(receipt.erasures) & _refs(judged, id_) & erasures.keys()
    }
    return Decided(
        admitted=frozenset(act.author for act in acts.values() if isinstance(act, Admit)),
        revoked=frozenset(act.key for act in acts.values() if isinstance(act, Revoke)),
        banned=frozenset(banned | erased),
        erased=frozenset(erased),
        erased_tags=frozenset(id_ for id_, add in adds.items() if id_ in named or add.content in erased),
        erasures=frozenset(erasures),
        receipts=frozenset(receipts),
    )


def _refs(judged: Judged, id_: bytes) -> frozenset[bytes]:
    return frozenset(judged.known[id_].operation.refs)


def _forked(judged: Judged) -> frozenset[bytes]:
    """Return the authors of two operations at one place of one log (rule 1)."""
    counted = [judged.known[id_].operation for id_ in judged.counted]
    places = Counter((operation.author, operation.log, operation.seq) for operation in counted)
    return frozenset(author for (author, _, _), count in places.items() if count > 1)


def _removed(judged: Judged) -> set[bytes]:
    """Return the tags that their own authors removed, or administrators (rule 2)."""
    removed = set()
    for id_, body in judged.said.items():
        if isinstance(body, Remove):
            author = judged.known[id_].operation.author
            targets = set(body.targets) & _refs(judged, id_)
            if id_ in judged.acts:
                removed |= targets
            elif id_ in judged.counted:
                removed |= {tag for tag in targets if judged.known[tag].operation.author == author}
    return removed


def _candidates(
    judged: Judged, forked: frozenset[bytes], banned: frozenset[bytes]
) -> Mapping[bytes, Visible]:
    """Return the ADDs that are hidden by nothing but too few HOLDs or a newer one, by tag (rule 6)."""
    removed = _removed(judged)
    candidates: dict[bytes, Visible] = {}
    for tag in judged.counted - removed:
        add, author = judged.said[tag], judged.known[tag].operation.author
        if isinstance(add, Add) and author not in forked and add.content not in banned:
            holders = len(_holders(judged, tag))
            candidates[tag] = Visible.of(tag, author, add, judged.depths[tag], holders)
    return candidates


def _holders(judged: Judged, tag: bytes) -> set[bytes]:
    """Return the other authors that state to hold an ADD (rule 5)."""
    holders = set()
    for id_ in judged.counted:
        body = judged.said[id_]
        if isinstance(body, Hold) and tag in body.tags and tag in _refs(judged, id_):
            holders.add(judged.known[id_].operation.author)
    return holders - {judged.known[tag].operation.author}
