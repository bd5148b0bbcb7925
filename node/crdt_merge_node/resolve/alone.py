"""Tensors that nothing but themselves decides: one worker reads them once, measures and merges them.

Where every search and every sum of a strategy is within one tensor, its passes need not go over the whole
model one after the other. A worker holds the stored bytes of such a tensor, runs all passes over them and
merges what it holds: each byte is read from its file once, and no partial result travels. Which tensors these
are follows from what a later merge could take over (``tensor_keys.py``), and what the passes found of them
goes where it would then come from (``findings.py`` of the protocol). Larger tensors than memory allows take
the common way. Neither changes a bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from crdt_merge_protocol.limits import MIB
from crdt_merge_protocol.strategies.contract import Key, MergeContext, Strategy
from crdt_merge_protocol.strategies.findings import findings_of, with_findings

from .memory import Share
from .steps import SLOT_BYTES, Span, TensorPlan

if TYPE_CHECKING:
    from .blocks import Worker

OUTPUT_BYTES_MAX: Final = 64 * MIB
"""Of one tensor: as much as a worker can put out at once."""
OUTPUTS: Final = 2
"""Outputs of one worker that are in memory at a time: one that is made, one that is written."""
PARTIALS_MAX: Final = 8
"""Partial results kept before they are compacted; those of a radix selection are half a mebibyte each."""


def alone_in(
    strategy: Strategy,
    context: MergeContext,
    tensors: Sequence[TensorPlan],
    keys: Sequence[bytes],
    *,
    budget: int,
    share: Share,
) -> tuple[frozenset[int], int]:
    """Return which tensors are measured and merged alone, and what that takes in all processes together.

    Args:
        strategy: Which works.
        context: In which it does.
        tensors: Of the plan.
        keys: One per tensor; empty where other tensors decide it, too.
        budget: Bytes over all processes.
        share: What of it is taken already.
    """
    if not strategy.pass_count(context):
        return frozenset(), 0
    processes = max(share.workers, 1)
    room = (budget - share.memory_bytes) // processes
    leaders = {tensor.leader for tensor in tensors if tensor.leader}
    needed = {
        number: _held_bytes(tensor)
        for number, (tensor, key) in enumerate(zip(tensors, keys, strict=True))
        if key and tensor.index >= 0 and tensor.granularity == "elements"
        if not tensor.leader and tensor.spec.name not in leaders
        if tensor.spec.nbytes <= OUTPUT_BYTES_MAX
    }
    found = {number: nbytes for number, nbytes in needed.items() if nbytes <= room}
    return frozenset(found), processes * max(found.values(), default=0)


def _held_bytes(tensor: TensorPlan) -> int:
    stored = sum(source.nbytes for source, _ in tensor.streams)
    return stored + OUTPUTS * max(tensor.spec.nbytes - SLOT_BYTES, 0)


def observe_spans(worker: Worker, state: Any, pass_no: int, spans: Sequence[Span]) -> list[tuple[Key, Any]]:
    """Return the partial results of a pass over spans, compacted."""
    strategy, context = worker.strategy, worker.plan.context
    has_models = strategy.reads_models(context, pass_no)
    partials: list[tuple[Key, Any]] = []
    for span in spans:
        for block in worker.blocks(span, None) if has_models else worker.artefact_blocks(span):
            partials.append((block.key, strategy.observe(context, state, pass_no, block)))
            if len(partials) >= PARTIALS_MAX:
                partials = strategy.compact(context, pass_no, partials)
    return strategy.compact(context, pass_no, partials)


@contextlib.contextmanager
def measured(worker: Worker, spans: Sequence[Span]) -> Iterator[Any]:
    """Hold the tensor of some spans, all there are of it, and have the state that its passes end with.

    Yields:
        What they found of it.
    """
    tensor = worker.plan.tensors[spans[0].tensor]
    strategy, context, before = worker.strategy, worker.plan.context, worker.state
    state: Any = None
    with worker.holding(tensor):
        for pass_no in range(strategy.pass_count(context)):
            partials: list[tuple[Key, Any]] = []
            if strategy.needs(context, state, pass_no, tensor.index):
                wanted = [
                    Span(span.tensor, start, stop)
                    for span in spans
                    for start, stop in strategy.looks_at(
                        context, state, pass_no, tensor.index, (span.start, span.stop)
                    )
                ]
                partials = observe_spans(worker, state, pass_no, wanted)
            partials.sort(key=lambda item: item[0])
            state = strategy.end_pass(context, state, pass_no, partials)
        worker.state = state
        try:
            yield findings_of(state, tensor.index)
        finally:
            worker.state = before


def with_all(state: Any, found: Mapping[int, Any]) -> Any:
    """Return a state with what was found of tensors alone, by tensor index."""
    for index in sorted(found):
        state = with_findings(state, index, found[index])
    return state
