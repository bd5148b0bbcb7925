"""What acts of administrators say, in words, and whom they concern."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields

from crdt_merge_protocol.acts import Act, Admit, Ban, Erase, PolicyAct, Revoke
from crdt_merge_protocol.bodies import Remove
from crdt_merge_protocol.operations import read_body
from crdt_merge_protocol.policy import Policy, count_signers
from crdt_merge_protocol.state import CRDTMergeState

from crdt_merge_node.act_files import WORDS
from crdt_merge_node.control.model import ActInfo, ActItem
from crdt_merge_node.errors import BannedError
from crdt_merge_node.services import Services

from .act_making import add_of


def in_force(services: Services, group: bytes) -> Iterator[tuple[bytes, Act]]:
    """Yield (operation id, act) of every act with an effect, policies aside, in causal order."""
    state = services.engine.replicas[group].state
    for signed in state.causal(state.acts):
        act = read_body(signed.operation)
        if isinstance(act, Act) and not isinstance(act, PolicyAct):
            yield signed.id, act


def describe(services: Services, group: bytes, act: Act, *, operation: bytes = b"") -> ActInfo:
    """Return an act in words."""
    state = services.engine.replicas[group].state
    genesis, digest = state.genesis, act.digest(group)
    signers = sorted(
        {pair[0] for pair in act.signatures if count_signers(digest, [pair], genesis.admins) == 1}
    )
    return ActInfo(
        group=group.hex(),
        group_name=genesis.name,
        kind=WORDS[act.KIND].value,
        reason=getattr(act, "reason", ""),
        items=tuple(_items(services, state, act)),
        details=tuple(_details(state, act)),
        signers=tuple(admin.hex() for admin in signers),
        admins=tuple(admin.hex() for admin in genesis.admins),
        quorum=genesis.quorum,
        needed=max(0, genesis.quorum - len(signers)),
        operation=operation.hex(),
    )


class Reasons:
    """Why contributions of one group count for nothing by what administrators did, in words."""

    def __init__(self, services: Services, group: bytes) -> None:
        self._state = services.engine.replicas[group].state
        self._by_content: dict[bytes, str] = {}
        self._by_tag: dict[bytes, str] = {}
        self._by_author: dict[bytes, str] = {}
        decided = self._state.view.decided
        if not (decided.banned or decided.revoked or self._state.removes):
            return
        for operation, act in in_force(services, group):
            reason = getattr(act, "reason", "")
            why = f": {reason}" if reason else ""
            by = f"(act {operation.hex()[:12]})"
            if isinstance(act, Ban | Erase):
                done = "erased" if isinstance(act, Erase) else "banned"
                for content in act.contents:
                    if done == "erased" or content not in self._by_content:
                        self._by_content[content] = f"{done}{why} {by}"
            elif isinstance(act, Remove):
                self._by_tag.update((tag, f"removed by administrators {by}") for tag in act.targets)
            elif isinstance(act, Revoke):
                self._by_author[act.key] = f"its author's key was revoked{why} {by}"

    def of_content(self, content: bytes) -> str:
        """Return why a content is banned or erased; empty if it is not."""
        return self._by_content.get(content, "")

    def of_author(self, author: bytes) -> str:
        """Return why nothing new of an author counts; empty if its key is not revoked."""
        return self._by_author.get(author, "")

    def of_act_on(self, tag: bytes) -> str:
        """Return why administrators hid this very contribution; empty if they did not."""
        return self.of_content(add_of(self._state, tag)[0].content) or self._by_tag.get(tag, "")

    def of(self, tag: bytes) -> str:
        """Return why a contribution is not shown, if administrators are the reason."""
        add, author = add_of(self._state, tag)
        if why := self.of_content(add.content):
            return why
        if tag in self._state.removes:
            return self._by_tag.get(tag, "removed by its author")
        if author in self._by_author:
            return self._by_author[author]
        if self._state.genesis.is_open:
            return ""
        if author not in self._state.view.decided.admitted:
            return "its author is not admitted"
        return ""


def banned_check(services: Services, group: bytes) -> Callable[[bytes], None] | None:
    """Return what refuses contents that a group has banned or erased; None: it has none.

    The function raises BannedError, which names the act.
    """
    state = services.engine.replicas[group].state
    if not state.view.decided.banned:
        return None

    def check(content: bytes) -> None:
        if content in state.view.decided.banned:
            why = Reasons(services, group).of_content(content) or "banned"
            raise BannedError(
                f'this content cannot be contributed to group "{state.genesis.name}": it was {why}.',
                hint="A ban is by content and for good: other tensors are taken.",
            )

    return check


def _items(services: Services, state: CRDTMergeState, act: Act) -> Iterator[ActItem]:
    match act:
        case Remove(targets=tags) | Erase(tags=tags):
            for tag in tags:
                yield ActItem(id=tag.hex(), what=_contribution(services, state, tag))
        case Admit(author=key) | Revoke(key=key):
            yield ActItem(id=key.hex(), what=services.driver.name(key) or "a node that is not known here")
    if isinstance(act, Ban | Erase):
        known: dict[bytes, list[bytes]] = {}
        for tag in state.adds:
            known.setdefault(add_of(state, tag)[0].content, []).append(tag)
        for content in act.contents:
            count = len(known.get(content, ()))
            what = f"content of {count} contribution{'' if count == 1 else 's'}"
            yield ActItem(id=content.hex(), what=what if count else "content that is not known here")


def _contribution(services: Services, state: CRDTMergeState, tag: bytes) -> str:
    if tag not in state.adds:
        return "a contribution that is not known here"
    add, author = add_of(state, tag)
    return f"{add.type} of {named(services, author)} in slot {add.slot}"


def named(services: Services, node: bytes) -> str:
    """Return what people call a node."""
    if node == services.engine.node:
        return "this node"
    name = services.driver.name(node)
    return f"{name} ({node.hex()[:12]})" if name else node.hex()[:12]


def _details(state: CRDTMergeState, act: Act) -> Iterator[str]:
    if isinstance(act, Revoke):
        heads = ", ".join(head.hex()[:12] for head in act.heads)
        yield f"still counts: what {heads} were made after" if heads else "nothing of it counts any more"
    if isinstance(act, PolicyAct):
        before, after = state.view.policy, act.policy
        for field in fields(Policy):
            old, new = getattr(before, field.name), getattr(after, field.name)
            if old != new:
                yield f"{field.name}: {_value(old)} -> {_value(new)}"


def _value(value: object) -> str:
    if isinstance(value, bytes):
        return value.hex()[:12]
    if isinstance(value, tuple):
        return ", ".join(f"{name}={text}" for name, text in value) or "none"
    return "none" if value in (None, "") else str(value)
