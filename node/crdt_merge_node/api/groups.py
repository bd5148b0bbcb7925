"""Groups and policies: creating, showing, changing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from crdt_merge_protocol.adapter_rules import split_params, write_rules
from crdt_merge_protocol.adapters import schema_specs
from crdt_merge_protocol.blobs import ANY_FLOAT, POLICY_DTYPES, Manifest, Schema
from crdt_merge_protocol.canonical import is_name
from crdt_merge_protocol.errors import ParameterError
from crdt_merge_protocol.genesis import Genesis
from crdt_merge_protocol.limits import POLICY_SIGNATURES_MAX
from crdt_merge_protocol.operations import PolicyAct
from crdt_merge_protocol.policy import DEFAULT_WEIGHT_CAP, NONCE_BYTES, Policy, sorted_params
from crdt_merge_protocol.quantised import require_plain
from crdt_merge_protocol.strategies import registry
from crdt_merge_protocol.strategies.choosing import named_strategies, needs_stand_in
from crdt_merge_protocol.strategies.contract import Strategy

from crdt_merge_node.background import finish
from crdt_merge_node.checkpoints.reading import read_checkpoint
from crdt_merge_node.contents import GroupContents
from crdt_merge_node.control.model import (
    Act,
    GroupDetail,
    GroupInfo,
    OutputInfo,
    PolicyChanges,
    PolicyInfo,
    Progress,
)
from crdt_merge_node.errors import InvalidRequestError, QuorumError, quoted
from crdt_merge_node.imports import ModelImport
from crdt_merge_node.lora.files import is_adapter_directory, read_adapter_file
from crdt_merge_node.services import Services
from crdt_merge_node.telemetry.logging import get_logger

from . import acts
from .act_making import author_named
from .act_words import describe, in_force
from .adapters import check_adapters, common_schema, implied_rules, refuse_adapter
from .contributions import contribution_list
from .naming import find_group

log = get_logger()

NOBODY_ADMITTED: Final = "its authors count once administrators admitted them, and nobody is admitted yet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """Who may do what in a new group, for life."""

    admins: tuple[str, ...] = ()
    """Besides this node: ids, or names of known peers."""
    quorum: int = 0
    """How many of them must sign an act; 0: one."""
    is_admitted: bool = False
    """Only authors that were admitted count."""


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
        quarantined=sum(bool(item.problem) for item in contents.items.values())
        + len(contents.select().choice.lacking),
        missing_blobs=len(missing),
        missing_bytes=remaining,
        sync_root=state.sync_root.hex(),
        used_root=root.hex(),
        resolve_key=key.hex(),
        converged_peers=converged,
        live_peers=len(live),
        is_converged=converged == len(live),
        unjudged="" if state.genesis.is_open or view.decided.admitted else NOBODY_ADMITTED,
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
        acts=tuple(
            describe(services, group, act, operation=operation)
            for operation, act in in_force(services, group)
        ),
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
    rights: Rights | None = None,
) -> AsyncGenerator[Progress | GroupInfo]:
    """Create a group of which this node is an administrator."""
    services.driver.standing.check()
    founding = _founding(services, rights or Rights())
    if not is_name(name):
        raise InvalidRequestError(
            f"{quoted(name)} is no name of a group.",
            hint="Use letters, digits, . _ / -, at most 200, without '..' or a leading . or /.",
        )
    if base_path is None and like_path is None:
        raise InvalidRequestError(
            "a group needs a schema: the names, shapes and element types of its tensors.",
            hint="Name a safetensors file: --base FILE (the common base model) or --like FILE (schema only).",
        )
    refuse_adapter(services, base_path)
    if base_path is not None:
        await _schema_of(services, base_path)  # Whatever its headers tell is told before it is copied.
    like = None if like_path is None else await _schema_of(services, like_path)
    params = dict(params) | implied_rules(services, params, like_path)
    chosen, params = _check_strategy(strategy, params, has_base=base_path is not None, dtype=dtype)
    policy = Policy(
        strategy=chosen.id,
        strategy_version=chosen.version,
        params=sorted_params(params),
        schema=bytes(32),
        dtype=dtype,
        weight_cap=weight_cap or DEFAULT_WEIGHT_CAP,
        holders=holders,
    )
    if base_path is None:
        assert like is not None, "one of the two is given"
        policy = replace(policy, schema=await _keep_schema(services, like))
        yield await _found(services, name, policy, founding)
        return
    async with services.imports.importing(Path(base_path)) as model:
        async with aclosing(model.steps(services)) as steps:
            async for step in steps:
                yield step
        base = _imported(model)
        whole = base.schema if like is None else common_schema(base.schema, like, policy)
        if whole is None:
            raise InvalidRequestError(f"{base_path} and {like_path} have different schemas.")
        schema = await _keep_schema(services, whole)
        policy = replace(policy, schema=schema, base=base.content)
        info = await _found(services, name, policy, founding, model)
    yield info


def _founding(services: Services, rights: Rights) -> dict[str, Any]:
    """Return what a genesis says of who may do what, or refuse what nobody could administer."""
    admins = {services.engine.node}
    for text in rights.admins:
        admins.add(author_named(services, text))
    if len(admins) > POLICY_SIGNATURES_MAX:
        raise InvalidRequestError(f"a group has at most {POLICY_SIGNATURES_MAX} administrators.")
    if not 0 <= rights.quorum <= len(admins):
        raise InvalidRequestError(
            f"{rights.quorum} signatures cannot come from {len(admins)} administrators.",
            hint="Name the others, this node is one of them: --admin NODE",
        )
    return {"admins": tuple(admins), "quorum": rights.quorum or 1, "is_open": not rights.is_admitted}


async def _found(
    services: Services,
    name: str,
    policy: Policy,
    founding: Mapping[str, Any],
    model: ModelImport | None = None,
) -> GroupInfo:
    """Make a group with this first policy durable and announce it."""
    genesis = Genesis(nonce=services.rng.bytes(16), name=name, policy=policy, **founding)
    await finish(services.driver.create_group(genesis), then=lambda _: _keep(model))
    log.info("group.created", group=genesis.group, name=name)
    await services.keeper.current(genesis.group)
    return await group_info(services, genesis.group)


async def change_policy(
    services: Services, group_name: str, changes: PolicyChanges, *, is_proposed: bool = False
) -> AsyncGenerator[Progress | PolicyInfo | Act]:
    """Sign the next version of a policy; yield the one in force then, or the act if it is only proposed."""
    group = find_group(services, group_name)
    genesis = acts.require_admin(services, group)
    if genesis.quorum > 1 and not is_proposed:
        raise QuorumError(
            f'group "{genesis.name}" needs {genesis.quorum} administrators\' signatures for an act.',
            hint="Let others sign it: --act FILE writes it; `act sign` and `act submit` do the rest.",
        )
    refuse_adapter(services, changes.base_path)
    if changes.base_path is not None:
        await _schema_of(services, changes.base_path)
    _next_policy(services, group, changes, has_base=changes.base_path is not None)
    if changes.base_path is None:
        act = await _act(services, group, _next_policy(services, group, changes), is_proposed=is_proposed)
    else:
        async with services.imports.importing(Path(changes.base_path)) as model:
            async with aclosing(model.steps(services)) as steps:
                async for step in steps:
                    yield step
            base = _imported(model)
            schema = await _keep_schema(services, base.schema)
            following = _next_policy(services, group, changes, has_base=True)
            following = replace(following, base=base.content, schema=schema)
            act = await _act(services, group, following, model, is_proposed=is_proposed)
    yield act if is_proposed else policy_info(services, group, await services.keeper.current(group))


def _next_policy(
    services: Services, group: bytes, changes: PolicyChanges, *, has_base: bool = False
) -> Policy:
    """Return the next version of the policy in force, or refuse what could never be resolved."""
    policy = services.engine.replicas[group].state.view.policy
    strategy = changes.strategy or policy.strategy
    own, rules = split_params(dict(policy.params))
    kept = own if registry.get(strategy).id == policy.strategy else {}
    changed, changed_rules = split_params(dict(changes.params))
    if changed_rules and not rules:
        raise InvalidRequestError(
            "the group merges whole models, and what a group merges is fixed for life.",
            hint="Make one of adapters: group create NAME --like ADAPTER.",
        )
    params = {key: value for key, value in (kept | changed).items() if value}
    params |= write_rules(rules | changed_rules) if rules else {}
    dtype = policy.dtype if changes.dtype is None else changes.dtype
    chosen, params = _check_strategy(
        strategy, params, has_base=has_base or policy.base is not None, dtype=dtype
    )
    return policy.next(
        strategy=chosen.id,
        strategy_version=chosen.version,
        params=params,
        dtype=dtype,
        weight_cap=policy.weight_cap if changes.weight_cap is None else changes.weight_cap,
        holders=policy.holders if changes.holders is None else changes.holders,
    )


async def _act(
    services: Services,
    group: bytes,
    following: Policy,
    model: ModelImport | None = None,
    *,
    is_proposed: bool,
) -> Act:
    """Sign a policy, and store and announce it unless it is only proposed or in force already."""
    body = PolicyAct(policy=following, nonce=services.rng.bytes(NONCE_BYTES))
    signed = acts.sign_for(services, group, body)
    if is_proposed:
        _keep(model)  # Its bytes are needed once the others have signed.
    elif following != services.engine.replicas[group].state.view.policy.next():
        await finish(acts.submit(services, signed.text), then=lambda _: _keep(model))
    return signed


def _keep(model: ModelImport | None) -> None:
    if model is not None:
        model.keep()


def _imported(model: ModelImport) -> Manifest:
    assert model.manifest is not None, "its steps have ended"
    return model.manifest


async def _keep_schema(services: Services, schema: Schema) -> bytes:
    """Store a schema for others to fetch; return its id."""
    blobs = services.store.blobs
    await asyncio.to_thread(blobs.permit, [schema.id])  # No act means a schema, but one may have named it.
    await asyncio.to_thread(blobs.put_object, schema.id, schema.encode())
    return schema.id


def _check_strategy(
    strategy: str, params: Mapping[str, str], *, has_base: bool, dtype: str
) -> tuple[Strategy, dict[str, str]]:
    """Refuse what could never be resolved, before any byte is read.

    Returns:
        The strategy, and all parameters as a policy has them.
    """
    chosen = registry.get(strategy)
    params, texts = split_params(params)
    rules = write_rules(texts) if texts else {}
    chosen.validate(params)
    if rules:
        check_adapters(chosen, rules, has_base=has_base)
    for each in (chosen, *named_strategies(params)):
        if each.base == "required" and not has_base and not rules:
            raise InvalidRequestError(
                f"{each.id} works on differences from a base model.", hint="Name it: --base FILE."
            )
    if needs_stand_in(chosen, params):
        raise InvalidRequestError(
            f"{chosen.id} cannot merge whatever a group may come to hold: its policy has to name a stand-in.",
            hint="For instance: --param fallback=weight_average. The provenance says when it was used.",
        )
    if dtype not in POLICY_DTYPES:
        raise ParameterError(f'"{dtype}" is no element type of an output.', hint="Use F64, F32, F16 or BF16.")
    if rules and dtype.startswith(ANY_FLOAT):
        raise ParameterError(
            "Adapters may have different float types in any case.", hint=f"Leave {ANY_FLOAT} out of --dtype."
        )
    return chosen, chosen.normalise(params) | rules


async def _schema_of(services: Services, path: str) -> Schema:
    if is_adapter_directory(services.fs, Path(path)):
        file = await asyncio.to_thread(read_adapter_file, Path(path), services.fs)
        return Schema.of(schema_specs(file.layout, file.header.fan_in_fan_out))
    header = await asyncio.to_thread(read_checkpoint, services.fs, Path(path))
    schema = Schema.of(entry.spec for entry in header.entries)
    require_plain(schema.specs, who=path)
    return schema
