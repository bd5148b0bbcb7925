"""Naming the tensors of an output before they are computed, and taking over those that are there already.

A tensor's key is a digest over all that decides its bytes: what the strategy says (``dependence.py`` of the
protocol), the blobs of that tensor in the contributions, the base and artefacts, and what is done to elements
that do not fit the output type. A tensor with a key that an earlier output has is planned as a copy from
there. Copies are hashed on the way like every input, and passes do not look at them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from crdt_merge_protocol.strategies.contract import MergeContext, Strategy
from crdt_merge_protocol.strategies.dependence import tensor_key

from .job import ResolveJob
from .steps import TensorPlan, all_sources_of
from .taken import Reuse, Taken


def take_over(
    job: ResolveJob, strategy: Strategy, context: MergeContext, tensors: Sequence[TensorPlan]
) -> tuple[tuple[TensorPlan, ...], Reuse]:
    """Return the plans of tensors with those of earlier outputs as copies, and what is known of all.

    Args:
        job: Its ``earlier`` is what there is.
        strategy: Which works.
        context: In which it does.
        tensors: All of the output, to be computed.
    """
    keys = tuple(key_of(strategy, context, tensor) for tensor in tensors)
    plans, taken = list(tensors), {}
    for number, (key, tensor) in enumerate(zip(keys, tensors, strict=True)):
        kept = job.earlier.get(key) if key else None
        if kept is not None and kept.source.nbytes == tensor.spec.nbytes:
            taken[number] = Taken(tensor.index, kept)
            plans[number] = replace(
                tensor, index=-1, inputs=(kept.source,), base=None, artefacts=(), dtypes=()
            )
    indices = tuple(tensor.index for tensor in tensors)
    return tuple(plans), Reuse(keys, indices, taken)


def key_of(strategy: Strategy, context: MergeContext, tensor: TensorPlan) -> bytes:
    """Return the key of a tensor; empty if it has none.

    It has none if it is copied from an input anyway, depends on other tensors, or comes from bytes that have
    not been hashed.
    """
    if tensor.index < 0 or not all(source.blob for source in all_sources_of(tensor)):
        return b""
    found = strategy.dependence(context, tensor.index)
    if found is None:
        return b""
    return tensor_key(
        found,
        replace(tensor.spec, name=tensor.leader or tensor.spec.name),
        "/".join(tensor.dtypes) or tensor.input_dtype,
        [source.blob for source in tensor.inputs],
        (
            tensor.base.blob if tensor.base is not None else None,
            tuple((part.source.blob, part.dtype, part.is_aligned) for part in tensor.artefacts),
            "error" if context.is_strict else "saturate",
        ),
    )
