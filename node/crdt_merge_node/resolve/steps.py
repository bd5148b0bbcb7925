"""The steps of a job: which ranges of which tensors, in which order. Sent to every worker, hence small.

Where a strategy works on elements, ranges are cut so that every task puts out whole chunks of 1 MiB and
consecutive bytes of the file: digests and the file's hash are then made in the same pass that makes the
bytes. Ranges of whole rows, and whole tensors, do not end where chunks do; then a worker reads the rest of
the first and last chunk of its input besides, and whoever writes the output hashes it.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from crdt_merge_protocol.blobs import DTYPE_BYTES, TensorSpec
from crdt_merge_protocol.limits import CHUNK_BYTES
from crdt_merge_protocol.strategies.contract import Granularity, MergeContext
from crdt_merge_protocol.strategies.registry import get

from .job import TensorSource
from .taken import Reuse

SPAN_ELEMENTS: Final = 1 << 19
"""Elements of one tensor that one task merges: whole chunks of 1 MiB in every floating point type."""
SLOT_BYTES: Final = SPAN_ELEMENTS * 8
"""Output of one task; a longer range goes into the file by itself."""
OBSERVE_ELEMENTS: Final = 1 << 21
"""Elements that one task of a statistics pass sees: its partial results are compacted before they travel."""


T = TypeVar("T")
Looks = Callable[[int, tuple[int, int]], Iterable[tuple[int, int]]]
"""Returns the ranges of a range of the tensor of an index that a pass has to see."""


@dataclass(frozen=True, slots=True)
class Span:
    """A range of one tensor: elements of a merged one, bytes of a copied one."""

    tensor: int
    """Position in ``Plan.tensors``."""
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor of an artefact that comes with the blocks of a model's tensor."""

    source: TensorSource
    dtype: str
    is_aligned: bool
    """Cut like the block; else every block has all of it."""

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.source.nbytes // DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, kw_only=True)
class TensorPlan:
    """One tensor of the output and where it comes from."""

    spec: TensorSpec
    """As written: name and shape of the schema, element type of the output."""
    input_dtype: str
    """Of the inputs and the base, unless ``dtypes`` says otherwise."""
    index: int
    """Position in ``MergeContext.specs``, or -1 if the tensor is copied."""
    inputs: tuple[TensorSource, ...]
    """One per contribution in canonical order; the one source of a copied tensor."""
    base: TensorSource | None
    artefacts: tuple[Part, ...] = ()
    """In the order of ``Strategy.wants``."""
    granularity: Granularity = "elements"
    block_elements: int = 0
    """Elements of one block, once the memory has been shared out; 0 for a copied tensor."""
    dtypes: tuple[str, ...] = ()
    """Of the inputs in their order and then the base, where they have not all the same."""
    leader: str = ""
    """Name of the tensor that this one is tied to: a copy, made by merging the same again."""

    @functools.cached_property
    def streams(self) -> tuple[tuple[TensorSource, str], ...]:
        """(source, element type) of all that is cut like a block: inputs, the base, aligned artefacts."""
        models = self.inputs if self.base is None else (*self.inputs, self.base)
        aligned = ((part.source, part.dtype) for part in self.artefacts if part.is_aligned)
        dtypes = self.dtypes or (self.input_dtype,) * len(models)
        return (*zip(models, dtypes, strict=True), *aligned)

    @property
    def model_streams(self) -> int:
        """How many of the streams, the first ones, are of models: inputs and the base."""
        return len(self.inputs) + (self.base is not None)

    @property
    def size(self) -> int:
        """Length in what spans count: elements of a merged tensor, bytes of a copied one."""
        return self.spec.numel if self.index >= 0 else self.spec.nbytes

    @property
    def row(self) -> int:
        """Elements of one row: the last axis."""
        return self.spec.shape[-1] if self.spec.shape else 1

    @property
    def step(self) -> int:
        """Length of a span; the last one of a tensor may be shorter."""
        if self.index < 0:
            return SLOT_BYTES
        if self.granularity == "elements":
            return SPAN_ELEMENTS
        if self.granularity == "tensor":
            return max(self.spec.numel, 1)
        return _rows_step(max(self.row, 1), DTYPE_BYTES[self.spec.dtype], self._narrowest)

    @property
    def is_hashed_by_workers(self) -> bool:
        """Whether spans of the output are whole chunks, so that the worker that makes one can hash it."""
        if self.index < 0 or self.step >= self.size:
            return True
        return self.step * DTYPE_BYTES[self.spec.dtype] % CHUNK_BYTES == 0

    def reads(self, span: Span, *, has_models: bool = True) -> Iterator[tuple[TensorSource, int, int]]:
        """Yield (source, offset in it, bytes) of what a span of this tensor reads."""
        for source, dtype in self.streams if has_models else self.streams[self.model_streams :]:
            width = DTYPE_BYTES[dtype] if self.index >= 0 else 1
            yield source, span.start * width, (span.stop - span.start) * width

    @property
    def _narrowest(self) -> int:
        return min(DTYPE_BYTES[dtype] for dtype in (self.spec.dtype, *(dtype for _, dtype in self.streams)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What every worker needs to know. Block sizes and worker count change no bit of the result."""

    strategy: str
    """Id of the one that works: the stand-in, where the job's own cannot."""
    context: MergeContext
    tensors: tuple[TensorPlan, ...]
    """In byte order of their names: the order of the output file."""
    block_elements: int
    """Of tensors that are cut into elements; the others have blocks of their own size."""
    workers: int
    """Worker processes; 0: this process."""
    header: bytes
    nbytes: int
    """Of the output file."""
    warnings: tuple[str, ...]
    is_compiled: bool = False
    """Whether workers are to load compiled loops, if they can. The bits are the same."""
    stand_in_reason: str = ""
    """Why ``strategy`` is not the job's own; empty if it is."""
    memory_bytes: int = 0
    """Anonymous and shared memory at the peak, estimated."""
    alone: frozenset[int] = frozenset()
    """Positions of the tensors that one worker measures and merges in one go (``alone.py``)."""
    reuse: Reuse = field(default_factory=Reuse)
    """What is copied from earlier outputs, and the names that others will know this one's tensors by."""

    @property
    def is_modulated(self) -> bool:
        """Whether the output is a common model, and what turns it into that of each task goes beside it."""
        return self.context.task is None and get(self.strategy).output == "modulators"

    @property
    def tied(self) -> dict[str, str]:
        """The names of tensors that are copies, and whose."""
        return {tensor.spec.name: tensor.leader for tensor in self.tensors if tensor.leader}

    @property
    def input_bytes(self) -> int:
        """Bytes that one pass over all merged and copied tensors reads."""
        return sum(source.nbytes for tensor in self.tensors for source in all_sources_of(tensor))

    def merge_batches(self) -> Iterator[tuple[Span, ...]]:
        """Yield consecutive ranges of the output, in file order.

        Each has at most :data:`SLOT_BYTES`, or is one span of a tensor that cannot be cut that fine, or all
        of a tensor that is merged alone.
        """
        units = (
            unit
            for number, spans in itertools.groupby(self._spans(), key=lambda span: span.tensor)
            for unit in ([tuple(spans)] if number in self.alone else ((span,) for span in spans))
        )
        for batch in _batched(units, lambda unit: sum(map(self.output_bytes, unit)), SLOT_BYTES):
            yield tuple(itertools.chain.from_iterable(batch))

    def observe_batches(self, wanted: Sequence[bool], looks_at: Looks) -> Iterator[tuple[Span, ...]]:
        """Yield the spans of the merged tensors that a pass needs.

        Args:
            wanted: By tensor index, whether it needs any.
            looks_at: Which ranges of those tensors it does.
        """
        spans = (
            Span(span.tensor, start, stop)
            for span in self._spans()
            if (index := self.tensors[span.tensor].index) >= 0 and wanted[index]
            if not self.tensors[span.tensor].leader  # The leader's elements are these.
            if span.tensor not in self.alone
            for start, stop in self._looks(span, looks_at)
        )
        return _batched(spans, lambda span: span.stop - span.start, OBSERVE_ELEMENTS)

    def _looks(self, span: Span, looks_at: Looks) -> Iterable[tuple[int, int]]:
        tensor = self.tensors[span.tensor]
        if tensor.granularity != "elements":
            return [(span.start, span.stop)]
        return looks_at(tensor.index, (span.start, span.stop))

    @property
    def observed_bytes(self) -> int:
        """Bytes that one pass of statistics over the model reads at most."""
        kept = (tensor for number, tensor in enumerate(self.tensors) if number not in self.alone)
        return sum(source.nbytes for tensor in kept for source in all_sources_of(tensor))

    def output_bytes(self, span: Span) -> int:
        """Return the size of a span in the output."""
        tensor = self.tensors[span.tensor]
        return (span.stop - span.start) * (DTYPE_BYTES[tensor.spec.dtype] if tensor.index >= 0 else 1)

    def read_bytes(self, span: Span) -> int:
        """Return how much of the inputs a span covers; what comes whole counts with the first span."""
        tensor = self.tensors[span.tensor]
        if tensor.index < 0:
            return span.stop - span.start
        widths = sum(DTYPE_BYTES[dtype] for _, dtype in tensor.streams)
        whole = sum(part.source.nbytes for part in tensor.artefacts if not part.is_aligned)
        return (span.stop - span.start) * widths + (whole if span.start == 0 else 0)

    def reads(
        self, batch: Iterable[Span], *, has_models: bool = True
    ) -> Iterator[tuple[TensorSource, int, int]]:
        """Yield (source, offset in it, bytes) of what spans read, without parts that come whole."""
        for span in batch:
            yield from self.tensors[span.tensor].reads(span, has_models=has_models)

    def _spans(self) -> Iterator[Span]:
        for number, tensor in enumerate(self.tensors):
            step = tensor.step
            for start in range(0, tensor.size, step):
                yield Span(number, start, min(start + step, tensor.size))


def sources_of(tensor: TensorPlan) -> tuple[TensorSource, ...]:
    """Return everything that is cut like the tensor's blocks, in the order of its streams."""
    return tuple(source for source, _ in tensor.streams)


def all_sources_of(tensor: TensorPlan) -> tuple[TensorSource, ...]:
    """Return everything that the merge of a tensor reads."""
    return (*sources_of(tensor), *(part.source for part in tensor.artefacts if not part.is_aligned))


def _rows_step(row: int, width: int, narrowest: int) -> int:
    """Return how many elements of whole rows make a span.

    Rows that make up whole chunks of every source and of the output, if few enough do; else as many as fit
    a slot, so that little is read twice.
    """
    rows = SPAN_ELEMENTS // row
    chunked = CHUNK_BYTES // math.gcd(row * narrowest, CHUNK_BYTES)
    if rows >= chunked:
        return (rows - rows % chunked) * row
    return max(SLOT_BYTES // (row * width), 1) * row


def _batched(items: Iterable[T], size: Callable[[T], int], size_max: int) -> Iterator[tuple[T, ...]]:
    batch: list[T] = []
    total = 0
    for item in items:
        nbytes = size(item)
        if batch and total + nbytes > size_max:
            yield tuple(batch)
            batch, total = [], 0
        batch.append(item)
        total += nbytes
    if batch:
        yield tuple(batch)
