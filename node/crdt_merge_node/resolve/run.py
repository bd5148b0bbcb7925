"""Carrying out a job: statistics passes, the merge, the output, the account of it.

``run_job`` blocks; the daemon calls it in an executor thread. One pass over the inputs per statistics pass of
the strategy and one for the merge; the output is written and hashed front to back while later parts of it are
still being computed. The bytes depend on the job alone, never on the number of workers, the size of blocks
or who was faster (DESIGN 3.3).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from crdt_merge_protocol.blobs import DTYPE_BYTES, blob_digest
from crdt_merge_protocol.limits import CHUNK_BYTES
from crdt_merge_protocol.strategies.contract import Key
from crdt_merge_protocol.strategies.registry import get
from crdt_merge_protocol.strategies.surgery import RepresentationSurgery

from crdt_merge_node.ports import Clock, Fs, Rng, SystemClock, SystemFs, SystemRng

from .ahead import reading_ahead
from .alone import OUTPUT_BYTES_MAX, PARTIALS_MAX, with_all
from .blocks import changed
from .earlier import telling_what_changed
from .job import IsCancelled, ReportProgress, ResolveCancelledError, ResolveJob, ResolveResult
from .modulators import ModulatorsFile
from .output import OutputWriter, open_output
from .past_cache import PAGE_BYTES
from .plan import make_plan
from .pool import InlinePool, Pool, ProcessPool, Tick
from .provenance import provenance_of, writable
from .spans import Merged
from .steps import SLOT_BYTES, Plan, Span, TensorPlan, sources_of
from .taken import EarlierChangedError
from .tasks import Advance, Load, Merge, MergeIntoFile, Observe, Task

_WARNED_TENSORS_MAX: Final = 20


def run_job(
    job: ResolveJob,
    output: Path,
    *,
    progress: ReportProgress | None = None,
    cancelled: IsCancelled | None = None,
    fs: Fs | None = None,
    clock: Clock | None = None,
    rng: Rng | None = None,
) -> ResolveResult:
    """Merge the inputs of ``job`` into ``output`` and write its provenance beside it, or into the directory.

    Args:
        job: Made by ``plan.build_job``. Should an earlier output not be what its account says, the job is
            done without.
        output: A file, replaced atomically if it exists, or a directory of shards. Its parent must exist.
        progress: Told bytes read so far, bytes to read in all, and the step.
        cancelled: Asked about ten times a second.
        fs: Where the output goes; workers read the inputs from the real file system.
        clock: For the duration.
        rng: For the names of temporary files; no bit of the result depends on it.

    Raises:
        ResolveCancelledError: ``cancelled`` said so. No file has changed.
        ResolveError: These inputs cannot be merged.
        CorruptError: Bytes of an input are not those that its digest names.
        FullError, StorageError: The output cannot be written or an input cannot be read.
    """
    fs, clock = fs or SystemFs(), clock or SystemClock()
    started = clock.monotonic()

    def once(job: ResolveJob) -> ResolveResult:
        plan = make_plan(job, cores=usable_cores())
        with telling_what_changed(plan.reuse, fs), open_pool(plan.workers, fs, ticker(cancelled)) as pool:
            run = Run(job, plan, pool, progress or say_nothing)
            with open_output(
                output, plan, shard_bytes=job.shard_bytes, fs=fs, rng=rng or SystemRng()
            ) as writer:
                return run.write(writer, started=started, clock=clock)

    try:
        return once(job)
    except EarlierChangedError:
        return once(replace(job, earlier={}))


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def open_pool(workers: int, fs: Fs, tick: Tick) -> Pool:
    """Return who runs the tasks: this process if ``workers`` is 0."""
    if workers:
        return ProcessPool(workers=workers, slot_bytes=OUTPUT_BYTES_MAX + PAGE_BYTES, tick=tick)
    return InlinePool(fs, slot_bytes=OUTPUT_BYTES_MAX + PAGE_BYTES, tick=tick)


def ticker(cancelled: IsCancelled | None) -> Tick:
    """Return what pools call often: it raises once the caller does not want the result any more."""

    def tick() -> None:
        if cancelled is not None and cancelled():
            raise ResolveCancelledError("The resolve was cancelled. No file has changed.")

    return tick


class Run:
    """One job under way in a pool."""

    def __init__(self, job: ResolveJob, plan: Plan, pool: Pool, report: ReportProgress) -> None:
        self._job = job
        self._plan = plan
        self._pool = pool
        self._report = report
        self._strategy = get(plan.strategy)
        self._passes = self._strategy.pass_count(plan.context)
        self._total_bytes = plan.input_bytes + plan.observed_bytes * self._passes
        self._done_bytes = 0
        self._misfits: dict[str, int] = {}
        self._found: dict[int, Any] = {}
        """What was found of tensors alone, by tensor index."""

    def write(self, writer: OutputWriter, *, started: float, clock: Clock) -> ResolveResult:
        """Do all steps and return the durable result."""
        next(self._reading_ahead(self._plan.merge_batches()), None)  # While workers start.
        self._pool.tell(Load(self._plan))
        state = self._plan.reuse.complete(self._observe())
        self._merge(writer)
        state = with_all(state, self._found)
        decisions = writable(self._plan.reuse.decisions(self._strategy, self._plan.context, state))
        misfits = self._plan.reuse.misfits(self._plan.tensors, self._misfits)
        if self._plan.tied:
            decisions["tied"] = self._plan.tied
        decisions["warnings"] = warnings = [
            *_stand_in_warnings(self._job, self._plan),
            *self._plan.warnings,
            *decisions.get("warnings", ()),
            *_misfit_warnings(misfits),
        ]
        modulators = self._finish_modulators(writer, decisions) if self._plan.is_modulated else None
        result = ResolveResult(
            resolve_key=self._job.resolve_key,
            output_digest=writer.output_digest(self._plan.tensors),
            file_sha256=writer.sha256,
            nbytes=writer.nbytes,
            duration_s=clock.monotonic() - started,
            output_path=writer.path,
            manifest_path=writer.final(writer.provenance_path),
            decisions=decisions,
            warnings=tuple(warnings),
            profile=self._strategy.determinism_in(self._plan.context),
            effective_strategy=self._plan.strategy,
            modulators_path=writer.final(modulators.path) if modulators else None,
            files=writer.files if self._job.shard_bytes else (),
            reused_tensors=len(self._plan.reuse.taken),
            reused_bytes=self._plan.reuse.nbytes,
        )
        blobs = writer.blobs(self._plan.tensors)
        tensors = list(self._plan.reuse.account(self._plan.tensors, blobs, misfits, state))
        self._report(self._total_bytes, self._total_bytes, "writing to disk")
        writer.commit(provenance_of(self._job, self._plan, result, modulators, tensors=tensors), modulators)
        return result

    def _finish_modulators(self, writer: OutputWriter, decisions: Mapping[str, Any]) -> ModulatorsFile:
        """Write what turns the common model into that of each task, adapters of artefacts among it."""
        context = self._plan.context
        if isinstance(self._strategy, RepresentationSurgery):
            for contribution, digest in enumerate(context.digests):
                self._copy_adapter(writer, digest, self._strategy.adapter(context, contribution))
        return writer.modulators.finish(
            {
                "strategy": self._plan.strategy,
                "version": self._strategy.version,
                "resolve_key": self._job.resolve_key.hex(),
                "contributions": [digest.hex() for digest in context.digests],
                "decisions": dict(decisions),
            }
        )

    def _copy_adapter(
        self, writer: OutputWriter, digest: bytes, adapter: tuple[int, dict[str, str]] | None
    ) -> None:
        """Copy the tensors of an artefact that go with one task; they are no part of any block."""
        if adapter is None:
            return
        position, tensors = adapter
        item = self._job.artefacts[position]
        for name, tensor in sorted(tensors.items()):
            spec = item.artefact.spec(tensor)
            assert spec is not None, "the strategy has looked"
            writer.modulators.copy(digest, replace(spec, name=name), item.tensors[tensor])

    def _observe(self) -> Any:
        """Run the statistics passes and return the last state; every worker has it."""
        state: Any = None
        context = self._plan.context
        alone = {self._plan.tensors[number].index for number in self._plan.alone}
        for pass_no in range(self._passes):
            wanted = [
                index not in alone and self._strategy.needs(context, state, pass_no, index)
                for index in range(len(context.specs))
            ]
            looks_at = partial(self._strategy.looks_at, context, state, pass_no)
            batches = list(self._plan.observe_batches(wanted, looks_at))
            has_models = self._strategy.reads_models(context, pass_no)
            ahead = self._reading_ahead(batches, has_models=has_models)
            answers = self._pool.run(Observe(pass_no, batch) for batch in ahead)
            partials: list[tuple[Key, Any]] = []
            compact_at = PARTIALS_MAX
            for batch, (answer, _) in zip(batches, answers, strict=True):
                partials.extend(answer)
                if len(partials) >= compact_at:
                    partials = self._strategy.compact(context, pass_no, partials)
                    compact_at = PARTIALS_MAX + 2 * len(partials)
                self._advance(map(self._plan.read_bytes, batch), f"measuring {pass_no + 1}/{self._passes}")
            partials.sort(key=lambda item: item[0])
            state = self._strategy.end_pass(context, state, pass_no, partials)
            self._pool.tell(Advance(state))
            # What the pass could skip counts as done.
            self._done_bytes = (pass_no + 1) * self._plan.observed_bytes
        return state

    def _merge(self, writer: OutputWriter) -> None:
        verifier = _Verifier(self._plan.tensors)
        batches = list(self._plan.merge_batches())
        answers = self._pool.run(self._merge_tasks(batches, writer))
        for batch, (merged, data) in zip(batches, answers, strict=True):
            for part in merged:
                verifier.add(part)
                if part.findings is not None:
                    self._found[self._plan.tensors[part.span.tensor].index] = part.findings
                if part.misfits:
                    name = self._plan.tensors[part.span.tensor].spec.name
                    self._misfits[name] = self._misfits.get(name, 0) + part.misfits
                for digest, packed in zip(self._plan.context.digests, part.modulators, strict=False):
                    writer.modulators.add(digest, self._plan.tensors[part.span.tensor].spec.name, packed)
            self._take_in(writer, merged, data)
            self._advance(map(self._plan.read_bytes, batch), "merging")

    def _merge_tasks(self, batches: Sequence[tuple[Span, ...]], writer: OutputWriter) -> Iterator[Task]:
        position = 0
        if all(self._plan.output_bytes(span) <= SLOT_BYTES for batch in batches for span in batch):
            writer.go_past_cache()
        for batch in self._reading_ahead(batches):
            nbytes = sum(map(self._plan.output_bytes, batch))
            if nbytes <= SLOT_BYTES or batch[0].tensor in self._plan.alone:
                yield Merge(batch, writer.phase(position) if nbytes else 0)
            else:
                yield MergeIntoFile(batch[0], *writer.place(position))
            position += nbytes

    def _reading_ahead(
        self, batches: Iterable[tuple[Span, ...]], *, has_models: bool = True
    ) -> Iterator[tuple[Span, ...]]:
        reads = partial(self._plan.reads, has_models=has_models)
        return reading_ahead(batches, reads, self._pool.expect)

    def _take_in(self, writer: OutputWriter, merged: Sequence[Merged], data: memoryview) -> None:
        """Write what a task put out, or look at what it has written, and note the digests of its chunks."""
        sizes = [self._plan.output_bytes(part.span) for part in merged]
        data = data[max(len(data) - sum(sizes), 0) :]  # In front of it may be what aligns it.
        position = 0
        for part, nbytes in zip(merged, sizes, strict=True):
            number = part.span.tensor
            is_hashed = self._plan.tensors[number].is_hashed_by_workers
            if nbytes > SLOT_BYTES:
                writer.adopt(nbytes, tensor=None if is_hashed else number)
            elif not is_hashed:
                writer.hash_bytes(number, data[position : position + nbytes])
            writer.add_chunks(number, part.chunks)
            position += nbytes
        writer.write(data)

    def _advance(self, nbytes: Iterable[int], step: str) -> None:
        self._done_bytes += sum(nbytes)
        self._report(self._done_bytes, self._total_bytes, step)


class _Verifier:
    """Compares what was read with the digests that name it (SCENARIOS T41). Spans come in file order."""

    def __init__(self, tensors: tuple[TensorPlan, ...]) -> None:
        self._tensors = tensors
        self._chunks: list[list[bytes]] = []

    def add(self, part: Merged) -> None:
        """Take the digests of a span's inputs; the last span of a tensor decides.

        Where spans do not end where chunks do, two of them read a chunk, and have to have read the same.
        """
        tensor = self._tensors[part.span.tensor]
        sources = sources_of(tensor)
        if part.span.start == 0:
            self._chunks = [[] for _ in part.inputs]
        widths = [DTYPE_BYTES[dtype] if tensor.index >= 0 else 1 for _, dtype in tensor.streams]
        for source, width, chunks, more in zip(sources, widths, self._chunks, part.inputs, strict=True):
            shared = len(chunks) - part.span.start * width // CHUNK_BYTES
            if source.blob and shared > 0 and chunks[-shared:] != more[:shared]:
                raise changed(source, f"tensor {tensor.spec.name}")
            chunks.extend(more[max(shared, 0) :])
        if part.span.stop != tensor.size:
            return
        for source, chunks in zip(sources, self._chunks, strict=True):
            if source.blob and blob_digest(source.nbytes, chunks) != source.blob:
                raise changed(source, f"tensor {tensor.spec.name}")


def _stand_in_warnings(job: ResolveJob, plan: Plan) -> list[str]:
    if not plan.stand_in_reason:
        return []
    return [f"{plan.strategy} stood in for {job.strategy}: {plan.stand_in_reason}."]


def _misfit_warnings(misfits: dict[str, int]) -> list[str]:
    lines = [
        f"{name}: {count} elements did not fit the output type; the largest that fits was written."
        for name, count in misfits.items()
    ]
    rest = len(lines) - _WARNED_TENSORS_MAX
    return [*lines[:_WARNED_TENSORS_MAX], f"And {rest} more tensors."] if rest > 0 else lines


def say_nothing(_done: int, _total: int, _step: str) -> None:
    """Report to nobody."""
