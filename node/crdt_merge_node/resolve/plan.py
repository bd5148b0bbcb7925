"""From a policy and the contributions that count to a job, and from a job to steps that fit the memory.

``build_job`` is the one place where a policy becomes a merge. The daemon calls it with a group's policy and
used contributions, offline ``merge`` with a policy made of its options and files; that is why both write the
same bytes. ``make_plan`` then decides what does *not* change the bytes: block size and number of workers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from crdt_merge_protocol.blobs import FLOAT_DTYPES, Manifest, Schema, TensorSpec
from crdt_merge_protocol.canonical import digest
from crdt_merge_protocol.errors import (
    BaseMissingError,
    EmptySetError,
    IntegerTensorDiffersError,
    MissingBlobError,
    ParameterError,
)
from crdt_merge_protocol.limits import MIB
from crdt_merge_protocol.policy import Policy
from crdt_merge_protocol.quarantine import require_schema
from crdt_merge_protocol.resolve_key import resolve_key, seed_of, used_root
from crdt_merge_protocol.strategies.artefacts import HEADER_TENSOR, in_order
from crdt_merge_protocol.strategies.choosing import Unfit, named_strategies, whole_recipe
from crdt_merge_protocol.strategies.composite import Effective, effective
from crdt_merge_protocol.strategies.contract import MergeContext, Strategy, exact_weights
from crdt_merge_protocol.strategies.dtypes import output_dtype
from crdt_merge_protocol.strategies.registry import get
from crdt_merge_protocol.tensorfile import layout

from .accelerate import compiled_bytes
from .alone import alone_in
from .job import (
    DEFAULT_MEMORY_BYTES,
    ArtefactInput,
    ModelInput,
    ResolveJob,
    TensorSource,
    UsedArtefact,
    UsedModel,
)
from .memory import share_memory, with_blocks
from .needs import add_parts, in_files, naming_files, refuse_unmet
from .steps import Plan, TensorPlan, all_sources_of
from .tensor_keys import take_over
from .tied import Tied, find_tied

SEED_RULE: Final = "root"
INLINE_BYTES_MAX: Final = 32 * MIB
"""Input up to this size is merged in this process: two workers take a quarter of a second to start."""
_COPY_SHARE: Final = 4
"""A byte that is copied from an earlier output is so much less work than one that is merged."""
_NAMED_MAX: Final = 8


def build_job(
    policy: Policy,
    schema: Schema,
    used: Iterable[UsedModel],
    base: UsedModel | None,
    *,
    group_mode: bool,
    artefacts: Iterable[UsedArtefact] = (),
    unfit: Mapping[bytes, Unfit] | None = None,
    task: bytes = b"",
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    workers: int | None = None,
    facts: Mapping[str, Any] | None = None,
) -> ResolveJob:
    """Return the job that merges ``used`` as ``policy`` says.

    Contributions with equal digests count once, whoever sent them (PROTOCOL R9); the rest is put in canonical
    order, so that the order of ``used`` does not matter.

    Args:
        policy: Its recipe enters the resolve key as it stands.
        schema: The one that ``policy.schema`` names.
        used: The visible contributions that are not quarantined.
        base: The model that ``policy.base`` names; None if it names none.
        group_mode: False for offline ``merge``, which refuses where a group uses a stand-in rule.
        artefacts: Those that were chosen.
        unfit: Why others were not, by digest: for messages.
        task: Digest of the contribution whose task's model is wanted instead of the common one.
        memory_bytes: Budget over all processes.
        workers: As in :class:`ResolveJob`.
        facts: For the provenance; JSON.

    Raises:
        EmptySetError: Nothing is used.
        BaseMissingError: The policy names a base, or its strategy needs one, and there is none.
        MissingBlobError: Bytes that the output depends on are not here; the message names them (T48).
        ParameterError: This release has no such strategy, version, parameter or seed rule.
        TensorMissingError, ShapeMismatchError, DTypeMismatchError: A model has not the schema.
    """
    strategy = agreed_strategy(policy)
    strategy.validate(dict(policy.params))
    models = sorted({model.digest: model for model in used}.values(), key=lambda model: model.digest)
    _require_named(policy, schema, models, base)
    base_names = _base_names(strategy, policy, schema)
    inputs, base_input, chosen = _collect(
        schema, models, base, base_names, artefacts, any_float=policy.takes_any_float
    )
    digests = [model.digest for model in models]
    _require_task(task, digests)
    return ResolveJob(
        strategy=policy.strategy,
        params=dict(policy.params),
        schema=schema,
        inputs=inputs,
        base=base_input,
        seed=seed_of(digests),
        dtype=policy.out_dtype,
        group_mode=group_mode,
        resolve_key=_key_of(policy, digests, chosen, task),
        artefacts=chosen,
        unfit={digest.hex(): why.reason for digest, why in (unfit or {}).items()},
        is_stale=any(why.is_stale for why in (unfit or {}).values()),
        task=task,
        recipe_digest=digest("crdt-merge/recipe/1", policy.recipe()),
        memory_bytes=memory_bytes,
        workers=workers,
        facts=dict(facts or {}),
    )


def make_plan(job: ResolveJob, *, cores: int) -> Plan:
    """Return the steps of a job.

    Raises:
        ResolveError: The job cannot be carried out, for instance within its memory budget.
    """
    tied = find_tied(job, get(job.strategy).validate(job.params))
    working = _working(job, tied)
    strategy, context = working.strategy, working.context
    tensors, warnings = _plan_tensors(job, tied, uses_base=strategy.uses_base(context))
    tensors, reuse = take_over(job, strategy, context, add_parts(job, strategy, context, tensors))
    header, _ = layout(tensor.spec for tensor in tensors)
    copied = reuse.nbytes - reuse.nbytes // _COPY_SHARE
    work_bytes = sum(source.nbytes for tensor in tensors for source in all_sources_of(tensor)) - copied
    wanted = job.workers if job.workers is not None else (0 if work_bytes <= INLINE_BYTES_MAX else cores)
    elements = sum(tensor.spec.numel * len(tensor.streams) for tensor in tensors if tensor.index >= 0)
    read = elements * (strategy.pass_count(context) + 1)
    share = share_memory(
        job.memory_bytes,
        k=context.k,
        wanted=wanted,
        strategy=strategy,
        context=context,
        tensors=tensors,
        compiled_bytes=compiled_bytes(read, is_random=strategy.is_random) if wanted else 0,
    )
    alone, alone_bytes = alone_in(
        strategy, context, tensors, reuse.keys, budget=job.memory_bytes, share=share
    )
    return Plan(
        strategy=strategy.id,
        context=context,
        tensors=with_blocks(tensors, share.block_elements),
        block_elements=share.block_elements,
        workers=share.workers,
        header=header,
        nbytes=len(header) + sum(tensor.spec.nbytes for tensor in tensors),
        warnings=(*warnings, *tied.warnings, *_unused(job)),
        is_compiled=share.is_compiled,
        stand_in_reason="; ".join(working.reasons),
        memory_bytes=share.memory_bytes + alone_bytes,
        alone=alone,
        reuse=reuse,
    )


def _unused(job: ResolveJob) -> list[str]:
    """Return which artefacts somebody gave in vain; in a group that is everyday and shown elsewhere."""
    if job.group_mode and "files" not in job.facts:
        return []
    unfit = sorted(job.unfit.items())
    return [in_files(f"Artefact {digest[:12]} was not used: {why}.", job) for digest, why in unfit]


def _working(job: ResolveJob, tied: Tied) -> Effective:
    """Return the strategy that merges these inputs, the stand-in if need be, and its context."""
    strategy = get(job.strategy)
    digests = tuple(model.digest for model in job.inputs)
    context = MergeContext(
        strategy=strategy.id,
        params=strategy.validate(job.params),
        weights=exact_weights([model.weight for model in job.inputs]),
        digests=digests,
        has_base=job.base is not None,
        seed=job.seed,
        specs=_merged_specs(job, tied),
        is_strict=not job.group_mode,
        artefacts=tuple(item.artefact for item in job.artefacts),
        set_root=used_root(digests),
        base_content=job.base.content if job.base is not None else b"",
        task=digests.index(job.task) if job.task else None,
    )
    with naming_files(job):
        strategy.check(context)
    working = effective(strategy, context)
    if working.unmet is not None:
        refuse_unmet(working, job)
    if working.strategy is not strategy:
        with naming_files(job):
            working.strategy.check(working.context)
    if job.task and working.strategy.output != "modulators":
        raise ParameterError(
            f"{working.strategy.id} makes one model, not one for each task.", hint="Leave --task out."
        )
    return working


def agreed_strategy(policy: Policy) -> Strategy:
    """Return the strategy that a group agreed on; its parameters are not looked at.

    Raises:
        ParameterError: This release has no such strategy, version or seed rule.
    """
    strategy = get(policy.strategy)
    if strategy.version != policy.strategy_version:
        raise ParameterError(
            f"The policy wants version {policy.strategy_version} of {policy.strategy}, this release has "
            f"{strategy.version}.",
            hint="Use the release that the group agreed on, or set the policy anew.",
        )
    if policy.seed_rule != SEED_RULE:
        raise ParameterError(f"The seed rule {policy.seed_rule!r} is unknown to this release.")
    return strategy


def _require_named(
    policy: Policy, schema: Schema, models: Sequence[UsedModel], base: UsedModel | None
) -> None:
    """Refuse a merge of nothing, and one of other things than the policy names."""
    if not models:
        raise EmptySetError("There is no usable contribution, hence nothing to resolve.")
    if policy.schema != schema.id:
        raise ParameterError(
            f"The policy names schema {policy.schema.hex()[:12]}, not {schema.id.hex()[:12]}."
        )
    if policy.base is not None and (base is None or base.manifest.content != policy.base):
        raise BaseMissingError(f"The policy names base {policy.base.hex()[:12]}, which was not given.")


def _require_task(task: bytes, digests: Sequence[bytes]) -> None:
    if task and task not in digests:
        raise ParameterError(
            f"There is no contribution {task.hex()[:12]} among those that are merged.",
            hint=f"Name the digest of one of: {', '.join(digest.hex()[:12] for digest in digests)}.",
        )


def _key_of(policy: Policy, digests: Iterable[bytes], chosen: Iterable[ArtefactInput], task: bytes) -> bytes:
    artefacts = (item.artefact.digest for item in chosen)
    return resolve_key(used_root(digests), whole_recipe(policy), artefacts=artefacts, task=task)


def _base_names(strategy: Strategy, policy: Policy, schema: Schema) -> set[str]:
    """Return which tensors of the base the output depends on: all, or those that are never merged."""
    is_read = any(each.base != "unused" for each in (strategy, *named_strategies(dict(policy.params))))
    return {spec.name for spec in schema.specs if is_read or spec.dtype not in FLOAT_DTYPES}


def _collect(
    schema: Schema,
    models: Sequence[UsedModel],
    base: UsedModel | None,
    base_names: set[str],
    artefacts: Iterable[UsedArtefact],
    *,
    any_float: bool,
) -> tuple[tuple[ModelInput, ...], ModelInput | None, tuple[ArtefactInput, ...]]:
    """Return where the bytes of models, base and artefacts are.

    Raises:
        MissingBlobError: Some are not here; the message names them.
    """
    missing: list[str] = []
    names = {spec.name for spec in schema.specs}
    for kind, model in [*(("contribution", each) for each in models), *([("base", base)] if base else [])]:
        specs = (entry.spec for entry in model.manifest.entries)
        who = f"{kind} {model.digest.hex()[:12]}"
        require_schema(schema, specs, who=who, any_float=any_float)
    inputs = tuple(_to_input("contribution", model, schema, names, missing) for model in models)
    base_input = None if base is None else _to_input("base", base, schema, base_names, missing)
    kept = {item.artefact.digest: item for item in artefacts}
    chosen = tuple(
        _to_artefact(kept[artefact.digest], missing)
        for artefact in in_order(item.artefact for item in kept.values())
    )
    if missing:
        rest = f" and {len(missing) - _NAMED_MAX} more" if len(missing) > _NAMED_MAX else ""
        raise MissingBlobError(
            f"{len(missing)} blobs are not on this node yet: {', '.join(missing[:_NAMED_MAX])}{rest}.",
            hint="Wait for them (resolve --wait), or leave a contribution out (resolve --without TAG).",
        )
    return inputs, base_input, chosen


def _to_input(kind: str, model: UsedModel, schema: Schema, names: set[str], missing: list[str]) -> ModelInput:
    who = f"{kind} {model.digest.hex()[:12]}"
    manifest: Manifest = model.manifest
    tensors = {}
    for entry in manifest.entries:
        source = model.sources.get(entry.spec.name)
        if source is not None:
            tensors[entry.spec.name] = replace(source, blob=entry.blob)
        elif entry.spec.name in names:
            missing.append(f"{entry.blob.hex()[:12]} ({entry.spec.name} of {who})")
    pairs = zip(manifest.entries, schema.specs, strict=True)  # Both in byte order of the names.
    dtypes = {spec.name: entry.spec.dtype for entry, spec in pairs if entry.spec.dtype != spec.dtype}
    return ModelInput(
        digest=model.digest, weight=model.weight, tensors=tensors, content=manifest.content, dtypes=dtypes
    )


def _to_artefact(item: UsedArtefact, missing: list[str]) -> ArtefactInput:
    tensors = {}
    for entry in item.manifest.entries:
        source = item.sources.get(entry.spec.name)
        if entry.spec.name == HEADER_TENSOR:
            continue
        if source is not None:
            tensors[entry.spec.name] = replace(source, blob=entry.blob)
        else:
            who = f"{item.artefact.type} {item.artefact.digest.hex()[:12]}"
            missing.append(f"{entry.blob.hex()[:12]} ({entry.spec.name} of {who})")
    return ArtefactInput(artefact=item.artefact, tensors=tensors)


def _merged_specs(job: ResolveJob, tied: Tied) -> tuple[TensorSpec, ...]:
    """Return the tensors that a strategy gets to know: of tied ones the leader."""
    specs = job.schema.specs
    return tuple(spec for spec in specs if spec.dtype in FLOAT_DTYPES and spec.name not in tied.leaders)


def _plan_tensors(
    job: ResolveJob, tied: Tied, *, uses_base: bool
) -> tuple[tuple[TensorPlan, ...], list[str]]:
    plans: list[TensorPlan] = []
    warnings: list[str] = []
    indices = {spec.name: index for index, spec in enumerate(_merged_specs(job, tied))}
    for spec in job.schema.specs:
        if spec.dtype not in FLOAT_DTYPES:
            source = _choose_integers(job, spec, warnings)
            plans.append(TensorPlan(spec=spec, input_dtype=spec.dtype, index=-1, inputs=(source,), base=None))
            continue
        leader = tied.leaders.get(spec.name, "")
        plan = _plan_floats(job, spec, indices[leader or spec.name], uses_base=uses_base)
        plans.append(replace(plan, leader=leader))
    return tuple(plans), warnings


def _plan_floats(job: ResolveJob, spec: TensorSpec, index: int, *, uses_base: bool) -> TensorPlan:
    """Return how a float tensor is merged; its element type does not depend on what the strategy reads."""
    models = [*job.inputs, *([job.base] if job.base is not None and uses_base else [])]
    dtypes = tuple(model.dtype_of(spec) for model in models)
    base_dtype = job.base.dtype_of(spec) if job.base is not None else None
    out_dtype = output_dtype(job.dtype, base_dtype, dtypes)
    sources = tuple(model.tensors[spec.name] for model in models)
    k = len(job.inputs)
    return TensorPlan(
        spec=replace(spec, dtype=out_dtype),
        input_dtype=dtypes[0],
        index=index,
        inputs=sources[:k],
        base=sources[k] if len(sources) > k else None,
        dtypes=dtypes if len(set(dtypes)) > 1 else (),
    )


def _choose_integers(job: ResolveJob, spec: TensorSpec, warnings: list[str]) -> TensorSource:
    """Return whose copy of an integer or boolean tensor is written; they are never merged.

    All equal: that one. Else, in a group (STRATEGIES 1.12), the base's; without a base the value that most
    contributions hold, and of equally frequent ones the one with the smallest contribution digest.
    """
    sources = [model.tensors[spec.name] for model in job.inputs]
    base = job.base.tensors[spec.name] if job.base is not None else None
    blobs = {source.blob for source in ([*sources, base] if base else sources)}
    assert b"" not in blobs, "a job names the blobs of its tensors"
    if len(blobs) == 1:
        return base or sources[0]
    if not job.group_mode:
        raise IntegerTensorDiffersError(
            f"Tensor {spec.name} ({spec.dtype}) is not the same in all inputs, and such are never merged.",
            hint="Make them equal first, or keep those of the base, else the most frequent: --as-group.",
        )
    if base is not None:
        warnings.append(f"{spec.name} ({spec.dtype}) differs between inputs; the base's was kept.")
        return base
    counts = Counter(source.blob for source in sources)
    warnings.append(f"{spec.name} ({spec.dtype}) differs between inputs; the most frequent was kept.")
    return max(sources, key=lambda source: counts[source.blob])  # The first of equals: sources are sorted.
