"""Contributions: listing, removing."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from typing import Final

from crdt_merge_protocol.operations import Add, Kind, Remove, read_body
from crdt_merge_protocol.view import View

from crdt_merge_node.contents import GroupContents, Item, Selection
from crdt_merge_node.control.model import ContributionInfo, ContributionsRemoved, ContributionState
from crdt_merge_node.errors import InvalidRequestError
from crdt_merge_node.services import Services

from .act_words import Reasons
from .naming import find_tag

REMOVE_TAGS_MAX: Final = 512
"""Tags in one REMOVE; they stand in the body and in the references."""
HIDDEN_MAX: Final = 1000
"""Superseded and removed contributions in one listing."""
_ORDER = (
    ContributionState.USED,
    ContributionState.MISSING,
    ContributionState.PENDING,
    ContributionState.QUARANTINED,
    ContributionState.HIDDEN,
)


async def contribution_list(services: Services, group: bytes) -> tuple[ContributionInfo, ...]:
    """Return the contributions of a group: used ones first, then by state, author, slot.

    Of the hidden ones only the newest: a group keeps every contribution that was ever superseded.
    """
    contents = await services.keeper.current(group)
    state = services.engine.replicas[group].state
    hidden = heapq.nlargest(HIDDEN_MAX, state.adds - contents.items.keys(), key=state.depth)
    infos = [*shown_contributions(services, group, contents)]
    reasons = Reasons(services, group)
    infos += [_hidden(services, group, contents, tag, reasons) for tag in hidden]
    return tuple(
        sorted(infos, key=lambda i: (_ORDER.index(ContributionState(i.state)), i.author, i.slot, i.tag))
    )


def shown_contributions(
    services: Services, group: bytes, contents: GroupContents, selection: Selection | None = None
) -> Iterator[ContributionInfo]:
    """Yield the contributions that are visible or pending, as a resolve would use them."""
    underway = services.keeper.underway()
    idle = idle_items(contents, selection or contents.select())
    for item in contents.items.values():
        yield _shown(services, group, item, underway, idle.get(item.visible.tag))


async def contribution_show(services: Services, group: bytes, text: str) -> ContributionInfo:
    """Return one contribution, named by tag, digest, or one's own slot."""
    contents = await services.keeper.current(group)
    infos = {bytes.fromhex(info.tag): info for info in shown_contributions(services, group, contents)}
    own = [info for info in infos.values() if info.is_own and info.slot == text]
    named = own or [info for info in infos.values() if info.digest == text.lower()]
    if named:
        return named[0]
    state = services.engine.replicas[group].state
    tag = find_tag(text, state.adds, group_name=state.genesis.name)
    return infos.get(tag) or _hidden(services, group, contents, tag, Reasons(services, group))


async def remove_contributions(services: Services, group: bytes, target: str) -> ContributionsRemoved:
    """Remove one's own contribution: a tag, or a slot with every tag in it that this node has seen."""
    state = services.engine.replicas[group].state
    own = {
        tag: body
        for tag in sorted(state.adds - state.removes)
        if (signed := state.get(tag)) is not None
        and signed.operation.author == services.engine.node
        and isinstance(body := read_body(signed.operation), Add)
    }
    tags = tuple(tag for tag, body in own.items() if body.slot == target)
    if not tags:
        tag = find_tag(target, state.adds - state.removes, group_name=state.genesis.name)
        if tag not in own:
            raise InvalidRequestError(
                f"contribution {tag.hex()[:12]} is another node's.",
                hint="Administrators of the group remove it by an act; resolve --without TAG leaves one out.",
            )
        tags = (tag,)
    operation = b""
    for start in range(0, len(tags), REMOVE_TAGS_MAX):
        page = tags[start : start + REMOVE_TAGS_MAX]
        signed = await services.driver.author(group, Kind.REMOVE, Remove(targets=page).encode(), page)
        operation = signed.id
    return ContributionsRemoved(
        group=group.hex(), tags=tuple(tag.hex() for tag in tags), operation=operation.hex()
    )


def idle_items(contents: GroupContents, selection: Selection) -> dict[bytes, tuple[ContributionState, str]]:
    """Return what is sound and not used nevertheless, by tag, and why. What was left out is not among it."""
    used = {item.visible.tag for item in (*selection.models, *selection.artefacts)}
    idle = {}
    for tag, item in contents.items.items():
        digest = item.visible.digest
        if not item.is_sound or tag in used:
            continue
        if item.is_model:
            if digest in selection.choice.lacking:
                idle[tag] = ContributionState.QUARANTINED, selection.choice.lacking[digest]
        elif (why := selection.choice.unfit.get(digest)) is not None:
            idle[tag] = ContributionState.HIDDEN, why.reason
        elif any(digest == artefact.visible.digest for artefact in selection.artefacts):
            continue  # Another author's, of the same bytes, is what is used.
        else:
            idle[tag] = ContributionState.HIDDEN, f'type "{item.visible.type}" is not used by this strategy'
    return idle


def _shown(
    services: Services,
    group: bytes,
    item: Item,
    underway: Mapping[bytes, int],
    idle: tuple[ContributionState, str] | None,
) -> ContributionInfo:
    visible = item.visible
    missing = {blob: size for blob, size in item.missing.items() if blob != visible.content}
    if item.problem:
        state, reason = ContributionState.QUARANTINED, item.problem
    elif item.is_pending:
        needed = services.engine.replicas[group].state.view.policy.holders
        state, reason = ContributionState.PENDING, f"{visible.holders} of {needed} holders"
    elif not item.is_judged:
        state, reason = ContributionState.MISSING, _waiting_for(item)
    elif idle is not None:
        state, reason = idle
    else:
        state, reason = ContributionState.USED, ""
    return ContributionInfo(
        tag=visible.tag.hex(),
        group=group.hex(),
        author=visible.author.hex(),
        author_name=services.driver.name(visible.author),
        is_own=visible.author == services.engine.node,
        slot=visible.slot,
        type=visible.type,
        content=visible.content.hex(),
        digest=visible.digest.hex(),
        weight=visible.weight,
        state=state.value,
        reason=reason,
        tensors=item.tensors,
        nbytes=item.nbytes,
        missing_blobs=len(missing),
        missing_bytes=sum(underway.get(blob, nbytes) for blob, nbytes in missing.items()),
        holders=visible.holders,
        depth=visible.depth,
        meta=item.meta,
    )


def _waiting_for(item: Item) -> str:
    if item.is_scanning:
        return "being scanned for NaN and infinity"
    if item.manifest is None:
        return "the manifest is not here yet" if item.missing else "the schema is not here yet"
    return f"{len(item.missing)} blobs are not here yet"


def is_superseded(view: View, author: bytes, add: Add) -> bool:
    """Tell whether another contribution stands in the slot of one."""
    place = author, add.type, add.slot
    return any((shown.author, shown.type, shown.slot) == place for shown in (*view.visible, *view.pending))


def _hidden(
    services: Services, group: bytes, contents: GroupContents, tag: bytes, reasons: Reasons
) -> ContributionInfo:
    state = services.engine.replicas[group].state
    signed = state.get(tag)
    assert signed is not None, "a tag of the state has its operation"
    add = read_body(signed.operation)
    assert isinstance(add, Add), "a tag is an ADD"
    author = signed.operation.author
    if why := reasons.of(tag):
        reason = why
    elif author in contents.view.forked:
        reason = "its author forked: two operations at one place of one log"
    elif not state.genesis.is_open and not is_superseded(contents.view, author, add):
        reason = "made before its author was admitted"
    else:
        reason = "superseded by a newer one in its slot"
    return ContributionInfo(
        tag=tag.hex(),
        group=group.hex(),
        author=author.hex(),
        author_name=services.driver.name(author),
        is_own=author == services.engine.node,
        slot=add.slot,
        type=add.type,
        content=add.content.hex(),
        digest=add.digest.hex(),
        weight=add.weight,
        state=ContributionState.HIDDEN.value,
        reason=reason,
        depth=state.depth(tag),
    )
