"""What a worker does: load a plan, observe or merge spans of tensors, hash ranges of files.

A task is a picklable value with one method; it runs in a worker process or, for small jobs, in this one. The
arrays that hold decoded inputs are allocated once per plan. Which worker runs which task, and in which order,
changes nothing: an answer depends on the plan, the state of the pass and the task alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from blake3 import blake3
from crdt_merge_protocol.blobs import DTYPE_BYTES, chunk_digest
from crdt_merge_protocol.errors import NonFiniteError, OverflowRefusedError, ResolveError
from crdt_merge_protocol.limits import CHUNK_BYTES
from crdt_merge_protocol.strategies.contract import Block, Float64Array, Key, Strategy
from crdt_merge_protocol.strategies.dtypes import Overflow, decode_into, encode_array
from crdt_merge_protocol.strategies.registry import get

from crdt_merge_node.ports import Fs

from .files import SourceReader
from .finite import scan_finite
from .job import TensorSource
from .steps import Plan, Span, TensorPlan, sources_of

PARTIALS_MAX: Final = 8
"""Partial results kept before they are compacted; those of a radix selection are half a mebibyte each."""


class Worker:
    """What tasks share in one process: the plan, the state of the present pass, open files and arrays."""

    def __init__(self, fs: Fs) -> None:
        check_arithmetic()
        self.reader = SourceReader(fs)
        self.plan: Plan
        self.strategy: Strategy
        self.state: Any = None
        self._arrays: list[Float64Array] = []

    def load(self, plan: Plan) -> None:
        """Take up a plan and allocate its arrays."""
        self.plan = plan
        self.strategy = get(plan.strategy)
        self.state = None
        self._arrays = [np.empty(plan.block_elements) for _ in range(plan.context.k + 1)]

    def close(self) -> None:
        """Close all files and let go of the arrays."""
        self.reader.close()
        self._arrays.clear()

    def blocks(self, span: Span, hashers: list[ChunkHasher] | None) -> Iterator[Block]:
        """Yield the decoded blocks of a span. Arrays are used again for the next block; nobody may write."""
        tensor = self.plan.tensors[span.tensor]
        sources = sources_of(tensor)
        width = DTYPE_BYTES[tensor.input_dtype]
        for start in range(span.start, span.stop, self.plan.block_elements):
            stop = min(start + self.plan.block_elements, span.stop)
            views = []
            for number, (source, array) in enumerate(zip(sources, self._arrays, strict=False)):
                raw = self.reader.read(source, start * width, (stop - start) * width)
                if hashers is not None and source.blob:
                    hashers[number].update(raw)
                view = array[: stop - start]
                view.flags.writeable = True
                decode_into(tensor.input_dtype, raw, view)
                view.flags.writeable = False
                views.append(view)
            base = views.pop() if tensor.base is not None else None
            yield Block(tensor_index=tensor.index, start=start, stop=stop, inputs=views, base=base)


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
    """Digests of the chunks of the output."""
    inputs: list[list[bytes]]
    """Digests of the chunks of each source, in the order of ``sources_of``."""
    misfits: int
    """Elements that did not fit the output type and were replaced by the largest that does."""


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
            merge = _copy_span if tensor.index < 0 else _merge_span
            answers.append(merge(worker, tensor, span, target))
            position += len(target)
        return answers, position


@dataclass(frozen=True, slots=True)
class Hash:
    """Hash a range of tensors and look for what may not be merged."""

    parts: tuple[tuple[TensorSource, str, int, int], ...]
    """(source, element type, first byte, last byte + 1), whole chunks but for the tensor's last."""

    def run(self, worker: Worker, _output: memoryview) -> tuple[Any, int]:
        """Return (chunk digests, whether all is finite) per part."""
        answers = []
        for source, dtype, start, stop in self.parts:
            digests, finite = [], True
            for offset in range(start, stop, CHUNK_BYTES):
                chunk = worker.reader.read(source, offset, min(CHUNK_BYTES, stop - offset))
                digests.append(chunk_digest(chunk))
                finite = finite and scan_finite(dtype, chunk)
            answers.append((digests, finite))
        return answers, 0


class ChunkHasher:
    """Digests of consecutive chunks from bytes that come in pieces of any size."""

    def __init__(self) -> None:
        self._digests: list[bytes] = []
        self._hasher = blake3()
        self._filled = 0

    def update(self, data: bytes | memoryview) -> None:
        """Add the next bytes."""
        rest = memoryview(data)
        while rest:
            part = rest[: CHUNK_BYTES - self._filled]
            self._hasher.update(part)
            self._filled += len(part)
            rest = rest[len(part) :]
            if self._filled == CHUNK_BYTES:
                self._finish()

    def digests(self) -> list[bytes]:
        """Return the digests; a last, shorter chunk is one."""
        if self._filled:
            self._finish()
        return self._digests

    def _finish(self) -> None:
        self._digests.append(self._hasher.digest())
        self._hasher = blake3()
        self._filled = 0


def check_arithmetic() -> None:
    """Refuse to merge in a process that flushes denormal numbers to zero.

    Some shared libraries built with -ffast-math switch that on when they are loaded, and then the same
    inputs give other bits than elsewhere (STRATEGIES E.1).

    Raises:
        ResolveError: This process cannot merge exactly.
    """
    smallest = np.array([5e-324, 2.3e-308])
    if smallest[0] * 1.0 == 0.0 or smallest[1] / 2 == 0.0:
        raise ResolveError(
            "This process flushes denormal numbers to zero, so its results would differ from other nodes'.",
            hint="A library that was built with -ffast-math has been loaded; find and remove it.",
        )


def _merge_span(worker: Worker, tensor: TensorPlan, span: Span, target: memoryview) -> Merged:
    overflow: Overflow = "error" if worker.plan.context.is_strict else "saturate"
    hashers = [ChunkHasher() for _ in sources_of(tensor)]
    output = ChunkHasher()
    position = misfits = 0
    for block in worker.blocks(span, hashers):
        values = worker.strategy.merge(worker.plan.context, worker.state, block)
        try:
            stored, unfit = encode_array(tensor.spec.dtype, values, overflow)
        except (OverflowRefusedError, NonFiniteError) as error:
            raise type(error)(f"Tensor {tensor.spec.name}: {error.message}", hint=error.hint) from None
        data = stored.view(np.uint8).data
        target[position : position + len(data)] = data
        output.update(target[position : position + len(data)])
        position += len(data)
        misfits += unfit
    return Merged(span, output.digests(), [hasher.digests() for hasher in hashers], misfits)


def _copy_span(worker: Worker, tensor: TensorPlan, span: Span, target: memoryview) -> Merged:
    hasher = ChunkHasher()
    data = worker.reader.read(tensor.inputs[0], span.start, span.stop - span.start)
    target[:] = data
    hasher.update(data)
    digests = hasher.digests()
    return Merged(span, digests, [digests], 0)
