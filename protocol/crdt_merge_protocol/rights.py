"""Who may do what: which acts have an effect, whose operations count, what is kept (PROTOCOL R6-R8, R10-R12).

``judge`` is the definition, written to be read and not to be fast: a pure function of the genesis and the
set. The view rests on it (``view.py``); what a node does while operations arrive is in ``standing.py``.

1. An *act* has an effect if enough administrators signed it, whoever sends it and whatever became of that
   author. A POLICY must have a version one above the greatest among the effective POLICYs in its refs, or
   above the genesis'. A REVOKE must name all its heads in refs; of an ERASE or a signed REMOVE, the tags
   that are in refs count.
2. An operation *stands* unless its author is revoked and it is outside the past of the heads of one of the
   REVOKEs of that key. The heads belong to their past.
3. An operation *counts* if it stands and, in a group that admits its authors, an ADMIT of its author is in
   its past. Only what counts adds, removes by itself, holds or forks.
4. *Kept* is what stands, what is an act with an effect, and the past of either. The rest is dropped. Since
   another REVOKE only ever lets less stand, dropping before a join or after it comes to the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .bodies import Act, Admit, Body, PolicyAct, Revoke
from .errors import LocalProtocolError
from .genesis import Genesis
from .operations import Operation, SignedOperation, read_body
from .policy import count_signers


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What a set of operations comes to, one by one. All ids."""

    known: Mapping[bytes, SignedOperation]
    said: Mapping[bytes, Body | None]
    depths: Mapping[bytes, int]
    acts: Mapping[bytes, Act]
    """Those that have an effect."""
    standing: frozenset[bytes]
    counted: frozenset[bytes]
    kept: frozenset[bytes]


def judge(genesis: Genesis, operations: Iterable[SignedOperation]) -> Judged:
    """Return what a set of operations comes to; it must contain its own past.

    Raises:
        LocalProtocolError: An operation is missing that another one was made after.
    """
    known = {signed.id: signed for signed in operations}
    depths = _depths(known)
    said = {id_: read_body(signed.operation) for id_, signed in known.items()}
    order = sorted(known, key=lambda id_: depths[id_])
    acts = _acts(genesis, known, said, order)
    standing = _standing(known, acts)
    return Judged(
        known=known,
        said=said,
        depths=depths,
        acts=acts,
        standing=standing,
        counted=standing if genesis.is_open else standing & _admitted(known, acts, order),
        kept=past_of(known, standing | acts.keys()),
    )


def has_quorum(genesis: Genesis, group: bytes, act: Act) -> bool:
    """Tell whether enough distinct administrators signed an act (PROTOCOL R12)."""
    if len(act.signatures) < genesis.quorum or not act.nonce:
        return False
    signed = act.digest(group)
    return count_signers(signed, act.signatures, genesis.admins, enough=genesis.quorum) >= genesis.quorum


def names_its_heads(operation: Operation, act: Act) -> bool:
    """Tell whether an act that must be sent with all it names in refs is: a REVOKE with its heads."""
    return not isinstance(act, Revoke) or set(act.heads) <= set(operation.refs)


def past_of(known: Mapping[bytes, SignedOperation], heads: Iterable[bytes]) -> frozenset[bytes]:
    """Return these operations and everything that they were made after."""
    past: set[bytes] = set()
    pending = list(heads)
    while pending:
        id_ = pending.pop()
        if id_ not in past:
            past.add(id_)
            pending.extend(known[id_].operation.parents)
    return frozenset(past)


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


def _acts(
    genesis: Genesis,
    known: Mapping[bytes, SignedOperation],
    said: Mapping[bytes, Body | None],
    order: Iterable[bytes],
) -> dict[bytes, Act]:
    """Return the acts that have an effect (rule 1)."""
    acts: dict[bytes, Act] = {}
    versions: dict[bytes, int] = {}
    for id_ in order:
        act, operation = said[id_], known[id_].operation
        if not isinstance(act, Act) or not names_its_heads(operation, act):
            continue
        if isinstance(act, PolicyAct):
            before = (versions[ref] for ref in operation.refs if ref in versions)
            if act.policy.version != 1 + max(before, default=genesis.policy.version):
                continue
        if has_quorum(genesis, genesis.group, act):
            acts[id_] = act
            if isinstance(act, PolicyAct):
                versions[id_] = act.policy.version
    return acts


def _standing(known: Mapping[bytes, SignedOperation], acts: Mapping[bytes, Act]) -> frozenset[bytes]:
    """Return what every REVOKE of its author's key lets count (rule 2)."""
    allowed: dict[bytes, frozenset[bytes]] = {}
    for act in acts.values():
        if isinstance(act, Revoke):
            past = past_of(known, act.heads)
            allowed[act.key] = allowed.get(act.key, past) & past
    return frozenset(
        id_ for id_, signed in known.items() if id_ in allowed.get(signed.operation.author, known)
    )


def _admitted(
    known: Mapping[bytes, SignedOperation], acts: Mapping[bytes, Act], order: Iterable[bytes]
) -> frozenset[bytes]:
    """Return the operations that have an ADMIT of their author in their past (rule 3)."""
    before: dict[bytes, frozenset[bytes]] = {}
    for id_ in order:
        admitted: set[bytes] = set()
        for parent in known[id_].operation.parents:
            admitted |= before[parent]
            act = acts.get(parent)
            if isinstance(act, Admit):
                admitted.add(act.author)
        before[id_] = frozenset(admitted)
    return frozenset(id_ for id_ in known if known[id_].operation.author in before[id_])
