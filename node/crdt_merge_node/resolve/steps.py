"""The steps of a job: which ranges of which tensors, in which order. Sent to every worker, hence small.

Ranges are cut so that every task puts out whole chunks of 1 MiB and consecutive bytes of the file: digests
and the file's hash are then made in the same pass that makes the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from crdt_merge_protocol.blobs import DTYPE_BYTES, TensorSpec
from crdt_merge_protocol.strategies.contract import MergeContext

from .job import TensorSource

SPAN_ELEMENTS: Final = 1 << 19
"""Elements of one tensor that one task merges: whole chunks of 1 MiB in every floating point type."""
SLOT_BYTES: Final = SPAN_ELEMENTS * 8
"""Output of one task."""
OBSERVE_ELEMENTS: Final = 1 << 21
"""Elements that one task of a statistics pass sees: its partial results are compacted before they travel."""


@dataclass(frozen=True, slots=True)
class Span:
    """A range of one tensor: elements of a merged one, bytes of a copied one."""

    tensor: int
    """Position in ``Plan.tensors``."""
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPlan:
    """One tensor of the output and where it comes from."""

    spec: TensorSpec
    """As written: name and shape of the schema, element type of the output."""
    input_dtype: str
    index: int
    """Position in ``MergeContext.specs``, or -1 if the tensor is copied."""
    inputs: tuple[TensorSource, ...]
    """One per contribution in canonical order; the one source of a copied tensor."""
    base: TensorSource | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What every worker needs to know. Block size and worker count change no bit of the result."""

    strategy: str
    context: MergeContext
    tensors: tuple[TensorPlan, ...]
    """In byte order of their names: the order of the output file."""
    block_elements: int
    workers: int
    """Worker processes; 0: this process."""
    header: bytes
    nbytes: int
    """Of the output file."""
    warnings: tuple[str, ...]

    @property
    def input_bytes(self) -> int:
        """Bytes that one pass over all merged and copied tensors reads."""
        return sum(source.nbytes for tensor in self.tensors for source in sources_of(tensor))

    def merge_batches(self) -> Iterator[tuple[Span, ...]]:
        """Yield consecutive ranges of the output of at most :data:`SLOT_BYTES` each, in file order."""
        return _batched(self._spans(), self.output_bytes, SLOT_BYTES)

    def observe_batches(self, wanted: Sequence[bool]) -> Iterator[tuple[Span, ...]]:
        """Yield the spans of the merged tensors that a pass needs; ``wanted`` is by tensor index."""
        spans = (
            span
            for span in self._spans()
            if (index := self.tensors[span.tensor].index) >= 0 and wanted[index]
        )
        return _batched(spans, lambda span: span.stop - span.start, OBSERVE_ELEMENTS)

    def output_bytes(self, span: Span) -> int:
        """Return the size of a span in the output."""
        tensor = self.tensors[span.tensor]
        return (span.stop - span.start) * (DTYPE_BYTES[tensor.spec.dtype] if tensor.index >= 0 else 1)

    def read_bytes(self, span: Span) -> int:
        """Return how much of the inputs a span covers."""
        tensor = self.tensors[span.tensor]
        width = DTYPE_BYTES[tensor.input_dtype] if tensor.index >= 0 else 1
        return (span.stop - span.start) * width * (len(tensor.inputs) + (tensor.base is not None))

    def _spans(self) -> Iterator[Span]:
        for number, tensor in enumerate(self.tensors):
            total, step = (
                (tensor.spec.numel, SPAN_ELEMENTS) if tensor.index >= 0 else (tensor.spec.nbytes, SLOT_BYTES)
            )
            for start in range(0, total, step):
                yield Span(number, start, min(start + step, total))


def sources_of(tensor: TensorPlan) -> tuple[TensorSource, ...]:
    """Return everything that the merge of a tensor reads, the base last."""
    return tensor.inputs if tensor.base is None else (*tensor.inputs, tensor.base)


def _batched(spans: Iterable[Span], size: Callable[[Span], int], size_max: int) -> Iterator[tuple[Span, ...]]:
    batch: list[Span] = []
    total = 0
    for span in spans:
        if batch and total + size(span) > size_max:
            yield tuple(batch)
            batch, total = [], 0
        batch.append(span)
        total += size(span)
    if batch:
        yield tuple(batch)
