"""What a merge of adapters is written as: an adapter, whole differences, or a whole model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from crdt_merge_protocol.adapters import factor_name, saved_name, weight_name
from crdt_merge_protocol.blobs import DTYPE_BYTES, TensorSpec, blob_digest
from crdt_merge_protocol.errors import ParameterError, ShapeMismatchError
from crdt_merge_protocol.limits import CHUNK_BYTES
from crdt_merge_protocol.strategies.dtypes import decode_block, output_dtype

from crdt_merge_node.ports import Fs
from crdt_merge_node.resolve.blocks import ChunkHasher, changed
from crdt_merge_node.resolve.files import SourceReader
from crdt_merge_node.resolve.job import ResolveResult, TensorSource

from .collection import AdapterSet, delta_specs, others
from .dense import ELEMENT
from .factors import Part, Reduced, matrix_shape
from .files import WEIGHTS, synthetic_config
from .sinks import Sink, Target, Written, open_sink

_COPY_BYTES: Final = 8 * CHUNK_BYTES
_NAMED_MAX: Final = 4
Account = Callable[[Written, "Outcome"], Mapping[str, Any] | None]
"""Returns the account to be written with an output; None: none."""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What came of the modules."""

    ranks: dict[str, int] = field(default_factory=dict)
    """By module; empty if whole differences were written."""
    dropped: dict[str, float] = field(default_factory=dict)
    """By module: the share of the squared norm that its rank could not keep."""
    warnings: list[str] = field(default_factory=list)
    engine: ResolveResult | None = None
    """What merged the whole differences, if a strategy on elements did."""

    def note_misfits(self, misfits: Mapping[str, int]) -> None:
        """Warn of what did not fit the element type."""
        for name, count in misfits.items():
            self.warnings.append(
                f"{name}: {count} elements did not fit the output type; the largest that fits was written."
            )


@dataclass(frozen=True, slots=True)
class BaseModel:
    """The model that differences are added to."""

    origin: str
    specs: Mapping[str, TensorSpec]
    sources: Mapping[str, TensorSource]
    fs: Fs


def write_adapter(
    target: Target,
    found: AdapterSet,
    ranks: Mapping[str, int],
    reduced: Iterable[tuple[str, Reduced]],
    *,
    base_name: str,
    outcome: Outcome,
    account: Account,
) -> Written:
    """Write an adapter in PEFT's format whose scale is one everywhere: alpha equals the rank.

    Args:
        target: The directory.
        found: What was merged.
        ranks: Of the result, by module.
        reduced: Its factors; read once, in the order of the modules.
        base_name: What it calls its base.
        outcome: Is filled in.
        account: Of what goes with it.
    """
    kind = target.dtype or output_dtype("", None, found.dtypes)
    specs = [spec for module, rank in ranks.items() for spec in factor_specs(found, module, rank, kind)]
    names = {name: saved_name(name, ranks) for name in found.others}
    specs += [TensorSpec(name=names[n], dtype=kind, shape=s.shape) for n, s in found.others.items()]
    with open_sink(target, specs, adapter=WEIGHTS) as sink:
        for module, factors in reduced:
            down, up = factor_specs(found, module, ranks[module], kind)
            sink.put(down.name, factors.down)
            sink.put(up.name, factors.up)
            outcome.ranks[module] = ranks[module]
            outcome.dropped[module] = factors.dropped
        for name, values in others(found):
            sink.put(names[name], values)
        config = synthetic_config(found.header, ranks, ranks, base_name)
        return _finish(sink, outcome, account, config)


def factor_specs(found: AdapterSet, module: str, rank: int, dtype: str) -> tuple[TensorSpec, TensorSpec]:
    """Return what the factors A and B of a module of the result are."""
    is_embedding = found.first(module).pairs[module].is_embedding
    shape, is_transposed = found.shape(module), found.is_transposed(module)
    rows, _ = matrix_shape(shape, is_transposed=is_transposed)
    inputs = shape[:1] if is_transposed else shape[1:]
    ones = (1,) * (len(shape) - 2)
    shapes = {"A": (rank, *inputs), "B": (rows, rank, *ones)}
    down, up = (
        TensorSpec(name=factor_name(module, side, is_embedding=is_embedding), dtype=dtype, shape=each)
        for side, each in shapes.items()
    )
    return down, up


def write_delta(
    target: Target,
    found: AdapterSet,
    differences: Iterator[Part],
    *,
    outcome: Outcome,
    account: Account,
    directory_file: str = "",
) -> Written:
    """Write whole differences; what is saved whole is none and stays out.

    Args:
        target: The file, or the directory of shards.
        found: What was merged.
        differences: Of all modules.
        outcome: Is filled in.
        account: Of what goes with it.
        directory_file: The target is a directory in which the one file is called so.
    """
    kind = target.dtype or ELEMENT
    if found.others:
        names = ", ".join(list(found.others)[:_NAMED_MAX])
        outcome.warnings.append(
            f"Tensors that are saved whole are no differences and were left out: {names}."
        )
    with open_sink(target, delta_specs(found, kind).values(), adapter=directory_file) as sink:
        for part in differences:
            sink.put(weight_name(part.module), part.values, part.start)
        return _finish(sink, outcome, account)


def write_model(
    target: Target,
    base: BaseModel,
    found: AdapterSet,
    differences: Iterator[Part],
    *,
    outcome: Outcome,
    account: Account,
) -> Written:
    """Write the base with the differences added, in the element type of the base unless told otherwise.

    What is changed of a base of eight bits, which are only read, becomes BF16.
    """
    require_modules(found, base)
    changed = {weight_name(module) for module in found.modules} | found.others.keys()
    specs = [
        replace(spec, dtype=output_dtype(target.dtype, spec.dtype, ())) if name in changed else spec
        for name, spec in base.specs.items()
    ]
    with open_sink(target, specs) as sink:
        _copy(sink, base, base.specs.keys() - changed)
        _add(sink, base, differences)
        for name, values in others(found):
            sink.put(name, values)
        return _finish(sink, outcome, account)


def _finish(sink: Sink, outcome: Outcome, account: Account, config: bytes = b"") -> Written:
    written = sink.finish(config)
    outcome.note_misfits(sink.misfits)
    text = account(written, outcome)
    if text is not None:
        sink.account(text)
    return written


def _add(sink: Sink, base: BaseModel, differences: Iterator[Part]) -> None:
    """Write the tensors of the base that differences change, whose parts come in order."""
    reader, hashers = SourceReader(base.fs), dict[str, ChunkHasher]()
    try:
        for part in differences:
            name = weight_name(part.module)
            source, dtype = base.sources[name], base.specs[name].dtype
            size = DTYPE_BYTES[dtype]
            raw = reader.read(source, part.start * size, part.values.size * size)
            hasher = hashers.setdefault(name, ChunkHasher())
            hasher.update(raw)
            sink.put(name, decode_block(dtype, raw) + part.values, part.start)
            is_last = (part.start + part.values.size) * size == source.nbytes
            if is_last and source.blob and blob_digest(source.nbytes, hasher.digests()) != source.blob:
                raise changed(source, f"tensor {name} of {base.origin}")
    finally:
        reader.close()


def _copy(sink: Sink, base: BaseModel, names: Iterable[str]) -> None:
    """Copy tensors of the base as they are."""
    reader = SourceReader(base.fs)
    try:
        for name in sorted(names, key=str.encode):
            source, hasher = base.sources[name], ChunkHasher()
            for start in range(0, source.nbytes, _COPY_BYTES):
                part = reader.read(source, start, min(_COPY_BYTES, source.nbytes - start))
                hasher.update(part)
                sink.put_bytes(name, start, part)
            if source.blob and blob_digest(source.nbytes, hasher.digests()) != source.blob:
                raise changed(source, f"tensor {name} of {base.origin}")
    finally:
        reader.close()


def require_modules(found: AdapterSet, base: BaseModel) -> None:
    """Raise unless a base has everything that adapters change.

    Raises:
        ParameterError: It lacks a tensor.
        ShapeMismatchError: One has another shape.
    """
    shapes = {spec.name: spec.shape for spec in delta_specs(found, ELEMENT).values()}
    shapes |= {name: spec.shape for name, spec in found.others.items()}
    for name, shape in shapes.items():
        known = base.specs.get(name)
        if known is None:
            raise ParameterError(f"{base.origin} has no tensor {name}, which the adapters change.")
        if known.shape != shape:
            raise ShapeMismatchError(
                f"{base.origin}: {name} has shape {list(known.shape)}, not {list(shape)}."
            )
