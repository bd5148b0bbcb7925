"""Naming the contents of checkpoints: manifest, content id, contribution digest, finiteness.

Checking a header against a schema reads no tensor; hashing reads every byte once and looks for NaN and
infinity on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from crdt_merge_protocol.blobs import (
    Manifest,
    ManifestEntry,
    Schema,
    blob_digest,
    contribution_digest,
)
from crdt_merge_protocol.limits import MIB, WEIGHT_ONE
from crdt_merge_protocol.quarantine import schema_problems

from crdt_merge_node.checkpoints.reading import Checkpoint, CheckpointTensor, read_checkpoint
from crdt_merge_node.ports import Fs, SystemFs

from .ahead import Range, reading_ahead
from .job import TensorSource, UsedModel
from .pool import InlinePool, Pool
from .tasks import Hash, HashPart

MODEL: Final = "model"
"""The type of the contributions that are merged."""
_TASK_BYTES: Final = 16 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribedFile:
    """A safetensors file, or a directory of shards, whose bytes have been named."""

    path: Path
    manifest: Manifest
    sources: dict[str, TensorSource]
    """By tensor name."""
    not_finite: tuple[str, ...]
    """Tensors that hold NaN, infinity, an impossible boolean, or what an artefact's type forbids."""

    weight: int = WEIGHT_ONE
    """Over 2^32; part of the digest."""
    kind: str = MODEL
    """Type of the contribution that it would be; part of the digest."""

    @property
    def is_finite(self) -> bool:
        """Whether a merge may see it."""
        return not self.not_finite

    @property
    def digest(self) -> bytes:
        """The contribution digest that the file has in a group."""
        return contribution_digest(kind=self.kind, content=self.manifest.content, weight=self.weight)

    @property
    def used(self) -> UsedModel:
        """The file as a contribution."""
        return UsedModel(self.digest, self.weight, self.manifest, self.sources)


def describe_file(path: Path, weight: int = WEIGHT_ONE, *, fs: Fs | None = None) -> DescribedFile:
    """Read, check and hash a safetensors file or a sharded directory.

    Raises:
        MalformedTensorFileError: Not one that contributions are made of.
        StorageError: It cannot be read.
    """
    fs = fs or SystemFs()
    with InlinePool(fs, slot_bytes=0, tick=lambda: None) as pool:
        return describe_files([read_checkpoint(fs, path)], pool, weights=[weight])[0]


def describe_files(
    files: Sequence[Checkpoint],
    pool: Pool,
    *,
    weights: Sequence[int],
    kinds: Mapping[Path, str] | None = None,
    advance: Callable[[int], None] = lambda _nbytes: None,
) -> list[DescribedFile]:
    """Hash files whose headers have been read, in the workers of ``pool``.

    Args:
        files: Their headers.
        pool: Who does it.
        weights: One per file, over 2^32.
        kinds: Types of those that are artefacts.
        advance: Told how many more bytes have been hashed.
    """
    chunks: dict[TensorSource, list[bytes]] = {}
    unfit: set[TensorSource] = set()
    kinds = kinds or {}
    tasks = list(_hash_tasks(files, kinds))
    given: Iterator[Hash] = reading_ahead(tasks, _reads, pool.expect)
    for task, (answers, _) in zip(tasks, pool.run(given), strict=True):
        for part, (digests, is_fit) in zip(task.parts, answers, strict=True):
            chunks.setdefault(part.source, []).extend(digests)
            if not is_fit:
                unfit.add(part.source)
            advance(part.stop - part.start)
    return [
        replace(_describe(file, chunks, unfit), weight=weight, kind=kinds.get(file.path, MODEL))
        for file, weight in zip(files, weights, strict=True)
    ]


def check_against(schema: Schema, entries: Iterable[CheckpointTensor]) -> list[str]:
    """Return what keeps a file from having a schema, one sentence each, before a byte is copied."""
    return schema_problems(schema, (entry.spec for entry in entries))


def _source(entry: CheckpointTensor) -> TensorSource:
    return TensorSource(str(entry.path), entry.begin, entry.end - entry.begin)


def _hash_tasks(files: Sequence[Checkpoint], kinds: Mapping[Path, str]) -> Iterator[Hash]:
    parts: list[HashPart] = []
    nbytes = 0
    for path, file in {
        file.path: file for file in files
    }.items():  # A file that is named twice is hashed once.
        for entry in file.entries:
            source = _source(entry)
            for start in range(0, source.nbytes, _TASK_BYTES):
                stop = min(start + _TASK_BYTES, source.nbytes)
                parts.append(HashPart(source, entry.spec, kinds.get(path, ""), start, stop))
                nbytes += stop - start
                if nbytes >= _TASK_BYTES:
                    yield Hash(tuple(parts))
                    parts, nbytes = [], 0
    if parts:
        yield Hash(tuple(parts))


def _reads(task: Hash) -> Iterator[Range]:
    return ((part.source, part.start, part.stop - part.start) for part in task.parts)


def _describe(
    file: Checkpoint, chunks: dict[TensorSource, list[bytes]], unfit: set[TensorSource]
) -> DescribedFile:
    entries = []
    sources = {}
    not_finite = []
    for entry in file.entries:
        source = _source(entry)
        blob = blob_digest(source.nbytes, chunks.get(source, []))
        entries.append(ManifestEntry(spec=entry.spec, blob=blob))
        sources[entry.spec.name] = TensorSource(source.path, source.offset, source.nbytes, None, blob)
        if source in unfit:
            not_finite.append(entry.spec.name)
    return DescribedFile(
        path=file.path, manifest=Manifest.of(entries), sources=sources, not_finite=tuple(not_finite)
    )
