"""Carrying out a job: statistics passes, the merge, the output, the account of it.

``run_job`` blocks; the daemon calls it in an executor thread. One pass over the inputs per statistics pass of
the strategy and one for the merge; the output is written and hashed front to back while later parts of it are
still being computed. The bytes depend on the job alone, never on the number of workers, the size of blocks
or who was faster (DESIGN 3.3).
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
from crdt_merge_protocol.blobs import blob_digest
from crdt_merge_protocol.limits import WEIGHT_ONE
from crdt_merge_protocol.resolve_key import used_root
from crdt_merge_protocol.strategies.contract import Key
from crdt_merge_protocol.strategies.registry import get

from crdt_merge_node.errors import CorruptError
from crdt_merge_node.ports import Clock, Fs, Rng, SystemClock, SystemFs, SystemRng
from crdt_merge_node.version import VERSION

from .job import IsCancelled, ReportProgress, ResolveCancelledError, ResolveJob, ResolveResult
from .output import OutputWriter
from .plan import make_plan
from .pool import InlinePool, Pool, ProcessPool, Tick
from .steps import SLOT_BYTES, Plan, TensorPlan, sources_of
from .tasks import PARTIALS_MAX, Advance, Load, Merge, Merged, Observe

PROVENANCE_SCHEMA: Final = "provenance/1"
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
    """Merge the inputs of ``job`` into the file ``output`` and write its provenance beside it.

    Args:
        job: Made by ``plan.build_job``.
        output: Replaced atomically if it exists. Its directory must exist.
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
    plan = make_plan(job, cores=usable_cores())
    with open_pool(plan.workers, fs, ticker(cancelled)) as pool:
        run = Run(job, plan, pool, progress or say_nothing)
        with OutputWriter(output, nbytes=plan.nbytes, fs=fs, rng=rng or SystemRng()) as writer:
            return run.write(writer, started=started, clock=clock)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def open_pool(workers: int, fs: Fs, tick: Tick) -> Pool:
    """Return who runs the tasks: this process if ``workers`` is 0."""
    if workers:
        return ProcessPool(workers=workers, slot_bytes=SLOT_BYTES, tick=tick)
    return InlinePool(fs, slot_bytes=SLOT_BYTES, tick=tick)


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
        self._total_bytes = plan.input_bytes * (self._passes + 1)
        self._done_bytes = 0
        self._misfits: dict[str, int] = {}

    def write(self, writer: OutputWriter, *, started: float, clock: Clock) -> ResolveResult:
        """Do all steps and return the durable result."""
        self._pool.tell(Load(self._plan))
        state = self._observe()
        self._merge(writer)
        decisions = dict(self._strategy.decisions(self._plan.context, state))
        decisions["warnings"] = warnings = [
            *self._plan.warnings,
            *decisions.get("warnings", ()),
            *_misfit_warnings(self._misfits),
        ]
        result = ResolveResult(
            resolve_key=self._job.resolve_key,
            output_digest=writer.output_digest(self._plan.tensors),
            file_sha256=writer.sha256,
            nbytes=writer.nbytes,
            duration_s=clock.monotonic() - started,
            output_path=writer.path,
            manifest_path=writer.provenance_path,
            decisions=decisions,
            warnings=tuple(warnings),
            profile=self._strategy.determinism,
        )
        self._report(self._total_bytes, self._total_bytes, "writing to disk")
        writer.commit(_provenance(self._job, self._plan, result))
        return result

    def _observe(self) -> Any:
        """Run the statistics passes and return the last state; every worker has it."""
        state: Any = None
        context = self._plan.context
        for pass_no in range(self._passes):
            wanted = [
                self._strategy.needs(context, state, pass_no, index) for index in range(len(context.specs))
            ]
            batches = list(self._plan.observe_batches(wanted))
            answers = self._pool.run(Observe(pass_no, batch) for batch in batches)
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
            self._done_bytes = (pass_no + 1) * self._plan.input_bytes
        return state

    def _merge(self, writer: OutputWriter) -> None:
        writer.write(self._plan.header)
        verifier = _Verifier(self._plan.tensors)
        batches = list(self._plan.merge_batches())
        answers = self._pool.run(Merge(batch) for batch in batches)
        for batch, (merged, data) in zip(batches, answers, strict=True):
            for part in merged:
                verifier.add(part)
                writer.add_chunks(part.span.tensor, part.chunks)
                if part.misfits:
                    name = self._plan.tensors[part.span.tensor].spec.name
                    self._misfits[name] = self._misfits.get(name, 0) + part.misfits
            writer.write(data)
            self._advance(map(self._plan.read_bytes, batch), "merging")

    def _advance(self, nbytes: Iterable[int], step: str) -> None:
        self._done_bytes += sum(nbytes)
        self._report(self._done_bytes, self._total_bytes, step)


class _Verifier:
    """Compares what was read with the digests that name it (SCENARIOS T41). Spans come in file order."""

    def __init__(self, tensors: tuple[TensorPlan, ...]) -> None:
        self._tensors = tensors
        self._chunks: list[list[bytes]] = []

    def add(self, part: Merged) -> None:
        """Take the digests of a span's inputs; the last span of a tensor decides."""
        tensor = self._tensors[part.span.tensor]
        if part.span.start == 0:
            self._chunks = [[] for _ in part.inputs]
        for chunks, more in zip(self._chunks, part.inputs, strict=True):
            chunks.extend(more)
        if part.span.stop != (tensor.spec.numel if tensor.index >= 0 else tensor.spec.nbytes):
            return
        for source, chunks in zip(sources_of(tensor), self._chunks, strict=True):
            if source.blob and blob_digest(source.nbytes, chunks) != source.blob:
                raise CorruptError(
                    f"{source.path or 'An inline blob'}: tensor {tensor.spec.name} is not blob "
                    f"{source.blob.hex()[:12]} any more.",
                    hint="The file was changed meanwhile, or the disk is failing.",
                )


def _provenance(job: ResolveJob, plan: Plan, result: ResolveResult) -> dict[str, Any]:
    return {
        "schema": PROVENANCE_SCHEMA,
        "resolve_key": result.resolve_key.hex(),
        "used_root": used_root(model.digest for model in job.inputs).hex(),
        "output_digest": result.output_digest.hex(),
        "file": {
            "name": result.output_path.name,
            "sha256": result.file_sha256.hex(),
            "nbytes": result.nbytes,
            "tensors": len(plan.tensors),
        },
        "recipe": {
            "digest": job.recipe_digest.hex(),
            "strategy": job.strategy,
            "strategy_version": result.decisions.get("version"),
            "params": dict(sorted(job.params.items())),
            "effective_params": {name: str(value) for name, value in sorted(plan.context.params.items())},
            "schema": job.schema.id.hex(),
            "base": job.base.content.hex() if job.base else None,
            "dtype": job.dtype,
            "seed": job.seed.hex(),
        },
        "inputs": [
            {"digest": model.digest.hex(), "content": model.content.hex(), "weight": model.weight}
            for model in job.inputs
        ],
        "weight_one": WEIGHT_ONE,
        "decisions": dict(result.decisions),
        "numerics": {
            "class": result.profile,
            "release": VERSION,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
        },
        "run": {
            "duration_s": round(result.duration_s, 3),
            "workers": plan.workers,
            "block_elements": plan.block_elements,
        },
        "facts": dict(job.facts),
    }


def _misfit_warnings(misfits: dict[str, int]) -> list[str]:
    lines = [
        f"{name}: {count} elements did not fit the output type; the largest that fits was written."
        for name, count in misfits.items()
    ]
    rest = len(lines) - _WARNED_TENSORS_MAX
    return [*lines[:_WARNED_TENSORS_MAX], f"And {rest} more tensors."] if rest > 0 else lines


def say_nothing(_done: int, _total: int, _step: str) -> None:
    """Report to nobody."""
