"""The whole course of a merge over arrays in memory: the shortest correct driver of the contract.

Tests of the strategies use it, and drivers that stream from files are checked against it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from crdt_merge_protocol.blobs import TensorSpec
from crdt_merge_protocol.canonical import digest, encode
from crdt_merge_protocol.errors import ArtefactMissingError, LocalProtocolError
from crdt_merge_protocol.resolve_key import used_root

from .artefacts import Artefact, in_order
from .composite import effective
from .contract import BLOCK_ELEMENTS, LEAF_ELEMENTS, Block, Float64Array, MergeContext, Strategy
from .registry import get

Model = Mapping[str, npt.NDArray[Any]]
"""Floating point arrays by tensor name."""
_DTYPES: Final = {"f8": "F64", "f4": "F32", "f2": "F16"}


@dataclass(frozen=True, slots=True)
class ArtefactArrays:
    """An artefact with its tensors in memory."""

    artefact: Artefact
    tensors: Model


@dataclass(frozen=True, slots=True)
class MergedArrays:
    """What a merge returned."""

    tensors: dict[str, Float64Array]
    """In the shapes of the inputs, float64, not yet rounded to an output type."""
    decisions: dict[str, Any]


def merge_arrays(
    strategy_id: str,
    inputs: Sequence[Model],
    base: Model | None = None,
    params: Mapping[str, str] | None = None,
    *,
    weights: Sequence[Fraction | int | str] | None = None,
    seed: bytes = b"",
    block_elements: int = BLOCK_ELEMENTS,
    digests: Sequence[bytes] | None = None,
    is_strict: bool = False,
    artefacts: Sequence[ArtefactArrays] = (),
    base_content: bytes = b"",
    task: bytes | None = None,
) -> MergedArrays:
    """Return the merge of models whose tensors have equal names and shapes.

    Args:
        inputs: In any order; sorted by digest, and one kept of each digest, before anything else.
        weights: One per input, 1 unless given; text is read as an exact decimal.
        block_elements: A multiple of 65,536. Does not show in the result.
        digests: One per input; made from tensors and weight unless given.
        artefacts: Those to use; no rule of choice is applied here.
        base_content: What set-bound artefacts may name as their base.
        task: Digest of the contribution whose task's model is wanted instead of the common one.

    Raises:
        ResolveError: The strategy refuses the parameters or the inputs.
    """
    if block_elements % LEAF_ELEMENTS:
        raise LocalProtocolError(f"Blocks of {block_elements} elements are no multiple of {LEAF_ELEMENTS}.")
    strategy = get(strategy_id)
    exact = [Fraction(weight) for weight in weights] if weights is not None else [Fraction(1)] * len(inputs)
    if digests is None:
        digests = [digest_of(model, weight) for model, weight in zip(inputs, exact, strict=True)]
    distinct = {name: (model, w) for name, model, w in zip(digests, inputs, exact, strict=True)}
    ordered = [(name, *distinct[name]) for name in sorted(distinct)]
    context = MergeContext(
        strategy=strategy.id,
        params=strategy.validate(params or {}),
        weights=tuple(weight for _, _, weight in ordered),
        digests=tuple(name for name, _, _ in ordered),
        has_base=base is not None,
        seed=seed,
        specs=_specs(inputs[0]) if inputs else (),
        is_strict=is_strict,
        artefacts=in_order(item.artefact for item in artefacts),
        set_root=used_root(distinct),
        base_content=base_content,
        task=None if task is None else sorted(distinct).index(task),
    )
    if inputs:
        found = effective(strategy, context)
        strategy, context = found.strategy, found.context
        if found.unmet is not None:
            strategy.check(context)  # Its errors say more, where it has any.
            raise ArtefactMissingError(f"{found.unmet}.")
    strategy.check(context)
    models = [model for _, model, _ in ordered]
    run = _Run(
        strategy,
        context,
        models,
        base if strategy.uses_base(context) else None,
        {item.artefact.digest: item.tensors for item in artefacts},
        block_elements,
    )
    return run.merge()


def digest_of(model: Model, weight: Fraction) -> bytes:
    """Return a stand-in for a contribution digest: over tensors and weight, 32 bytes."""
    parts = []
    for name in sorted(model, key=str.encode):
        array = np.ascontiguousarray(model[name])
        parts += [name.encode(), array.dtype.str.encode(), encode(list(array.shape)), array.tobytes()]
    return digest("crdt-merge/arrays/1", str(weight).encode(), *parts)


@dataclass(frozen=True, slots=True)
class _Run:
    strategy: Strategy
    context: MergeContext
    models: Sequence[Model]
    base: Model | None
    artefacts: Mapping[bytes, Model]
    block_elements: int

    def merge(self) -> MergedArrays:
        """Do all passes and return the outcome."""
        strategy, context, state = self.strategy, self.context, None
        for pass_no in range(strategy.pass_count(context)):
            has_models = strategy.reads_models(context, pass_no)
            partials = [
                (block.key, strategy.observe(context, state, pass_no, block))
                for block in self._blocks(has_models=has_models)
                if strategy.needs(context, state, pass_no, block.tensor_index)
            ]
            state = strategy.end_pass(context, state, pass_no, partials)
        flat = [np.empty(spec.numel, np.float64) for spec in context.specs]
        for block in self._blocks():
            flat[block.tensor_index][block.start : block.stop] = strategy.merge(context, state, block)
        tensors = {
            spec.name: values.reshape(spec.shape) for spec, values in zip(context.specs, flat, strict=True)
        }
        return MergedArrays(tensors, strategy.decisions(context, state))

    def _blocks(self, *, has_models: bool = True) -> Iterator[Block]:
        for index, spec in enumerate(self.context.specs):
            flat = [_flat(model[spec.name]) for model in self.models if has_models]
            base = None if self.base is None or not has_models else _flat(self.base[spec.name])
            wanted = [
                (want, _flat(self.artefacts[self.context.artefacts[want.artefact].digest][want.tensor]))
                for want in self.strategy.wants(self.context, index)
            ]
            step = self._step(index, spec)
            for start in range(0, spec.numel, step):
                stop = min(start + step, spec.numel)
                yield Block(
                    tensor_index=index,
                    start=start,
                    stop=stop,
                    inputs=[values[start:stop] for values in flat],
                    base=None if base is None else base[start:stop],
                    artefacts=[values[start:stop] if want.is_aligned else values for want, values in wanted],
                )

    def _step(self, index: int, spec: TensorSpec) -> int:
        """Return how many elements a block has: whole rows if it must, and more than one if they fit."""
        granularity = self.strategy.granularity(self.context, index)
        if granularity == "elements":
            return self.block_elements
        if granularity == "tensor":
            return max(spec.numel, 1)
        row = spec.shape[-1] if spec.shape else 1
        return max(row, self.block_elements // max(row, 1) * row, 1)


def _flat(array: npt.NDArray[Any]) -> Float64Array:
    """Return the elements in C order as float64 that nobody can write to."""
    values = np.array(array, np.float64, order="C").reshape(-1)
    values.flags.writeable = False
    return values


def _specs(model: Model) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name=name, dtype=_DTYPES[model[name].dtype.str[1:]], shape=model[name].shape)
        for name in sorted(model, key=str.encode)
    )
