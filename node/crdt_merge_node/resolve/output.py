"""Writing the output so that it appears whole, durable and under its name, or not at all.

It is one file, or a directory of shards with an index. Bytes of tensors go to temporary files in the same
directory; the SHA-256 of every file and the blob digest of every tensor are taken on the way, so nothing is
read twice. ``commit`` syncs the files and their provenance, gives them their names and syncs the directory.
Until then no file under the output's name has changed (SCENARIOS T43).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from crdt_merge_protocol.blobs import blob_digest
from crdt_merge_protocol.canonical import digest, encode
from crdt_merge_protocol.checkpoint import INDEX_NAME, SINGLE_NAME, Shard, index_of, plan_shards

from crdt_merge_node.checkpoints.directory import StagedDirectory
from crdt_merge_node.errors import CorruptError, FullError
from crdt_merge_node.ports import File, Fs, Rng, process_id

from .blocks import ChunkHasher
from .files import naming
from .job import PROVENANCE_SUFFIX, OutputFile
from .modulators import MODULATORS_SUFFIX, ModulatorsFile, ModulatorsWriter
from .past_cache import PAGE_BYTES, WORTH_BYTES, PastCache, beside
from .steps import Plan, TensorPlan

_TEMPORARY_SUFFIX: Final = ".part"
_PROVENANCE_BYTES: Final = 1 << 20
"""Room asked for beside the output itself."""
_PIECE_BYTES: Final = 1 << 22
_BEHIND_BYTES: Final = 1 << 23
"""Written before the disk is told to begin with it, so that the last sync finds little to do."""


@contextlib.contextmanager
def open_output(path: Path, plan: Plan, *, shard_bytes: int = 0, fs: Fs, rng: Rng) -> Iterator[OutputWriter]:
    """Begin an output; what is not committed when the block ends is removed.

    Args:
        path: Of the file, or of the directory.
        plan: What will be written.
        shard_bytes: Size of tensors in one file of a directory; 0: the output is one file.
        fs: Where it goes.
        rng: For the names of temporary files.

    Raises:
        FullError, StorageError: There is no room for it, or it cannot be written there.
        InvalidRequestError: A directory of that name holds what no output does.
    """
    specs = tuple(tensor.spec for tensor in plan.tensors)
    if not shard_bytes:
        shards: tuple[Shard, ...] = (Shard(name=path.name, header=plan.header, specs=specs),)
        with OutputWriter(path, shards, fs=fs, rng=rng) as writer:
            yield writer
        return
    shards = plan_shards(specs, shard_bytes)
    _require_room(fs, path, shards)
    with (
        StagedDirectory(path, fs=fs, rng=rng) as staged,
        OutputWriter(staged.path / SINGLE_NAME, shards, fs=fs, rng=rng, staged=staged) as writer,
    ):
        yield writer


def provenance_path_of(output: Path, shard_bytes: int) -> Path:
    """Return where the provenance of an output is: beside the file, or in the directory."""
    single = output / SINGLE_NAME if shard_bytes else output
    return single.with_name(single.name + PROVENANCE_SUFFIX)


class _Part:
    """One file under construction."""

    def __init__(self, shard: Shard, path: Path, begin: int) -> None:
        self.shard = shard
        self.path = path
        self.begin = begin
        """Of its first tensor's first byte, in the stream of all tensors' bytes."""
        self.end = begin + shard.tensor_bytes
        self.file: File | None = None
        self.sha256 = hashlib.sha256(shard.header)
        self._has_begun = False
        self._is_syncing_to = 0
        self._past_cache: PastCache | None = None

    def open(self, fs: Fs) -> File:
        """Make the file, unless that is done."""
        if self.file is None:
            self.file = fs.create(self.path, mode=0o666)
        return self.file

    def ready(self, fs: Fs) -> File:
        """Write the header, unless that is done."""
        file = self.open(fs)
        if not self._has_begun:
            file.write_at(0, self.shard.header)
            self._has_begun = True
        return file

    def place(self, position: int) -> int:
        """Return where in the file a byte of the stream is."""
        return len(self.shard.header) + position - self.begin

    def write(self, position: int, data: memoryview, *, is_direct: bool) -> None:
        """Write and hash the next bytes of the stream, past the page cache if they may go there."""
        assert self.file is not None, "it is ready"
        offset = self.place(position)
        if is_direct and self._past_cache is None:
            self._past_cache = PastCache(self.file)
        way = self._past_cache
        if way is not None and way.is_direct:
            with beside(lambda: way.write_at(offset, data)):
                self.sha256.update(data)
        else:
            self.file.write_at(offset, data)
            self.take_in(position, data)
        if way is not None and position + len(data) == self.end:
            way.close()

    def take_in(self, position: int, data: bytes | memoryview) -> None:
        """Hash the next bytes of the stream, which are in the file, and let the disk begin with them."""
        self.sha256.update(data)
        written = self.place(position) + len(data)
        begun, end = self._is_syncing_to, written - written % _BEHIND_BYTES
        if self.file is not None and end > begun:
            self.file.begin_sync(begun, end - begun)
            self._is_syncing_to = end

    def close(self) -> None:
        """Close the file."""
        if self._past_cache is not None:
            self._past_cache.close()
        if self.file is not None:
            self.file.close()


class OutputWriter:
    """One output under construction. Bytes of tensors arrive in the order of their names."""

    def __init__(
        self, path: Path, shards: Sequence[Shard], *, fs: Fs, rng: Rng, staged: StagedDirectory | None = None
    ) -> None:
        self.path = staged.target if staged else path
        self.provenance_path = path.with_name(path.name + PROVENANCE_SUFFIX)
        self._fs = fs
        self._staged = staged
        if staged is None:
            _sweep(fs, path)
        token = f"{process_id()}-{rng.bytes(6).hex()}"
        self.modulators = ModulatorsWriter(path, token, fs)
        self._temporary_provenance = path.with_name(
            f".{self.provenance_path.name}.{token}{_TEMPORARY_SUFFIX}"
        )
        self._parts: list[_Part] = []
        end = 0
        for shard in shards:
            name = shard.name if staged else f".{shard.name}.{token}{_TEMPORARY_SUFFIX}"
            self._parts.append(_Part(shard, path.with_name(name), end))
            end = self._parts[-1].end
        self._number = 0
        """Of the part that is being written."""
        self._position = 0
        """In the stream of all tensors' bytes."""
        self._is_direct = False
        self._chunks: dict[int, list[bytes]] = {}
        self._hashers: dict[int, ChunkHasher] = {}
        if staged is None:
            _require_room(fs, path, shards)
        with naming(self.path, "written"):
            self._parts[0].open(fs)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for part in self._parts:
            part.close()
        self.modulators.close()
        if self._staged is None:  # Else all of the directory goes.
            for temporary in (self._parts[0].path, self._temporary_provenance):
                with contextlib.suppress(FileNotFoundError):
                    self._fs.unlink(temporary)

    def place(self, position: int) -> tuple[str, int]:
        """Return (file under construction, offset in it) of a byte, for those who write there themselves.

        Args:
            position: Counted over the bytes of all tensors in order.
        """
        part = next(part for part in self._parts if position < part.end)
        with naming(self.path, "written"):
            part.open(self._fs)
        return str(part.path), part.place(position)

    def go_past_cache(self) -> None:
        """Write past the page cache if the output is large. Nobody may write but this object then."""
        self._is_direct = self.nbytes >= WORTH_BYTES

    def phase(self, position: int) -> int:
        """Return where in a page of memory the byte of the stream should be that is there in the file."""
        return next(part.place(position) for part in self._parts if position < part.end) % PAGE_BYTES

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes of tensors, hashing the files that they go to."""
        rest = memoryview(data)
        while rest:
            part, _ = self._part()
            piece = rest[: part.end - self._position]
            with naming(self.path, "written"):
                part.write(self._position, piece, is_direct=self._is_direct)
            self._position += len(piece)
            rest = rest[len(piece) :]

    def adopt(self, nbytes: int, tensor: int | None) -> None:
        """Take in bytes of one tensor that somebody wrote to their place, behind all others.

        Args:
            nbytes: How many.
            tensor: Hash them as the next bytes of this tensor; None: its chunk digests are known.
        """
        end = self._position + nbytes
        while self._position < end:
            part, file = self._part()
            wanted = min(_PIECE_BYTES, end - self._position)
            with naming(self.path, "written"):
                data = file.read_at(part.place(self._position), wanted)
            if not data:
                raise CorruptError(f"{part.path} ended before what was written to it.")
            if tensor is not None:
                self.hash_bytes(tensor, data)
            part.take_in(self._position, data)
            self._position += len(data)

    def _part(self) -> tuple[_Part, File]:
        """Return the file that the next byte goes to."""
        while self._position >= self._parts[self._number].end:
            self._number += 1
        part = self._parts[self._number]
        with naming(self.path, "written"):
            return part, part.ready(self._fs)

    def add_chunks(self, tensor: int, chunk_digests: list[bytes]) -> None:
        """Note the digests of the next chunks of a tensor, counted in the order of the file."""
        self._chunks.setdefault(tensor, []).extend(chunk_digests)

    def hash_bytes(self, tensor: int, data: bytes | memoryview) -> None:
        """Hash the next bytes of a tensor whose chunk digests nobody knows."""
        self._hashers.setdefault(tensor, ChunkHasher()).update(data)

    @property
    def nbytes(self) -> int:
        """Bytes of all safetensors files, once everything is written."""
        return sum(part.shard.nbytes for part in self._parts)

    @property
    def files(self) -> tuple[OutputFile, ...]:
        """The files of a directory as written so far: shards, and their index if there are several."""
        found = [
            OutputFile(name=part.shard.name, nbytes=part.shard.nbytes, sha256=part.sha256.digest())
            for part in self._parts
        ]
        if len(self._parts) > 1:
            found.append(OutputFile(INDEX_NAME, len(self._index), hashlib.sha256(self._index).digest()))
        return tuple(found)

    @property
    def _index(self) -> bytes:
        return index_of(part.shard for part in self._parts)

    @property
    def sha256(self) -> bytes:
        """SHA-256 of the file; of a directory, that of the lines which ``sha256sum`` prints of its shards."""
        if self._staged is None:
            return self._parts[0].sha256.digest()
        shards = self.files[: len(self._parts)]
        lines = "".join(f"{file.sha256.hex()}  {file.name}\n" for file in shards)
        return hashlib.sha256(lines.encode()).digest()

    def output_digest(self, tensors: tuple[TensorPlan, ...]) -> bytes:
        """Return the digest over sorted (name, element type, shape, blob digest), STRATEGIES 1.11."""
        lines = [
            [tensor.spec.name, tensor.spec.dtype, list(tensor.spec.shape), blob]
            for tensor, blob in zip(tensors, self.blobs(tensors), strict=True)
        ]
        return digest("crdt-merge/output/1", encode(lines))

    def blobs(self, tensors: tuple[TensorPlan, ...]) -> list[bytes]:
        """Return the blob digest of every tensor, once everything is written."""
        return [
            blob_digest(tensor.spec.nbytes, self._digests(number)) for number, tensor in enumerate(tensors)
        ]

    def final(self, path: Path) -> Path:
        """Return where a file that is beside the output under construction will be."""
        return self.path / path.name if self._staged else path

    def _digests(self, tensor: int) -> list[bytes]:
        hasher = self._hashers.get(tensor)
        return self._chunks.get(tensor, []) if hasher is None else hasher.digests()

    def commit(self, provenance: Mapping[str, Any], modulators: ModulatorsFile | None = None) -> None:
        """Make the output and its provenance durable and give them, and the modulators, their names."""
        text = json.dumps(provenance, indent=2, sort_keys=True, allow_nan=False) + "\n"
        with naming(self.path, "written"):
            for part in self._parts:
                part.ready(self._fs).sync()
            self._write_synced(self._temporary_provenance, text.encode())
            if modulators is not None:
                self._fs.rename(modulators.temporary, modulators.path)
            if self._staged is None:
                self._fs.rename(self._parts[0].path, self.path)
            elif len(self._parts) > 1:
                self._write_synced(self._parts[0].path.with_name(INDEX_NAME), self._index)
            self._fs.rename(self._temporary_provenance, self.provenance_path)
            self._fs.sync_dir(self.provenance_path.parent)
        if self._staged is not None:
            self._staged.commit()

    def _write_synced(self, path: Path, data: bytes) -> None:
        with self._fs.create(path, mode=0o666) as file:
            file.write_at(0, data)
            file.sync()


def _require_room(fs: Fs, path: Path, shards: Sequence[Shard]) -> None:
    nbytes = sum(shard.nbytes for shard in shards) + _PROVENANCE_BYTES
    with naming(path, "written"):
        free = fs.disk_space(path.parent).free_bytes
    if free < nbytes:
        raise FullError(
            f"{path} needs {nbytes} bytes with its provenance and {free} are free.",
            hint="Make room, or name another place.",
        )


def _sweep(fs: Fs, output: Path) -> None:
    """Remove what a killed process left of an earlier attempt at the same output.

    Temporary files carry the id of their process; those of a process that still runs are let alone.
    """
    pattern = re.compile(
        rf"\.{re.escape(output.name)}({re.escape(PROVENANCE_SUFFIX)}|{re.escape(MODULATORS_SUFFIX)}(\.spool)?)?"
        rf"\.(?P<process>\d+)-[0-9a-f]+"
        rf"{re.escape(_TEMPORARY_SUFFIX)}"
    )
    for name in fs.listdir(output.parent):
        found = pattern.fullmatch(name)
        if found and fs.stat(Path("/proc", found["process"])) is None:
            with contextlib.suppress(OSError):
                fs.unlink(output.parent / name)
