"""Strategies that work on elements: the differences written out and merged like models over a base of zeros.

What merges them is the engine of whole models, under the names that the adapters have as contributions: of
those come the canonical order and everything random, so a group and offline ``lora merge`` do the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from crdt_merge_protocol.adapters import weight_name
from crdt_merge_protocol.blobs import DTYPE_BYTES, Schema, TensorSpec
from crdt_merge_protocol.resolve_key import seed_of
from crdt_merge_protocol.strategies.contract import Float64Array
from crdt_merge_protocol.strategies.dtypes import decode_block
from crdt_merge_protocol.strategies.registry import get
from crdt_merge_protocol.tensorfile import layout

from crdt_merge_node.ports import Fs, Rng
from crdt_merge_node.resolve.files import SourceReader, read_header
from crdt_merge_node.resolve.job import (
    DEFAULT_MEMORY_BYTES,
    IsCancelled,
    ModelInput,
    ReportProgress,
    ResolveJob,
    ResolveResult,
    TensorSource,
)
from crdt_merge_node.resolve.run import run_job
from crdt_merge_node.tensor_writer import TensorWriter

from .adapter import read_array
from .collection import AdapterSet, delta_specs
from .factors import Part, delta, row_ranges

ELEMENT: Final = "F32"
"""Of differences that are written out, and of what a strategy on elements makes of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseRecipe:
    """How differences are merged, and with what."""

    strategy: str
    params: Mapping[str, str]
    group_mode: bool
    """As in :class:`ResolveJob`."""
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    workers: int | None = None


def dense_job(found: AdapterSet, recipe: DenseRecipe, directory: Path) -> ResolveJob:
    """Return the job that merges the files of :func:`write_differences`, there or not."""
    specs = delta_specs(found, ELEMENT)
    schema = Schema.of(specs.values())
    offsets = layout(schema.specs)[1]

    def model(digest: bytes, weight: int, path: Path) -> ModelInput:
        tensors = {
            spec.name: TensorSource(str(path), offsets[spec.name], spec.nbytes) for spec in schema.specs
        }
        return ModelInput(digest=digest, weight=weight, tensors=tensors)

    inputs = zip(found.digests, found.weights, strict=True)
    is_based = get(recipe.strategy).base != "unused"
    return ResolveJob(
        strategy=get(recipe.strategy).id,
        params=dict(recipe.params),
        schema=schema,
        inputs=tuple(model(d, w, _file(directory, number)) for number, (d, w) in enumerate(inputs)),
        base=model(bytes(32), 0, directory / "zeros.safetensors") if is_based else None,
        seed=seed_of(found.digests),
        dtype=ELEMENT,
        group_mode=recipe.group_mode,
        resolve_key=bytes(32),
        memory_bytes=recipe.memory_bytes,
        workers=recipe.workers,
    )


def merge_differences(
    found: AdapterSet,
    recipe: DenseRecipe,
    directory: Path,
    *,
    progress: ReportProgress,
    cancelled: IsCancelled,
    fs: Fs,
    rng: Rng,
) -> ResolveResult:
    """Write every difference out below a directory and merge them there; ``stored`` reads the result.

    Raises:
        ResolveError, StorageError: As of ``run_job``.
    """
    job = dense_job(found, recipe, directory)
    specs = job.schema.specs
    for number, adapter in enumerate(found.adapters):
        progress(number, len(found.adapters), "writing differences out")
        with TensorWriter(_file(directory, number), specs, fs=fs, rng=rng) as writer:
            for module in adapter.pairs:
                if cancelled():
                    break  # The merge that follows says so.
                factors, width = adapter.factors(module), math.prod(adapter.shape(module)[1:])
                for start, stop in row_ranges(adapter.shape(module)):
                    writer.put(weight_name(module), delta(factors, start, stop), start * width)
    if job.base is not None:
        with TensorWriter(directory / "zeros.safetensors", specs, fs=fs, rng=rng):
            pass
    return run_job(
        job, directory / "merged.safetensors", progress=progress, cancelled=cancelled, fs=fs, rng=rng
    )


def stored(merged: Path, found: AdapterSet, fs: Fs) -> Iterator[tuple[str, Float64Array]]:
    """Yield each module's merged difference in the shape of its weight."""
    for module, spec, source in _places(merged, found, fs):
        yield module, read_array(fs, source, spec, str(merged))


def stored_parts(merged: Path, found: AdapterSet, fs: Fs) -> Iterator[Part]:
    """Yield each module's merged difference, some rows at a time."""
    reader = SourceReader(fs)
    try:
        for module, spec, source in _places(merged, found, fs):
            width, size = math.prod(spec.shape[1:]), DTYPE_BYTES[spec.dtype]
            for start, stop in row_ranges(spec.shape):
                raw = reader.read(source, start * width * size, (stop - start) * width * size)
                yield Part(module, start * width, np.array(decode_block(spec.dtype, raw)))
    finally:
        reader.close()


def _places(merged: Path, found: AdapterSet, fs: Fs) -> Iterator[tuple[str, TensorSpec, TensorSource]]:
    entries = {entry.spec.name: entry for entry in read_header(fs, merged).entries}
    for module in found.modules:
        entry = entries[weight_name(module)]
        yield module, entry.spec, TensorSource(str(merged), entry.begin, entry.end - entry.begin)


def _file(directory: Path, number: int) -> Path:
    return directory / f"{number}.safetensors"
