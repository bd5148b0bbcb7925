"""Resolving a group: from the contributions used here to one file, attested to all peers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from crdt_merge_protocol.errors import CrdtMergeError, EmptySetError
from crdt_merge_protocol.messages.gossip import Attest

from crdt_merge_node.attesting import remember_attestation
from crdt_merge_node.background import Done, IsCancelled, Report, run_with_progress
from crdt_merge_node.contents import MERGED, GroupContents, Selection
from crdt_merge_node.control.model import Progress, ResolvePlan, ResolveReport
from crdt_merge_node.errors import CorruptError, StorageError, StoreFailedError
from crdt_merge_node.lora.estimate import estimate_adapter_job
from crdt_merge_node.lora.group import run_adapter_job
from crdt_merge_node.ports import available_memory_bytes
from crdt_merge_node.report.kept import is_cheap, keep
from crdt_merge_node.report.writing import measure_layers, write_card, write_reports
from crdt_merge_node.resolve.estimate import estimate_job
from crdt_merge_node.resolve.job import KeptTensor, ResolveJob, ResolveResult
from crdt_merge_node.resolve.remembered import recall, remember
from crdt_merge_node.resolve.reuse import find_finished
from crdt_merge_node.resolve.run import run_job
from crdt_merge_node.services import Services
from crdt_merge_node.telemetry.logging import get_logger

from .contributions import shown_contributions
from .jobs import job_of, refuse_unfit
from .naming import find_group, find_tag
from .waiting import beyond, refuse_if_late

log = get_logger()

REASONS_MAX: Final = 4
"""Why contributions are set aside, told when none is left: they may be of many kinds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolveRequest:
    """What ``resolve`` is asked for."""

    output_path: str
    wait_s: float
    without: tuple[str, ...]
    """Tags to leave out, or prefixes of them."""
    task: str = ""
    """Tag or digest of the contribution whose task's model is wanted; empty: the common one."""
    is_plan_only: bool = False
    """End after the plan."""
    report_paths: tuple[str, ...] = ()
    """Where to write the report of the layers: JSON if the name ends so, else an HTML page."""
    card_path: str = ""
    """Where to write a model card; empty: none."""
    shard_bytes: int = 0
    """Size of tensors in one file of a directory; 0: the output is one file."""
    is_fresh: bool = False
    """Compute everything, even what earlier outputs hold."""


async def resolve_group(
    services: Services, group_name: str, request: ResolveRequest
) -> AsyncGenerator[ResolvePlan | Progress | ResolveReport]:
    """Merge the used contributions into one safetensors file, or a directory of shards.

    Yields:
        How the waiting goes, the plan, how the work goes, and last the report.

    Raises:
        NotFoundError: There is no such group or tag.
        MissingBlobError: Bytes are missing here and the time to wait is over.
        EmptySetError: Nothing in the group can be used.
        ResolveError, StorageError: As of ``run_job``.
    """
    group = find_group(services, group_name)
    name = services.engine.replicas[group].state.genesis.name
    contents = await services.keeper.current(group)
    left_out = frozenset(find_tag(text, contents.items, group_name=name) for text in request.without)
    wait_s = 0.0 if request.is_plan_only else request.wait_s
    async with aclosing(_wait_for_bytes(services, group, contents, left_out, wait_s)) as waiting:
        async for found in waiting:
            if isinstance(found, Done):
                contents = found.value
            else:
                yield found
    selection = contents.select(left_out)
    if not selection.models:
        raise _nothing_usable(services, group, contents)
    job = job_of(services, group, contents, selection, task=_task(selection, name, request.task))
    refuse_unfit(job, request)
    earlier = {} if request.is_fresh else await asyncio.to_thread(_earlier, services, job)
    job = replace(job, shard_bytes=0 if job.directory_file else request.shard_bytes, earlier=earlier)
    plan = await _plan(services, group, contents, job, selection)
    yield plan
    if request.is_plan_only:
        return
    result: ResolveResult | None = None
    async with aclosing(_merge(services, job, request)) as steps:
        async for step in steps:
            if isinstance(step, Done):
                result = step.value
            else:
                yield step
    assert result is not None, "a resolve ends with its result or raises"
    await _attest(services, group, result)
    layers: dict[str, Any] | None = None
    async with aclosing(_write_extras(services, job, result, request)) as extras:
        async for extra in extras:
            if isinstance(extra, Done):
                layers = extra.value
            else:
                yield extra
    report = _report(services, group, contents, plan, result)
    await _keep(services, report, layers)
    yield report


async def _wait_for_bytes(
    services: Services, group: bytes, contents: GroupContents, left_out: frozenset[bytes], wait_s: float
) -> AsyncGenerator[Progress | Done[GroupContents]]:
    """Wait until a resolve that leaves these tags out can begin; yield how it goes, and last the contents."""
    deadline = services.clock.monotonic() + wait_s
    while not contents.is_ready(left_out):
        generation = services.keeper.generation(group)
        needed = contents.needed(left_out)
        refuse_if_late(services, group, contents, left_out, deadline, wait_s=wait_s)
        remaining = services.keeper.remaining(needed)
        yield Progress(step="waiting for blobs", detail=f"{len(needed)} missing, {remaining} bytes")
        await beyond(services, group, generation, deadline)
        contents = await services.keeper.current(group)
    yield Done(contents)


def _nothing_usable(services: Services, group: bytes, contents: GroupContents) -> EmptySetError:
    name = services.engine.replicas[group].state.genesis.name
    reasons = sorted({i.reason for i in shown_contributions(services, group, contents) if i.reason})
    why = f": {'; '.join(reasons[:REASONS_MAX])}" if reasons else ""
    return EmptySetError(
        f'group "{name}" has no usable contribution{why}.',
        hint=f"See: crdt-merge-node contribution list {name}",
    )


async def _write_extras(
    services: Services, job: ResolveJob, result: ResolveResult, request: ResolveRequest
) -> AsyncGenerator[Progress | Done[dict[str, Any] | None]]:
    """Write the report of the layers and the model card, if they are wanted.

    Yields:
        How it goes, and last what was measured; also unasked, where somebody may look and it is cheap.
    """
    paths = [Path(path) for path in request.report_paths]
    is_looked_at = bool(services.web.url) and is_cheap(job) and job.adapters is None

    def write(report: Report, _is_cancelled: IsCancelled) -> dict[str, Any] | None:
        layers = write_reports(job, result.output_path, paths, fs=services.fs, progress=report)
        if layers is None and is_looked_at:
            with contextlib.suppress(CrdtMergeError):  # Nobody asked for it.
                layers = measure_layers(job, result.output_path, fs=services.fs, progress=report)
        if request.card_path:
            write_card(result, Path(request.card_path), fs=services.fs)
        return layers

    if paths or request.card_path or is_looked_at:
        async with aclosing(run_with_progress(write)) as steps:
            async for step in steps:
                yield step


async def _keep(services: Services, report: ResolveReport, layers: dict[str, Any] | None) -> None:
    """Keep what the dashboard shows of the last resolve; the output is there with or without it."""
    if not services.web.url:
        return
    try:
        await asyncio.to_thread(
            keep,
            services.config.node.data_dir,
            report.group,
            resolve=report,
            when=services.clock.now(),
            layers=layers,
            fs=services.fs,
        )
    except StorageError as error:
        log.debug("report.forgotten", error=error)


async def _merge(
    services: Services, job: ResolveJob, request: ResolveRequest
) -> AsyncGenerator[Progress | Done[ResolveResult]]:
    """Do the work of a job; what turns out to be damaged is set aside, to be fetched again."""
    if services.merging.locked():
        yield Progress(step="waiting for another merge to end")
    async with services.merging:
        try:
            async with aclosing(run_with_progress(partial(_run, services, job, request))) as steps:
                async for step in steps:
                    yield step
        except CorruptError as error:
            await asyncio.to_thread(_set_aside_damage, services, job)
            raise CorruptError(
                error.message,
                hint="What is damaged was set aside and is fetched again from peers; try again then.",
            ) from error


def _run(
    services: Services, job: ResolveJob, request: ResolveRequest, report: Report, is_cancelled: IsCancelled
) -> ResolveResult:
    output = Path(request.output_path)
    if not request.is_fresh:
        finished = find_finished(job, output, fs=services.fs, progress=report, cancelled=is_cancelled)
        if finished is not None:
            return finished
    result = (run_job if job.adapters is None else run_adapter_job)(
        job,
        output,
        progress=report,
        cancelled=is_cancelled,
        fs=services.fs,
        clock=services.clock,
        rng=services.rng,
    )
    if job.adapters is not None:
        return result  # The tensors of adapters are not taken over one by one.
    try:
        remember(services.config.node.data_dir, job, result, fs=services.fs)
    except StorageError as error:
        log.debug("report.forgotten", error=error)  # The output is there all the same.
    return result


def _earlier(services: Services, job: ResolveJob) -> Mapping[bytes, KeptTensor]:
    """Return what outputs that this node wrote lately have to offer."""
    if job.adapters is not None:
        return {}
    return recall(services.config.node.data_dir, job, fs=services.fs)


def _set_aside_damage(services: Services, job: ResolveJob) -> None:
    """Hash every blob that went into a failed resolve, so that the damaged ones are fetched again."""
    for model in (*job.inputs, *job.artefacts, job.base):
        for source in model.tensors.values() if model else ():
            with contextlib.suppress(StorageError):
                services.store.blobs.verify(source.blob)


def _task(selection: Selection, group_name: str, text: str) -> bytes:
    """Return the digest of the contribution whose task is meant."""
    if not text:
        return b""
    digests = {item.visible.digest.hex(): item.visible.digest for item in selection.models}
    if text.lower() in digests:
        return digests[text.lower()]
    tags = {item.visible.tag: item.visible.digest for item in selection.models}
    return tags[find_tag(text, tags, group_name=group_name)]


async def _plan(
    services: Services, group: bytes, contents: GroupContents, job: ResolveJob, selection: Selection
) -> ResolvePlan:
    infos = sorted(
        shown_contributions(services, group, contents, selection), key=lambda info: (info.digest, info.tag)
    )
    chosen = {item.visible.tag.hex() for item in (*selection.models, *selection.artefacts)}
    policy = contents.view.policy
    estimate_of = estimate_job if job.adapters is None else estimate_adapter_job
    estimate = await asyncio.to_thread(estimate_of, job, clock=services.clock)
    return ResolvePlan(
        group=group.hex(),
        group_name=services.engine.replicas[group].state.genesis.name,
        strategy=policy.strategy,
        strategy_version=policy.strategy_version,
        params=dict(policy.params),
        resolve_key=job.resolve_key.hex(),
        inputs=tuple(info for info in infos if info.tag in chosen and info.type in MERGED),
        excluded=tuple(info for info in infos if info.tag not in chosen),
        base=policy.base.hex() if policy.base else "",
        dtype=job.dtype,
        read_bytes=estimate.read_bytes,
        output_bytes=estimate.output_bytes,
        memory_bytes=job.memory_bytes,
        free_memory_bytes=available_memory_bytes(),
        artefacts=tuple(info for info in infos if info.tag in chosen and info.type not in MERGED),
        effective_strategy=estimate.strategy,
        stand_in_reason=estimate.stand_in_reason,
        determinism=estimate.determinism,
        tensors=estimate.tensors,
        merged_tensors=estimate.merged_tensors,
        passes=estimate.passes,
        workers=estimate.workers,
        peak_memory_bytes=estimate.peak_memory_bytes,
        estimated_s=estimate.seconds,
        reused_tensors=estimate.reused_tensors,
        reused_bytes=estimate.reused_bytes,
    )


async def _attest(services: Services, group: bytes, result: ResolveResult) -> None:
    """Tell peers what was written, and remember it for those who come later."""
    log.info(
        "resolve.completed",
        group=group,
        output=result.output_digest,
        bytes=result.nbytes,
        duration_s=round(result.duration_s, 3),
    )
    attest = Attest(
        group=group,
        resolve_key=result.resolve_key,
        output_digest=result.output_digest,
        profile="" if result.profile == "bitwise" else result.profile,
    )
    services.driver.attest(attest)
    try:
        await remember_attestation(services.store, services.engine.attestations, attest)
    except StoreFailedError:
        raise
    except StorageError as error:
        log.warning("attestation.forgotten", group=group, error=error)  # The file is there all the same.


def _report(
    services: Services, group: bytes, contents: GroupContents, plan: ResolvePlan, result: ResolveResult
) -> ResolveReport:
    writers = services.engine.attestations.writers(group, result.resolve_key)
    others = {node: output for node, output in sorted(writers.items()) if node != services.engine.node}
    root, key = contents.keys()
    return ResolveReport(
        group=plan.group,
        group_name=plan.group_name,
        path=str(result.output_path),
        provenance_path=str(result.manifest_path),
        strategy=plan.strategy,
        strategy_version=plan.strategy_version,
        params=plan.params,
        resolve_key=result.resolve_key.hex(),
        used_root=root.hex() if key == result.resolve_key else "",
        output_digest=result.output_digest.hex(),
        file_sha256=result.file_sha256.hex(),
        nbytes=result.nbytes,
        duration_s=result.duration_s,
        inputs=plan.inputs,
        excluded=plan.excluded,
        base=plan.base,
        dtype=plan.dtype,
        agreeing=tuple(node.hex() for node, output in others.items() if output == result.output_digest),
        disagreeing=tuple(node.hex() for node, output in others.items() if output != result.output_digest),
        warnings=result.warnings,
        artefacts=plan.artefacts,
        effective_strategy=result.effective_strategy,
        determinism=result.profile,
        modulators_path=str(result.modulators_path or ""),
        reused_tensors=result.reused_tensors,
        reused_bytes=result.reused_bytes,
    )
