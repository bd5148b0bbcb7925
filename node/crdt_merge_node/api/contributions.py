"""Contributions: adding, listing, removing."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Final

from crdt_merge_protocol.blobs import payload_id
from crdt_merge_protocol.canonical import encode, is_name
from crdt_merge_protocol.errors import (
    DTypeMismatchError,
    MissingBlobError,
    ParameterError,
    ShapeMismatchError,
    TensorMissingError,
)
from crdt_merge_protocol.limits import PAYLOAD_BYTES_MAX, WEIGHT_ONE
from crdt_merge_protocol.operations import Add, Kind, Remove, read_body
from crdt_merge_protocol.quarantine import schema_problems

from crdt_merge_node.background import finish
from crdt_merge_node.contents import MODEL, GroupContents, Item, notes
from crdt_merge_node.control.model import (
    ContributionAdded,
    ContributionInfo,
    ContributionPlan,
    ContributionsRemoved,
    ContributionState,
    Progress,
)
from crdt_merge_node.errors import InvalidRequestError, NotFoundError
from crdt_merge_node.imports import ModelImport
from crdt_merge_node.resolve import describe_file, read_header
from crdt_merge_node.services import Services

from .naming import find_group, find_tag

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
    infos += [_hidden(services, group, contents, tag) for tag in hidden]
    return tuple(
        sorted(infos, key=lambda i: (_ORDER.index(ContributionState(i.state)), i.author, i.slot, i.tag))
    )


def shown_contributions(
    services: Services, group: bytes, contents: GroupContents
) -> Iterator[ContributionInfo]:
    """Yield the contributions that are visible or pending."""
    underway = services.keeper.underway()
    for item in contents.items.values():
        yield _shown(services, group, item, underway)


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
    return infos.get(tag) or _hidden(services, group, contents, tag)


async def add_contribution(
    services: Services,
    group_name: str,
    *,
    path: str,
    slot: str,
    base_path: str | None,
    weight: int,
    meta: Mapping[str, str],
    wait_holds: int,
) -> AsyncGenerator[ContributionPlan | Progress | ContributionAdded]:
    """Check a file against the group before a byte is copied, then import, sign, store and announce it."""
    group = find_group(services, group_name)
    contents = await services.keeper.current(group)
    plan = await _plan(services, group, contents, path=path, slot=slot, weight=weight)
    payload = _payload(services, meta)
    if wait_holds and contents.view.policy.holders == 0:
        raise InvalidRequestError(
            f'nodes of group "{plan.group_name}" do not announce what they hold.',
            hint=f"Turn it on first: crdt-merge-node policy set {plan.group_name} --holders 1",
        )
    if base_path is not None:
        await _check_base(contents, base_path)
    yield plan
    began = services.clock.monotonic()
    async with services.imports.importing(Path(path)) as model:
        async with aclosing(model.steps(services)) as steps:
            async for step in steps:
                yield step
        tag = await _author_add(services, group, model, payload, slot=slot, weight=weight)
    holds = 0
    async with aclosing(_wait_holds(services, group, tag, wait_holds)) as counts:
        async for holds in counts:
            yield Progress(step=f"waiting for {wait_holds} holders", detail=f"{holds} so far")
    yield ContributionAdded(
        contribution=await contribution_show(services, group, tag.hex()),
        copied_bytes=model.copied_bytes,
        holds=holds,
        duration_s=services.clock.monotonic() - began,
    )


async def _author_add(
    services: Services, group: bytes, model: ModelImport, payload: bytes, *, slot: str, weight: int
) -> bytes:
    """Sign, store and announce a contribution whose tensors are here; return its tag."""
    assert model.manifest is not None, "it was imported"
    if payload:
        await asyncio.to_thread(services.store.blobs.put_object, payload_id(payload), payload)
    add = Add(
        slot=slot,
        type=MODEL,
        content=model.manifest.content,
        weight=weight,
        payload=payload_id(payload) if payload else None,
    )
    # Not to be interrupted: from the signature on, only storage decides whether the contribution exists.
    signed = await finish(services.driver.author(group, Kind.ADD, add.encode()), then=lambda _: model.keep())
    return signed.id


async def _wait_holds(services: Services, group: bytes, tag: bytes, wanted: int) -> AsyncGenerator[int]:
    """Yield how many other nodes hold a contribution, until enough do (PROTOCOL R21)."""
    holds = 0
    while holds < wanted:
        generation = services.keeper.generation(group)
        holds = _holders(services, group, tag)
        yield holds
        if holds < wanted:
            await services.keeper.beyond(group, generation)


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
                hint="A node removes its own contributions; resolve --without TAG leaves one out.",
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


async def _plan(
    services: Services, group: bytes, contents: GroupContents, *, path: str, slot: str, weight: int
) -> ContributionPlan:
    name, policy = services.engine.replicas[group].state.genesis.name, contents.view.policy
    if not is_name(slot):
        raise InvalidRequestError(
            f'"{slot}" is no name of a slot.',
            hint="Use letters, digits, . _ / -, at most 200, without '..' or a leading . or /.",
        )
    if not 0 < weight <= policy.weight_cap:
        raise ParameterError(
            f"weight {weight / WEIGHT_ONE:g} is not above 0 and at most {policy.weight_cap / WEIGHT_ONE:g},"
            f' the cap of group "{name}".',
            hint="Weights only count relative to each other; an administrator can raise --weight-cap.",
        )
    if contents.schema is None:
        raise MissingBlobError(
            f'the schema of group "{name}" is not here yet.', hint=f"See: crdt-merge-node why {name}"
        )
    header = await asyncio.to_thread(read_header, services.fs, Path(path))
    specs = [entry.spec for entry in header.entries]
    problems = schema_problems(contents.schema, specs)
    if problems:
        raise _schema_error(problems, path=path, group_name=name)
    replaced = [
        item.visible.tag.hex()
        for item in contents.items.values()
        if item.visible.author == services.engine.node and item.visible.slot == slot
    ]
    nbytes = sum(spec.nbytes for spec in specs)
    return ContributionPlan(
        group=group.hex(),
        group_name=name,
        path=path,
        slot=slot,
        weight=weight,
        tensors=len(specs),
        nbytes=nbytes,
        new_bytes=nbytes,
        free_bytes=services.fs.disk_space(services.config.node.data_dir).free_bytes,
        fetching_peers=len(services.driver.connections),
        replaces=replaced[0] if replaced else "",
    )


def _schema_error(problems: list[str], *, path: str, group_name: str) -> Exception:
    first = problems[0]
    message = f'{path} does not have the schema of group "{group_name}": ' + "; ".join(problems) + "."
    kind: type[ShapeMismatchError | DTypeMismatchError | TensorMissingError] = TensorMissingError
    if "shape" in first:
        kind = ShapeMismatchError
    elif "element type" in first:
        kind = DTypeMismatchError
    return kind(message, hint="Nothing was copied.")


def _payload(services: Services, meta: Mapping[str, str]) -> bytes:
    """Return the salted notes: their hash tells nobody what they were once they are erased."""
    if not meta:
        return b""
    payload = encode([services.rng.bytes(16), notes(meta.items())])
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise InvalidRequestError(
            f"{len(payload)} bytes of notes; at most {PAYLOAD_BYTES_MAX} are kept.",
            hint="Keep the rest elsewhere and note where.",
        )
    return payload


async def _check_base(contents: GroupContents, base_path: str) -> None:
    base = contents.view.policy.base
    described = await asyncio.to_thread(describe_file, Path(base_path), WEIGHT_ONE)
    if described.manifest.content != base:
        ours = base.hex()[:12] if base else "none"
        raise InvalidRequestError(
            f"{base_path} is not the base of the group: {described.manifest.content.hex()[:12]} ≠ {ours}.",
            hint="A contribution must be trained from the group's own base, or say nothing about it.",
        )


def _holders(services: Services, group: bytes, tag: bytes) -> int:
    view = services.engine.replicas[group].state.view
    for visible in (*view.visible, *view.pending):
        if visible.tag == tag:
            return visible.holders
    raise NotFoundError(f"contribution {tag.hex()[:12]} was superseded or removed meanwhile.")


def _shown(services: Services, group: bytes, item: Item, underway: Mapping[bytes, int]) -> ContributionInfo:
    visible = item.visible
    missing = {blob: size for blob, size in item.missing.items() if blob != visible.content}
    if item.problem:
        state, reason = ContributionState.QUARANTINED, item.problem
    elif item.is_pending:
        needed = services.engine.replicas[group].state.view.policy.holders
        state, reason = ContributionState.PENDING, f"{visible.holders} of {needed} holders"
    elif not item.is_judged:
        state, reason = ContributionState.MISSING, _waiting_for(item)
    elif visible.type != MODEL:
        state, reason = ContributionState.HIDDEN, f'type "{visible.type}" is not used by this strategy'
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


def _hidden(services: Services, group: bytes, contents: GroupContents, tag: bytes) -> ContributionInfo:
    state = services.engine.replicas[group].state
    signed = state.get(tag)
    assert signed is not None, "a tag of the state has its operation"
    add = read_body(signed.operation)
    assert isinstance(add, Add), "a tag is an ADD"
    author = signed.operation.author
    if tag in state.removes:
        reason = "removed by its author"
    elif author in contents.view.forked:
        reason = "its author forked: two operations at one place of one log"
    elif contents.view.unjudged:
        reason = contents.view.unjudged
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
