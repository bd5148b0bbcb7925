"""Writing safetensors files tensor by tensor, whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from crdt_merge_protocol.blobs import DTYPE_BYTES, TensorSpec
from crdt_merge_protocol.strategies.contract import Float64Array
from crdt_merge_protocol.strategies.dtypes import encode_array
from crdt_merge_protocol.tensorfile import layout

from crdt_merge_node.ports import Fs, Rng
from crdt_merge_node.resolve.files import naming


class TensorWriter:
    """A file under construction; it appears under its name when the ``with`` ends without an error.

    Tensors that are not put are zero. Every step may raise FullError or StorageError, which name the file.
    """

    def __init__(self, path: Path, specs: Iterable[TensorSpec], *, fs: Fs, rng: Rng) -> None:
        self._path = path
        self._fs = fs
        self._specs = {spec.name: spec for spec in specs}
        header, self._offsets = layout(self._specs.values())
        self.nbytes = len(header) + sum(spec.nbytes for spec in self._specs.values())
        self._temporary = path.with_name(f".{path.name}.{rng.bytes(6).hex()}.part")
        with naming(path, "written"):
            self._file = fs.create(self._temporary, mode=0o666)
            try:
                self._file.write_at(0, header)
                self._file.truncate(self.nbytes)
            except BaseException:
                self._discard()
                raise

    def put(self, name: str, values: Float64Array, start: int = 0) -> int:
        """Write a floating point tensor, rounded to its element type; too large values become the largest.

        Returns:
            How many were too large.

        Args:
            name: One of the specs'.
            values: float64 of any shape, as many elements as the tensor has from ``start`` on, or fewer.
            start: Flat index of the first element.
        """
        spec = self._specs[name]
        assert start + values.size <= spec.numel, f"{name} has {spec.numel} elements, not so many"
        stored, misfits = encode_array(spec.dtype, values.reshape(-1), "saturate")
        self.put_bytes(name, start * DTYPE_BYTES[spec.dtype], stored.tobytes())
        return misfits

    def put_bytes(self, name: str, position: int, data: bytes | memoryview) -> None:
        """Write raw little-endian bytes of a tensor, ``position`` bytes from its beginning."""
        with naming(self._path, "written"):
            self._file.write_at(self._offsets[name] + position, data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                with naming(self._path, "written"):
                    self._file.sync()
                    self._fs.rename(self._temporary, self._path)
                    self._fs.sync_dir(self._path.parent)
        finally:
            self._discard()

    def _discard(self) -> None:
        """Close the file, and remove it unless it has got its name."""
        self._file.close()
        with contextlib.suppress(OSError):
            self._fs.unlink(self._temporary)
