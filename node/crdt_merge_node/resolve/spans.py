"""Merging one span of a tensor: blocks in, stored bytes out, digests of both on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from crdt_merge_protocol.blobs import DTYPE_BYTES
from crdt_merge_protocol.errors import NonFiniteError, OverflowRefusedError
from crdt_merge_protocol.strategies.acceleration import current
from crdt_merge_protocol.strategies.contract import Float64Array
from crdt_merge_protocol.strategies.dtypes import Overflow, encode_into

from crdt_merge_node.ports import File

from .blocks import PIECE_ELEMENTS, ChunkHasher, StoredBlock, Worker, keeps_stored
from .steps import Span, TensorPlan


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
    findings: Any = None
    """What the passes found of the tensor, where they were done alone and this is its last span."""


class Sink(Protocol):
    """Where the bytes of a span go, one after the other."""

    def room(self, nbytes: int) -> memoryview:
        """Return where the next bytes are to be put."""
        ...

    def take(self, data: memoryview) -> None:
        """Go on behind what was put into the room."""
        ...


class SlotSink:
    """Into the memory that whoever asked for the span reads."""

    def __init__(self, target: memoryview) -> None:
        self._rest = target

    def room(self, nbytes: int) -> memoryview:
        """Return the next bytes."""
        return self._rest[:nbytes]

    def take(self, data: memoryview) -> None:
        """Go on behind them."""
        self._rest = self._rest[len(data) :]


class FileSink:
    """To their place in a file."""

    def __init__(self, file: File, offset: int) -> None:
        self._file = file
        self._offset = offset
        self._buffer = memoryview(b"")

    def room(self, nbytes: int) -> memoryview:
        """Return memory that is used again for what comes next."""
        if len(self._buffer) < nbytes:
            self._buffer = memoryview(bytearray(nbytes))
        return self._buffer[:nbytes]

    def take(self, data: memoryview) -> None:
        """Write them."""
        self._file.write_at(self._offset, data)
        self._offset += len(data)


def merge_span(worker: Worker, tensor: TensorPlan, span: Span, sink: Sink) -> Merged:
    """Merge a span of a tensor that is not copied.

    Raises:
        OverflowRefusedError, NonFiniteError: Something does not fit the output type, in a strict merge.
        CorruptError, StorageError: An input cannot be read.
    """
    making = _Making(worker, tensor, sink)
    hashers = [ChunkHasher() for _ in tensor.streams]
    modulators = [bytearray() for _ in tensor.inputs] if worker.plan.is_modulated else []
    context, state, strategy = worker.plan.context, worker.state, worker.strategy
    if (coefficients := _sum_of(worker, tensor)) is not None:
        for stored in worker.stored_blocks(span, hashers):
            if not making.put_sum(stored, coefficients):
                making.put(strategy.merge(context, state, worker.decoded(tensor, stored)))
    else:
        for block in worker.blocks(span, hashers):
            making.put(strategy.merge(context, state, block))
            for contribution, packed in enumerate(modulators):
                packed.extend(strategy.modulate(context, state, block, contribution))
    inputs = [hasher.digests() for hasher in hashers]
    return Merged(span, making.hasher.digests(), inputs, making.misfits, tuple(map(bytes, modulators)))


def copy_span(worker: Worker, tensor: TensorPlan, span: Span, target: memoryview) -> Merged:
    """Copy a span of a tensor that is not merged into ``target``."""
    hasher = ChunkHasher()
    data = worker.reader.read(tensor.inputs[0], span.start, span.stop - span.start)
    target[:] = data
    hasher.update(data)
    digests = hasher.digests()
    return Merged(span, digests, [digests], 0)


def _sum_of(worker: Worker, tensor: TensorPlan) -> list[float] | None:
    """Return the coefficients if compiled loops can make the merge, a sum, from stored to stored elements."""
    if worker.plan.is_modulated or not keeps_stored(tensor):
        return None
    form = worker.strategy.linear_form(worker.plan.context, worker.state, tensor.index)
    return None if form is None else list(form)


class _Making:
    """The output of one span under construction."""

    def __init__(self, worker: Worker, tensor: TensorPlan, sink: Sink) -> None:
        self.hasher = ChunkHasher()
        self.misfits = 0
        self._worker = worker
        self._tensor = tensor
        self._sink = sink
        self._width = DTYPE_BYTES[tensor.spec.dtype]
        self._overflow: Overflow = "error" if worker.plan.context.is_strict else "saturate"

    def put(self, values: Float64Array) -> None:
        """Round merged elements and put them out, piece by piece."""
        for start in range(0, values.size, PIECE_ELEMENTS):
            piece = values[start : start + PIECE_ELEMENTS]
            room = self._sink.room(piece.size * self._width)
            try:
                self.misfits += encode_into(self._tensor.spec.dtype, piece, room, self._overflow)
            except (OverflowRefusedError, NonFiniteError) as error:
                message = f"Tensor {self._tensor.spec.name}: {error.message}"
                raise type(error)(message, hint=error.hint) from None
            self._take(room)

    def put_sum(self, stored: StoredBlock, coefficients: list[float]) -> bool:
        """Put out a weighted sum without decoded elements in between; False if that cannot be done."""
        tensor = self._tensor
        accelerator = current()
        assert accelerator is not None, "_sum_of has looked"
        base = stored.raw[len(tensor.inputs)] if tensor.base is not None else None
        room = self._sink.room((stored.stop - stored.start) * self._width)
        out = np.frombuffer(room, np.uint8)
        rows = self._worker.rows(tensor, stored)
        if not accelerator.combine_stored(rows, base, coefficients, tensor.spec.dtype, out):
            return False  # A value does not fit, or there are no loops for these types.
        self._take(room)
        return True

    def _take(self, data: memoryview) -> None:
        self._sink.take(data)
        if self._tensor.is_hashed_by_workers:
            self.hasher.update(data)
