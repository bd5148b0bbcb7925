"""What ``why`` says of acts of administrators: what of this node does not count, and what is not erased."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from crdt_merge_protocol.state import CRDTMergeState

from crdt_merge_node.control.model import ErasureInfo, Reason
from crdt_merge_node.services import Services

from .act_making import add_of
from .act_words import Reasons
from .contributions import is_superseded
from .erasures import erasure_list

NAMED_MAX: Final = 32
WORDS_MAX: Final = 4


def act_reasons(services: Services, group: bytes) -> Iterator[Reason]:
    """Yield what keeps this node, or what it contributed, from counting, and outstanding erasures."""
    said = Reasons(services, group)
    state, own = services.engine.replicas[group].state, services.engine.node
    decided = state.view.decided
    if own in decided.revoked:
        yield _of_this_node(
            services,
            lacks="a key that counts in this group",
            waiting=said.of_author(own).replace("its author's key", "its key"),
            remedy="none for this key: a revocation is for good. A node with new keys may join.",
        )
    elif not state.genesis.is_open and own not in decided.admitted and _may_want_to_count(state, own):
        yield _not_admitted(services, group)
    yield from _own_hidden(services, group, said)
    yield from _erasures(services, group)


def _of_this_node(
    services: Services, *, lacks: str, waiting: str, remedy: str, missing: tuple[str, ...] = ()
) -> Reason:
    return Reason(
        subject=services.engine.node.hex(),
        subject_name=services.config.node.name,
        lacks=lacks,
        waiting=waiting,
        remedy=remedy,
        missing=missing,
    )


def _may_want_to_count(state: CRDTMergeState, own: bytes) -> bool:
    """Tell whether a node has contributed, or could do nothing else: who only administers lacks nothing."""
    return own not in state.genesis.admins or any(add_of(state, tag)[1] == own for tag in state.adds)


def _not_admitted(services: Services, group: bytes) -> Reason:
    genesis, own = services.engine.replicas[group].state.genesis, services.engine.node
    admins = [services.driver.name(admin) or admin.hex()[:12] for admin in genesis.admins]
    where = "" if own in genesis.admins else f"on a node of an administrator ({', '.join(admins)}): "
    return _of_this_node(
        services,
        lacks="the admission by which what it contributes counts",
        waiting="the group counts only authors whom administrators admitted",
        remedy=f"{where}crdt-merge-node group admit {genesis.name} {own.hex()}",
    )


def _own_hidden(services: Services, group: bytes, said: Reasons) -> Iterator[Reason]:
    """Yield what of this node's contributions is hidden for good, but where a newer one is in the slot."""
    state, own = services.engine.replicas[group].state, services.engine.node
    view, hidden, early = state.view, dict[bytes, str](), list[bytes]()
    if own in view.decided.revoked or (state.genesis.is_open and not (view.banned or state.removes)):
        return
    for tag in sorted(state.adds):
        add, author = add_of(state, tag)
        if author != own or is_superseded(view, author, add):
            continue
        if why := said.of_act_on(tag):
            hidden[tag] = why
        elif tag not in state.removes:
            early.append(tag)
    if hidden:
        words = list(dict.fromkeys(hidden.values()))
        yield _of_this_node(
            services,
            lacks=f"{len(hidden)} of its own contributions, which administrators hid",
            missing=tuple(tag.hex() for tag in [*hidden][:NAMED_MAX]),
            waiting="; ".join(words[:WORDS_MAX]),
            remedy="contribute something else: what is banned or erased never counts again",
        )
    if early and own in view.decided.admitted and own not in view.forked and not state.genesis.is_open:
        yield _of_this_node(
            services,
            lacks=f"{len(early)} of its own contributions, made before it was admitted",
            missing=tuple(tag.hex() for tag in early[:NAMED_MAX]),
            waiting="what was signed before an admission never counts",
            remedy=f"add them again: crdt-merge-node contribution add {state.genesis.name} FILE",
        )


def _erasures(services: Services, group: bytes) -> Iterator[Reason]:
    """Yield the nodes, by what they have not said to have destroyed."""
    due: dict[tuple[str, str], list[ErasureInfo]] = {}
    for erasure in erasure_list(services, group):
        for node in erasure.outstanding:
            due.setdefault((node.id, node.name), []).append(erasure)
    for (subject, name), erasures in sorted(due.items())[:NAMED_MAX]:
        is_own = subject == services.engine.node.hex()
        reasons = dict.fromkeys(erasure.act.reason for erasure in erasures)
        yield Reason(
            subject=subject,
            subject_name=services.config.node.name if is_own else name,
            lacks=f"the receipts of {len(erasures)} erasures"
            if erasures[1:]
            else "the receipt of an erasure",
            missing=tuple(erasure.act.operation for erasure in erasures[:NAMED_MAX]),
            waiting="erased: " + "; ".join([*reasons][:WORDS_MAX]),
            remedy="see its log for erasure.failed: crdt-merge-node events"
            if is_own
            else f"start it. If it will not come back: crdt-merge-node peer forget {name or subject[:12]}",
        )
