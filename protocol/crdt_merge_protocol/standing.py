"""Whose operations count, kept up to date while they arrive; always equal to ``judge`` over the same set.

Theory of operation. Delivery is causal, so whether an act has an effect, and whether an ADMIT is in the past
of an operation, is settled when it arrives, and stays so. Only a REVOKE changes what was settled: it lets
less stand. Whatever a revoked key signs afterwards is outside the past of any heads, for those are here.

In a group that admits its authors every operation carries the set of the ADMITs in its past, as the bits of
an integer, taken over from its parents (PROTOCOL R11).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .bodies import Act, Admit, Body, PolicyAct, Revoke
from .genesis import Genesis
from .operations import Operation, SignedOperation
from .rights import has_quorum, names_its_heads, past_of


class Standing:
    """Judges operations one by one, each after its past."""

    def __init__(self, genesis: Genesis, group: bytes) -> None:
        self._genesis = genesis
        self._group = group
        self.acts: set[bytes] = set()
        """Ids of the acts that have an effect."""
        self._versions: dict[bytes, int] = {}
        """Id and version of every POLICY among them."""
        self._allowed: dict[bytes, frozenset[bytes]] = {}
        """Revoked key -> ids of its operations that stand."""
        self._heeded: set[tuple[bytes, tuple[bytes, ...]]] = set()
        """(key, heads) of REVOKEs. Anybody can send one again, which must cost nothing."""
        self._bits: dict[bytes, int] = {}
        """In a group that admits its authors: operation -> which ADMITs are in its past."""
        self._own_bits: dict[bytes, int] = {}
        """ADMIT -> its own bit."""
        self._masks: dict[bytes, int] = {}
        """Author -> the bits of its ADMITs."""
        self.is_anybody_revoked = False
        """Whether there is a REVOKE with an effect. Until then everything stands."""
        self.is_all_counted = genesis.is_open
        """Whether everything counts that was ever signed: nobody need be asked for."""

    def judge(self, operation_id: bytes, operation: Operation, act: Act) -> bool:
        """Tell whether an act has an effect, and remember it."""
        if operation_id in self.acts:
            return True
        if isinstance(act, PolicyAct):
            versions = (self._versions.get(ref, 0) for ref in operation.refs)
            before = max(versions, default=0) or self._genesis.policy.version
            if act.policy.version != before + 1:
                return False
        if not self.may_act(operation, act):
            return False
        self.acts.add(operation_id)
        if isinstance(act, PolicyAct):
            self._versions[operation_id] = act.policy.version
        return True

    def may_act(self, operation: Operation, act: Act) -> bool:
        """Tell whether an act has an effect as far as that can be told without its past."""
        return names_its_heads(operation, act) and has_quorum(self._genesis, self._group, act)

    def is_standing(self, operation_id: bytes, author: bytes) -> bool:
        """Tell whether every REVOKE of its author's key lets an operation count."""
        allowed = self._allowed.get(author)
        return allowed is None or operation_id in allowed

    def carry(self, operation_id: bytes, parents: Iterable[bytes], body: Body | None) -> None:
        """Note what is in the past of an operation, which was judged if it is an act.

        Only for a group that admits its authors.
        """
        bits = 0
        for parent in parents:
            bits |= self._bits[parent] | self._own_bits.get(parent, 0)
        self._bits[operation_id] = bits
        if isinstance(body, Admit) and operation_id in self.acts and operation_id not in self._own_bits:
            bit = self._own_bits[operation_id] = 1 << len(self._own_bits)
            self._masks[body.author] = self._masks.get(body.author, 0) | bit

    def is_counted(self, operation_id: bytes, author: bytes) -> bool:
        """Tell whether an operation counts whose past was noted."""
        if not self.is_standing(operation_id, author):
            return False
        return self._genesis.is_open or bool(self._bits[operation_id] & self._masks.get(author, 0))

    def revoke(self, revoke: Revoke, known: Mapping[bytes, SignedOperation]) -> bool:
        """Take in a REVOKE that has an effect and whose heads are known; tell whether less stands now."""
        if (revoke.key, revoke.heads) in self._heeded:
            return False
        self._heeded.add((revoke.key, revoke.heads))
        past = frozenset(
            id_ for id_ in past_of(known, revoke.heads) if known[id_].operation.author == revoke.key
        )
        before = self._allowed.get(revoke.key)
        self._allowed[revoke.key] = past if before is None else before & past
        self.is_anybody_revoked, self.is_all_counted = True, False
        if before is not None:
            return len(self._allowed[revoke.key]) < len(before)
        return any(signed.operation.author == revoke.key and id_ not in past for id_, signed in known.items())

    def forget(self, operation_id: bytes) -> None:
        """Forget the past of an operation that was dropped."""
        self._bits.pop(operation_id, None)

    def copy(self) -> Standing:
        """Return an independent copy."""
        twin = Standing(self._genesis, self._group)
        twin.acts, twin._versions = set(self.acts), dict(self._versions)
        twin._allowed, twin._heeded = dict(self._allowed), set(self._heeded)
        twin.is_anybody_revoked, twin.is_all_counted = self.is_anybody_revoked, self.is_all_counted
        twin._bits, twin._own_bits, twin._masks = dict(self._bits), dict(self._own_bits), dict(self._masks)
        return twin
