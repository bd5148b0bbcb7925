"""From ranges of files to the decoded blocks that a strategy sees, hashed on the way.

One ``Worker`` lives in each process that merges. Its arrays are used again for every block, so a strategy may
not write to them and may not keep them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from blake3 import blake3
from crdt_merge_protocol.blobs import DTYPE_BYTES, FLOAT_DTYPES, OUTPUT_DTYPES, blob_digest
from crdt_merge_protocol.errors import ResolveError
from crdt_merge_protocol.limits import CHUNK_BYTES
from crdt_merge_protocol.strategies.acceleration import Bytes, StoredRows, current
from crdt_merge_protocol.strategies.contract import Block, Float64Array, Strategy
from crdt_merge_protocol.strategies.dtypes import decode_into
from crdt_merge_protocol.strategies.registry import get

from crdt_merge_node.errors import CorruptError
from crdt_merge_node.ports import Fs

from .accelerate import install_compiled
from .files import SourceReader
from .job import TensorSource
from .steps import Part, Plan, Span, TensorPlan

PIECE_ELEMENTS: Final = 1 << 18
"""Elements that are read and decoded at a time: raw bytes of a large block never stand beside it whole."""
_INTEGERS: Final = {
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "<u1", "BOOL": "<u1",
}  # fmt: skip


class Worker:
    """What tasks share in one process: the plan, the state of the present pass, open files and arrays."""

    def __init__(self, fs: Fs) -> None:
        check_arithmetic()
        self.fs = fs
        self.reader = SourceReader(fs)
        self.plan: Plan
        self.strategy: Strategy
        self.state: Any = None
        self._arrays: list[Float64Array] = []
        self._whole: dict[TensorSource, Float64Array] = {}
        self._held: dict[TensorSource, memoryview] = {}
        self._room: npt.NDArray[np.uint8] = np.empty(0, np.uint8)
        """Where what is held is, of one tensor after the other: fresh memory for each costs page faults."""

    def load(self, plan: Plan) -> None:
        """Take up a plan; arrays are allocated when a block needs them."""
        self.plan = plan
        self.strategy = get(plan.strategy)
        self.state = None
        if plan.is_compiled and current() is None:
            install_compiled()
        self._arrays = []
        self._whole = {}
        self._room = np.empty(0, np.uint8)

    def close(self) -> None:
        """Close all files and let go of the arrays."""
        self.reader.close()
        self._arrays.clear()
        self._whole.clear()
        self._room = np.empty(0, np.uint8)

    @contextlib.contextmanager
    def holding(self, tensor: TensorPlan) -> Iterator[None]:
        """Read everything that is cut like the tensor's blocks now, and not again until the block ends."""
        sources = dict.fromkeys(source for source, _ in tensor.streams)
        nbytes = sum(source.nbytes for source in sources)
        if self._room.size < nbytes:
            self._room = np.empty(0, np.uint8)  # Let go of the old one first.
            self._room = np.empty(nbytes, np.uint8)
        room = self._room.data
        try:
            for source in sources:
                self._held[source], room = room[: source.nbytes], room[source.nbytes :]
                self.reader.read_into(source, self._held[source])
            yield
        finally:
            self._held = {}

    def _stored(self, source: TensorSource, offset: int, nbytes: int) -> bytes | memoryview:
        """Return bytes of a source: those that are held, else those that are read now."""
        held = self._held.get(source) if self._held else None
        if held is None:
            return self.reader.read(source, offset, nbytes)
        return held[offset : offset + nbytes]

    def blocks(self, span: Span, hashers: list[ChunkHasher] | None) -> Iterator[Block]:
        """Yield the decoded blocks of a span. Arrays are used again for the next block; nobody may write.

        Args:
            hashers: One per stream of the tensor, or None where nothing is verified. In the end each has
                digests of all chunks that the span touches, those that begin before or end behind it too.
        """
        tensor = self.plan.tensors[span.tensor]
        if keeps_stored(tensor):
            for stored in self.stored_blocks(span, hashers):
                yield self.decoded(tensor, stored)
            return
        k = len(tensor.inputs)
        for start, stop in self._ranges(tensor, span, hashers):
            views = [
                self._decoded(number, stream, start, stop, hashers)
                for number, stream in enumerate(tensor.streams)
            ]
            base = views[k] if tensor.base is not None else None
            aligned = views[k + (base is not None) :]
            yield self._block(tensor, (start, stop), views[:k], base, aligned)

    def artefact_blocks(self, span: Span) -> Iterator[Block]:
        """Yield the blocks of a span without what is of models: for passes that look at artefacts alone."""
        tensor = self.plan.tensors[span.tensor]
        streams = list(enumerate(tensor.streams))[tensor.model_streams :]
        for start, stop in self._ranges(tensor, span, None):
            views = [self._decoded(number, stream, start, stop, None) for number, stream in streams]
            yield self._block(tensor, (start, stop), (), None, views)

    def stored_blocks(self, span: Span, hashers: list[ChunkHasher] | None) -> Iterator[StoredBlock]:
        """Yield the blocks of a span as they are stored. Only where :func:`keeps_stored` says so."""
        tensor = self.plan.tensors[span.tensor]
        streams = [
            (source, DTYPE_BYTES[dtype], hashers[number] if hashers is not None and source.blob else None)
            for number, (source, dtype) in enumerate(tensor.streams)
        ]
        for start, stop in self._ranges(tensor, span, hashers):
            raw: list[Bytes] = []
            for source, width, hasher in streams:
                data = self._stored(source, start * width, (stop - start) * width)
                if hasher is not None:
                    hasher.update(data)
                raw.append(data)
            yield StoredBlock(start, stop, raw)

    def decoded(self, tensor: TensorPlan, stored: StoredBlock) -> Block:
        """Return a block whose inputs are decoded when a strategy looks at them, the rest at once."""
        k = len(tensor.inputs)
        rest = [
            self._decode(number, dtype, data)
            for number, ((_, dtype), data) in enumerate(zip(tensor.streams, stored.raw, strict=True))
            if number >= k
        ]
        base = rest.pop(0) if tensor.base is not None else None
        place = stored.start, stored.stop
        return self._block(tensor, place, self.rows(tensor, stored), base, rest)

    def rows(self, tensor: TensorPlan, stored: StoredBlock) -> StoredRows:
        """Return the inputs of a stored block."""
        return StoredRows(
            tensor.input_dtype,
            stored.raw[: len(tensor.inputs)],
            lambda number, data: self._decode(number, tensor.input_dtype, data),
        )

    def _ranges(
        self, tensor: TensorPlan, span: Span, hashers: list[ChunkHasher] | None
    ) -> Iterator[tuple[int, int]]:
        """Yield where the blocks of a span begin and end; hash what its edges cut off of chunks."""
        if hashers is not None:
            self._hash_edge(tensor, hashers, span.start, is_behind=False)
        for start in range(span.start, span.stop, tensor.block_elements):
            yield start, min(start + tensor.block_elements, span.stop)
        if hashers is not None:
            self._hash_edge(tensor, hashers, span.stop, is_behind=True)

    def _block(
        self,
        tensor: TensorPlan,
        place: tuple[int, int],
        inputs: Sequence[Float64Array],
        base: Float64Array | None,
        aligned: Sequence[Float64Array],
    ) -> Block:
        whole, cut = self._whole_parts(tensor), iter(aligned)
        return Block(
            tensor_index=tensor.index,
            start=place[0],
            stop=place[1],
            inputs=inputs,
            base=base,
            artefacts=[next(cut) if part.is_aligned else whole[part] for part in tensor.artefacts],
        )

    def _decode(self, number: int, dtype: str, data: Bytes) -> Float64Array:
        """Return stored elements in the array that is kept for the number of their stream."""
        view = self._array(number, len(data) // DTYPE_BYTES[dtype])
        decode_into(dtype, data, view)
        view.flags.writeable = False
        return view

    def _decoded(
        self,
        number: int,
        stream: tuple[TensorSource, str],
        start: int,
        stop: int,
        hashers: list[ChunkHasher] | None,
    ) -> Float64Array:
        """Return elements of one stream in the array that is kept for its number."""
        source, dtype = stream
        view = self._array(number, stop - start)
        hasher = hashers[number] if hashers is not None and source.blob else None
        self._read(source, dtype, start, view, hasher)
        view.flags.writeable = False
        return view

    def _array(self, number: int, numel: int) -> Float64Array:
        while len(self._arrays) <= number:
            self._arrays.append(np.empty(0))
        if self._arrays[number].size < numel:
            self._arrays[number] = np.empty(0)  # Let go of the old one first.
            self._arrays[number] = np.empty(numel)
        return self._arrays[number][:numel]

    def _read(
        self, source: TensorSource, dtype: str, start: int, out: Float64Array, hasher: ChunkHasher | None
    ) -> None:
        width = DTYPE_BYTES[dtype]
        for offset in range(0, out.size, PIECE_ELEMENTS):
            target = out[offset : offset + PIECE_ELEMENTS]
            raw = self._stored(source, (start + offset) * width, target.size * width)
            if hasher is not None:
                hasher.update(raw)
            if dtype in FLOAT_DTYPES:
                decode_into(dtype, raw, target)
            else:
                np.copyto(target, np.frombuffer(raw, _INTEGERS[dtype]))

    def _hash_edge(
        self, tensor: TensorPlan, hashers: list[ChunkHasher], edge: int, *, is_behind: bool
    ) -> None:
        """Hash what lies between the edge of a span and the nearest chunk border outside of it."""
        for hasher, (source, dtype) in zip(hashers, tensor.streams, strict=True):
            position = edge * DTYPE_BYTES[dtype]
            beyond = position % CHUNK_BYTES
            if not beyond or not source.blob:
                continue
            if is_behind:
                rest = min(CHUNK_BYTES - beyond, source.nbytes - position)
                hasher.update(self._stored(source, position, rest) if rest else b"")
            else:
                hasher.update(self._stored(source, position - beyond, beyond))

    def _whole_parts(self, tensor: TensorPlan) -> dict[Part, Float64Array]:
        """Return the artefact tensors that come whole, read and verified once per tensor.

        What the next tensor wants too stays here; the rest makes room.
        """
        wanted = [part for part in tensor.artefacts if not part.is_aligned]
        sources = {part.source for part in wanted}
        self._whole = {source: values for source, values in self._whole.items() if source in sources}
        for part in wanted:
            if part.source not in self._whole:
                self._whole[part.source] = self._read_whole(part)
        return {part: self._whole[part.source] for part in wanted}

    def _read_whole(self, part: Part) -> Float64Array:
        hasher = ChunkHasher()
        values = np.empty(part.numel)
        self._read(part.source, part.dtype, 0, values, hasher)
        values.flags.writeable = False
        if part.source.blob and blob_digest(part.source.nbytes, hasher.digests()) != part.source.blob:
            raise changed(part.source, "of an artefact")
        return values


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """A range of elements of one tensor, as they are stored."""

    start: int
    stop: int
    raw: list[Bytes]
    """In the order of ``TensorPlan.streams``."""


def keeps_stored(tensor: TensorPlan) -> bool:
    """Tell whether compiled loops in this process may read a tensor's elements as they are stored.

    Blocks of elements only: they are small, so that both forms have room. Loops are of one element type.
    """
    return (
        current() is not None
        and tensor.granularity == "elements"
        and not tensor.dtypes
        and all(dtype in OUTPUT_DTYPES for _, dtype in tensor.streams)
    )


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


def changed(source: TensorSource, what: str) -> CorruptError:
    """Return the error that a source no longer has the bytes that its digest names."""
    return CorruptError(
        f"{source.path or 'An inline blob'}: {what} is not blob {source.blob.hex()[:12]} any more.",
        hint="The file was changed meanwhile, or the disk is failing.",
    )


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
