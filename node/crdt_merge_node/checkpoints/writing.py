"""Writing a contribution out again, byte for byte as its author had it: one file, or shards."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from crdt_merge_protocol.blobs import Manifest, ManifestEntry, chunk_count
from crdt_merge_protocol.checkpoint import INDEX_NAME
from crdt_merge_protocol.packing import Packing, UnpackedFile, plain_file

from crdt_merge_node.errors import ControlError, FullError, StorageError
from crdt_merge_node.ports import File, Fs, Rng, process_id
from crdt_merge_node.resolve.files import naming

from .directory import StagedDirectory

ReadChunk = Callable[[bytes, int], bytes | None]
"""Returns a verified chunk of a blob: ``BlobStore.read_chunk``."""
_RESERVE_BYTES: Final = 1 << 20


class GetCancelledError(ControlError):
    """Whoever asked for the files went away. Nothing was written."""

    code = "E1708"
    exit_code = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenFile:
    """One durable file."""

    name: str
    nbytes: int
    sha256: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What an export wrote."""

    files: tuple[WrittenFile, ...]
    is_exact: bool
    """Whether they are byte for byte what the author had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """Writes the tensors of a manifest into the files that a packing describes."""

    fs: Fs
    rng: Rng
    read: ReadChunk
    advance: Callable[[int], None]
    """Told how many more bytes of tensors are written; raises to cancel."""

    def write(self, manifest: Manifest, packing: Packing | None, target: Path) -> tuple[WrittenFile, ...]:
        """Write all files and return them, durable and under their names.

        Args:
            manifest: The tensors; all their blobs are here.
            packing: Of the files; None: one file in our own layout.
            target: The file, or the directory. A file is replaced.

        Raises:
            RemoteProtocolError, MalformedTensorFileError: The packing is not one of these tensors.
            CorruptError: A blob is damaged; it was set aside.
            FullError, StorageError: A file cannot be written, or a blob went away.
        """
        files = packing.unpack(manifest) if packing is not None else (plain_file(manifest),)
        self._require_room(target, sum(file.nbytes for file in files))
        if packing is None or not packing.is_directory:
            return (self._write_alone(files[0], target),)
        with StagedDirectory(target, fs=self.fs, rng=self.rng) as directory:
            written = [self._write_file(file, directory.path / file.name, target) for file in files]
            if packing.index:
                written.append(self._write_index(packing.index, directory.path / INDEX_NAME))
            directory.commit()
        return tuple(written)

    def _require_room(self, target: Path, nbytes: int) -> None:
        with naming(target, "written"):
            free = self.fs.disk_space(target.parent).free_bytes
        if free < nbytes + _RESERVE_BYTES:
            raise FullError(
                f"{target} needs {nbytes} bytes and {free} are free.",
                hint="Make room, or name another place.",
            )

    def _write_alone(self, file: UnpackedFile, target: Path) -> WrittenFile:
        temporary = target.with_name(f".{target.name}.{process_id()}-{self.rng.bytes(6).hex()}.part")
        try:
            written = self._write_file(file, temporary, target)
            with naming(target, "written"):
                self.fs.rename(temporary, target)
                self.fs.sync_dir(target.parent)
        finally:
            with contextlib.suppress(FileNotFoundError):
                self.fs.unlink(temporary)
        return WrittenFile(name=target.name, nbytes=written.nbytes, sha256=written.sha256)

    def _write_file(self, file: UnpackedFile, path: Path, target: Path) -> WrittenFile:
        sha256 = hashlib.sha256(file.start)
        position = len(file.start)
        with naming(target, "written"), self.fs.create(path, mode=0o666) as output:
            output.write_at(0, file.start)
            for entry in file.entries:
                position = self._copy(entry, output, position, sha256)
            output.sync()
        return WrittenFile(name=path.name, nbytes=position, sha256=sha256.digest())

    def _copy(self, entry: ManifestEntry, output: File, position: int, sha256: hashlib._Hash) -> int:
        for index in range(chunk_count(entry.spec.nbytes)):
            chunk = self.read(entry.blob, index)
            if chunk is None:
                raise StorageError(
                    f"blob {entry.blob.hex()[:12]} ({entry.spec.name}) went away while it was read.",
                    hint="It is fetched again; try again then.",
                )
            output.write_at(position, chunk)
            sha256.update(chunk)
            position += len(chunk)
            self.advance(len(chunk))
        return position

    def _write_index(self, index: bytes, path: Path) -> WrittenFile:
        with naming(path, "written"), self.fs.create(path, mode=0o666) as output:
            output.write_at(0, index)
            output.sync()
        return WrittenFile(name=path.name, nbytes=len(index), sha256=hashlib.sha256(index).digest())
