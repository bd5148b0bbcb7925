"""What a worker does: load a plan, observe or merge spans of tensors, hash ranges of files.

A task is a picklable value with one method; it runs in a worker process or, for small jobs, in this one.
Which worker runs which task, and in which order, changes nothing: an answer depends on the plan, the state of
the pass and the task alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from crdt_merge_protocol.blobs import DTYPE_BYTES, TensorSpec, chunk_digest
from crdt_merge_protocol.errors import NonFiniteError, OverflowRefusedError
from crdt_merge_protocol.limits import CHUNK_BYTES
from crdt_merge_protocol.strategies.acceleration import current
from crdt_merge_protocol.strategies.contract import Float64Array, Key
from crdt_merge_protocol.strategies.dtypes import Overflow, encode_array

from crdt_merge_node.judging import scan_artefact

from .blocks import PIECE_ELEMENTS, ChunkHasher, Worker, keeps_stored
from .files import naming
from .finite import scan_finite
from .job import TensorSource
from .steps import Plan, Span, TensorPlan

PARTIALS_MAX: Final = 8
"""Partial results kept before they are compacted; those of a radix selection are half a mebibyte each."""
_Put = Callable[[memoryview], None]
"""Takes the next merged bytes of a span."""


class WorkerFailed(Exception):  # noqa: N818 - an envelope for a traceback, never raised as such.
    """An error of another process that is a bug, with its traceback as text."""


class Task(Protocol):
    """Something to do in a worker."""

    def run(self, worker: Worker, output: memoryview, /) -> tuple[Any, int]:
        """Return a picklable answer and how many bytes were put into ``output``."""
        ...


@dataclass(frozen=True, slots=True)
class Load:
    """Take up a plan."""

    plan: Plan

    def run(self, worker: Worker, _output: memoryview) -> tuple[Any, int]:
        """Return nothing."""
        worker.load(self.plan)
        return None, 0


@dataclass(frozen=True, slots=True)
class Advance:
    """Take up the state after a pass."""

    state: Any

    def run(self, worker: Worker, _output: memoryview) -> tuple[Any, int]:
        """Return nothing."""
        worker.state = self.state
        return None, 0


@dataclass(frozen=True, slots=True)
class Observe:
    """See spans of a statistics pass."""

    pass_no: int
    spans: tuple[Span, ...]

    def run(self, worker: Worker, _output: memoryview) -> tuple[Any, int]:
        """Return the partial results, compacted: a list of (key, partial)."""
        strategy, context = worker.strategy, worker.plan.context
        partials: list[tuple[Key, Any]] = []
        for span in self.spans:
            for block in worker.blocks(span, None):
                partials.append((block.key, strategy.observe(context, worker.state, self.pass_no, block)))
                if len(partials) >= PARTIALS_MAX:
                    partials = strategy.compact(context, self.pass_no, partials)
        return strategy.compact(context, self.pass_no, partials), 0


@dataclass(frozen=True, slots=True)
class Merged:
    """What is known of one span after it was merged or copied."""

    span: Span
    chunks: list[bytes]
    """Digests of the chunks of the output; none where whoever writes it has to hash it."""
    inputs: list[list[bytes]]
    """Digests of the chunks of each stream that the span touches, in the order of ``sources_of``."""
    misfits: int
    """Elements that did not fit the output type and were replaced by the largest that does."""
    modulators: tuple[bytes, ...] = ()
    """What turns the span into that of each contribution's task; none where there is no such thing."""


@dataclass(frozen=True, slots=True)
class Merge:
    """Merge or copy spans; their bytes, one after the other, are the output."""

    spans: tuple[Span, ...]

    def run(self, worker: Worker, output: memoryview) -> tuple[Any, int]:
        """Return one :class:`Merged` per span."""
        answers = []
        position = 0
        for span in self.spans:
            target = output[position : position + worker.plan.output_bytes(span)]
            tensor = worker.plan.tensors[span.tensor]
            if tensor.index < 0:
                answers.append(_copy_span(worker, tensor, span, target))
            else:
                answers.append(_merge_span(worker, tensor, span, _filling(target)))
            position += len(target)
        return answers, position


@dataclass(frozen=True, slots=True)
class MergeIntoFile:
    """Merge one span that is larger than a slot straight to its place in the file under construction."""

    span: Span
    path: str
    offset: int
    """Of the span's first byte in the file."""

    def run(self, worker: Worker, _output: memoryview) -> tuple[Any, int]:
        """Return one :class:`Merged`."""
        position = self.offset
        tensor = worker.plan.tensors[self.span.tensor]
        with naming(self.path, "written"), worker.fs.open_write(Path(self.path)) as file:

            def put(data: memoryview) -> None:
                nonlocal position
                file.write_at(position, data)
                position += len(data)

            return [_merge_span(worker, tensor, self.span, put)], 0


@dataclass(frozen=True, slots=True)
class HashPart:
    """A range of one tensor: whole chunks, but for the tensor's last."""

    source: TensorSource
    spec: TensorSpec
    artefact: str
    """Type of the artefact that it is of, which says what numbers it may hold; empty: of a model."""
    start: int
    """First byte."""
    stop: int


@dataclass(frozen=True, slots=True)
class Hash:
    """Hash a range of tensors and look for what may not be merged."""

    parts: tuple[HashPart, ...]

    def run(self, worker: Worker, _output: memoryview) -> tuple[Any, int]:
        """Return (chunk digests, whether a merge may see all of it) per part."""
        answers = []
        for part in self.parts:
            digests, is_fit = [], True
            for offset in range(part.start, part.stop, CHUNK_BYTES):
                chunk = worker.reader.read(part.source, offset, min(CHUNK_BYTES, part.stop - offset))
                digests.append(chunk_digest(chunk))
                is_fit = is_fit and scan_finite(part.spec.dtype, chunk)
                if is_fit and part.artefact:
                    is_fit = scan_artefact(part.artefact, part.spec, chunk, offset) is None
            answers.append((digests, is_fit))
        return answers, 0


def _filling(target: memoryview) -> _Put:
    """Return what copies bytes into ``target``, one after the other."""
    position = 0

    def put(data: memoryview) -> None:
        nonlocal position
        target[position : position + len(data)] = data
        position += len(data)

    return put


def _merge_span(worker: Worker, tensor: TensorPlan, span: Span, put: _Put) -> Merged:
    hashers = [ChunkHasher() for _ in tensor.streams]
    output = ChunkHasher()
    if _is_sum(worker, tensor):
        return _sum_span(worker, tensor, span, put)
    misfits = 0
    modulators = [bytearray() for _ in tensor.inputs] if worker.plan.is_modulated else []
    for block in worker.blocks(span, hashers):
        values = worker.strategy.merge(worker.plan.context, worker.state, block)
        for data, unfit in _encoded(worker, tensor, values):
            put(data)
            if tensor.is_hashed_by_workers:
                output.update(data)
            misfits += unfit
        for contribution, packed in enumerate(modulators):
            packed.extend(worker.strategy.modulate(worker.plan.context, worker.state, block, contribution))
    digests = [hasher.digests() for hasher in hashers]
    return Merged(span, output.digests(), digests, misfits, tuple(map(bytes, modulators)))


def _is_sum(worker: Worker, tensor: TensorPlan) -> bool:
    """Tell whether the merge is a sum that compiled loops can make from stored to stored elements."""
    form = worker.strategy.linear_form(worker.plan.context, worker.state, tensor.index)
    return form is not None and keeps_stored(tensor) and not worker.plan.is_modulated


def _sum_span(worker: Worker, tensor: TensorPlan, span: Span, put: _Put) -> Merged:
    """Merge a span as :func:`_merge_span` does, without decoded elements in between."""
    hashers = [ChunkHasher() for _ in tensor.streams]
    output = ChunkHasher()
    misfits = 0
    context, state = worker.plan.context, worker.state
    coefficients = worker.strategy.linear_form(context, state, tensor.index)
    accelerator = current()
    assert coefficients is not None, "_is_sum has looked"
    assert accelerator is not None, "_is_sum has looked"
    out = np.empty(tensor.block_elements * DTYPE_BYTES[tensor.spec.dtype], np.uint8)
    for stored in worker.stored_blocks(span, hashers):
        target = out[: (stored.stop - stored.start) * DTYPE_BYTES[tensor.spec.dtype]]
        base = stored.raw[len(tensor.inputs)] if tensor.base is not None else None
        rows = worker.rows(tensor, stored)
        pieces: Iterable[tuple[memoryview, int]]
        if accelerator.combine_stored(rows, base, coefficients, tensor.spec.dtype, target):
            pieces = [(target.data, 0)]
        else:  # Something does not fit, or the types are none of theirs.
            values = worker.strategy.merge(context, state, worker.decoded(tensor, stored))
            pieces = _encoded(worker, tensor, values)
        for data, unfit in pieces:
            put(data)
            output.update(data if tensor.is_hashed_by_workers else b"")
            misfits += unfit
    return Merged(span, output.digests(), [hasher.digests() for hasher in hashers], misfits)


def _encoded(worker: Worker, tensor: TensorPlan, values: Float64Array) -> Iterator[tuple[memoryview, int]]:
    """Yield the stored bytes of merged elements, piece by piece, and how many of a piece did not fit."""
    overflow: Overflow = "error" if worker.plan.context.is_strict else "saturate"
    for start in range(0, values.size, PIECE_ELEMENTS):
        try:
            piece = values[start : start + PIECE_ELEMENTS]
            stored, unfit = encode_array(tensor.spec.dtype, piece, overflow)
        except (OverflowRefusedError, NonFiniteError) as error:
            raise type(error)(f"Tensor {tensor.spec.name}: {error.message}", hint=error.hint) from None
        yield stored.view(np.uint8).data, unfit


def _copy_span(worker: Worker, tensor: TensorPlan, span: Span, target: memoryview) -> Merged:
    hasher = ChunkHasher()
    data = worker.reader.read(tensor.inputs[0], span.start, span.stop - span.start)
    target[:] = data
    hasher.update(data)
    digests = hasher.digests()
    return Merged(span, digests, [digests], 0)
