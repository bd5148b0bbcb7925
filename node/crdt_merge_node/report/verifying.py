"""Comparing a model file with what should be in it, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from crdt_merge_protocol.blobs import DTYPE_BYTES, FLOAT_DTYPES
from crdt_merge_protocol.limits import ADAPTER_CONFIG_BYTES_MAX
from crdt_merge_protocol.packing import CONFIG_NAME
from crdt_merge_protocol.strategies.dtypes import decode_block

from crdt_merge_node.checkpoints.reading import CheckpointTensor, read_checkpoint
from crdt_merge_node.ports import Fs
from crdt_merge_node.resolve.files import SourceReader, naming
from crdt_merge_node.resolve.job import TensorSource

_BLOCK_ELEMENTS: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Difference:
    """A tensor that is not the same in two files."""

    tensor: str
    what: str
    """How it differs, in words."""


def compare_files(expected: Path, found: Path, *, fs: Fs) -> list[Difference]:
    """Return what differs between two models, in files or sharded, in byte order of the tensors' names.

    Raises:
        MalformedTensorFileError, StorageError, CorruptError: One of them cannot be read.
    """
    ours = {entry.spec.name: entry for entry in read_checkpoint(fs, expected).entries}
    theirs = {entry.spec.name: entry for entry in read_checkpoint(fs, found).entries}
    reader = SourceReader(fs)
    differences = []
    try:
        for name in sorted(ours.keys() | theirs.keys(), key=str.encode):
            what = _compare(reader, ours.get(name), theirs.get(name))
            if what:
                differences.append(Difference(name, what))
    finally:
        reader.close()
    return [*differences, *_compare_configurations(expected, found, fs)]


def _compare_configurations(expected: Path, found: Path, fs: Fs) -> Iterator[Difference]:
    """Yield that the configurations beside an adapter's tensors are not the same."""
    if fs.stat(expected / CONFIG_NAME) is None:
        return
    texts = []
    for path in (expected / CONFIG_NAME, found / CONFIG_NAME):
        if fs.stat(path) is None:
            yield Difference(CONFIG_NAME, "is missing")
            return
        with naming(path, "read"), fs.open_read(path, follow=True) as file:
            texts.append(file.read_at(0, ADAPTER_CONFIG_BYTES_MAX + 1))
    if texts[0] != texts[1]:
        yield Difference(CONFIG_NAME, "is another")


def _compare(reader: SourceReader, ours: CheckpointTensor | None, theirs: CheckpointTensor | None) -> str:
    if ours is None:
        return "is in the file and should not be"
    if theirs is None:
        return "is missing"
    if (ours.spec.dtype, ours.spec.shape) != (theirs.spec.dtype, theirs.spec.shape):
        shapes = (
            f"{theirs.spec.dtype} {list(theirs.spec.shape)}",
            f"{ours.spec.dtype} {list(ours.spec.shape)}",
        )
        return f"is {shapes[0]}, should be {shapes[1]}"
    width = DTYPE_BYTES[ours.spec.dtype]
    differing, gap, largest = 0, 0.0, 0.0
    for start in range(0, ours.spec.numel, _BLOCK_ELEMENTS):
        count = min(_BLOCK_ELEMENTS, ours.spec.numel - start)
        first = _read(reader, ours, start * width, count * width)
        second = _read(reader, theirs, start * width, count * width)
        if first == second:
            continue
        bits = [np.frombuffer(raw, np.dtype((np.void, width))) for raw in (first, second)]
        differing += int(np.count_nonzero(bits[0] != bits[1]))
        if ours.spec.dtype in FLOAT_DTYPES:
            values = [decode_block(ours.spec.dtype, raw) for raw in (first, second)]
            with np.errstate(invalid="ignore"):
                gap = max(gap, float(np.nanmax(np.abs(values[0] - values[1]))))
            largest = max(largest, float(np.abs(values[0]).max()))
    if not differing:
        return ""
    share = f"{differing} of {ours.spec.numel} elements differ"
    return f"{share}, by at most {gap / largest:.2g} of the largest" if largest else share


def _read(reader: SourceReader, entry: CheckpointTensor, offset: int, nbytes: int) -> bytes | memoryview:
    return reader.read(TensorSource(str(entry.path), entry.begin, entry.end - entry.begin), offset, nbytes)
