"""What a worker does: load a plan, observe or merge spans of tensors, hash ranges of files.

A task is a picklable value with one method; it runs in a worker process or, for small jobs, in this one.
Which worker runs which task, and in which order, changes nothing: an answer depends on the plan, the state of
the pass and the task alone.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from crdt_merge_protocol.blobs import TensorSpec, chunk_digest
from crdt_merge_protocol.limits import CHUNK_BYTES

from crdt_merge_node.judging import scan_artefact

from .alone import measured, observe_spans
from .blocks import Worker
from .files import naming
from .finite import scan_finite
from .job import TensorSource
from .spans import FileSink, Merged, SlotSink, copy_span, merge_span
from .steps import Plan, Span


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
        return observe_spans(worker, worker.state, self.pass_no, self.spans), 0


@dataclass(frozen=True, slots=True)
class Merge:
    """Merge or copy spans; their bytes, one after the other, are the output."""

    spans: tuple[Span, ...]
    phase: int = 0
    """Where in the output they begin, so that pages of memory are pages of the file."""

    def run(self, worker: Worker, output: memoryview) -> tuple[Any, int]:
        """Return one :class:`Merged` per span."""
        answers: list[Merged] = []
        position = self.phase
        for number, group in itertools.groupby(self.spans, key=lambda span: span.tensor):
            spans = tuple(group)
            if number in worker.plan.alone:
                with measured(worker, spans) as findings:
                    position = _merge_spans(worker, spans, output, position, answers)
                answers[-1] = replace(answers[-1], findings=findings)
            else:
                position = _merge_spans(worker, spans, output, position, answers)
        return answers, position


def _merge_spans(
    worker: Worker, spans: tuple[Span, ...], output: memoryview, position: int, answers: list[Merged]
) -> int:
    """Merge or copy spans of one tensor to a position in the output; return where the next ones go."""
    tensor = worker.plan.tensors[spans[0].tensor]
    for span in spans:
        target = output[position : position + worker.plan.output_bytes(span)]
        if tensor.index < 0:
            answers.append(copy_span(worker, tensor, span, target))
        else:
            answers.append(merge_span(worker, tensor, span, SlotSink(target)))
        position += len(target)
    return position


@dataclass(frozen=True, slots=True)
class MergeIntoFile:
    """Merge one span that is larger than a slot straight to its place in the file under construction."""

    span: Span
    path: str
    offset: int
    """Of the span's first byte in the file."""

    def run(self, worker: Worker, _output: memoryview) -> tuple[Any, int]:
        """Return one :class:`Merged`."""
        tensor = worker.plan.tensors[self.span.tensor]
        with naming(self.path, "written"), worker.fs.open_write(Path(self.path)) as file:
            return [merge_span(worker, tensor, self.span, FileSink(file, self.offset))], 0


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
