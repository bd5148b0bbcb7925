"""Models made of layers of other models, one slice after the other: mergekit's ``passthrough`` with slices.

Nothing is merged, so this is no strategy and no group agrees on it: the stack is a model of its own, which a
group may take as a contribution. Layers are numbered anew. What is of no layer comes from the first slice if
it stands before them (embeddings) and from the last one else, as in mergekit.

Source: the documented format of mergekit 0.1, and what its 0.1.5 does (compared in tests/oracles).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from crdt_merge_protocol.blobs import DTYPE_BYTES, FLOAT_DTYPES, TensorSpec
from crdt_merge_protocol.errors import IntegerTensorDiffersError, ParameterError
from crdt_merge_protocol.strategies.dtypes import decode_block, output_dtype
from crdt_merge_protocol.strategies.kernels import as_float

from crdt_merge_node.checkpoints.reading import CheckpointTensor, read_checkpoint
from crdt_merge_node.lora.sinks import Target, Written, open_sink
from crdt_merge_node.resolve.files import SourceReader
from crdt_merge_node.resolve.job import ReportProgress, TensorSource

from .mergekit import DTYPES, IGNORED
from .mergekit_values import Rule, interpolate, layer_of, read_rules

PART_ELEMENTS: Final = 1 << 20
_BEFORE: Final = ("embed", "wte", "wpe")
"""Parts of the names of tensors that come before the layers, but for :data:`_AFTER`."""
_AFTER: Final = "embed_out"
"""Of the output layer of GPT-NeoX."""
_LAYER: Final = re.compile(r"\.\d{1,5}\.")
_KEYS: Final = {"merge_method", "slices", "parameters", "dtype", "out_dtype", "base_model"}
_IN_SLICE: Final = {"sources", "parameters"}
_IN_SOURCE: Final = {"model", "layer_range", "parameters"}


@dataclass(frozen=True, slots=True)
class Slice:
    """Consecutive layers of one model."""

    model: str
    first: int
    stop: int
    scale: tuple[Rule, ...]
    """What its tensors are multiplied by; empty: they are copied."""


@dataclass(frozen=True, slots=True)
class Stack:
    """A configuration of slices, understood."""

    slices: tuple[Slice, ...]
    dtype: str
    """Element type of the output; empty: as each tensor is."""
    notes: tuple[str, ...]

    @property
    def layers(self) -> int:
        """How many layers the result has."""
        return sum(each.stop - each.first for each in self.slices)


def read_stack(data: Mapping[str, Any]) -> Stack | None:
    """Return a parsed YAML configuration as a stack; None: it is of another kind.

    Raises:
        ParameterError: It is a stack, and says what is not supported; every such key is named.
    """
    slices = data.get("slices")
    if data.get("merge_method") != "passthrough" or not isinstance(slices, list) or not slices:
        return None
    problems = [f"{key} is not supported" for key in data if key not in _KEYS]
    common, notes = _parameters(data, problems)
    dtype = str(data.get("out_dtype") or data.get("dtype") or "")
    if dtype and dtype not in DTYPES:
        problems.append(f"dtype {dtype} is not supported")
    found = []
    for number, each in enumerate(slices):
        where, sources = f"slices[{number}]", each.get("sources") if isinstance(each, dict) else None
        if not isinstance(sources, list) or len(sources) != 1 or not isinstance(sources[0], dict):
            problems.append(f"{where} has not one source, as passthrough asks")
            continue
        problems += [f"{where}.{key} is not supported" for key in each if key not in _IN_SLICE]
        problems += [
            f"{where}.sources[0].{key} is not supported" for key in sources[0] if key not in _IN_SOURCE
        ]
        tables = [_parameters(table, problems) for table in (sources[0], each)]
        notes += [text for _, texts in tables for text in texts]
        rules = read_rules("scale", *(table.get("scale") for table, _ in tables), common.get("scale"))
        match sources[0].get("model"), sources[0].get("layer_range"):
            case str(model), [int(first), int(stop)] if 0 <= first < stop:
                found.append(Slice(model, first, stop, tuple(rules)))
            case _:
                problems.append(f"{where} needs a model and a layer_range of [first, one past the last]")
    if problems:
        raise ParameterError(
            f"{'; '.join(problems)}.", hint="Slices of passthrough take: model, layer_range, scale."
        )
    return Stack(tuple(found), DTYPES.get(dtype, ""), tuple(dict.fromkeys(notes)))


def parse_stack(text: str) -> Stack | None:
    """Return the stack that a YAML text is, or None; raises as :func:`read_stack`."""
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError):
        return None  # Whoever reads it as another kind says so.
    return read_stack(data) if isinstance(data, dict) else None


def _parameters(data: Mapping[str, Any], problems: list[str]) -> tuple[Mapping[str, Any], list[str]]:
    table = data.get("parameters") or {}
    if not isinstance(table, dict):
        problems.append("parameters is not a mapping")
        return {}, []
    problems += [
        f"parameter {key} of passthrough is not supported" for key in table if key not in {"scale", *IGNORED}
    ]
    return table, [f"{key} was ignored: {IGNORED[key]}" for key in table if key in IGNORED]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor of the result comes from, and what it is multiplied by."""

    entry: CheckpointTensor
    scale: Fraction


def write_stack(
    stack: Stack, target: Target, *, path_of: Callable[[str], Path], progress: ReportProgress
) -> tuple[Written, Mapping[str, int]]:
    """Write the model that a stack is, whole or not at all.

    Returns:
        What names it, and by tensor how many elements did not fit and became the largest that do.

    Args:
        stack: Its models are checkpoints of this machine.
        target: Where it goes; its type counts more than that of the configuration.
        path_of: Returns the file, or the directory, of a model that is named there.
        progress: Told bytes done, bytes in all, and a word.

    Raises:
        ParameterError: A model has not the layers that are asked for.
        IntegerTensorDiffersError: Integers are multiplied.
        StorageError: Something cannot be read or written.
    """
    places = _places(stack, target, path_of)
    dtype = target.dtype or stack.dtype
    specs = {name: _spec(name, place, dtype) for name, place in places.items()}
    reader, done, total = SourceReader(target.fs), 0, sum(each.entry.spec.nbytes for each in places.values())
    try:
        with open_sink(target, specs.values()) as sink:
            for name, place in places.items():
                is_copy = place.scale == 1 and specs[name].dtype == place.entry.spec.dtype
                for start, raw in _parts(reader, place.entry):
                    progress(done, total, "stacking")
                    if is_copy:
                        sink.put_bytes(name, start * DTYPE_BYTES[specs[name].dtype], raw)
                    else:
                        values = decode_block(place.entry.spec.dtype, raw)
                        with np.errstate(over="ignore"):  # What does not fit is counted where it is rounded.
                            values *= as_float(place.scale)
                        sink.put(name, values, start)
                    done += len(raw)
            return sink.finish(), sink.misfits
    finally:
        reader.close()


def _spec(name: str, place: _Place, dtype: str) -> TensorSpec:
    """Return a tensor of the result; elements of eight bits, which are only read, are copied or made BF16."""
    spec = place.entry.spec
    if spec.dtype not in FLOAT_DTYPES:
        dtype = spec.dtype
    elif not dtype:
        dtype = spec.dtype if place.scale == 1 else output_dtype("", spec.dtype, ())
    return replace(spec, name=name, dtype=dtype)


def _places(stack: Stack, target: Target, path_of: Callable[[str], Path]) -> dict[str, _Place]:
    found: dict[str, _Place] = {}
    entries = {
        model: {entry.spec.name: entry for entry in read_checkpoint(target.fs, path_of(model)).entries}
        for model in dict.fromkeys(each.model for each in stack.slices)
    }
    offset = 0
    for number, each in enumerate(stack.slices):
        count = each.stop - each.first
        layers = {layer for name in entries[each.model] if (layer := layer_of(name)) is not None}
        missing = next((layer for layer in range(each.first, each.stop) if layer not in layers), None)
        if missing is not None:
            raise ParameterError(
                f"slices[{number}] takes layer {missing} of {each.model}, which has {len(layers)}."
            )
        for name, entry in entries[each.model].items():
            layer = layer_of(name)
            if layer is None:
                is_before = _AFTER not in name and any(part in name for part in _BEFORE)
                if number != (0 if is_before else len(stack.slices) - 1):
                    continue
                found[name] = _Place(entry, _scale(each.scale, name, Fraction(0), entry.spec))
            elif each.first <= layer < each.stop:
                at = layer - each.first
                position = Fraction(at, count - 1) if count > 1 else Fraction(1)
                renamed = _LAYER.sub(f".{offset + at}.", name, count=1)
                found[renamed] = _Place(entry, _scale(each.scale, renamed, position, entry.spec))
        offset += count
    return dict(sorted(found.items(), key=lambda item: item[0].encode()))


def _scale(rules: Sequence[Rule], name: str, position: Fraction, spec: TensorSpec) -> Fraction:
    for rule in rules:
        if rule.part in name:
            value = Fraction(interpolate(rule.values, position))
            if value != 1 and spec.dtype not in FLOAT_DTYPES:
                raise IntegerTensorDiffersError(
                    f"Tensor {name} of {spec.dtype} cannot be multiplied by {value}."
                )
            return value
    return Fraction(1)


def _parts(reader: SourceReader, entry: CheckpointTensor) -> Iterator[tuple[int, bytes | memoryview]]:
    """Yield the flat index of the first element and the bytes of consecutive parts of a tensor."""
    source = TensorSource(str(entry.path), entry.begin, entry.end - entry.begin)
    size = DTYPE_BYTES[entry.spec.dtype]
    for start in range(0, entry.spec.numel, PART_ELEMENTS):
        stop = min(start + PART_ELEMENTS, entry.spec.numel)
        yield start, reader.read(source, start * size, (stop - start) * size)
