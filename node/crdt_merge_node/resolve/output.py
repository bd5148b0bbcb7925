"""Writing the output so that it appears whole, durable and under its name, or not at all.

Bytes go to a temporary file in the same directory; the file's SHA-256 and the blob digest of every tensor
are taken on the way, so nothing is read twice. ``commit`` syncs the file and its provenance, renames both and
syncs the directory. Until the rename no file under the output's name has changed (SCENARIOS T43).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from crdt_merge_protocol.blobs import blob_digest
from crdt_merge_protocol.canonical import digest, encode

from crdt_merge_node.errors import CorruptError, FullError
from crdt_merge_node.ports import File, Fs, Rng, process_id

from .blocks import ChunkHasher
from .files import naming
from .job import PROVENANCE_SUFFIX
from .modulators import MODULATORS_SUFFIX, ModulatorsFile, ModulatorsWriter
from .steps import TensorPlan

_TEMPORARY_SUFFIX: Final = ".part"
_PROVENANCE_BYTES: Final = 1 << 20
"""Room asked for beside the output itself."""
_PIECE_BYTES: Final = 1 << 22


class OutputWriter:
    """One output file under construction. Bytes arrive in file order, chunk digests tensor by tensor."""

    def __init__(self, path: Path, *, nbytes: int, fs: Fs, rng: Rng) -> None:
        self.path = path
        self.provenance_path = path.with_name(path.name + PROVENANCE_SUFFIX)
        self._fs = fs
        _sweep(fs, path)
        token = f"{process_id()}-{rng.bytes(6).hex()}"
        self.modulators = ModulatorsWriter(path, token, fs)
        self._temporary = path.with_name(f".{path.name}.{token}{_TEMPORARY_SUFFIX}")
        self._temporary_provenance = path.with_name(
            f".{self.provenance_path.name}.{token}{_TEMPORARY_SUFFIX}"
        )
        self._sha256 = hashlib.sha256()
        self._position = 0
        self._chunks: dict[int, list[bytes]] = {}
        self._hashers: dict[int, ChunkHasher] = {}
        with naming(path, "written"):
            free = fs.disk_space(path.parent).free_bytes
            if free < nbytes + _PROVENANCE_BYTES:
                raise FullError(
                    f"{path} needs {nbytes} bytes and {free} are free.",
                    hint="Make room, or name another place.",
                )
            self._file: File = fs.create(self._temporary, mode=0o666)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self.modulators.close()
        for temporary in (self._temporary, self._temporary_provenance):
            with contextlib.suppress(FileNotFoundError):
                self._fs.unlink(temporary)

    @property
    def file(self) -> Path:
        """The file under construction, for those who write their part of it themselves."""
        return self._temporary

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes to the file and to its SHA-256."""
        with naming(self.path, "written"):
            self._file.write_at(self._position, data)
        self._sha256.update(data)
        self._position += len(data)

    def adopt(self, nbytes: int, tensor: int | None) -> None:
        """Take in bytes that somebody wrote to the file behind all others.

        Args:
            tensor: Hash them as the next bytes of this tensor; None: its chunk digests are known.
        """
        end = self._position + nbytes
        while self._position < end:
            with naming(self.path, "written"):
                data = self._file.read_at(self._position, min(_PIECE_BYTES, end - self._position))
            if not data:
                raise CorruptError(f"{self._temporary} ended before what was written to it.")
            if tensor is not None:
                self.hash_bytes(tensor, data)
            self._sha256.update(data)
            self._position += len(data)

    def add_chunks(self, tensor: int, chunk_digests: list[bytes]) -> None:
        """Note the digests of the next chunks of a tensor, counted in the order of the file."""
        self._chunks.setdefault(tensor, []).extend(chunk_digests)

    def hash_bytes(self, tensor: int, data: bytes | memoryview) -> None:
        """Hash the next bytes of a tensor whose chunk digests nobody knows."""
        self._hashers.setdefault(tensor, ChunkHasher()).update(data)

    @property
    def nbytes(self) -> int:
        """Bytes written so far."""
        return self._position

    @property
    def sha256(self) -> bytes:
        """SHA-256 of the file so far."""
        return self._sha256.digest()

    def output_digest(self, tensors: tuple[TensorPlan, ...]) -> bytes:
        """Return the digest over sorted (name, element type, shape, blob digest), STRATEGIES 1.11."""
        lines = [
            [
                tensor.spec.name,
                tensor.spec.dtype,
                list(tensor.spec.shape),
                blob_digest(tensor.spec.nbytes, self._digests(number)),
            ]
            for number, tensor in enumerate(tensors)
        ]
        return digest("crdt-merge/output/1", encode(lines))

    def _digests(self, tensor: int) -> list[bytes]:
        hasher = self._hashers.get(tensor)
        return self._chunks.get(tensor, []) if hasher is None else hasher.digests()

    def commit(self, provenance: Mapping[str, Any], modulators: ModulatorsFile | None = None) -> None:
        """Make the output and its provenance durable and give them, and the modulators, their names."""
        text = json.dumps(provenance, indent=2, sort_keys=True, allow_nan=False) + "\n"
        with naming(self.path, "written"):
            self._file.sync()
            with self._fs.create(self._temporary_provenance, mode=0o666) as file:
                file.write_at(0, text.encode())
                file.sync()
            if modulators is not None:
                self._fs.rename(modulators.temporary, modulators.path)
            self._fs.rename(self._temporary, self.path)
            self._fs.rename(self._temporary_provenance, self.provenance_path)
            self._fs.sync_dir(self.path.parent)


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
