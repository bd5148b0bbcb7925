"""Adding a contribution: a model, or an artefact that strategies need besides models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Final

from crdt_merge_protocol.adapters import ADAPTER
from crdt_merge_protocol.blobs import payload_id
from crdt_merge_protocol.canonical import is_name
from crdt_merge_protocol.errors import (
    ArtefactStaleError,
    DTypeMismatchError,
    MissingBlobError,
    ParameterError,
    ShapeMismatchError,
    TensorMissingError,
)
from crdt_merge_protocol.limits import INLINE_BLOB_BYTES_MAX, PAYLOAD_BYTES_MAX, WEIGHT_ONE
from crdt_merge_protocol.operations import Add, Kind
from crdt_merge_protocol.packing import Packing, packing_id
from crdt_merge_protocol.quarantine import schema_problems
from crdt_merge_protocol.strategies.artefacts import SCOPES

from crdt_merge_node.background import finish
from crdt_merge_node.checkpoints.reading import Checkpoint, read_checkpoint
from crdt_merge_node.contents import ID_BYTES, MERGED, MODEL, GroupContents, write_payload
from crdt_merge_node.control.model import ContributionAdded, ContributionPlan, Placement, Progress
from crdt_merge_node.errors import InvalidRequestError, NotFoundError, did_you_mean, quoted
from crdt_merge_node.imports import ModelImport
from crdt_merge_node.judging import is_artefact
from crdt_merge_node.lora.files import WEIGHTS, is_adapter_directory
from crdt_merge_node.resolve.artefact_files import read_artefact_file
from crdt_merge_node.resolve.describe import describe_file
from crdt_merge_node.services import Services

from .act_words import banned_check
from .adapters import check_adapter, other_kind
from .contributions import contribution_show
from .naming import find_group

SALT_BYTES: Final = 16


async def add_contribution(
    services: Services,
    group_name: str,
    *,
    path: str,
    slot: str,
    kind: str,
    base_path: str | None,
    weight: int,
    meta: Mapping[str, str],
    wait_holds: int,
    may_link: bool = False,
) -> AsyncGenerator[ContributionPlan | Progress | ContributionAdded]:
    """Check a file against the group before a byte is copied, then import, sign, store and announce it."""
    services.driver.standing.check()
    group = find_group(services, group_name)
    contents = await services.keeper.current(group)
    _refuse_revoked(services, contents, group_name)
    if kind == MODEL and is_adapter_directory(services.fs, Path(path)):
        kind = ADAPTER  # As PEFT saves it; nothing else has such a configuration.
    plan = await _plan(services, group, contents, path=path, slot=slot, weight=weight, kind=kind)
    plan = await asyncio.to_thread(_placed, services, plan, may_link=may_link)
    _check_payload(meta)
    if wait_holds and contents.view.policy.holders == 0:
        raise InvalidRequestError(
            f'nodes of group "{plan.group_name}" do not announce what they hold.',
            hint=f"Turn it on first: crdt-merge-node policy set {plan.group_name} --holders 1",
        )
    if base_path is not None:
        await _check_base(contents, base_path)
    yield plan
    began = services.clock.monotonic()
    check = banned_check(services, group)
    async with services.imports.importing(Path(path), plan.type, may_link=may_link, check=check) as model:
        async with aclosing(model.steps(services)) as steps:
            async for step in steps:
                yield step
        tag = await _author_add(services, group, model, meta, slot=slot, weight=weight)
    holds = 0
    async with aclosing(_wait_holds(services, group, tag, wait_holds)) as counts:
        async for holds in counts:
            yield Progress(step=f"waiting for {wait_holds} holders", detail=f"{holds} so far")
    yield ContributionAdded(
        contribution=await contribution_show(services, group, tag.hex()),
        copied_bytes=model.copied_bytes,
        placed_bytes=model.placed_bytes,
        holds=holds,
        duration_s=services.clock.monotonic() - began,
    )


def _refuse_revoked(services: Services, contents: GroupContents, group_name: str) -> None:
    """Refuse before a byte is copied what no node would take."""
    if services.engine.node in contents.view.decided.revoked:
        raise InvalidRequestError(
            f'the key of this node was revoked in group "{group_name}": nothing that it adds counts.',
            hint=f"See: crdt-merge-node why {group_name}",
        )


async def _author_add(
    services: Services, group: bytes, model: ModelImport, meta: Mapping[str, str], *, slot: str, weight: int
) -> bytes:
    """Sign, store and announce a contribution whose tensors are here; return its tag."""
    assert model.manifest is not None, "it was imported"
    if model.check is not None:
        model.check(model.manifest.content)  # Much may have happened while it was read.
    payload = await _keep_payload(services, meta, model.packing)
    add = Add(
        slot=slot,
        type=model.kind,
        content=model.manifest.content,
        weight=weight,
        payload=payload,
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


async def _plan(
    services: Services,
    group: bytes,
    contents: GroupContents,
    *,
    path: str,
    slot: str,
    weight: int,
    kind: str,
) -> ContributionPlan:
    """Check what is offered, headers only, and say what adding it means."""
    name = services.engine.replicas[group].state.genesis.name
    _check_words(contents, name, slot=slot, weight=weight, kind=kind)
    header = await _read_header(services, contents, name, path=path, weight=weight, kind=kind)
    replaced = [
        item.visible.tag.hex()
        for item in contents.items.values()
        if item.visible.author == services.engine.node
        and (item.visible.type, item.visible.slot) == (kind, slot)
    ]
    nbytes = sum(entry.spec.nbytes for entry in header.entries)
    return ContributionPlan(
        group=group.hex(),
        group_name=name,
        path=path,
        slot=slot,
        type=kind,
        weight=weight,
        tensors=len(header.entries),
        nbytes=nbytes,
        new_bytes=nbytes,
        free_bytes=services.fs.disk_space(services.config.node.data_dir).free_bytes,
        fetching_peers=len(services.driver.connections),
        replaces=replaced[0] if replaced else "",
    )


def _check_words(contents: GroupContents, name: str, *, slot: str, weight: int, kind: str) -> None:
    """Refuse a slot, weight or type that no contribution can have."""
    if not is_name(slot):
        raise InvalidRequestError(
            f"{quoted(slot)} is no name of a slot.",
            hint="Use letters, digits, . _ / -, at most 200, without '..' or a leading . or /.",
        )
    cap = contents.view.policy.weight_cap
    if not 0 < weight <= cap:
        raise ParameterError(
            f"weight {weight / WEIGHT_ONE:g} is not above 0 and at most {cap / WEIGHT_ONE:g},"
            f' the cap of group "{name}".',
            hint="Weights only count relative to each other; an administrator can raise --weight-cap.",
        )
    if kind not in MERGED and not is_artefact(kind):
        known = [*sorted(MERGED), *SCOPES]
        raise InvalidRequestError(
            f'"{kind}" is no type of contribution.',
            hint=did_you_mean(kind, known) or f"Known: {', '.join(known)}.",
        )


async def _read_header(
    services: Services, contents: GroupContents, name: str, *, path: str, weight: int, kind: str
) -> Checkpoint:
    """Return the header of what is offered, or refuse what every node would set aside."""
    if contents.schema is None:
        raise MissingBlobError(
            f'the schema of group "{name}" is not here yet.', hint=f"See: crdt-merge-node why {name}"
        )
    if kind in MERGED and kind != contents.kind:
        raise other_kind(path, name, is_adapter=kind == ADAPTER)
    if kind == ADAPTER:
        return await asyncio.to_thread(check_adapter, services, contents, path, weight)
    header = await asyncio.to_thread(read_checkpoint, services.fs, Path(path))
    header.packing.encode()  # Refused before a byte is copied if it is too long to be kept.
    if kind == MODEL:
        specs = [entry.spec for entry in header.entries]
        problems = schema_problems(contents.schema, specs, any_float=contents.view.policy.takes_any_float)
        if problems:
            raise _schema_error(problems, path=path, group_name=name)
    else:
        await _check_artefact(services, contents, header, kind=kind)
    return header


def _placed(services: Services, plan: ContributionPlan, *, may_link: bool) -> ContributionPlan:
    """Return a plan that says whether the bytes are copied, which only trying tells."""
    place = Path(plan.path)
    checkpoint = read_checkpoint(services.fs, place / WEIGHTS if plan.type == ADAPTER else place)
    small = sum(e.spec.nbytes for e in checkpoint.entries if e.spec.nbytes <= INLINE_BLOB_BYTES_MAX)
    if small == checkpoint.nbytes:
        return plan  # Rows of the database, all of it.
    placement = services.store.blobs.kept.probe(checkpoint.files[0], may_link=may_link)
    if placement is Placement.COPIED:
        return plan
    return replace(plan, placement=placement.value, new_bytes=small)


async def _check_artefact(
    services: Services, contents: GroupContents, header: Checkpoint, *, kind: str
) -> None:
    """Refuse an artefact that every node would set aside, or that could never be chosen."""
    assert contents.schema is not None, "the caller has looked"
    path = header.path
    artefact = await asyncio.to_thread(read_artefact_file, services.fs, header, contents.schema, kind=kind)
    base = contents.view.policy.base or b""
    if artefact.base not in (b"", base):
        raise ArtefactStaleError(
            f"{path} was made for base {artefact.base.hex()[:12]}, "
            f"the group's is {base.hex()[:12] or 'none'}."
        )
    subject = artefact.subject
    authors = {
        item.visible.author
        for item in contents.items.values()
        if item.is_model and item.visible.digest == subject
    }
    if subject and services.engine.node not in authors:
        whose = "other nodes'" if authors else "no"
        raise InvalidRequestError(
            f"{path} is of {subject.hex()[:12]}, which is {whose} contribution.",
            hint="A node adds artefacts of what it contributed itself; `contribution show` says its digest, "
            "of which the weight is a part.",
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


def _check_payload(meta: Mapping[str, str]) -> None:
    nbytes = len(write_payload(bytes(SALT_BYTES), meta.items(), bytes(ID_BYTES)))
    if nbytes > PAYLOAD_BYTES_MAX:
        raise InvalidRequestError(
            f"{nbytes} bytes of notes; at most {PAYLOAD_BYTES_MAX} are kept.",
            hint="Keep the rest elsewhere and note where.",
        )


async def _keep_payload(services: Services, meta: Mapping[str, str], packing: Packing | None) -> bytes | None:
    """Store the notes, and how the files were, for others to fetch; return the id of the payload, if any."""
    if not meta and packing is None:
        return None
    put = services.store.blobs.put_object
    permit = services.store.blobs.permit
    packed = b""
    if packing is not None:
        data = packing.encode()
        packed = packing_id(data)
        await asyncio.to_thread(permit, [packed])  # Files of the same layout may have been erased.
        await asyncio.to_thread(put, packed, data)
    payload = write_payload(services.rng.bytes(SALT_BYTES), meta.items(), packed)
    await asyncio.to_thread(put, payload_id(payload), payload)
    return payload_id(payload)


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
