"""What a merge of adapters will cost, before a tensor is read."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Final

from crdt_merge_protocol.blobs import DTYPE_BYTES
from crdt_merge_protocol.strategies.linear_algebra import fits_exact

from crdt_merge_node.ports import Clock
from crdt_merge_node.resolve.estimate import Estimate, estimate_job, seconds_per_byte
from crdt_merge_node.resolve.job import ResolveJob

from .dense import dense_job
from .factors import PART_ELEMENTS, needs_singular_values
from .merging import Merge

_PRODUCT_S: Final = 5e-10
"""Of one multiplication in a product that is exact to the bit, on one core of 2.6 GHz."""
_CUT_S: Final = (3.5e-6, 1.7e-8)
"""Of a cut: per row or column and direction, and per row or column and square of the directions."""
_LAPACK_S: Final = 5e-10
_FLOAT64_BYTES: Final = 8
_COPIES: Final = 6
"""Arrays of a module's size that stand beside each other."""


def estimate_adapter_job(job: ResolveJob, *, clock: Clock) -> Estimate:
    """Return what a job of adapters will cost; as ``estimate_job``."""
    assert job.adapters is not None, "jobs of whole models are estimated elsewhere"
    merge = job.adapters.merge
    found = merge.found
    models = (*job.inputs, *((job.base,) if job.base else ()))
    read_bytes = sum(source.nbytes for model in models for source in model.tensors.values())
    shapes = {module: merge.matrix(module) for module in found.modules}
    totals = {module: sum(found.ranks(module)) for module in found.modules}
    peak = max(_elements(merge, rows, columns, totals[m]) for m, (rows, columns) in shapes.items())
    tensors, output_bytes = _output(job, merge, shapes)
    per_byte = seconds_per_byte(clock)
    estimate = Estimate(
        strategy=job.strategy,
        stand_in_reason="",
        determinism="bitwise" if merge.is_bitwise else "fp_tolerant",
        warnings=(),
        tensors=tensors,
        merged_tensors=len(found.modules),
        reused_tensors=0,
        reused_bytes=0,
        passes=1,
        read_bytes=read_bytes,
        output_bytes=output_bytes,
        workers=0,
        block_elements=0,
        peak_memory_bytes=peak * _FLOAT64_BYTES * _COPIES,
        seconds=sum(_seconds(merge, m, totals[m]) for m in shapes) + (read_bytes + output_bytes) * per_byte,
    )
    if merge.is_linear:
        return estimate
    inner = estimate_job(dense_job(found, merge.dense, Path("/")), clock=clock)
    return replace(
        estimate,
        strategy=inner.strategy,
        stand_in_reason=inner.stand_in_reason,
        determinism=inner.determinism if merge.is_bitwise else "fp_tolerant",
        warnings=inner.warnings,
        passes=inner.passes,
        read_bytes=read_bytes + inner.read_bytes,
        workers=inner.workers,
        peak_memory_bytes=max(estimate.peak_memory_bytes, inner.peak_memory_bytes),
        seconds=estimate.seconds + inner.seconds,
    )


def _elements(merge: Merge, rows: int, columns: int, total: int) -> int:
    """Return how many numbers of a module are in memory in the copies that are made of all of them."""
    if merge.output != "adapter":
        # Of the factors there is one copy, of the part of the product that is written the others.
        return min(rows * columns, PART_ELEMENTS) + (rows + columns) * total // _COPIES
    return min((rows + columns) * total, 2 * rows * columns) if merge.is_linear else rows * columns


def _seconds(merge: Merge, module: str, total: int) -> float:
    """Return what the arithmetic of one module takes."""
    rows, columns = merge.matrix(module)
    if merge.output != "adapter":
        return rows * columns * total * _PRODUCT_S
    target = merge.target(module)
    if merge.is_linear and not needs_singular_values(total, target):
        return (rows + columns) * total * _PRODUCT_S
    width = min(total, rows, columns) if merge.is_linear else min(rows, columns)
    product = rows * columns * total * _PRODUCT_S if width < total else 0.0
    if not fits_exact(width, width):
        return product + (rows + columns) * width**2 * _LAPACK_S
    return product + (rows + columns) * (width * _CUT_S[0] + width**2 * _CUT_S[1])


def _output(job: ResolveJob, merge: Merge, shapes: dict[str, tuple[int, int]]) -> tuple[int, int]:
    """Return the number of tensors that are written, and about how many bytes."""
    found = merge.found
    if merge.base is not None:
        specs = merge.base.specs.values()
        return len(specs), sum(spec.nbytes for spec in specs)
    width = DTYPE_BYTES[job.dtype or max(found.dtypes, key=DTYPE_BYTES.__getitem__)]
    whole = sum(math.prod(spec.shape) for spec in found.others.values())
    if merge.output == "delta":
        return len(shapes), width * sum(rows * columns for rows, columns in shapes.values())
    ranks = {module: merge.rank_of(module) or sum(found.ranks(module)) for module in shapes}
    factors = sum((rows + columns) * ranks[module] for module, (rows, columns) in shapes.items())
    return 2 * len(shapes) + len(found.others), width * (factors + whole)
