"""Authors of operations for tests: each has a key, a log and its own copy of the group's state."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from crdt_merge_protocol.acts import Act
from crdt_merge_protocol.genesis import Genesis
from crdt_merge_protocol.identity import NodeKey
from crdt_merge_protocol.operations import (
    Add,
    Hold,
    Kind,
    Operation,
    PolicyAct,
    Remove,
    SignedOperation,
    sign_operation,
)
from crdt_merge_protocol.policy import Policy, act_digest, sign_act
from crdt_merge_protocol.state import CRDTMergeState

AnyAct = TypeVar("AnyAct", bound=Act)
ONE = 1 << 32
KEYS = tuple(NodeKey(bytes([number]) * 32) for number in range(1, 9))


def hash_of(text: str) -> bytes:
    """Return 32 readable bytes that stand for the hash of something."""
    return text.encode().ljust(32, b".")


def make_genesis(
    *, admins: Sequence[NodeKey] = KEYS[:1], quorum: int = 1, is_open: bool = True, **policy: object
) -> Genesis:
    """Return a genesis whose first policy has these fields."""
    fields: dict[str, object] = {"strategy": "weight_average", "schema": hash_of("schema"), **policy}
    return Genesis(
        nonce=bytes(16),
        name="group",
        admins=tuple(key.node_id for key in admins),
        quorum=quorum,
        is_open=is_open,
        policy=Policy(**fields),  # type: ignore[arg-type]
    )


def sign_policy(
    group: bytes, policy: Policy, signers: Iterable[NodeKey], *, nonce: bytes = bytes(16)
) -> PolicyAct:
    """Return a change of policy with these signatures, in this order."""
    act = act_digest(group, Kind.POLICY, policy.encode(), nonce)
    return PolicyAct(policy=policy, nonce=nonce, signatures=tuple(sign_act(key, act) for key in signers))


def signed_act(group: bytes, act: AnyAct, signers: Iterable[NodeKey]) -> AnyAct:
    """Return an act with these signatures, in this order, also if they are of one administrator."""
    signatures = tuple(sign_act(key, act.digest(group)) for key in signers)
    return replace(act, signatures=signatures)


class Author:
    """One node, as far as operations go."""

    def __init__(self, genesis: Genesis, number: int = 0) -> None:
        self.key = KEYS[number]
        self.node_id = self.key.node_id
        self.state = CRDTMergeState(genesis)
        self.starts = 0
        self.made: dict[bytes, SignedOperation] = {}
        """What was emitted; shared between authors where somebody wants to know it all."""
        self.restart()

    def restart(self) -> None:
        """Begin a fresh log, as every start of a node does (PROTOCOL R4)."""
        self.starts += 1
        self.log = self.starts.to_bytes(16, "big")
        self.seq = 0
        self.prev: bytes | None = None

    def make(self, kind: int, body: bytes, refs: Iterable[bytes] = (), **changes: object) -> SignedOperation:
        """Sign the next operation without applying it."""
        fields: dict[str, object] = {
            "group": self.state.group,
            "author": self.node_id,
            "log": self.log,
            "seq": self.seq,
            "prev": self.prev,
            "deps": self.state.choose_deps(),
            "refs": tuple(sorted(refs)),
            "kind": kind,
            "body": body,
            **changes,
        }
        return sign_operation(Operation(**fields), self.key)  # type: ignore[arg-type]

    def emit(self, kind: int, body: bytes, refs: Iterable[bytes] = (), **changes: object) -> SignedOperation:
        """Sign the next operation and apply it here."""
        signed = self.make(kind, body, refs, **changes)
        self.state.apply(signed)
        self.made[signed.id] = signed
        self.seq, self.prev = self.seq + 1, signed.id
        return signed

    def add(
        self,
        content: str = "content",
        *,
        slot: str = "main",
        kind: str = "model",
        weight: int = ONE,
        payload: bytes | None = None,
    ) -> SignedOperation:
        """Contribute."""
        add = Add(slot=slot, type=kind, content=hash_of(content), weight=weight, payload=payload)
        return self.emit(Kind.ADD, add.encode())

    def remove(self, *tags: bytes) -> SignedOperation:
        """Remove by tag."""
        return self.emit(Kind.REMOVE, Remove(targets=tuple(sorted(tags))).encode(), tags)

    def hold(self, *tags: bytes) -> SignedOperation:
        """State to hold the bytes of these."""
        return self.emit(Kind.HOLD, Hold(tags=tuple(sorted(tags))).encode(), tags)

    def act(
        self, act: Act, signers: Iterable[NodeKey] = KEYS[:1], refs: Iterable[bytes] = ()
    ) -> SignedOperation:
        """Send an act with the signatures of these administrators."""
        return self.emit(act.KIND, signed_act(self.state.group, act, signers).encode(), refs)

    def change_policy(self, signers: Iterable[NodeKey], **changes: object) -> SignedOperation:
        """Change the policy in force."""
        view = self.state.view
        act = sign_policy(self.state.group, view.policy.next(**changes), signers)
        return self.emit(Kind.POLICY, act.encode(), () if view.policy_id is None else (view.policy_id,))

    def pull(self, *others: Author) -> None:
        """Join the states of others into this one."""
        for other in others:
            self.state.join(other.state)


def contents(state: CRDTMergeState) -> list[str]:
    """Return what is visible, as the words given to :meth:`Author.add`, sorted."""
    return sorted(shown.content.rstrip(b".").decode() for shown in state.view.visible)


def meet(*authors: Author) -> None:
    """Bring authors to the same state."""
    for author in authors:
        author.pull(*authors)
