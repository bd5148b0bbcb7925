"""Groups and policies: creating, showing, changing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path

from crdt_merge_protocol.blobs import Manifest, Schema
from crdt_merge_protocol.canonical import is_name
from crdt_merge_protocol.errors import ParameterError
from crdt_merge_protocol.genesis import Genesis
from crdt_merge_protocol.operations import Kind, PolicyAct
from crdt_merge_protocol.policy import DEFAULT_WEIGHT_CAP, Policy, act_digest, sign_act, sorted_params
from crdt_merge_protocol.strategies import registry
from crdt_merge_protocol.strategies.contract import Strategy

from crdt_merge_node.background import Done, run_with_progress
from crdt_merge_node.contents import GroupContents
from crdt_merge_node.control.model import (
    GroupDetail,
    GroupInfo,
    OutputInfo,
    PolicyChanges,
    PolicyInfo,
    Progress,
)
from crdt_merge_node.errors import InvalidRequestError
from crdt_merge_node.imports import import_model
from crdt_merge_node.resolve import read_header
from crdt_merge_node.services import Services
from crdt_merge_node.telemetry.logging import get_logger

from .contributions import contribution_list
from .naming import find_group

log = get_logger()


async def group_info(services: Services, group: bytes) -> GroupInfo:
    """Return a group in one line."""
    state = services.engine.replicas[group].state
    contents = services.keeper.contents(group) or await services.keeper.current(group)
    view, missing = contents.view, contents.missing
    live = services.driver.connections.keys()
    converged = sum(services.engine.reconciler.is_equal(peer, group) for peer in live)
    root, key = contents.keys() if contents.is_complete else (b"", b"")
    remaining = services.keeper.remaining(missing)
    return GroupInfo(
        id=group.hex(),
        name=state.genesis.name,
        is_followed=services.keeper.is_followed(group),
        strategy=view.policy.strategy,
        policy_version=view.policy.version,
        operations=len(state),
        contributions=len(view.visible),
        used=len(contents.used),
        pending=len(view.pending),
        quarantined=sum(bool(item.problem) for item in contents.items.values()),
        missing_blobs=len(missing),
        missing_bytes=remaining,
        sync_root=state.sync_root.hex(),
        used_root=root.hex(),
        resolve_key=key.hex(),
        converged_peers=converged,
        live_peers=len(live),
        is_converged=converged == len(live),
        unjudged=view.unjudged,
    )


async def group_detail(services: Services, group: bytes) -> GroupDetail:
    """Return a group with its policy, contributions and announced outputs."""
    contents = await services.keeper.current(group)
    info = await group_info(services, group)
    outputs = []
    if info.resolve_key:
        writers = services.engine.attestations.writers(group, bytes.fromhex(info.resolve_key))
        for node, output in sorted(writers.items()):
            agreeing = sum(other == output for other in writers.values()) == len(writers)
            outputs.append(
                OutputInfo(
                    node=node.hex(),
                    resolve_key=info.resolve_key,
                    output_digest=output.hex(),
                    is_agreeing=agreeing,
                )
            )
    return GroupDetail(
        info=info,
        policy=policy_info(services, group, contents),
        contributions=await contribution_list(services, group),
        outputs=tuple(outputs),
    )


def policy_info(services: Services, group: bytes, contents: GroupContents) -> PolicyInfo:
    """Return the current policy."""
    genesis, view = services.engine.replicas[group].state.genesis, contents.view
    policy, schema = view.policy, contents.schema
    return PolicyInfo(
        group=group.hex(),
        group_name=genesis.name,
        id=view.policy_id.hex() if view.policy_id else "",
        version=policy.version,
        strategy=policy.strategy,
        strategy_version=policy.strategy_version,
        params=dict(policy.params),
        schema=policy.schema.hex(),
        tensors=len(schema.specs) if schema else 0,
        nbytes=sum(spec.nbytes for spec in schema.specs) if schema else 0,
        base=policy.base.hex() if policy.base else "",
        dtype=policy.dtype,
        weight_cap=policy.weight_cap,
        holders=policy.holders,
        seed_rule=policy.seed_rule,
        admins=tuple(admin.hex() for admin in genesis.admins),
        quorum=genesis.quorum,
    )


async def create_group(
    services: Services,
    *,
    name: str,
    strategy: str,
    params: Mapping[str, str],
    base_path: str | None,
    like_path: str | None,
    dtype: str,
    weight_cap: int,
    holders: int,
) -> AsyncGenerator[Progress | GroupInfo]:
    """Create a group of which this node is the one admin."""
    if not is_name(name):
        raise InvalidRequestError(
            f'"{name}" is no name of a group.',
            hint="Use letters, digits, . _ / -, at most 200, without '..' or a leading . or /.",
        )
    if base_path is None and like_path is None:
        raise InvalidRequestError(
            "a group needs a schema: the names, shapes and element types of its tensors.",
            hint="Name a safetensors file: --base FILE (the common base model) or --like FILE (schema only).",
        )
    chosen = _check_strategy(strategy, params, has_base=base_path is not None, dtype=dtype)
    base: Manifest | None = None
    if base_path is not None:
        async for step in _import_base(services, base_path):
            if isinstance(step, Done):
                base = step.value
            else:
                yield step
    schema = base.schema if base else await _schema_of(services, str(like_path))
    if base and like_path and (await _schema_of(services, like_path)).id != schema.id:
        raise InvalidRequestError(f"{base_path} and {like_path} have different schemas.")
    await asyncio.to_thread(services.store.blobs.put_object, schema.id, schema.encode())
    policy = Policy(
        strategy=chosen.id,
        strategy_version=chosen.version,
        params=sorted_params(chosen.normalise(params)),
        schema=schema.id,
        base=base.content if base else None,
        dtype=dtype,
        weight_cap=weight_cap or DEFAULT_WEIGHT_CAP,
        holders=holders,
    )
    genesis = Genesis(
        nonce=services.rng.bytes(16),
        name=name,
        admins=(services.engine.node,),
        quorum=1,
        is_open=True,
        policy=policy,
    )
    await services.driver.create_group(genesis)
    log.info("group.created", group=genesis.group, name=name)
    await services.keeper.current(genesis.group)
    yield await group_info(services, genesis.group)


async def change_policy(
    services: Services, group_name: str, changes: PolicyChanges
) -> AsyncGenerator[Progress | PolicyInfo]:
    """Sign and announce the next version of a policy."""
    group = find_group(services, group_name)
    state = services.engine.replicas[group].state
    genesis, view = state.genesis, state.view
    if services.engine.node not in genesis.admins:
        admins = ", ".join(admin.hex()[:12] for admin in genesis.admins)
        raise InvalidRequestError(
            f'this node is no administrator of group "{genesis.name}".', hint=f"Ask one of: {admins}."
        )
    if genesis.quorum > 1:
        raise InvalidRequestError(
            f'group "{genesis.name}" needs {genesis.quorum} administrators\' signatures for an act.',
            hint="This release cannot collect signatures of several nodes.",
        )
    policy, base = view.policy, view.policy.base
    strategy = changes.strategy or policy.strategy
    kept = dict(policy.params) if registry.get(strategy).id == policy.strategy else {}
    params = {key: value for key, value in (kept | dict(changes.params)).items() if value}
    schema_id = policy.schema
    if changes.base_path is not None:
        async for step in _import_base(services, changes.base_path):
            if isinstance(step, Done):
                base, schema_id = step.value.content, step.value.schema.id
                schema = step.value.schema
                await asyncio.to_thread(services.store.blobs.put_object, schema.id, schema.encode())
            else:
                yield step
    dtype = policy.dtype if changes.dtype is None else changes.dtype
    chosen = _check_strategy(strategy, params, has_base=base is not None, dtype=dtype)
    following = policy.next(
        strategy=chosen.id,
        strategy_version=chosen.version,
        params=chosen.normalise(params),
        base=base,
        schema=schema_id,
        dtype=dtype,
        weight_cap=policy.weight_cap if changes.weight_cap is None else changes.weight_cap,
        holders=policy.holders if changes.holders is None else changes.holders,
    )
    nonce = services.rng.bytes(16)
    act = act_digest(group, Kind.POLICY, following.encode(), nonce)
    signatures = (sign_act(services.identity.node_key, act),)
    body = PolicyAct(policy=following, nonce=nonce, signatures=signatures).encode()
    refs = (view.policy_id,) if view.policy_id else ()
    await services.driver.author(group, Kind.POLICY, body, refs)
    yield policy_info(services, group, await services.keeper.current(group))


def _check_strategy(strategy: str, params: Mapping[str, str], *, has_base: bool, dtype: str) -> Strategy:
    """Refuse before any byte is read what could never be resolved."""
    chosen = registry.get(strategy)
    chosen.validate(params)
    if chosen.base == "required" and not has_base:
        raise InvalidRequestError(
            f"{chosen.id} works on differences from a base model.", hint="Name it: --base FILE."
        )
    if dtype and dtype not in ("F64", "F32", "F16", "BF16"):
        raise ParameterError(f'"{dtype}" is no element type of an output.', hint="Use F64, F32, F16 or BF16.")
    return chosen


async def _schema_of(services: Services, path: str) -> Schema:
    header = await asyncio.to_thread(read_header, services.fs, Path(path))
    return Schema.of(entry.spec for entry in header.entries)


async def _import_base(services: Services, path: str) -> AsyncGenerator[Progress | Done[Manifest]]:
    async for step in run_with_progress(
        lambda report, cancelled: import_model(services, Path(path), report=report, is_cancelled=cancelled)
    ):
        if isinstance(step, Done):
            imported = step.value
            await services.keeper.note_finite(imported.manifest.content, is_finite=True)
            yield Done(imported.manifest)
        else:
            yield step
