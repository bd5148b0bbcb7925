"""An adapter whose form has been checked, wherever its bytes are: a user's directory, or the blob store.

What adapters are, and which are none, is in ``crdt_merge_protocol.adapters``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from crdt_merge_protocol.adapters import AdapterHeader, AdapterLayout, Pair
from crdt_merge_protocol.blobs import TensorSpec, blob_digest_of
from crdt_merge_protocol.strategies.contract import Float64Array
from crdt_merge_protocol.strategies.dtypes import decode_block

from crdt_merge_node.ports import Fs
from crdt_merge_node.resolve.blocks import changed
from crdt_merge_node.resolve.files import SourceReader
from crdt_merge_node.resolve.job import TensorSource


@dataclass(frozen=True, slots=True)
class Factors:
    """The difference of one module as a product: ``up @ down``, the scale included."""

    down: Float64Array
    """``(r, n)`` float64: A, with the axes behind the first flattened."""
    up: Float64Array
    """``(m, r)`` float64: B times the scale."""
    shape: tuple[int, ...]
    """Of the module's weight."""
    is_transposed: bool
    """The weight is the transpose of the product: embeddings, and layers that are saved input first."""

    def turned(self, is_transposed: bool) -> Factors:
        """Return factors of the same difference whose product is, or is not, the transpose of the weight."""
        if is_transposed == self.is_transposed:
            return self
        # (B A)' = A' B': the same rank and no rounding.
        down, up = np.ascontiguousarray(self.up.T), np.ascontiguousarray(self.down.T)
        return Factors(down, up, self.shape, is_transposed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """An adapter; its numbers are read when they are asked for."""

    origin: str
    """A path or a contribution, for messages."""
    header: AdapterHeader
    layout: AdapterLayout
    sources: Mapping[str, TensorSource]
    """By the names of the tensors in canonical spelling, the header's aside."""
    fs: Fs

    @property
    def base_name(self) -> str:
        """What its author calls the base."""
        return self.header.base_model

    @property
    def pairs(self) -> Mapping[str, Pair]:
        """The factors by module, in byte order."""
        return self.layout.pairs

    @property
    def others(self) -> Mapping[str, TensorSpec]:
        """Tensors that are saved whole, by their name in the base."""
        return self.layout.others

    def scale(self, module: str) -> float:
        """Return what the product of a module's factors is multiplied by."""
        return self.header.scale(module, self.pairs[module].rank)

    def shape(self, module: str) -> tuple[int, ...]:
        """Return the shape of the weight of a module."""
        return self.pairs[module].weight_shape(self.header.fan_in_fan_out)

    def is_transposed(self, module: str) -> bool:
        """Tell whether the weight of a module is the transpose of the product of its factors."""
        return self.pairs[module].is_transposed(self.header.fan_in_fan_out)

    def factors(self, module: str) -> Factors:
        """Return the factors of a module.

        Raises:
            StorageError, CorruptError: They cannot be read.
        """
        pair = self.pairs[module]
        down, up = self._read(pair.down), self._read(pair.up)
        return Factors(
            down=down.reshape(pair.rank, -1),
            up=up.reshape(pair.up.shape[0], -1) * self.scale(module),
            shape=self.shape(module),
            is_transposed=self.is_transposed(module),
        )

    def other(self, name: str) -> Float64Array:
        """Return a tensor that is saved whole, float64 in its own shape."""
        return self._read(self.others[name])

    def _read(self, spec: TensorSpec) -> Float64Array:
        return read_array(self.fs, self.sources[spec.name], spec, self.origin)


def read_array(fs: Fs, source: TensorSource, spec: TensorSpec, origin: str) -> Float64Array:
    """Return a tensor as float64 in its own shape, compared with the blob that it shall be, if that is known.

    Raises:
        StorageError, CorruptError: It cannot be read, or its bytes have changed.
    """
    reader = SourceReader(fs)
    try:
        raw = reader.read(source, 0, source.nbytes)
    finally:
        reader.close()
    if source.blob and blob_digest_of(raw) != source.blob:
        raise changed(source, f"tensor {spec.name} of {origin}")
    return np.array(decode_block(spec.dtype, raw)).reshape(spec.shape)
