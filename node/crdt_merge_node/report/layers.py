"""Measurements per tensor of a merge: how long, how alike, how much at odds, and who shaped the result.

A second look at inputs and output, one block at a time; nothing here enters an output or a digest. With a
base all vectors are differences from it, else the models themselves.

* *norm*: length of a contribution's vector, and of the merged one.
* *cosine*: of every pair of contributions, and of each with the merged vector.
* *conflict*: of the elements that at least two contributions change, the share on whose sign they differ.
* *influence* of a contribution: the share of the merged vector along it, ``<v_i, m> / sum_j <v_j, m>``;
  the shares add up to one, and one that was worked against is negative.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from crdt_merge_protocol.blobs import DTYPE_BYTES, FLOAT_DTYPES, TensorSpec
from crdt_merge_protocol.strategies.contract import Float64Array
from crdt_merge_protocol.strategies.dtypes import decode_block
from crdt_merge_protocol.strategies.reductions import tree_sum

from crdt_merge_node.checkpoints.reading import read_checkpoint
from crdt_merge_node.ports import Fs, SystemFs
from crdt_merge_node.resolve.files import SourceReader
from crdt_merge_node.resolve.job import ModelInput, ResolveJob, TensorSource

from .page import ID_DIGITS

SCHEMA: Final = "layers/1"
BLOCK_ELEMENTS: Final = 1 << 17
PAIRS_K_MAX: Final = 16
"""Contributions up to which every pair is compared: their number grows with the square."""
_DIGITS: Final = 6

Advance = Callable[[int], None]
Products = npt.NDArray[np.float64]
"""``(k + 1, k + 1)``: inner products of the contributions' vectors and, last, the merged one."""


@dataclass(slots=True)
class _Sums:
    """What is added up over blocks: of one tensor, or of all."""

    products: Products
    contested: int = 0
    """Elements that at least two contributions change."""
    disputed: int = 0
    """Those of them on whose sign the contributions differ."""

    @classmethod
    def zero(cls, k: int) -> _Sums:
        """Return nothing yet."""
        return cls(np.zeros((k + 1, k + 1)))

    def add(self, other: _Sums) -> None:
        """Take in the sums of other elements."""
        self.products += other.products
        self.contested += other.contested
        self.disputed += other.disputed


def measure(
    job: ResolveJob, output: Path, *, fs: Fs | None = None, advance: Advance | None = None
) -> dict[str, Any]:
    """Return the measurements of a finished resolve, JSON-able; ``layers/1``.

    Args:
        job: What was resolved; its inputs are still where it says.
        output: The file, or the directory, that was written.
        fs: Where the files are.
        advance: Told of every stretch of bytes that was read.

    Raises:
        StorageError, CorruptError: A file cannot be read any more.
        MalformedTensorFileError: The output is not one.
    """
    fs = fs or SystemFs()
    reader = SourceReader(fs)
    header = read_checkpoint(fs, output)
    written = {
        entry.spec.name: (
            entry.spec.dtype,
            TensorSource(str(entry.path), entry.begin, entry.end - entry.begin),
        )
        for entry in header.entries
    }
    total = _Sums.zero(len(job.inputs))
    tensors = []
    try:
        for spec in job.schema.specs:
            if spec.dtype in FLOAT_DTYPES and spec.numel:
                vectors = _Vectors(reader, spec, job.inputs, job.base, written[spec.name], advance)
                sums = _measure(vectors, len(job.inputs))
                total.add(sums)
                shape = list(spec.shape)
                tensors.append({"name": spec.name, "dtype": spec.dtype, "shape": shape, **_facts(sums)})
    finally:
        reader.close()
    return {
        "schema": SCHEMA,
        "strategy": job.strategy,
        "resolve_key": job.resolve_key.hex(),
        "of": "differences from the base" if job.base is not None else "models",
        "inputs": [_input(job.facts, model) for model in job.inputs],
        "tensors": tensors,
        "total": _facts(total),
    }


def _input(facts: Mapping[str, Any], model: ModelInput) -> dict[str, Any]:
    """Return an input with what people call it: its files, or its slots and who has them."""
    digest = model.digest.hex()
    files = [item["path"] for item in facts.get("files", ()) if item["digest"] == digest]
    slots = [
        f"{item['slot']} of {item['author'][:ID_DIGITS]}"
        for item in facts.get("contributions", ())
        if item["digest"] == digest
    ]
    return {"digest": digest, "weight": model.weight, "name": ", ".join(files + slots)}


@dataclass(frozen=True, slots=True)
class _Vectors:
    """The vectors of one tensor, block by block."""

    reader: SourceReader
    spec: TensorSpec
    inputs: Sequence[ModelInput]
    base: ModelInput | None
    written: tuple[str, TensorSource]
    advance: Advance | None

    def blocks(self) -> Iterator[list[Float64Array]]:
        """Yield the contributions' vectors and, last, the merged one."""
        sources = [(model.tensors[self.spec.name], model.dtype_of(self.spec)) for model in self.inputs]
        for start in range(0, self.spec.numel, BLOCK_ELEMENTS):
            stop = min(start + BLOCK_ELEMENTS, self.spec.numel)
            values = [self._read(dtype, source, start, stop) for source, dtype in sources]
            values.append(self._read(*self.written, start, stop))
            if self.base is not None:
                dtype = self.base.dtype_of(self.spec)
                base = self._read(dtype, self.base.tensors[self.spec.name], start, stop)
                for number in range(len(values)):
                    values[number] -= base
            yield values

    def _read(self, dtype: str, source: TensorSource, start: int, stop: int) -> Float64Array:
        width = DTYPE_BYTES[dtype]
        raw = self.reader.read(source, start * width, (stop - start) * width)
        if self.advance is not None:
            self.advance(len(raw))
        return np.array(decode_block(dtype, raw))


def _measure(vectors: _Vectors, k: int) -> _Sums:
    sums = _Sums.zero(k)
    for values in vectors.blocks():
        sums.add(_observe(values))
    return sums


def _observe(values: Sequence[Float64Array]) -> _Sums:
    k = len(values) - 1
    sums = _Sums.zero(k)
    for i in range(k + 1):
        for j in range(i, k + 1):
            if j in (i, k) or k <= PAIRS_K_MAX:
                sums.products[i, j] = sums.products[j, i] = tree_sum(values[i] * values[j])
    ups = np.zeros(values[0].size, np.int32)
    downs = np.zeros(values[0].size, np.int32)
    for each in values[:k]:
        ups += each > 0
        downs += each < 0
    sums.contested = int(np.count_nonzero(ups + downs >= 2))
    sums.disputed = int(np.count_nonzero((ups > 0) & (downs > 0)))
    return sums


def _facts(sums: _Sums) -> dict[str, Any]:
    k = len(sums.products) - 1
    lengths = [math.sqrt(sums.products[i, i]) for i in range(k + 1)]
    along = [float(sums.products[i, k]) for i in range(k)]
    whole = math.fsum(along)
    pairs = [[_cosine(sums.products[i, j], lengths[i], lengths[j]) for j in range(k)] for i in range(k)]
    return {
        "norms": [_round(length) for length in lengths[:k]],
        "merged_norm": _round(lengths[k]),
        "cosines": pairs if k <= PAIRS_K_MAX else None,
        "merged_cosines": [_cosine(along[i], lengths[i], lengths[k]) for i in range(k)],
        "influences": [_round(value / whole) if whole else None for value in along],
        "conflict": _round(sums.disputed / sums.contested) if sums.contested else 0.0,
        "contested": sums.contested,
    }


def _cosine(product: float, first: float, second: float) -> float | None:
    """Return the cosine, or None where one of the vectors is zero."""
    return _round(max(-1.0, min(1.0, float(product) / (first * second)))) if first * second else None


def _round(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
