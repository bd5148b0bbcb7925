"""What a job will cost, before a tensor is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from crdt_merge_protocol.limits import CHUNK_BYTES
from crdt_merge_protocol.strategies.dtypes import decode_into
from crdt_merge_protocol.strategies.registry import get

from crdt_merge_node.ports import Clock, SystemClock

from .blocks import ChunkHasher
from .job import ResolveJob
from .needs import in_files
from .plan import make_plan
from .run import usable_cores
from .steps import Plan, all_sources_of
from .tied import may_be_tied

_PROBE_CHUNKS: Final = 4
_START_S: Final = 0.25
"""Until a worker process has imported what it needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a job will do and cost."""

    strategy: str
    """The one that will work: the stand-in, where the job's own cannot."""
    stand_in_reason: str
    """Why it cannot; empty if it can."""
    determinism: str
    warnings: tuple[str, ...]
    tensors: int
    merged_tensors: int
    """Of these, those that are computed; the others are copied."""
    reused_tensors: int
    """Of those that are copied, those that come from earlier outputs."""
    reused_bytes: int
    passes: int
    """Times that the inputs are read at most."""
    read_bytes: int
    """In all passes together, at most."""
    output_bytes: int
    workers: int
    """Processes; 0: this one."""
    block_elements: int
    peak_memory_bytes: int
    seconds: float


def estimate_job(job: ResolveJob, *, clock: Clock | None = None) -> Estimate:
    """Return what a job will cost. Reads nothing; measures for some milliseconds how fast bytes go in.

    Raises:
        ResolveError: The job cannot be carried out; it would fail in the same way.
    """
    plan = make_plan(job, cores=usable_cores())
    strategy = get(plan.strategy)
    passes = strategy.pass_count(plan.context) + 1
    return Estimate(
        strategy=plan.strategy,
        stand_in_reason=in_files(plan.stand_in_reason, job),
        determinism=strategy.determinism_in(plan.context),
        warnings=(*plan.warnings, *_tied(job, plan)),
        tensors=len(plan.tensors),
        merged_tensors=sum(tensor.index >= 0 for tensor in plan.tensors),
        reused_tensors=len(plan.reuse.taken),
        reused_bytes=plan.reuse.nbytes,
        passes=passes,
        read_bytes=_read_bytes(plan),
        output_bytes=plan.nbytes,
        workers=plan.workers,
        block_elements=plan.block_elements,
        peak_memory_bytes=plan.memory_bytes,
        seconds=_seconds(plan, seconds_per_byte(clock or SystemClock())),
    )


def _read_bytes(plan: Plan) -> int:
    """Return what all passes read at most; what is copied, or measured alone, is read once."""
    strategy, context = get(plan.strategy), plan.context
    merged = [each for n, each in enumerate(plan.tensors) if each.index >= 0 and n not in plan.alone]
    whole = sum(source.nbytes for tensor in merged for source in all_sources_of(tensor))
    models = sum(source.nbytes for tensor in merged for source, _ in tensor.streams[: tensor.model_streams])
    passes = range(strategy.pass_count(context))
    return plan.input_bytes + sum(whole - models * (not strategy.reads_models(context, n)) for n in passes)


def _tied(job: ResolveJob, plan: Plan) -> list[str]:
    """Return which tensors are merged as one, as far as that can be told before files are read."""
    return [
        f"{copy} is {leader} in all inputs: they are merged as one." for copy, leader in plan.tied.items()
    ] + [
        f"{copy} is merged as one with {leader} if all files hold the same in both; here each counts."
        for copy, leader in may_be_tied(job)
    ]


def _seconds(plan: Plan, per_byte: float) -> float:
    """Return the arithmetic and the reading, shared out, or the writing if that takes longer."""
    strategy, context = get(plan.strategy), plan.context
    merged = (tensor.index for tensor in plan.tensors if tensor.index >= 0)
    arithmetic = sum(strategy.nanoseconds(context, index) for index in merged) / 1e9
    reading = _read_bytes(plan) * per_byte
    writing = plan.nbytes * per_byte
    if not plan.workers:
        return arithmetic + reading + writing
    return max((arithmetic + reading) / plan.workers, writing) + _START_S


def seconds_per_byte(clock: Clock) -> float:
    """Return how long it takes here to decode and hash one byte that is in memory."""
    raw = bytes(CHUNK_BYTES)
    values = np.empty(CHUNK_BYTES // 4)
    hasher = ChunkHasher()
    started = clock.monotonic()
    for _ in range(_PROBE_CHUNKS):
        hasher.update(raw)
        decode_into("F32", raw, values)
    return (clock.monotonic() - started) / (_PROBE_CHUNKS * CHUNK_BYTES)
