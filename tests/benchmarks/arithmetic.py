"""The arithmetic of a strategy alone: passes, merge and rounding over arrays in memory, as in one worker."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from crdt_merge_protocol.strategies.acceleration import StoredRows, current
from crdt_merge_protocol.strategies.composite import effective
from crdt_merge_protocol.strategies.contract import LEAF_ELEMENTS, Block, Key, MergeContext
from crdt_merge_protocol.strategies.dtypes import decode_into, encode_array
from crdt_merge_protocol.strategies.inner import Delegating
from crdt_merge_protocol.strategies.reference import ArtefactArrays
from crdt_merge_protocol.strategies.registry import get

Model = Mapping[str, npt.NDArray[np.float32]]
Stream = tuple[npt.NDArray[Any], bool]
"""Elements, flat, and whether they are cut like a block; else every block has all of them."""
BLOCK_ELEMENTS = 2 * LEAF_ELEMENTS
"""Those of a worker."""
PARTIALS_MAX = 8
_DTYPES = {"f8": "F64", "f4": "F32", "f2": "F16"}


def needs_base(strategy: str) -> bool:
    """Tell whether a merge is given a base: where it must be, or where what is inside may need one."""
    found = get(strategy)
    may_need = bool(found.artefacts) or isinstance(found, Delegating)
    return found.base == "required" or (found.base == "optional" and may_need)


class Arithmetic:
    """One merge of float32 models, in blocks of a worker's size, on one thread.

    By numpy, or by compiled loops if they are installed in this process: then in the way of a worker, too.
    """

    def __init__(
        self,
        context: MergeContext,
        models: Sequence[Model],
        base: Model | None = None,
        artefacts: Sequence[ArtefactArrays] = (),
    ) -> None:
        found = effective(get(context.strategy), context)
        assert found.unmet is None, found.unmet
        self._strategy, self._context = found.strategy, found.context
        self._sources = [*models, *([base] if base is not None and self._strategy.uses_base(context) else [])]
        self._k = len(models)
        self._artefacts = {item.artefact.digest: item.tensors for item in artefacts}

    def run(self) -> dict[str, npt.NDArray[np.float32]]:
        """Merge once; return flat tensors."""
        context, strategy, state = self._context, self._strategy, None
        # Elements as the files have them; blocks of them are decoded again and again, as from files.
        streams = [self._streams(index) for index in range(len(context.specs))]
        arrays: dict[int, npt.NDArray[np.float64]] = {}
        for pass_no in range(strategy.pass_count(context)):
            partials: list[tuple[Key, Any]] = []
            for index, found in enumerate(streams):
                if not strategy.needs(context, state, pass_no, index):
                    continue
                for block in self._blocks(index, found, arrays, self._looks(state, pass_no, index)):
                    partials.append((block.key, strategy.observe(context, state, pass_no, block)))
                    if len(partials) >= PARTIALS_MAX:
                        partials = strategy.compact(context, pass_no, partials)
            state = strategy.end_pass(context, state, pass_no, sorted(partials, key=lambda item: item[0]))
        output = {}
        for index, (spec, found) in enumerate(zip(context.specs, streams, strict=True)):
            merged = output[spec.name] = np.empty(spec.numel, np.float32)
            form = strategy.linear_form(context, state, index)
            for block in self._blocks(index, found, arrays, [(0, spec.numel)]):
                target = merged[block.start : block.stop]
                if not self._combine(block, form, target):
                    target[:] = encode_array("F32", strategy.merge(context, state, block), "saturate")[0]
        return output

    def _combine(self, block: Block, form: Sequence[float] | None, target: npt.NDArray[np.float32]) -> bool:
        """Merge from stored to stored elements if a strategy is no more than a sum; tell if it was done."""
        accelerator = current()
        if accelerator is None or form is None or not isinstance(block.inputs, StoredRows):
            return False
        base = None
        if block.base is not None:
            name = self._context.specs[block.tensor_index].name
            base = self._sources[-1][name].reshape(-1)[block.start : block.stop].data.cast("B")
        return accelerator.combine_stored(block.inputs, base, form, "F32", target)

    def _streams(self, index: int) -> list[Stream]:
        name = self._context.specs[index].name
        found: list[Stream] = [(source[name].reshape(-1), True) for source in self._sources]
        for want in self._strategy.wants(self._context, index):
            tensors = self._artefacts[self._context.artefacts[want.artefact].digest]
            values = tensors[want.tensor].reshape(-1)
            found.append((values if want.is_aligned else values.astype(np.float64), want.is_aligned))
        return found

    def _looks(self, state: Any, pass_no: int, index: int) -> Iterable[tuple[int, int]]:
        """Return the ranges of a tensor that a pass has to see."""
        span = 0, self._context.specs[index].numel
        if self._strategy.granularity(self._context, index) != "elements":
            return [span]
        return self._strategy.looks_at(self._context, state, pass_no, index, span)

    def _blocks(
        self,
        index: int,
        streams: Sequence[Stream],
        arrays: dict[int, npt.NDArray[np.float64]],
        spans: Iterable[tuple[int, int]],
    ) -> Iterator[Block]:
        step = self._step(index)
        count = len(self._sources)
        is_kept = current() is not None and self._strategy.granularity(self._context, index) == "elements"
        parts = (
            slice(start, min(start + step, end)) for begin, end in spans for start in range(begin, end, step)
        )
        for part in parts:
            rest = [
                _decoded(values[part], arrays, number) if is_aligned else values
                for number, (values, is_aligned) in enumerate(streams)
                if number >= self._k
            ]
            inputs: Sequence[npt.NDArray[np.float64]]
            if is_kept:
                inputs = StoredRows(
                    "F32",
                    [values[part].data.cast("B") for values, _ in streams[: self._k]],
                    lambda number, _data, part=part: _decoded(streams[number][0][part], arrays, number),
                )
            else:
                inputs = [
                    _decoded(values[part], arrays, n) for n, (values, _) in enumerate(streams[: self._k])
                ]
            yield Block(
                tensor_index=index,
                start=part.start,
                stop=part.stop,
                inputs=inputs,
                base=rest[0] if count > self._k else None,
                artefacts=rest[count - self._k :],
            )

    def _step(self, index: int) -> int:
        spec = self._context.specs[index]
        granularity = self._strategy.granularity(self._context, index)
        if granularity == "elements":
            return BLOCK_ELEMENTS
        row = max(spec.shape[-1] if spec.shape else 1, 1)
        return max(spec.numel, 1) if granularity == "tensor" else max(BLOCK_ELEMENTS // row, 1) * row


def _decoded(
    values: npt.NDArray[Any], arrays: dict[int, npt.NDArray[np.float64]], number: int
) -> npt.NDArray[np.float64]:
    if number not in arrays or arrays[number].size < values.size:
        arrays[number] = np.empty(values.size)
    view = arrays[number][: values.size]
    decode_into(_DTYPES[values.dtype.str[1:]], values.data.cast("B"), view)
    view.flags.writeable = False
    return view
