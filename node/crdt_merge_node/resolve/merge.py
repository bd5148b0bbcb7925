"""Offline ``merge``: files in, one file out, by the engine of a group's resolve and under the same names.

The files become contributions with the digests that they would have in a group, and the options become a
policy. From there on ``plan.build_job`` and ``run`` do for both what they do, so the output of ``merge`` is
byte-identical to the resolve of a group that holds those contributions under that policy. The one
difference: where a group must go on by a stand-in rule (STRATEGIES 1.12), ``merge`` refuses, unless it is
told to be lenient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from crdt_merge_protocol.errors import ArtefactInvalidError, NonFiniteError

from crdt_merge_node.ports import Clock, Fs, Rng, SystemClock, SystemFs, SystemRng

from .artefact_files import remedy
from .describe import MODEL, DescribedFile, describe_files
from .earlier import read_earlier, telling_what_changed
from .estimate import Estimate, estimate_job, seconds_per_byte
from .job import DEFAULT_MEMORY_BYTES, IsCancelled, KeptTensor, ReportProgress, ResolveJob, ResolveResult
from .memory import share_memory
from .offline import Inputs, job_of, job_unread, read_inputs
from .output import open_output
from .plan import INLINE_BYTES_MAX, make_plan
from .pool import Pool
from .run import Run, open_pool, say_nothing, ticker, usable_cores
from .taken import EarlierChangedError

_NAMED_MAX: Final = 4


def merge_files(
    files: Sequence[Path],
    output: Path,
    *,
    strategy: str,
    base: Path | None = None,
    params: Mapping[str, str] | None = None,
    weights: Sequence[int] | None = None,
    dtype: str = "",
    artefacts: Sequence[Path] = (),
    task: str = "",
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    workers: int | None = None,
    shard_bytes: int = 0,
    reuses: bool = False,
    is_lenient: bool = False,
    progress: ReportProgress | None = None,
    cancelled: IsCancelled | None = None,
    fs: Fs | None = None,
    clock: Clock | None = None,
    rng: Rng | None = None,
    afterwards: Callable[[ResolveJob, ResolveResult], None] | None = None,
) -> ResolveResult:
    """Merge models, each a safetensors file or a directory of shards, into one.

    All that headers can tell is checked before a tensor is read, and everything before a byte is written.

    Args:
        files: The models. Their order does not matter. The schema is that of ``base``, else of the first.
        output: A file, replaced atomically if it exists; or a directory.
        strategy: Id of a strategy.
        base: The model that the others were trained from.
        params: Of the strategy, as text. Rows of tables may name files where those of a group name digests.
        weights: One per file, over 2^32; None: all one.
        dtype: Of the output's float tensors; empty: that of the base, else of the files.
        artefacts: What the strategy needs besides models. Their headers say of which file they are.
        task: One of the files, or its digest: the model of its task is written instead of the common one.
        memory_bytes: Budget over all processes.
        workers: As in ``ResolveJob``.
        shard_bytes: As in ``ResolveJob``.
        reuses: Take over from the output that is replaced, if its account is there, what need not be
            computed again. The bytes are the same.
        is_lenient: Where one file alone is right and all together are not, go on as a group has to, and warn.
        progress: Told bytes done, bytes in all, and the step.
        cancelled: Asked about ten times a second.
        fs: Where headers are read and the output goes.
        clock: For the duration.
        rng: For the names of temporary files.
        afterwards: Called once the output is durable, with what was done: for reports of it.

    Raises:
        MalformedTensorFileError, TensorMissingError, ShapeMismatchError, DTypeMismatchError, NonFiniteError:
            A file cannot be merged; the message names it.
        ParameterError, BaseMissingError, EmptySetError: The options make no merge.
        ArtefactInvalidError, ArtefactMissingError, ArtefactStaleError, RoleMissingError,
        UnsupportedCountError: The strategy cannot work on these inputs and no stand-in is named.
        IntegerTensorDiffersError, OverflowRefusedError: The files cannot be merged with one another.
        ResolveCancelledError: ``cancelled`` said so. No file has changed.
        FullError, StorageError: A file cannot be read or written.
    """
    fs, clock = fs or SystemFs(), clock or SystemClock()
    started = clock.monotonic()
    inputs = read_inputs(
        fs,
        files,
        strategy=strategy,
        base=base,
        params=params,
        weights=weights,
        dtype=dtype,
        artefacts=artefacts,
    )
    count = _worker_count(inputs, len(files), memory_bytes=memory_bytes, workers=workers)
    report = progress or say_nothing

    def once(earlier: Mapping[bytes, KeptTensor]) -> tuple[ResolveJob, ResolveResult]:
        with open_pool(count, fs, ticker(cancelled)) as pool:
            described = _describe(inputs, pool, report)
            job = job_of(
                inputs,
                described,
                task=task,
                memory_bytes=memory_bytes,
                workers=count,
                is_lenient=is_lenient,
            )
            job = replace(job, shard_bytes=shard_bytes, earlier=earlier)
            plan = make_plan(job, cores=count)
            pool.keep(plan.workers)
            with (
                telling_what_changed(plan.reuse, fs),
                open_output(output, plan, shard_bytes=shard_bytes, fs=fs, rng=rng or SystemRng()) as writer,
            ):
                return job, Run(job, plan, pool, report).write(writer, started=started, clock=clock)

    try:
        job, result = once(read_earlier(fs, output) if reuses else {})
    except EarlierChangedError:
        job, result = once({})
    if afterwards is not None:
        afterwards(job, result)
    return result


def plan_files(
    files: Sequence[Path],
    *,
    strategy: str,
    base: Path | None = None,
    params: Mapping[str, str] | None = None,
    weights: Sequence[int] | None = None,
    dtype: str = "",
    artefacts: Sequence[Path] = (),
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    workers: int | None = None,
    fs: Fs | None = None,
    clock: Clock | None = None,
) -> Estimate:
    """Return what :func:`merge_files` would do and cost, reading headers only; arguments and errors are its.

    Which file an artefact is of shows when the files are read; here they are taken to belong together. The
    reading that names the files counts as one more pass.
    """
    inputs = read_inputs(
        fs or SystemFs(),
        files,
        strategy=strategy,
        base=base,
        params=params,
        weights=weights,
        dtype=dtype,
        artefacts=artefacts,
    )
    found = estimate_job(job_unread(inputs, memory_bytes=memory_bytes, workers=workers), clock=clock)
    naming_s = inputs.nbytes * seconds_per_byte(clock or SystemClock()) / max(found.workers, 1)
    return replace(
        found,
        passes=found.passes + 1,
        read_bytes=found.read_bytes + inputs.nbytes,
        seconds=found.seconds + naming_s,
    )


class _Hashing:
    """Reports the first step, in which the files are read to name them."""

    def __init__(self, report: ReportProgress, total_bytes: int) -> None:
        self._report = report
        self._total_bytes = total_bytes
        self._done_bytes = 0

    def advance(self, nbytes: int) -> None:
        """Count bytes."""
        self._done_bytes += nbytes
        self._report(self._done_bytes, self._total_bytes, "hashing")


def _worker_count(inputs: Inputs, k: int, *, memory_bytes: int, workers: int | None) -> int:
    """Return how many processes read the files: as many as asked for, or as pay, and as the memory allows."""
    if workers is None:
        workers = 0 if inputs.nbytes <= INLINE_BYTES_MAX else usable_cores()
    return share_memory(memory_bytes, k=k, wanted=workers).workers


def _describe(inputs: Inputs, pool: Pool, report: ReportProgress) -> list[DescribedFile]:
    """Read the files once, which names them and tells whether all their values are finite."""
    described = describe_files(
        inputs.headers,
        pool,
        weights=inputs.all_weights,
        kinds=inputs.kinds,
        advance=_Hashing(report, inputs.nbytes).advance,
    )
    _require_finite(described)
    return described


def _require_finite(files: Sequence[DescribedFile]) -> None:
    for file in files:
        if not file.is_finite:
            names = ", ".join(file.not_finite[:_NAMED_MAX])
            if file.kind != MODEL:
                raise ArtefactInvalidError(
                    f"{file.path}: no {file.kind} holds such values as are in {', '.join(file.not_finite)}.",
                    hint=remedy(file.path),
                )
            raise NonFiniteError(
                f"{file.path}: {len(file.not_finite)} tensors hold NaN, infinity or an impossible boolean: "
                f"{names}.",
                hint="A model with such values is damaged; a group would quarantine it.",
            )
