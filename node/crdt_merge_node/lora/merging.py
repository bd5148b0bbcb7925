"""Merging adapters in the space of the differences they stand for.

Averaging A and B apart would multiply every A with every B: it is no merge of the differences, so it is not
offered. Strategies that are linear sum the differences exactly as longer factors, which are cut to a rank on
request. All others work on elements, so the differences are written out, merged like models over a base of
zeros, and made low-rank again only on request, with the loss stated.

A module that an adapter does not change is a difference of zero there. Tensors that are saved whole are
averaged among the adapters that have them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from crdt_merge_protocol.strategies.contract import Float64Array
from crdt_merge_protocol.strategies.dtypes import decode_block
from crdt_merge_protocol.strategies.registry import get

from crdt_merge_node.ports import Fs, SystemFs, SystemRng
from crdt_merge_node.resolve.files import read_header
from crdt_merge_node.resolve.job import DEFAULT_MEMORY_BYTES, ReportProgress, TensorSource
from crdt_merge_node.resolve.merge import merge_files
from crdt_merge_node.tensor_writer import TensorWriter

from .collection import AdapterSet, delta_specs, linear_sums, products, read_set
from .factors import Reduced, as_matrix, concatenate, delta, reduce, target_rank, truncate
from .writing import AdapterResult, Target, reading, write_adapter, write_delta, write_model

LINEAR: Final = frozenset({"weight_average", "linear", "task_arithmetic"})
"""Strategies whose result is a fixed sum of the differences."""


def merge_adapters(
    paths: Sequence[Path],
    output: Path,
    *,
    strategy: str = "weight_average",
    params: Mapping[str, str] | None = None,
    weights: Sequence[int] | None = None,
    rank: str = "auto",
    dtype: str = "",
    base: Path | None = None,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    progress: ReportProgress | None = None,
    fs: Fs | None = None,
) -> AdapterResult:
    """Merge adapters of one base model.

    Args:
        paths: Directories in PEFT's format. Their order does not matter.
        output: A directory for an adapter or for whole differences; with ``base`` the file of a whole model.
        strategy: Of models; it is applied to the differences.
        params: Of the strategy.
        weights: One per adapter, over 2^32; None: all one.
        rank: A rule of ``factors.RULES``. ``auto`` keeps the exact sum up to a rank of 256, then the largest
            rank; with strategies that are not linear it writes the whole differences.
        dtype: Of the tensors written; empty: as in the adapters, or in the base.
        base: Write the base plus the merged differences.
        memory_bytes: Budget of the merge of whole differences.
        progress: As of a resolve.
        fs: Where everything is.

    Raises:
        ParameterError, ShapeMismatchError: The adapters cannot be merged; the message says why.
        ResolveError, StorageError: As of a resolve of whole models.
    """
    target = Target(output, dtype, fs or SystemFs(), SystemRng())
    found = read_set(paths, weights, target.fs)
    recipe = get(strategy)
    texts = dict(params or {})
    recipe.validate(texts)
    if recipe.id in LINEAR:
        sums = linear_sums(found, recipe.id, texts)
        if base is not None:
            return write_model(target, base, found, products(found, sums))
        return write_adapter(target, found, _reduced(found, sums, rank))
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as name:
        merged = Path(name) / "merged.safetensors"
        warnings = merge_files(
            _expand_all(found, Path(name), target),
            merged,
            strategy=recipe.id,
            base=_zeros(found, Path(name), target) if recipe.base != "unused" else None,
            params=texts,
            weights=found.weights,
            memory_bytes=memory_bytes,
            progress=progress,
        ).warnings
        if base is not None:
            return write_model(target, base, found, _stored(merged, found, target.fs))
        if rank == "auto":
            return write_delta(target, merged, found, warnings)
        return write_adapter(target, found, _truncated(found, merged, rank, target.fs), warnings)


def expand_adapter(
    path: Path, output: Path, *, base: Path | None = None, dtype: str = "", fs: Fs | None = None
) -> AdapterResult:
    """Write the differences that an adapter stands for, or with ``base`` the model that it makes of it.

    Raises:
        ParameterError, ShapeMismatchError, StorageError: As :func:`merge_adapters`.
    """
    target = Target(output, dtype, fs or SystemFs(), SystemRng())
    found = read_set([path], None, target.fs)
    differences = products(found, {module: [(0, 1.0)] for module in found.modules})
    if base is not None:
        return write_model(target, base, found, differences)
    specs = delta_specs(found, dtype or "F32").values()
    with TensorWriter(output, specs, fs=target.fs, rng=target.rng) as writer:
        for module, difference in differences:
            writer.put(f"{module}.weight", difference)
    return AdapterResult(paths=(output,), modules=len(found.modules), ranks={}, dropped={})


def _reduced(
    found: AdapterSet, sums: Mapping[str, Sequence[tuple[int, float]]], rank: str
) -> dict[str, Reduced]:
    """Return the factors of a weighted sum of adapters by module, at the rank that the rule gives."""
    reduced = {}
    for module, parts in sums.items():
        ranks = [found.adapters[i].pairs[module].rank for i, _ in parts]
        up, down = concatenate([(c, found.adapters[i].factors(module)) for i, c in parts])
        reduced[module] = reduce(up, down, target_rank(rank, ranks))
    return reduced


def _truncated(found: AdapterSet, merged: Path, rank: str, fs: Fs) -> dict[str, Reduced]:
    """Return factors of the whole differences in a file by module, cut to the rank that the rule gives."""
    return {
        module: truncate(
            as_matrix(difference, found.adapters[found.having(module)[0]].factors(module)),
            target_rank(rank, [found.adapters[i].pairs[module].rank for i in found.having(module)]),
        )
        for module, difference in _stored(merged, found, fs)
    }


def _expand_all(found: AdapterSet, directory: Path, target: Target) -> list[Path]:
    """Write every adapter's differences as a model of its own."""
    files = []
    for number, adapter in enumerate(found.adapters):
        files.append(directory / f"{number}.safetensors")
        specs = delta_specs(found, "F32").values()
        with TensorWriter(files[-1], specs, fs=target.fs, rng=target.rng) as writer:
            for module in adapter.pairs:
                writer.put(f"{module}.weight", delta(adapter.factors(module)))
    return files


def _zeros(found: AdapterSet, directory: Path, target: Target) -> Path:
    """Write the model that differences are differences from."""
    path = directory / "zeros.safetensors"
    with TensorWriter(path, delta_specs(found, "F32").values(), fs=target.fs, rng=target.rng):
        pass
    return path


def _stored(merged: Path, found: AdapterSet, fs: Fs) -> Iterator[tuple[str, Float64Array]]:
    """Yield each module's difference from a file of whole differences."""
    entries = {entry.spec.name: entry for entry in read_header(fs, merged).entries}
    with reading(fs) as reader:
        for module in found.modules:
            entry = entries[f"{module}.weight"]
            nbytes = entry.end - entry.begin
            raw = reader.read(TensorSource(str(merged), entry.begin, nbytes), 0, nbytes)
            yield module, np.array(decode_block(entry.spec.dtype, raw)).reshape(entry.spec.shape)
