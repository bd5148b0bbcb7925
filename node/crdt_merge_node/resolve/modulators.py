"""What turns a common model into that of each task: one file beside the output (STRATEGIES 1.11).

For every contribution and tensor the file holds ``DIGEST/TENSOR``, packed bytes as the strategy defines
them, and under ``modulators`` a JSON object that says how they were made. Pieces come in the order of the
output and wait in a temporary file, because the sizes that the file begins with are known only at the end.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from crdt_merge_protocol.blobs import TensorSpec, blob_digest_of
from crdt_merge_protocol.tensorfile import layout

from crdt_merge_node.ports import File, Fs

from .blocks import changed
from .files import SourceReader, naming
from .job import TensorSource

MODULATORS_SUFFIX: Final = ".modulators.safetensors"
HEADER: Final = "modulators"
FORMAT: Final = "modulators/1"


class ModulatorsFile(NamedTuple):
    """A finished file under its temporary name."""

    temporary: Path
    path: Path
    sha256: bytes
    nbytes: int


class ModulatorsWriter:
    """Collects pieces and makes the file of them. A context manager: what is left unfinished goes."""

    def __init__(self, output: Path, token: str, fs: Fs) -> None:
        """Take the output's name and the token that its temporary files have."""
        self.path = output.with_name(output.name + MODULATORS_SUFFIX)
        self._fs = fs
        self._spooled = output.with_name(f".{output.name}{MODULATORS_SUFFIX}.spool.{token}.part")
        self._temporary = output.with_name(f".{output.name}{MODULATORS_SUFFIX}.{token}.part")
        self._spool: File | None = None
        self._end = 0
        self._pieces: dict[str, list[tuple[int, int]]] = {}
        """Tensor name -> (offset in the spool, size) in order."""
        self._copied: dict[str, TensorSpec] = {}

    def close(self) -> None:
        """Remove all temporary files."""
        if self._spool is not None:
            self._spool.close()
        for temporary in (self._spooled, self._temporary):
            with contextlib.suppress(FileNotFoundError):
                self._fs.unlink(temporary)

    def add(self, contribution: bytes, tensor: str, data: bytes) -> None:
        """Take the next bytes of a tensor of a contribution's modulators."""
        if not data:
            return
        with naming(self.path, "written"):
            if self._spool is None:
                self._spool = self._fs.create(self._spooled, mode=0o666)
            self._spool.write_at(self._end, data)
        self._pieces.setdefault(f"{contribution.hex()}/{tensor}", []).append((self._end, len(data)))
        self._end += len(data)

    def copy(self, contribution: bytes, spec: TensorSpec, source: TensorSource) -> None:
        """Take a whole tensor from elsewhere, as it is.

        Raises:
            CorruptError: It is not what its digest names any more.
        """
        reader = SourceReader(self._fs)
        try:
            data = bytes(reader.read(source, 0, source.nbytes))
        finally:
            reader.close()
        if source.blob and blob_digest_of(data) != source.blob:
            raise changed(source, f"tensor {spec.name}")
        self._copied[f"{contribution.hex()}/{spec.name}"] = spec
        self.add(contribution, spec.name, data)

    def finish(self, header: Mapping[str, Any]) -> ModulatorsFile:
        """Write the file, durable, under its temporary name.

        Args:
            header: JSON; says how the modulators are applied.
        """
        text = json.dumps({"format": FORMAT, **header}, sort_keys=True, allow_nan=False).encode()
        specs = [TensorSpec(name=HEADER, dtype="U8", shape=(len(text),))]
        for name, pieces in self._pieces.items():
            packed = TensorSpec(name=name, dtype="U8", shape=(sum(size for _, size in pieces),))
            specs.append(replace(self._copied.get(name, packed), name=name))
        start, offsets = layout(specs)
        sha256 = hashlib.sha256(start)
        position = len(start)
        with naming(self.path, "written"), self._fs.create(self._temporary, mode=0o666) as file:
            file.write_at(0, start)
            for name in sorted(offsets, key=lambda name: offsets[name]):
                for data in [text] if name == HEADER else self._read(self._pieces[name]):
                    file.write_at(position, data)
                    sha256.update(data)
                    position += len(data)
            file.sync()
        return ModulatorsFile(self._temporary, self.path, sha256.digest(), position)

    def _read(self, pieces: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        assert self._spool is not None, "there are pieces"
        for offset, size in pieces:
            yield self._spool.read_at(offset, size)
