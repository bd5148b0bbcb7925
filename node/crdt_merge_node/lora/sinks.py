"""Where a merge of adapters is written: one file, shards, or an adapter's directory; whole or not at all.

The files are written into a hidden directory beside their place, read once more for their digests, and get
their names together with the account of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crdt_merge_protocol.blobs import TensorSpec, blob_digest, blob_digest_of, chunk_digest
from crdt_merge_protocol.canonical import digest, encode
from crdt_merge_protocol.checkpoint import INDEX_NAME, SINGLE_NAME, Shard, index_of, plan_shards
from crdt_merge_protocol.limits import CHUNK_BYTES
from crdt_merge_protocol.strategies.contract import Float64Array
from crdt_merge_protocol.tensorfile import layout

from crdt_merge_node.checkpoints.directory import StagedDirectory, sweep
from crdt_merge_node.errors import FullError
from crdt_merge_node.ports import Fs, Rng, process_id
from crdt_merge_node.resolve.files import naming
from crdt_merge_node.resolve.job import PROVENANCE_SUFFIX, OutputFile
from crdt_merge_node.tensor_writer import TensorWriter

from .files import CONFIG

_ACCOUNT_BYTES = 1 << 20
"""Room asked for beside the tensors."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where the result goes, and as what."""

    path: Path
    """A file, a directory of shards, or the directory of an adapter."""
    dtype: str
    """Element type; empty: as in the adapters, or in the base."""
    fs: Fs
    rng: Rng
    shard_bytes: int = 0
    """Size of tensors in one file of a directory; 0: one file. Of no meaning for an adapter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What is on the disk, and names it."""

    files: tuple[OutputFile, ...]
    """All but the account."""
    output_digest: bytes
    """Over sorted (name, element type, shape, blob digest); a configuration counts as one tensor more."""
    sha256: bytes
    """Of the one file; of a directory, that of the lines which ``sha256sum`` prints of its tensors' files."""
    nbytes: int
    """Of all files with tensors."""
    tensors: int
    account_path: Path
    """Where the account is, or would be."""


class Sink:
    """An output under construction; made by :func:`open_sink`."""

    def __init__(self, target: Target, place: Path, shards: Sequence[Shard], stack: ExitStack) -> None:
        self._target = target
        self._place = place
        self._is_file = not target.shard_bytes and shards[0].name == target.path.name
        self._shards = tuple(shards)
        self._stack = stack
        self._writers: dict[str, TensorWriter] = {}
        self.misfits: dict[str, int] = {}
        """By tensor: elements that did not fit its element type."""
        for shard in self._shards:
            writer = TensorWriter(place / shard.name, shard.specs, fs=target.fs, rng=target.rng)
            stack.enter_context(writer)
            self._writers |= dict.fromkeys((spec.name for spec in shard.specs), writer)

    def put(self, name: str, values: Float64Array, start: int = 0) -> None:
        """Write a tensor, or a part of it from a flat index on, rounded to its element type."""
        if misfits := self._writers[name].put(name, values, start):
            self.misfits[name] = self.misfits.get(name, 0) + misfits

    def put_bytes(self, name: str, position: int, data: bytes | memoryview) -> None:
        """Write a range of a tensor as it is."""
        self._writers[name].put_bytes(name, position, data)

    def finish(self, config: bytes = b"") -> Written:
        """Make the tensors durable, an adapter's configuration too, and return what names them all."""
        self._stack.close()
        files: list[OutputFile] = []
        lines: list[list[Any]] = []
        for shard in self._shards:
            sha256, blobs = self._read_back(shard)
            files.append(OutputFile(shard.name, shard.nbytes, sha256))
            for spec, blob in zip(shard.specs, blobs, strict=True):
                lines.append([spec.name, spec.dtype, list(spec.shape), blob])
        listed = "".join(f"{file.sha256.hex()}  {file.name}\n" for file in files).encode()
        sha256 = files[0].sha256 if self._is_file else hashlib.sha256(listed).digest()
        if len(self._shards) > 1:
            files.append(self._write(INDEX_NAME, index_of(self._shards)))
        if config:
            files.append(self._write(CONFIG, config))
            lines.append([CONFIG, "U8", [len(config)], blob_digest_of(config)])
        path = self._target.path
        lines.sort(key=lambda line: str(line[0]).encode())
        return Written(
            files=tuple(files),
            output_digest=digest("crdt-merge/output/1", encode(lines)),
            sha256=sha256,
            nbytes=sum(shard.nbytes for shard in self._shards),
            tensors=sum(len(shard.specs) for shard in self._shards),
            account_path=(path.parent if self._is_file else path) / account_name(self._shards),
        )

    def account(self, account: Mapping[str, Any]) -> None:
        """Write the account that goes with the tensors."""
        text = json.dumps(account, indent=2, sort_keys=True, allow_nan=False) + "\n"
        self._write(account_name(self._shards), text.encode())

    def _write(self, name: str, data: bytes) -> OutputFile:
        fs, path = self._target.fs, self._place / name
        with naming(path, "written"), fs.create(path, mode=0o666) as file:
            file.write_at(0, data)
            file.sync()
        return OutputFile(name, len(data), hashlib.sha256(data).digest())

    def _read_back(self, shard: Shard) -> tuple[bytes, list[bytes]]:
        """Return the SHA-256 of a file and the blob digests of its tensors."""
        path = self._place / shard.name
        found, blobs = hashlib.sha256(), []
        with naming(path, "read"), self._target.fs.open_read(path) as file:
            position = len(shard.header)
            found.update(file.read_at(0, position))
            for spec in shard.specs:
                chunks: list[bytes] = []
                for start in range(0, spec.nbytes, CHUNK_BYTES):
                    chunk = file.read_at(position + start, min(CHUNK_BYTES, spec.nbytes - start))
                    found.update(chunk)
                    chunks.append(chunk_digest(chunk))
                position += spec.nbytes
                blobs.append(blob_digest(spec.nbytes, chunks))
        return found.digest(), blobs


def account_name(shards: Sequence[Shard]) -> str:
    """Return what the account of an output is called."""
    return (shards[0].name if len(shards) == 1 else SINGLE_NAME) + PROVENANCE_SUFFIX


@contextmanager
def open_sink(target: Target, specs: Iterable[TensorSpec], *, adapter: str = "") -> Iterator[Sink]:
    """Begin an output; it gets its name when the block ends without an error, and else nothing is left.

    Args:
        target: Where it goes.
        specs: Its tensors.
        adapter: Name of the one file with tensors in an adapter's directory; empty: it is no adapter.

    Raises:
        FullError, StorageError: There is no room for it, or it cannot be written there.
        InvalidRequestError: A directory of that name holds what no output does.
    """
    ordered = tuple(sorted(specs, key=lambda spec: spec.name.encode()))
    name = adapter or target.path.name
    shards: Sequence[Shard] = (Shard(name=name, header=layout(ordered)[0], specs=ordered),)
    if target.shard_bytes and not adapter:
        shards = plan_shards(ordered, target.shard_bytes)
    _require_room(target, sum(shard.nbytes for shard in shards))
    if adapter or target.shard_bytes:
        with StagedDirectory(target.path, fs=target.fs, rng=target.rng) as staged:
            with ExitStack() as stack:
                yield Sink(target, staged.path, shards, stack)
            staged.commit()
        return
    with scratch_directory(target) as place:
        with ExitStack() as stack:
            yield Sink(target, place, shards, stack)
        _move_out(target, place)


def _move_out(target: Target, place: Path) -> None:
    """Give the files in a directory beside the target their names."""
    fs, path = target.fs, target.path
    with naming(path, "written"):
        # The account last: whoever finds it finds what it is of.
        for name in sorted(fs.listdir(place), key=lambda name: (name != path.name, name)):
            fs.rename(place / name, path.with_name(name))
        fs.sync_dir(path.parent)


@contextmanager
def scratch_directory(target: Target) -> Iterator[Path]:
    """Give a hidden directory beside the target; it goes at the end, and what a killed process left goes now.

    Raises:
        FullError, StorageError: Nothing can be written there.
    """
    fs, path = target.fs, target.path
    place = path.with_name(f".{path.name}.{process_id()}-{target.rng.bytes(6).hex()}.part")
    sweep(fs, path)
    with naming(path, "written"):
        fs.mkdir(place, mode=0o777)
    try:
        yield place
    finally:
        with naming(path, "written"):
            for name in fs.listdir(place):
                fs.unlink(place / name)
            fs.rmdir(place)


def _require_room(target: Target, nbytes: int) -> None:
    with naming(target.path, "written"):
        free = target.fs.disk_space(target.path.parent).free_bytes
    if free < nbytes + _ACCOUNT_BYTES:
        raise FullError(
            f"{target.path} needs {nbytes} bytes and {free} are free.",
            hint="Make room, or name another place.",
        )
