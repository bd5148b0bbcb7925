"""What a merge of adapters is written as: an adapter, whole differences, or a whole model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from crdt_merge_protocol.blobs import TensorSpec
from crdt_merge_protocol.errors import ParameterError, ShapeMismatchError
from crdt_merge_protocol.strategies.contract import Float64Array
from crdt_merge_protocol.strategies.dtypes import decode_block, output_dtype

from crdt_merge_node.ports import Fs, Rng, replace_file
from crdt_merge_node.resolve.files import SourceReader, naming, read_header
from crdt_merge_node.resolve.job import TensorSource
from crdt_merge_node.tensor_writer import TensorWriter

from .adapter import CONFIG, PREFIX, WEIGHTS
from .collection import AdapterSet, delta_specs, others
from .factors import Reduced

DELTA: Final = "delta.safetensors"
_COPY_BYTES: Final = 1 << 23


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterResult:
    """What was written."""

    paths: tuple[Path, ...]
    modules: int
    ranks: Mapping[str, int]
    """By module; empty if whole differences were written."""
    dropped: Mapping[str, float]
    """By module: the share of the squared norm that its rank could not keep."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """Where the result goes, and as what."""

    path: Path
    dtype: str
    """Element type; empty: as in the adapters, or in the base."""
    fs: Fs
    rng: Rng


def write_adapter(
    target: Target, found: AdapterSet, reduced: Mapping[str, Reduced], warnings: tuple[str, ...] = ()
) -> AdapterResult:
    """Write an adapter in PEFT's format whose scale is one everywhere."""
    output, fs, rng = target.path, target.fs, target.rng
    with naming(output, "made"):
        fs.mkdir(output, mode=0o777)
    tensors = dict(_factor_tensors(found, reduced))
    tensors |= {f"{PREFIX}{name}": values for name, values in others(found)}
    dtypes = {pair.down.spec.dtype for adapter in found.adapters for pair in adapter.pairs.values()}
    kind = target.dtype or output_dtype("", None, dtypes)
    specs = [TensorSpec(name=name, dtype=kind, shape=values.shape) for name, values in tensors.items()]
    with TensorWriter(output / WEIGHTS, specs, fs=fs, rng=rng) as writer:
        for name, values in tensors.items():
            writer.put(name, values)
    ranks = {module: each.up.shape[1] for module, each in reduced.items()}
    config = json.dumps(_config(found, ranks), indent=2, sort_keys=True) + "\n"
    with naming(output / CONFIG, "written"):
        replace_file(fs, output / CONFIG, config.encode(), mode=0o666)
    return AdapterResult(
        paths=(output / WEIGHTS, output / CONFIG),
        modules=len(reduced),
        ranks=ranks,
        dropped={module: each.dropped for module, each in reduced.items()},
        warnings=warnings,
    )


def _factor_tensors(found: AdapterSet, reduced: Mapping[str, Reduced]) -> Iterator[tuple[str, Float64Array]]:
    for module, each in reduced.items():
        adapter = found.adapters[found.having(module)[0]]
        pair = adapter.pairs[module]
        kind = "lora_embedding_" if pair.is_embedding else "lora_"
        end = "" if pair.is_embedding else ".weight"
        rank, ones = each.up.shape[1], (1,) * (len(pair.up.spec.shape) - 2)
        yield f"{PREFIX}{module}.{kind}A{end}", each.down.reshape(rank, *pair.down.spec.shape[1:])
        yield f"{PREFIX}{module}.{kind}B{end}", each.up.reshape(-1, rank, *ones)


def _config(found: AdapterSet, ranks: Mapping[str, int]) -> dict[str, Any]:
    """Return a configuration whose scale is one everywhere: alpha equals the rank."""
    counts = sorted(ranks.values())
    usual = counts[len(counts) // 2]
    pattern = {module: rank for module, rank in ranks.items() if rank != usual}
    config = {
        key: value
        for key, value in found.adapters[0].config.items()
        if key in {"base_model_name_or_path", "fan_in_fan_out", "task_type", "bias", "modules_to_save"}
    }
    return config | {
        "peft_type": "LORA",
        "inference_mode": True,
        "lora_dropout": 0.0,
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": pattern,
        "alpha_pattern": dict(pattern),
        "use_rslora": False,
        "target_modules": list(ranks),
    }


def write_delta(target: Target, merged: Path, found: AdapterSet, warnings: tuple[str, ...]) -> AdapterResult:
    """Put a file of whole differences in its place."""
    output, fs = target.path, target.fs
    with naming(output, "made"):
        fs.mkdir(output, mode=0o777)
        fs.rename(merged, output / DELTA)
        fs.sync_dir(output)
    note = "The differences are no longer of low rank, so they were written whole; --rank cuts them."
    return AdapterResult(
        paths=(output / DELTA,),
        modules=len(found.modules),
        ranks={},
        dropped={},
        warnings=(*warnings, note),
    )


def write_model(
    target: Target, base: Path, found: AdapterSet, differences: Iterator[tuple[str, Float64Array]]
) -> AdapterResult:
    """Write the base with the differences added, in the element type of the base unless told otherwise."""
    fs, dtype = target.fs, target.dtype
    entries = {entry.spec.name: entry for entry in read_header(fs, base).entries}
    _require_modules(found, entries, base)
    changed = {f"{module}.weight" for module in found.modules} | {n for a in found.adapters for n in a.others}
    specs = [
        TensorSpec(name=name, dtype=dtype if dtype and name in changed else e.spec.dtype, shape=e.spec.shape)
        for name, e in entries.items()
    ]
    with reading(fs) as reader, TensorWriter(target.path, specs, fs=fs, rng=target.rng) as writer:
        for name, entry in entries.items():
            if name not in changed:
                source = TensorSource(str(base), entry.begin, entry.end - entry.begin)
                for start in range(0, source.nbytes, _COPY_BYTES):
                    part = reader.read(source, start, min(_COPY_BYTES, source.nbytes - start))
                    writer.put_bytes(name, start, part)
        for module, difference in differences:
            entry = entries[f"{module}.weight"]
            nbytes = entry.end - entry.begin
            raw = reader.read(TensorSource(str(base), entry.begin, nbytes), 0, nbytes)
            values = np.array(decode_block(entry.spec.dtype, raw)) + difference.reshape(-1)
            writer.put(f"{module}.weight", values)
        for name, values in others(found):
            writer.put(name, values)
    return AdapterResult(paths=(target.path,), modules=len(found.modules), ranks={}, dropped={})


def _require_modules(found: AdapterSet, entries: Mapping[str, Any], base: Path) -> None:
    for module, spec in delta_specs(found, "F32").items():
        entry = entries.get(spec.name)
        if entry is None:
            raise ParameterError(f"{base} has no tensor {spec.name}, which the adapters change.")
        if entry.spec.shape != spec.shape:
            raise ShapeMismatchError(
                f"{base}: {module} has shape {list(entry.spec.shape)}, not {list(spec.shape)}."
            )


@contextmanager
def reading(fs: Fs) -> Iterator[SourceReader]:
    """Give a reader whose files are closed at the end."""
    reader = SourceReader(fs)
    try:
        yield reader
    finally:
        reader.close()
