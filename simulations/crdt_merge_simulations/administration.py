"""Acts of administrators in a run of engines: bans, erasures, revocations, receipts, and what resembles them.

Two of three administrators sign what has an effect; whoever is asked to sends it. Nothing here is of any use
to a node that did not see it happen, so all of it travels as operations do.
"""

from __future__ import annotations

import dataclasses
from random import Random
from typing import TYPE_CHECKING, Final

from crdt_merge_protocol.operations import Act as SignedByAdmins
from crdt_merge_protocol.operations import Ban, Erase, Kind, Receipt, Remove, Revoke
from crdt_merge_protocol.state import CRDTMergeState

from .engine_node import SimulatedNode
from .plan import Act

if TYPE_CHECKING:
    from .engine_core import World

ADMINS: Final = 3
QUORUM: Final = 2


def sign(world: World, group: bytes, act: SignedByAdmins, count: int = QUORUM) -> SignedByAdmins:
    """Return an act with the signatures of so many administrators."""
    for node in world.nodes[:count]:
        act = act.signed_by(node.key, group)
    return act


def administer(world: World, node: SimulatedNode, group: bytes, act: Act) -> None:
    """Have a node send an act, a receipt, or an act of old once more."""
    state = node.engine.replicas[group].state
    rng = world.stream("administer", act.index)
    kind, body, refs = _said(world, state, str(act.args["what"]), rng)
    if not body:
        return
    signed = node.author(group, kind, body, refs)
    world.checker.sometimes[f"an administrator's {act.args['what']}"] += 1
    world.note(f"{node.name} sends {act.args['what']} {signed.id.hex()[:8]}")


def _said(
    world: World, state: CRDTMergeState, what: str, rng: Random
) -> tuple[int, bytes, tuple[bytes, ...]]:
    """Return kind, body and references; no body if there is nothing to say it of."""
    nothing = int(Kind.BAN), b"", ()
    if what == "receipt":
        erasures = tuple(sorted(state.view.decided.erasures))
        return (Kind.RECEIPT, Receipt(erasures=erasures).encode(), erasures) if erasures else nothing
    if what == "again":
        if not state.acts:
            return nothing
        old = state.get(rng.choice(sorted(state.acts)))
        assert old is not None, "acts are kept"
        operation = old.operation
        return operation.kind, operation.body, operation.refs if rng.random() < 0.7 else ()
    act, refs = _act(world, state, what, rng)
    if act is None:
        return nothing
    quorum = QUORUM if what != "unsigned" else 1
    return act.KIND, sign(world, state.group, act, quorum).encode(), refs


def _act(
    world: World, state: CRDTMergeState, what: str, rng: Random
) -> tuple[SignedByAdmins | None, tuple[bytes, ...]]:
    """Return an act that nobody has signed yet, and what it must name."""
    nonce = rng.randbytes(16)
    if what in {"revoke", "unsigned"}:
        known = sorted(signed.id for signed in state.causal())
        heads = tuple(sorted(rng.sample(known, min(len(known), rng.randint(0, 3)))))
        key = rng.choice(world.nodes[-(len(world.nodes) // 3) :]).id
        return Revoke(key=key, heads=heads, nonce=nonce), heads
    if not state.view.visible:
        return None, ()
    shown = rng.choice(state.view.visible)
    if what == "ban":
        return Ban(contents=(shown.content,), nonce=nonce), ()
    if what == "erase":
        return Erase(contents=(shown.content,), tags=(shown.tag,), nonce=nonce), (shown.tag,)
    return dataclasses.replace(Remove(targets=(shown.tag,)), nonce=nonce), (shown.tag,)
