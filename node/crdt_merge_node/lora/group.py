"""From a group's policy and the adapters that count to a job, and from the job to the output.

The job is one of whole models as far as keys, account and announcement go, with ``adapters`` in it: that says
what the inputs are, and that this module carries it out instead of ``resolve.run``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from crdt_merge_protocol.adapter_rules import AdapterRules, split_params
from crdt_merge_protocol.adapters import ADAPTER, AdapterHeader, read_layout
from crdt_merge_protocol.blobs import Manifest, Schema
from crdt_merge_protocol.canonical import digest
from crdt_merge_protocol.errors import BaseMissingError, EmptySetError, MissingBlobError
from crdt_merge_protocol.policy import Policy
from crdt_merge_protocol.resolve_key import resolve_key, seed_of, used_root
from crdt_merge_protocol.strategies.choosing import whole_recipe

from crdt_merge_node.ports import Clock, Fs, Rng
from crdt_merge_node.resolve.job import (
    IsCancelled,
    ModelInput,
    ReportProgress,
    ResolveJob,
    ResolveResult,
    TensorSource,
    UsedModel,
)
from crdt_merge_node.resolve.plan import agreed_strategy
from crdt_merge_node.resolve.provenance import writable

from .account import account_of
from .adapter import Adapter
from .collection import AdapterSet, Member
from .dense import DenseRecipe
from .files import WEIGHTS
from .merging import Merge, merge_set
from .sinks import Target, Written
from .writing import BaseModel, Outcome

_NAMED_MAX: Final = 8


class UsedAdapter(NamedTuple):
    """One used contribution as the caller of :func:`build_adapter_job` knows it."""

    digest: bytes
    weight: int
    manifest: Manifest
    sources: Mapping[str, TensorSource]
    """By tensor name. A tensor that is not here is missing on this node."""
    header: AdapterHeader


@dataclass(frozen=True, slots=True)
class AdapterJob:
    """What a job of adapters has besides what every job has."""

    merge: Merge
    rules: AdapterRules


def build_adapter_job(
    policy: Policy,
    rules: AdapterRules,
    schema: Schema,
    used: Iterable[UsedAdapter],
    base: UsedModel | None,
    *,
    fs: Fs,
    memory_bytes: int,
    workers: int | None = None,
    facts: Mapping[str, Any] | None = None,
) -> ResolveJob:
    """Return the job that merges ``used`` as ``policy`` says; their order does not matter.

    Args:
        policy: Its recipe enters the resolve key as it stands.
        rules: What it says of adapters.
        schema: The one that it names.
        used: The visible contributions that are not quarantined.
        base: The model that it names; None if it names none.
        fs: Where everything is.
        memory_bytes: Budget of a merge of whole differences.
        workers: As in :class:`ResolveJob`.
        facts: For the provenance; JSON.

    Raises:
        EmptySetError: Nothing is used.
        BaseMissingError: A model is wanted and there is no base.
        MissingBlobError: Bytes that the output depends on are not here.
        ParameterError: This release has no such strategy, version, parameter or seed rule.
    """
    strategy = agreed_strategy(policy)
    adapters = sorted({adapter.digest: adapter for adapter in used}.values(), key=lambda each: each.digest)
    if not adapters:
        raise EmptySetError("There is no usable contribution, hence nothing to resolve.")
    params = split_params(dict(policy.params))[0]
    strategy.validate(params)
    inputs = tuple(_to_input(each) for each in adapters)
    found = AdapterSet.of(
        Member(each.digest, each.weight, _adapter(each, one.tensors, fs))
        for each, one in zip(adapters, inputs, strict=True)
    )
    is_model = rules.output == "model"
    if is_model and base is None:
        raise BaseMissingError(
            "A model is made of adapters by adding them to a base, and the policy has none."
        )
    base_input = _base_input(base) if base is not None and is_model else None
    digests = [each.digest for each in adapters]
    merge = Merge(
        found=found,
        dense=DenseRecipe(
            strategy=strategy.id, params=params, group_mode=True, memory_bytes=memory_bytes, workers=workers
        ),
        output=rules.output,
        rank=rules.rank,
        base_name=rules.base_name or found.header.base_model,
        base=_base_model(base, base_input, fs) if base is not None and base_input is not None else None,
    )
    return ResolveJob(
        strategy=strategy.id,
        params=params,
        schema=schema,
        inputs=inputs,
        base=base_input,
        seed=seed_of(digests),
        dtype=policy.out_dtype,
        group_mode=True,
        resolve_key=resolve_key(used_root(digests), whole_recipe(policy)),
        recipe_digest=digest("crdt-merge/recipe/1", policy.recipe()),
        memory_bytes=memory_bytes,
        workers=workers,
        facts=dict(facts or {}),
        adapters=AdapterJob(merge, rules),
        directory_file=WEIGHTS if rules.output == "adapter" else "",
    )


def run_adapter_job(
    job: ResolveJob,
    output: Path,
    *,
    progress: ReportProgress,
    cancelled: IsCancelled,
    fs: Fs,
    clock: Clock,
    rng: Rng,
) -> ResolveResult:
    """Merge the adapters of a job into ``output`` and write the account of it; as ``run_job``.

    Args:
        job: Made by :func:`build_adapter_job`.
        output: By the policy's rules the directory of an adapter, or a model's file or directory of shards.
        progress: Told what is done, what there is in all, and the step.
        cancelled: Asked before every module.
        fs: Where the output goes.
        clock: For the duration.
        rng: For the names of temporary files.
    """
    assert job.adapters is not None, "jobs of whole models are run by resolve.run"
    started = clock.monotonic()
    merge = job.adapters.merge
    target = Target(output, job.dtype, fs, rng, job.shard_bytes)
    results: list[ResolveResult] = []

    def account(written: Written, outcome: Outcome) -> Mapping[str, Any]:
        result = _result(job, output, written, outcome, duration_s=clock.monotonic() - started)
        results.append(result)
        return account_of(job, result, written, outcome)

    merge_set(merge, target, progress=progress, cancelled=cancelled, account=account)
    return results[0]


def _result(
    job: ResolveJob, output: Path, written: Written, outcome: Outcome, *, duration_s: float
) -> ResolveResult:
    assert job.adapters is not None, "as above"
    engine = outcome.engine
    is_bitwise = job.adapters.merge.is_bitwise
    decisions = dict(engine.decisions) if engine is not None else {}
    decisions |= {"warnings": list(outcome.warnings), "ranks": outcome.ranks, "dropped": outcome.dropped}
    profile = engine.profile if engine is not None else "bitwise"
    return ResolveResult(
        resolve_key=job.resolve_key,
        output_digest=written.output_digest,
        file_sha256=written.sha256,
        nbytes=written.nbytes,
        duration_s=duration_s,
        output_path=output,
        manifest_path=written.account_path,
        decisions=writable(decisions),
        warnings=tuple(outcome.warnings),
        profile=profile if is_bitwise else "fp_tolerant",
        effective_strategy=engine.effective_strategy if engine is not None else job.strategy,
        files=written.files if job.directory_file or job.shard_bytes else (),
    )


def _adapter(used: UsedAdapter, sources: Mapping[str, TensorSource], fs: Fs) -> Adapter:
    specs = (entry.spec for entry in used.manifest.entries if entry.spec.name != ADAPTER)
    return Adapter(
        origin=f"contribution {used.digest.hex()[:12]}",
        header=used.header,
        layout=read_layout(specs),
        sources=sources,
        fs=fs,
    )


def _to_input(used: UsedAdapter) -> ModelInput:
    who = f"contribution {used.digest.hex()[:12]}"
    tensors = _named_sources(used.manifest, used.sources, who)
    return ModelInput(digest=used.digest, weight=used.weight, tensors=tensors, content=used.manifest.content)


def _base_input(base: UsedModel) -> ModelInput:
    tensors = _named_sources(base.manifest, base.sources, "the base")
    return ModelInput(digest=base.digest, weight=base.weight, tensors=tensors, content=base.manifest.content)


def _named_sources(
    manifest: Manifest, sources: Mapping[str, TensorSource], who: str
) -> dict[str, TensorSource]:
    """Return where tensors are, each with the blob that it shall be."""
    missing = [entry.spec.name for entry in manifest.entries if entry.spec.name not in sources]
    if missing:
        raise MissingBlobError(
            f"{len(missing)} blobs of {who} are not on this node yet: {', '.join(missing[:_NAMED_MAX])}.",
            hint="Wait for them (resolve --wait), or leave a contribution out (resolve --without TAG).",
        )
    return {entry.spec.name: replace(sources[entry.spec.name], blob=entry.blob) for entry in manifest.entries}


def _base_model(base: UsedModel, found: ModelInput, fs: Fs) -> BaseModel:
    specs = {entry.spec.name: entry.spec for entry in base.manifest.entries}
    return BaseModel(origin="the base", specs=specs, sources=found.tensors, fs=fs)
