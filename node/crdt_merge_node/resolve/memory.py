"""How many workers and how large blocks a memory budget allows. Neither changes a bit of the result.

A block of elements can be made small. A block of rows is one row at least, a block of a whole tensor is all
of it, and an artefact that comes whole stands beside the blocks; if these do not fit, there are fewer
workers, and if one worker does not fit, the tensor is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from crdt_merge_protocol.errors import ResolveError
from crdt_merge_protocol.limits import MIB
from crdt_merge_protocol.strategies.contract import LEAF_ELEMENTS, MergeContext, Strategy

from .blocks import PIECE_ELEMENTS
from .steps import SLOT_BYTES, TensorPlan

BLOCK_LEAVES: Final = 2
"""Leaves in a block if memory allows: 1 MiB per input in float64 stays in the second-level cache."""
COMPILED_LEAVES: Final = 4
"""The same where loops are compiled: they go over each block once, so that fewer, larger ones cost less."""
_INTERPRETER_BYTES: Final = 40 * MIB
"""Private memory of a worker process before it merges anything: Python and numpy."""
_FLOAT_BYTES: Final = 8
_PIECE_BYTES: Final = 4 * PIECE_ELEMENTS * _FLOAT_BYTES
"""What reading, decoding and encoding pieces of a large block take besides."""
_CHUNK_SCRATCH_BYTES: Final = 16 * MIB
"""What a strategy that works on chunks of rows may take whatever the size of blocks."""


class Share(NamedTuple):
    """What a budget was found to allow."""

    workers: int
    """0: this process."""
    block_elements: int
    """Of a strategy that works on elements; rows and tensors have blocks of their own size."""
    memory_bytes: int
    """At the peak, of all processes together, estimated."""
    is_compiled: bool = False
    """Whether workers have room for compiled loops."""


def share_memory(
    budget: int,
    *,
    k: int,
    wanted: int,
    strategy: Strategy | None = None,
    context: MergeContext | None = None,
    tensors: Sequence[TensorPlan] = (),
    compiled_bytes: int = 0,
) -> Share:
    """Return what fits the budget: blocks of elements shrink before workers go.

    Args:
        budget: Bytes over all processes.
        k: Contributions.
        wanted: Worker processes; 0: this process.
        strategy: Asked for what it needs besides, with ``context``, for each of ``tensors``.
        context: As the strategy will get it.
        compiled_bytes: What compiled loops take in every worker process; they are done without where they
            would cost a worker or do not fit.
        tensors: Those that are not cut into elements, or come with artefacts, decide too.

    Raises:
        ResolveError: Not even one worker with the smallest blocks fits; the message names what does not.
    """
    special = [t for t in tensors if t.index >= 0 and (t.granularity != "elements" or t.artefacts)]
    needs = {
        leaves * LEAF_ELEMENTS: {"": _elements_bytes(k, leaves * LEAF_ELEMENTS)}
        | {t.spec.name: _tensor_bytes(strategy, context, t, leaves * LEAF_ELEMENTS) for t in special}
        for leaves in range(COMPILED_LEAVES, 0, -1)
    }
    fixed = 2 * SLOT_BYTES + (_INTERPRETER_BYTES if wanted else 0)
    for workers in range(wanted, 0 if wanted else -1, -1):
        processes = max(workers, 1)
        for besides in dict.fromkeys((compiled_bytes if workers else 0, 0)):
            for elements, by_tensor in needs.items():
                if not besides and elements > BLOCK_LEAVES * LEAF_ELEMENTS:
                    continue
                stored = k * elements * _FLOAT_BYTES if besides else 0  # Kept beside what is decoded.
                needed = processes * (max(by_tensor.values()) + fixed + besides + stored)
                if needed <= budget:
                    return Share(workers, elements, needed, is_compiled=besides > 0)
    raise _refusal(budget, fixed, needs[LEAF_ELEMENTS])


def block_elements_of(tensor: TensorPlan, elements: int) -> int:
    """Return the size of a tensor's blocks where blocks of elements have ``elements``."""
    if tensor.index < 0:
        return 0
    if tensor.granularity == "elements":
        return elements
    if tensor.granularity == "tensor":
        return max(tensor.spec.numel, 1)
    row = max(tensor.row, 1)
    return max(elements // row, 1) * row


def with_blocks(tensors: Sequence[TensorPlan], elements: int) -> tuple[TensorPlan, ...]:
    """Return the plans of tensors with the size of their blocks filled in."""
    return tuple(replace(tensor, block_elements=block_elements_of(tensor, elements)) for tensor in tensors)


def _elements_bytes(k: int, elements: int) -> int:
    # Per block of every contribution: its elements decoded and what a strategy makes of them, in float64.
    return (2 * k + 8) * elements * _FLOAT_BYTES


def _tensor_bytes(
    strategy: Strategy | None, context: MergeContext | None, tensor: TensorPlan, elements: int
) -> int:
    """Return what one worker needs for one block of a tensor and all that comes with it."""
    assert strategy is not None, "special tensors come with their strategy"
    assert context is not None, "special tensors come with their context"
    block = min(block_elements_of(tensor, elements), max(tensor.spec.numel, 1))
    whole = sum(part.numel for part in tensor.artefacts if not part.is_aligned) * _FLOAT_BYTES
    if tensor.granularity == "elements":
        aligned = len(tensor.streams) - len(tensor.inputs)
        return _elements_bytes(context.k, block) + (aligned * block * _FLOAT_BYTES) + whole
    scratch = strategy.scratch_bytes(context, tensor.index)
    if tensor.granularity == "rows":  # It speaks of the tensor, and a block has fewer rows; or of a chunk.
        scratch = max(-(-scratch * block // max(tensor.spec.numel, 1)), min(scratch, _CHUNK_SCRATCH_BYTES))
    return (len(tensor.streams) + 1) * block * _FLOAT_BYTES + scratch + whole + _PIECE_BYTES


def _refusal(budget: int, fixed: int, needs: Mapping[str, int]) -> ResolveError:
    """Return the error that names the tensor that takes most; the empty name stands for plain elements."""
    name, needed = max(needs.items(), key=lambda item: item[1])
    what = f"Tensor {name}, which this strategy cannot cut smaller," if name else "These inputs"
    return ResolveError(
        f"{what} {'needs' if name else 'need'} {(needed + fixed) // MIB + 1} MiB of memory at least, "
        f"{budget // MIB} MiB are allowed.",
        hint="Raise resolve.memory_bytes (--memory).",
    )
