"""Finding the tensors of a checkpoint, in one file or in shards, without reading any (SCENARIOS T22)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from crdt_merge_protocol.blobs import TensorSpec
from crdt_merge_protocol.checkpoint import (
    INDEX_BYTES_MAX,
    INDEX_NAME,
    SINGLE_NAME,
    check_shards,
    is_numbered,
    is_shard_name,
    parse_index,
)
from crdt_merge_protocol.errors import MalformedCheckpointError, MalformedTensorFileError
from crdt_merge_protocol.limits import TENSORS_MAX
from crdt_merge_protocol.packing import PackedFile, Packing, is_plain
from crdt_merge_protocol.tensorfile import LENGTH_BYTES, TensorFile, header_bytes, parse_header

from crdt_merge_node.ports import Fs
from crdt_merge_node.resolve.files import naming

_HINT: Final = "Only safetensors files of F64, F32, F16, BF16, F8, integer and BOOL tensors are read."


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointTensor:
    """A tensor and where its bytes stand: ``[begin, end)`` of a file."""

    spec: TensorSpec
    path: Path
    begin: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What the headers of a checkpoint say, checked."""

    path: Path
    """The file, or the directory."""
    entries: tuple[CheckpointTensor, ...]
    """In byte order of their names, whatever file they are in."""
    packing: Packing
    """The files without their tensors."""

    @property
    def nbytes(self) -> int:
        """Size of all tensors."""
        return sum(entry.spec.nbytes for entry in self.entries)

    @property
    def files(self) -> tuple[Path, ...]:
        """The safetensors files that it consists of."""
        if not self.packing.is_directory:
            return (self.path,)
        return tuple(self.path / file.name for file in self.packing.files)

    def is_still(self, fs: Fs, path: Path, copy: Path) -> bool:
        """Tell whether a copy of one of the files begins as the file did when it was read."""
        file = self.packing.files[self.files.index(path)]
        with naming(copy, "read"), fs.open_read(copy) as opened:
            return opened.size() == file.nbytes and opened.read_at(0, len(file.start)) == file.start

    @property
    def is_plain(self) -> bool:
        """Whether it is one file as we would write it, so that its packing need not be kept."""
        return is_plain(self.packing.files[0], (entry.spec for entry in self.entries))


def read_checkpoint(fs: Fs, path: Path) -> Checkpoint:
    """Return the tensors of a safetensors file, or of a directory as Hugging Face lays it out.

    In a directory with an index the index and the shards have to say the same. Files other than those are
    not looked at: configuration and vocabulary are no part of a contribution.

    Raises:
        MalformedTensorFileError: A file is none that contributions are made of.
        MalformedCheckpointError: The directory holds no checkpoint, or one that contradicts itself.
        StorageError: Something cannot be read.
    """
    names = _list(fs, path)
    if names is None:
        return _join(path, [("", *_read_file(fs, path))], b"")
    if INDEX_NAME not in names:
        name = _only_file(path, names)
        return _join(path, [(name, *_read_file(fs, path / name))], b"")
    index = _read_index(fs, path / INDEX_NAME)
    try:
        weight_map = parse_index(index)
        _check_directory(names, set(weight_map.values()))
        files = [(name, *_read_file(fs, path / name)) for name in sorted(set(weight_map.values()))]
        check_shards(weight_map, {name: [e.spec.name for e in file.entries] for name, _, file in files})
    except MalformedCheckpointError as error:
        raise MalformedCheckpointError(f"{path}: {error.message}", hint=error.hint) from None
    return _join(path, files, index)


def _list(fs: Fs, path: Path) -> list[str] | None:
    """Return the names in a directory; None for what is none."""
    found = fs.stat(path)
    if found is None or found.is_file:
        return None  # If there is nothing, opening it says so.
    with naming(path, "read"):
        try:
            return fs.listdir(path)
        except NotADirectoryError:  # A link to a file.
            return None


def _only_file(path: Path, names: Sequence[str]) -> str:
    """Return the one checkpoint file of a directory without an index."""
    found = [name for name in names if is_shard_name(name)]
    if SINGLE_NAME in found or len(found) == 1:
        name = SINGLE_NAME if SINGLE_NAME in found else found[0]
        if not is_numbered(name):
            return name
    if any(map(is_numbered, found)):
        raise MalformedCheckpointError(
            f"{path} holds shards and no {INDEX_NAME}.",
            hint="Without the index nobody knows whether all are there.",
        )
    what = "several safetensors files" if found else "no safetensors file"
    raise MalformedCheckpointError(
        f"{path} holds {what} and no {INDEX_NAME}.",
        hint="Name the file itself, or a directory as Hugging Face's save_pretrained writes it.",
    )


def _check_directory(names: Sequence[str], shards: set[str]) -> None:
    """Refuse a directory of which nobody can tell whether all of it is meant."""
    for name in sorted(shards - set(names)):
        raise MalformedCheckpointError(
            f"{name}, which the index names, is not there.", hint="Fetch it first."
        )
    for name in names:
        if name not in shards and (name == SINGLE_NAME or (is_shard_name(name) and is_numbered(name))):
            raise MalformedCheckpointError(
                f"{name} is there, and the index does not name it.",
                hint="Remove what is left of another checkpoint, or name one file.",
            )


def _read_index(fs: Fs, path: Path) -> bytes:
    with naming(path, "read"), fs.open_read(path, follow=True) as file:
        return file.read_at(0, INDEX_BYTES_MAX + 1)


def _read_file(fs: Fs, path: Path) -> tuple[PackedFile, TensorFile]:
    with naming(path, "read"), fs.open_read(path, follow=True) as file:
        size = file.size()
        try:
            header = file.read_at(LENGTH_BYTES, header_bytes(file.read_at(0, LENGTH_BYTES), size))
            return PackedFile(name="", nbytes=size, header=header), parse_header(header, size)
        except MalformedTensorFileError as error:
            raise MalformedTensorFileError(f"{path}: {error.message}", hint=_HINT) from None


def _join(path: Path, files: Sequence[tuple[str, PackedFile, TensorFile]], index: bytes) -> Checkpoint:
    entries = [
        CheckpointTensor(
            spec=entry.spec, path=path / name if name else path, begin=entry.begin, end=entry.end
        )
        for name, _, file in files
        for entry in file.entries
    ]
    if len(entries) > TENSORS_MAX:
        raise MalformedCheckpointError(f"{path} has {len(entries)} tensors, at most {TENSORS_MAX} are read.")
    packed = [PackedFile(name=name, nbytes=file.nbytes, header=file.header) for name, file, _ in files]
    return Checkpoint(
        path=path,
        entries=tuple(sorted(entries, key=lambda entry: entry.spec.name.encode())),
        packing=Packing(files=tuple(packed), index=index),
    )
