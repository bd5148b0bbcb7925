"""From a policy and the contributions that count to a job, and from a job to steps that fit the memory.

``build_job`` is the one place where a policy becomes a merge. The daemon calls it with a group's policy and
used contributions, offline ``merge`` with a policy made of its options and files; that is why both write the
same bytes. ``make_plan`` then decides what does *not* change the bytes: block size and number of workers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
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
    ResolveError,
)
from crdt_merge_protocol.limits import MIB
from crdt_merge_protocol.policy import Policy
from crdt_merge_protocol.quarantine import require_schema
from crdt_merge_protocol.resolve_key import resolve_key, seed_of, used_root
from crdt_merge_protocol.strategies.contract import LEAF_ELEMENTS, MergeContext, Strategy, exact_weights
from crdt_merge_protocol.strategies.dtypes import output_dtype
from crdt_merge_protocol.strategies.registry import get
from crdt_merge_protocol.tensorfile import layout

from .job import DEFAULT_MEMORY_BYTES, ModelInput, ResolveJob, TensorSource, UsedModel
from .steps import SLOT_BYTES, Plan, TensorPlan, sources_of

SEED_RULE: Final = "root"
INLINE_BYTES_MAX: Final = 32 * MIB
"""Input up to this size is merged in this process: two workers take a quarter of a second to start."""
_BLOCK_LEAVES: Final = 2
"""Leaves in a block if memory allows: 1 MiB per input in float64 stays in the second-level cache."""
_INTERPRETER_BYTES: Final = 40 * MIB
"""Private memory of a worker process before it merges anything: Python and numpy."""
_NAMED_MAX: Final = 8


def build_job(
    policy: Policy,
    schema: Schema,
    used: Iterable[UsedModel],
    base: UsedModel | None,
    *,
    group_mode: bool,
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
    strategy = _strategy_of(policy)
    models = sorted({model.digest: model for model in used}.values(), key=lambda model: model.digest)
    if not models:
        raise EmptySetError("There is no usable contribution, hence nothing to resolve.")
    if policy.schema != schema.id:
        raise ParameterError(
            f"The policy names schema {policy.schema.hex()[:12]}, not {schema.id.hex()[:12]}."
        )
    if policy.base is not None and (base is None or base.manifest.content != policy.base):
        raise BaseMissingError(f"The policy names base {policy.base.hex()[:12]}, which was not given.")
    missing: list[str] = []
    names = {spec.name for spec in schema.specs}
    inputs = tuple(_to_input("contribution", model, schema, names, missing) for model in models)
    base_names = (
        names if strategy.base != "unused" else {s.name for s in schema.specs if s.dtype not in FLOAT_DTYPES}
    )
    base_input = None if base is None else _to_input("base", base, schema, base_names, missing)
    if missing:
        rest = f" and {len(missing) - _NAMED_MAX} more" if len(missing) > _NAMED_MAX else ""
        raise MissingBlobError(
            f"{len(missing)} blobs are not on this node yet: {', '.join(missing[:_NAMED_MAX])}{rest}.",
            hint="Wait for them (resolve --wait), or leave a contribution out (resolve --without TAG).",
        )
    digests = [model.digest for model in models]
    return ResolveJob(
        strategy=policy.strategy,
        params=dict(policy.params),
        schema=schema,
        inputs=inputs,
        base=base_input,
        seed=seed_of(digests),
        dtype=policy.dtype,
        group_mode=group_mode,
        resolve_key=resolve_key(used_root(digests), policy.recipe()),
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
    strategy = get(job.strategy)
    tensors, warnings = _plan_tensors(job, uses_base=job.base is not None and strategy.base != "unused")
    context = MergeContext(
        strategy=strategy.id,
        params=strategy.validate(job.params),
        weights=exact_weights([model.weight for model in job.inputs]),
        digests=tuple(model.digest for model in job.inputs),
        has_base=job.base is not None,
        seed=job.seed,
        specs=tuple(spec for spec in job.schema.specs if spec.dtype in FLOAT_DTYPES),
        is_strict=not job.group_mode,
    )
    strategy.check(context)
    header, _ = layout(tensor.spec for tensor in tensors)
    read_bytes = sum(source.nbytes for tensor in tensors for source in sources_of(tensor))
    wanted = job.workers if job.workers is not None else (0 if read_bytes <= INLINE_BYTES_MAX else cores)
    workers, block = fit_memory(job.memory_bytes, k=context.k, wanted=wanted)
    return Plan(
        strategy=job.strategy,
        context=context,
        tensors=tensors,
        block_elements=block,
        workers=workers,
        header=header,
        nbytes=len(header) + sum(tensor.spec.nbytes for tensor in tensors),
        warnings=tuple(warnings),
    )


def _strategy_of(policy: Policy) -> Strategy:
    strategy = get(policy.strategy)
    if strategy.version != policy.strategy_version:
        raise ParameterError(
            f"The policy wants version {policy.strategy_version} of {policy.strategy}, this release has "
            f"{strategy.version}.",
            hint="Use the release that the group agreed on, or set the policy anew.",
        )
    if policy.seed_rule != SEED_RULE:
        raise ParameterError(f"The seed rule {policy.seed_rule!r} is unknown to this release.")
    strategy.validate(dict(policy.params))
    return strategy


def _to_input(kind: str, model: UsedModel, schema: Schema, names: set[str], missing: list[str]) -> ModelInput:
    who = f"{kind} {model.digest.hex()[:12]}"
    manifest: Manifest = model.manifest
    require_schema(schema, (entry.spec for entry in manifest.entries), who=who)
    tensors = {}
    for entry in manifest.entries:
        source = model.sources.get(entry.spec.name)
        if source is not None:
            tensors[entry.spec.name] = replace(source, blob=entry.blob)
        elif entry.spec.name in names:
            missing.append(f"{entry.blob.hex()[:12]} ({entry.spec.name} of {who})")
    return ModelInput(digest=model.digest, weight=model.weight, tensors=tensors, content=manifest.content)


def _plan_tensors(job: ResolveJob, *, uses_base: bool) -> tuple[tuple[TensorPlan, ...], list[str]]:
    plans: list[TensorPlan] = []
    warnings: list[str] = []
    index = 0
    for spec in job.schema.specs:
        if spec.dtype not in FLOAT_DTYPES:
            source = _choose_integers(job, spec, warnings)
            plans.append(TensorPlan(spec=spec, input_dtype=spec.dtype, index=-1, inputs=(source,), base=None))
            continue
        base = job.base.tensors[spec.name] if job.base is not None and uses_base else None
        plans.append(
            TensorPlan(
                spec=replace(spec, dtype=output_dtype(job.dtype, spec.dtype, ())),
                input_dtype=spec.dtype,
                index=index,
                inputs=tuple(model.tensors[spec.name] for model in job.inputs),
                base=base,
            )
        )
        index += 1
    return tuple(plans), warnings


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
            hint="Make them equal first, for instance by copying them from one of the files.",
        )
    if base is not None:
        warnings.append(f"{spec.name} ({spec.dtype}) differs between inputs; the base's was kept.")
        return base
    counts = Counter(source.blob for source in sources)
    warnings.append(f"{spec.name} ({spec.dtype}) differs between inputs; the most frequent was kept.")
    return max(sources, key=lambda source: counts[source.blob])  # The first of equals: sources are sorted.


def fit_memory(budget: int, *, k: int, wanted: int) -> tuple[int, int]:
    """Return (workers, block elements) whose buffers fit the budget; blocks shrink before workers go.

    Args:
        budget: Bytes over all processes.
        k: Contributions.
        wanted: Worker processes; 0: this process.

    Raises:
        ResolveError: Not even one worker with the smallest blocks fits.
    """
    # Per block of every contribution: its elements decoded and what a strategy makes of them, in float64.
    arrays = 2 * k + 8
    for workers in range(wanted, 0 if wanted else -1, -1):
        processes = max(workers, 1)
        fixed = 2 * SLOT_BYTES + (_INTERPRETER_BYTES if workers else 0)
        room = budget // processes - fixed
        leaves = min(room // (arrays * LEAF_ELEMENTS * 8), _BLOCK_LEAVES)
        if leaves >= 1:
            return workers, leaves * LEAF_ELEMENTS
    needed = (arrays * LEAF_ELEMENTS * 8 + 2 * SLOT_BYTES + _INTERPRETER_BYTES) // MIB + 1
    raise ResolveError(
        f"These inputs need {needed} MiB of memory at least, {budget // MIB} MiB are allowed.",
        hint="Raise resolve.memory_bytes (--memory).",
    )
