"""The view: what a set of operations means (PROTOCOL R6, R8, R10, R12, R16, R22).

``view_of`` is the definition, written to be read and not to be fast: a pure function of the genesis and the
set. Nothing here looks at an order of arrival, a clock or a vote, so equal sets have equal views on all
nodes. The view that a node keeps while operations arrive is ``visibility.py``; it is tested against this one.

1. Two operations with equal (author, log, seq) are a fork. The pair is the proof; it hides the author's ADDs.
2. A REMOVE removes the ADDs of its own author that it names in both targets and refs, for ever, also if that
   author has forked.
3. A POLICY has an effect if enough administrators signed it and its version is one above the greatest among
   the effective POLICYs in its refs, or above the genesis'. The current one has the greatest (version, id).
4. A HOLD counts for an ADD that it names in both tags and refs, unless it is the ADD's own author's. Authors
   are counted, not HOLDs.
5. Hidden are ADDs removed, by forked authors, or held by fewer than ``policy.holders`` others. Only then the
   greatest (depth, id) of each (author, type, slot) is chosen, so that a hidden ADD never hides another.
6. What cannot be read has no effect. Kinds ADMIT, REVOKE, BAN, ERASE and RECEIPT cannot be read yet, and a
   group that admits its authors shows nothing and says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .bodies import Add, Body, Hold, Kind, PolicyAct, Remove
from .canonical import digest
from .errors import LocalProtocolError
from .genesis import Genesis
from .operations import SignedOperation, read_body
from .policy import Policy, act_digest, count_signers

ADMITTED_UNJUDGED = "this group admits its authors one by one, which this release cannot judge"


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

    @property
    def order(self) -> tuple[bytes, bytes]:
        """Sort key within a view."""
        return self.digest, self.tag


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
    unread: int
    """Operations whose kind or body this release cannot read."""
    unjudged: str = ""
    """Why nothing is shown although there may be something; empty if all is judged."""

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
    known = {signed.id: signed for signed in operations}
    depths = _depths(known)
    said = {id_: read_body(signed.operation) for id_, signed in known.items()}
    policy, policy_id = _policy(genesis, known, said, depths)
    forked = _forked(known)
    removed = _removed(known, said)
    slots: dict[tuple[bytes, str, str], list[tuple[int, bytes]]] = {}
    candidates: dict[bytes, Visible] = {}
    for id_, body in said.items():
        author = known[id_].operation.author
        if isinstance(body, Add) and id_ not in removed and author not in forked and genesis.is_open:
            holders = len(_holders(known, said, id_))
            candidates[id_] = _shown(id_, author, body, depths[id_], holders)
            slots.setdefault((author, body.type, body.slot), []).append((depths[id_], id_))
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
        unread=sum(body is None for body in said.values()),
        unjudged="" if genesis.is_open else ADMITTED_UNJUDGED,
    )


def has_quorum(genesis: Genesis, group: bytes, act: PolicyAct) -> bool:
    """Tell whether enough distinct administrators signed a change of policy (PROTOCOL R12)."""
    signed = act_digest(group, Kind.POLICY, act.policy.encode(), act.nonce)
    return count_signers(signed, act.signatures, genesis.admins, enough=genesis.quorum) >= genesis.quorum


def _depths(known: Mapping[bytes, SignedOperation]) -> dict[bytes, int]:
    """Return 1 + the greatest depth of prev, deps and refs, for every operation."""
    depths: dict[bytes, int] = {}
    waiting = dict(known)
    while waiting:
        ready = [id_ for id_, signed in waiting.items() if signed.operation.parents <= depths.keys()]
        if not ready:
            raise LocalProtocolError(f"{len(waiting)} operations lack a part of their past.")
        for id_ in ready:
            parents = waiting.pop(id_).operation.parents
            depths[id_] = 1 + max((depths[parent] for parent in parents), default=0)
    return depths


def _policy(
    genesis: Genesis,
    known: Mapping[bytes, SignedOperation],
    said: Mapping[bytes, Body | None],
    depths: Mapping[bytes, int],
) -> tuple[Policy, bytes | None]:
    """Return the policy in force and the id of its operation (rule 3)."""
    effective: dict[bytes, Policy] = {}
    for id_ in sorted(known, key=lambda id_: depths[id_]):
        act = said[id_]
        if not isinstance(act, PolicyAct):
            continue
        before = [effective[ref].version for ref in known[id_].operation.refs if ref in effective]
        if act.policy.version == 1 + max(before, default=genesis.policy.version) and has_quorum(
            genesis, genesis.group, act
        ):
            effective[id_] = act.policy
    current = max(effective, key=lambda id_: (effective[id_].version, id_), default=None)
    return (genesis.policy, None) if current is None else (effective[current], current)


def _forked(known: Mapping[bytes, SignedOperation]) -> frozenset[bytes]:
    """Return the authors of two operations at one place of one log (rule 1)."""
    places = Counter((s.operation.author, s.operation.log, s.operation.seq) for s in known.values())
    return frozenset(author for (author, _, _), count in places.items() if count > 1)


def _removed(known: Mapping[bytes, SignedOperation], said: Mapping[bytes, Body | None]) -> set[bytes]:
    """Return the tags that their own authors removed (rule 2)."""
    removed = set()
    for id_, body in said.items():
        if isinstance(body, Remove):
            operation = known[id_].operation
            targets = set(body.targets) & set(operation.refs)
            removed |= {tag for tag in targets if known[tag].operation.author == operation.author}
    return removed


def _holders(
    known: Mapping[bytes, SignedOperation], said: Mapping[bytes, Body | None], tag: bytes
) -> set[bytes]:
    """Return the other authors that state to hold an ADD (rule 4)."""
    holders = set()
    for id_, body in said.items():
        if isinstance(body, Hold) and tag in body.tags and tag in known[id_].operation.refs:
            holders.add(known[id_].operation.author)
    return holders - {known[tag].operation.author}


def _shown(tag: bytes, author: bytes, add: Add, depth: int, holders: int) -> Visible:
    return Visible(
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
