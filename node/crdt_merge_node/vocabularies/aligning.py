"""Writing a model again with the vocabulary of another, row by row (STRATEGIES 1.5).

Only tables of tokens may differ between models that are merged: the embedding and the output layer. Rows of
tokens that both models know go where the other model has them; rows that this model has nothing for are
copied from the other, so that they differ from it by nothing but rounding to this model's element type. All
other tensors stay byte for byte. What comes out has the other model's shape and tokenizer, and is merged, or
contributed to a group, like any model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
from crdt_merge_protocol.blobs import FLOAT_DTYPES, Schema, TensorSpec
from crdt_merge_protocol.errors import DTypeMismatchError, ShapeMismatchError
from crdt_merge_protocol.limits import MIB
from crdt_merge_protocol.quarantine import require_schema
from crdt_merge_protocol.strategies.dtypes import decode_block, encode_array
from crdt_merge_protocol.strategies.globs import fits

from crdt_merge_node.checkpoints.reading import Checkpoint, CheckpointTensor, read_checkpoint
from crdt_merge_node.errors import InvalidRequestError
from crdt_merge_node.ports import Fs, Rng
from crdt_merge_node.resolve.files import SourceReader
from crdt_merge_node.resolve.job import TensorSource
from crdt_merge_node.tensor_writer import TensorWriter

from .tokens import NONE, RowMap, Rows, given_map, read_map, read_vocabulary, row_map

_TABLE: Final = re.compile(
    r"(.*\.)?("
    r"embed_tokens|tok_embeddings|word_embeddings|wte|embed_in|embed_out|shared|lm_head|"
    r"lm_head\.decoder|predictions|predictions\.decoder"
    r")\.(weight|bias)"
)
"""Names of what has a row per token: the embeddings and output layers of STRATEGIES C."""
_FEW: Final = 0.5
"""A smaller share of common tokens is worth a warning: perhaps it is another tokenizer altogether."""
_NAMED_MAX: Final = 8

Report = Callable[[int, int], None]
"""Told bytes done and bytes in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Aligned:
    """What was written."""

    path: Path
    nbytes: int
    tables: tuple[str, ...]
    """Names of the tensors whose rows were moved."""
    rows: int
    """Of the longest table."""
    shared: int
    """Of these, those that came from the model itself."""
    copied: int
    """Those that came from the other model."""
    dropped: int
    """Tokens of the model that the other does not have: their rows are gone."""
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Table:
    name: str
    ours: CheckpointTensor
    theirs: CheckpointTensor
    map: RowMap

    @property
    def spec(self) -> TensorSpec:
        """As it is written: so long as theirs, of our element type."""
        return replace(self.ours.spec, shape=self.theirs.spec.shape)


def align_vocabulary(
    model: Path,
    to: Path,
    output: Path,
    *,
    fs: Fs,
    rng: Rng,
    vocabulary: Path | None = None,
    to_vocabulary: Path | None = None,
    given: Path | None = None,
    tensors: Sequence[str] = (),
    progress: Report | None = None,
) -> Aligned:
    """Write ``model`` to ``output``, one file, with the vocabulary of ``to``.

    Args:
        model: A safetensors file or a directory of shards.
        to: The model whose vocabulary is wanted: the base, or the one that has the most tokens.
        output: The file; replaced if it is there.
        fs: Where everything is.
        rng: For the name of the temporary file.
        vocabulary: Of ``model``; None: the tokenizer in its directory.
        to_vocabulary: Of ``to``, likewise.
        given: A tokenizer map instead of two vocabularies.
        tensors: Patterns of names of further tables of tokens.
        progress: Told bytes done and bytes in all.

    Raises:
        InvalidRequestError: There is no table, no vocabulary, or a map of other tables.
        TensorMissingError, ShapeMismatchError, DTypeMismatchError: The models differ in more than tables.
        MalformedTensorFileError, MalformedCheckpointError: One is no model.
        CorruptError, FullError, StorageError: A file cannot be read or written.
    """
    ours, theirs = read_checkpoint(fs, model), read_checkpoint(fs, to)
    mapped = _mapper(fs, (vocabulary or model, to_vocabulary or to), given)
    tables = _tables(ours, theirs, tensors, mapped)
    specs = [
        tables[entry.spec.name].spec if entry.spec.name in tables else entry.spec for entry in ours.entries
    ]
    reader = SourceReader(fs)
    misfits = done = 0
    total = sum(spec.nbytes for spec in specs)
    try:
        with TensorWriter(output, specs, fs=fs, rng=rng) as writer:
            for entry in ours.entries:
                table = tables.get(entry.spec.name)
                position = 0
                for part, lost in _copied(reader, entry) if table is None else _aligned(reader, table):
                    writer.put_bytes(entry.spec.name, position, part)
                    position, misfits, done = position + len(part), misfits + lost, done + len(part)
                    if progress is not None:
                        progress(done, total)
            nbytes = writer.nbytes
    finally:
        reader.close()
    return _account(output, nbytes, list(tables.values()), misfits)


def is_table(name: str, patterns: Sequence[str] = ()) -> bool:
    """Tell whether a tensor of this name has a row per token."""
    return _TABLE.fullmatch(name) is not None or any(fits(pattern, name) for pattern in patterns)


def _mapper(fs: Fs, vocabularies: tuple[Path, Path], given: Path | None) -> Callable[[int, int], RowMap]:
    """Return what maps tables of two lengths; a model's tables may be padded to different ones."""
    if given is not None:
        rows = read_map(fs, given)
        return lambda ours, theirs: given_map(rows, ours, theirs)
    source, target = (read_vocabulary(fs, path) for path in vocabularies)
    found: dict[tuple[int, int], RowMap] = {}

    def mapped(ours: int, theirs: int) -> RowMap:
        if (ours, theirs) not in found:
            found[ours, theirs] = row_map(source, target, ours, theirs)
        return found[ours, theirs]

    return mapped


def _tables(
    ours: Checkpoint, theirs: Checkpoint, patterns: Sequence[str], mapped: Callable[[int, int], RowMap]
) -> dict[str, _Table]:
    """Return the tables of tokens of both models; whatever else they have must be the same."""
    other = {entry.spec.name: entry for entry in theirs.entries}
    tables: dict[str, _Table] = {}
    names = [entry.spec.name for entry in ours.entries]
    if unused := [each for each in patterns if not any(fits(each, name) for name in names)]:
        raise InvalidRequestError(f"{ours.path} has no tensor {unused[0]}.", hint="Look at --tensor.")
    for entry in ours.entries:
        name, spec = entry.spec.name, entry.spec
        if not is_table(name, patterns) or name not in other:
            continue
        wanted = other[name].spec
        if not spec.shape or spec.shape[1:] != wanted.shape[1:]:
            raise ShapeMismatchError(
                f"Table {name} has shape {list(spec.shape)} in {ours.path} and {list(wanted.shape)} in "
                f"{theirs.path}.",
                hint="Only the number of rows, one per token, may differ.",
            )
        if not {spec.dtype, wanted.dtype} <= FLOAT_DTYPES:
            raise DTypeMismatchError(f"Table {name} has no floating point elements.")
        tables[name] = _Table(name, entry, other[name], mapped(spec.shape[0], wanted.shape[0]))
    specs = [tables[e.spec.name].spec if e.spec.name in tables else e.spec for e in ours.entries]
    schema = Schema.of(entry.spec for entry in theirs.entries)
    require_schema(schema, specs, who=f"{ours.path} (beside {theirs.path})", any_float=True)
    if not tables:
        raise InvalidRequestError(
            f"{ours.path} has no table of tokens that is known by its name.",
            hint="Name it: --tensor NAME, once for each.",
        )
    return tables


def _copied(reader: SourceReader, entry: CheckpointTensor) -> Iterator[tuple[bytes | memoryview, int]]:
    source = _source(entry)
    for start in range(0, source.nbytes, MIB):
        yield reader.read(source, start, min(MIB, source.nbytes - start)), 0


def _aligned(reader: SourceReader, table: _Table) -> Iterator[tuple[bytes | memoryview, int]]:
    """Yield the bytes of a table in its new order, and how many elements of each part did not fit."""
    ours, theirs, rows = _source(table.ours), _source(table.theirs), table.map.rows
    spec, other = table.ours.spec, table.theirs.spec
    width, other_width = (_row_bytes(each) for each in (spec, other))
    for first, stop in _runs(rows, max(1, MIB // max(width, other_width, 1))):
        if rows[first] != NONE:
            yield reader.read(ours, int(rows[first]) * width, (stop - first) * width), 0
            continue
        raw = reader.read(theirs, first * other_width, (stop - first) * other_width)
        if spec.dtype == other.dtype:
            yield raw, 0
            continue
        stored, misfits = encode_array(spec.dtype, decode_block(other.dtype, raw), "saturate")
        yield stored.tobytes(), misfits


def _runs(rows: Rows, most: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows that stand one after the other where they come from, at most so long."""
    if not rows.size:
        return
    is_next = np.where(rows[1:] == NONE, rows[:-1] == NONE, rows[1:] == rows[:-1] + 1) & (
        (rows[1:] == NONE) == (rows[:-1] == NONE)
    )
    edges = [0, *(np.flatnonzero(~is_next) + 1).tolist(), rows.size]
    for first, stop in pairwise(edges):
        for start in range(first, stop, most):
            yield start, min(start + most, stop)


def _row_bytes(spec: TensorSpec) -> int:
    return spec.nbytes // spec.shape[0] if spec.shape[0] else 0


def _source(entry: CheckpointTensor) -> TensorSource:
    return TensorSource(str(entry.path), entry.begin, entry.end - entry.begin)


def _account(path: Path, nbytes: int, tables: Sequence[_Table], misfits: int) -> Aligned:
    longest = max(tables, key=lambda table: table.map.rows.size)
    rows = longest.map.rows
    shared, dropped = int((rows != NONE).sum()), longest.map.dropped
    warnings = []
    if shared < _FEW * rows.size:
        warnings.append(
            f"Only {shared} of {rows.size} rows are of tokens that both know: is it another tokenizer?"
        )
    if dropped:
        warnings.append(f"Rows of tokens that the other model does not have were left out: {dropped}.")
    if misfits:
        warnings.append(f"Copied elements that the element type cannot hold became its largest: {misfits}.")
    return Aligned(
        path=path,
        nbytes=nbytes,
        tables=tuple(table.name for table in tables),
        rows=rows.size,
        shared=shared,
        copied=rows.size - shared,
        dropped=dropped,
        warnings=tuple(warnings),
    )
