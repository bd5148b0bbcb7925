"""Offline ``merge``: files in, one file out, by the engine of a group's resolve and under the same names.

The files become contributions with the digests that they would have in a group, and the options become a
policy. From there on ``plan.build_job`` and ``run`` do for both what they do, so the output of ``merge`` is
byte-identical to the resolve of a group that holds those contributions under that policy. The one
difference: where a group must go on by a stand-in rule (STRATEGIES 1.12), ``merge`` refuses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from crdt_merge_protocol.blobs import FLOAT_DTYPES, Schema
from crdt_merge_protocol.errors import EmptySetError, NonFiniteError, ParameterError
from crdt_merge_protocol.limits import WEIGHT_MAX, WEIGHT_ONE
from crdt_merge_protocol.policy import Policy, sorted_params
from crdt_merge_protocol.quarantine import require_schema
from crdt_merge_protocol.strategies.registry import get
from crdt_merge_protocol.tensorfile import TensorFile

from crdt_merge_node.ports import Clock, Fs, Rng, SystemClock, SystemFs, SystemRng

from .describe import DescribedFile, describe_files
from .files import read_header
from .job import DEFAULT_MEMORY_BYTES, IsCancelled, ReportProgress, ResolveResult
from .memory import share_memory
from .output import OutputWriter
from .plan import INLINE_BYTES_MAX, build_job, make_plan
from .run import Run, open_pool, say_nothing, ticker, usable_cores

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
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    workers: int | None = None,
    progress: ReportProgress | None = None,
    cancelled: IsCancelled | None = None,
    fs: Fs | None = None,
    clock: Clock | None = None,
    rng: Rng | None = None,
) -> ResolveResult:
    """Merge safetensors files into one.

    All that headers can tell is checked before a tensor is read, and everything before a byte is written.

    Args:
        files: The models. Their order does not matter. The schema is that of ``base``, else of the first.
        output: Replaced atomically if it exists.
        strategy: Id of a strategy.
        base: The model that the others were trained from.
        params: Of the strategy, as text.
        weights: One per file, over 2^32; None: all one.
        dtype: Of the output's float tensors; empty: that of the base, else of the files.
        memory_bytes: Budget over all processes.
        workers: As in ``ResolveJob``.
        progress: Told bytes done, bytes in all, and the step.
        cancelled: Asked about ten times a second.
        fs: Where headers are read and the output goes.
        clock: For the duration.
        rng: For the names of temporary files.

    Raises:
        MalformedTensorFileError, TensorMissingError, ShapeMismatchError, DTypeMismatchError, NonFiniteError:
            A file cannot be merged; the message names it.
        ParameterError, BaseMissingError, EmptySetError: The options make no merge.
        IntegerTensorDiffersError, OverflowRefusedError: The files cannot be merged with one another.
        ResolveCancelledError: ``cancelled`` said so. No file has changed.
        FullError, StorageError: A file cannot be read or written.
    """
    fs, clock = fs or SystemFs(), clock or SystemClock()
    started = clock.monotonic()
    weights = _check_weights(files, weights)
    if not files:
        raise EmptySetError("There are no files, hence nothing to merge.", hint="Name one at least.")
    if dtype and dtype not in FLOAT_DTYPES:
        raise ParameterError(
            f"Element type {dtype!r} is none of those of an output.",
            hint=f"Known: {', '.join(sorted(FLOAT_DTYPES))}.",
        )
    recipe = get(strategy)
    normalised = sorted_params(recipe.normalise(dict(params or {})))
    paths = [*files, *([] if base is None else [base])]
    headers = [(path, read_header(fs, path)) for path in paths]
    schema = _common_schema(headers, headers[0 if base is None else -1])
    total_bytes = sum(spec.nbytes for spec in schema.specs) * len(headers)
    wanted = workers if workers is not None else (0 if total_bytes <= INLINE_BYTES_MAX else usable_cores())
    count = share_memory(memory_bytes, k=len(files), wanted=wanted).workers
    report = progress or say_nothing
    with open_pool(count, fs, ticker(cancelled)) as pool:
        described = describe_files(
            headers,
            pool,
            weights=[*weights, *([] if base is None else [WEIGHT_ONE])],
            advance=_Hashing(report, total_bytes).advance,
        )
        _require_finite(described)
        base_file = described.pop() if base is not None else None
        used = [file.used for file in described]
        policy = Policy(
            strategy=recipe.id,
            strategy_version=recipe.version,
            params=normalised,
            schema=schema.id,
            base=base_file.manifest.content if base_file else None,
            dtype=dtype,
        )
        job = build_job(
            policy,
            schema,
            used,
            base_file.used if base_file else None,
            group_mode=False,
            memory_bytes=memory_bytes,
            workers=count,
            facts={"command": "merge", "files": _facts(described), "base": str(base) if base else None},
        )
        plan = make_plan(job, cores=count)
        pool.keep(plan.workers)
        with OutputWriter(output, nbytes=plan.nbytes, fs=fs, rng=rng or SystemRng()) as writer:
            return Run(job, plan, pool, report).write(writer, started=started, clock=clock)


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


def _check_weights(files: Sequence[Path], weights: Sequence[int] | None) -> Sequence[int]:
    if weights is None:
        return [WEIGHT_ONE] * len(files)
    if len(weights) != len(files):
        raise ParameterError(f"{len(weights)} weights for {len(files)} files.", hint="Give one per file.")
    # More than a group takes (PROTOCOL R14): negative ones make some strategies forget.
    if any(abs(weight) > WEIGHT_MAX for weight in weights):
        limit = WEIGHT_MAX >> 32
        raise ParameterError(
            f"A weight lies between -{limit} and {limit}.", hint="Weights only count relative to each other."
        )
    return weights


def _common_schema(headers: Sequence[tuple[Path, TensorFile]], model: tuple[Path, TensorFile]) -> Schema:
    """Return the schema of ``model`` after checking that all files have it."""
    path, file = model
    schema = Schema.of(entry.spec for entry in file.entries)
    for other, found in headers:
        require_schema(schema, (entry.spec for entry in found.entries), who=f"{other} (beside {path})")
    return schema


def _require_finite(files: Sequence[DescribedFile]) -> None:
    for file in files:
        if not file.is_finite:
            names = ", ".join(file.not_finite[:_NAMED_MAX])
            raise NonFiniteError(
                f"{file.path}: {len(file.not_finite)} tensors hold NaN, infinity or an impossible boolean: "
                f"{names}.",
                hint="A model with such values is damaged; a group would quarantine it.",
            )


def _facts(files: Sequence[DescribedFile]) -> list[dict[str, str]]:
    return [{"path": str(file.path), "digest": file.digest.hex()} for file in files]
