"""Reading a user's gradients and activations piece by piece, from safetensors or .npy files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from crdt_merge_protocol.blobs import DTYPE_BYTES, FLOAT_DTYPES
from crdt_merge_protocol.errors import MalformedTensorFileError, ShapeMismatchError
from crdt_merge_protocol.strategies.dtypes import decode_block
from crdt_merge_protocol.tensorfile import TensorEntry

from crdt_merge_node.errors import CorruptError
from crdt_merge_node.ports import Fs
from crdt_merge_node.resolve.files import naming, read_header

Float64Array = npt.NDArray[np.float64]

NPY_SUFFIX: Final = ".npy"


@dataclass(frozen=True, slots=True)
class SampleTensor:
    """A tensor of samples in a file; only what is asked for is read."""

    path: Path
    shape: tuple[int, ...]
    read: Callable[[int, int], Float64Array]
    """Returns the flat elements from a first to before a last one, ``(last - first,)``."""

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def count(self, shape: Sequence[int]) -> int:
        """Return how many samples of a shape it holds: 1 if it has that shape, n if (n, *shape).

        Raises:
            ShapeMismatchError: Neither.
        """
        if self.shape == tuple(shape):
            return 1
        if self.shape[1:] == tuple(shape) and self.shape:
            return self.shape[0]
        raise ShapeMismatchError(
            f"{self.path}: a tensor has shape {list(self.shape)}, expected {list(shape)} or one axis more.",
            hint="Name every tensor as the model does; the additional axis counts samples.",
        )


Samples = Mapping[str, SampleTensor]
"""The tensors of one file, by name."""


def open_samples(argument: str, fs: Fs) -> Samples:
    """Return the tensors of a file that is named on the command line.

    Args:
        argument: A safetensors file, or ``NAME=FILE.npy``, one array that stands for tensor NAME.

    Raises:
        MalformedTensorFileError: Neither, or not floating point.
        StorageError: It cannot be read.
    """
    name, equals, rest = argument.partition("=")
    if equals and rest.endswith(NPY_SUFFIX):
        return {name: _open_array(Path(rest))}
    path = Path(argument)
    if argument.endswith(NPY_SUFFIX):
        raise MalformedTensorFileError(
            f"{path} does not say which tensor it is of.", hint=f"Write NAME={path}, NAME as in the model."
        )
    return {
        entry.spec.name: SampleTensor(path, entry.spec.shape, partial(_read_entry, fs, path, entry))
        for entry in read_header(fs, path).entries
        if entry.spec.dtype in FLOAT_DTYPES
    }


def _read_entry(fs: Fs, path: Path, entry: TensorEntry, first: int, last: int) -> Float64Array:
    width = DTYPE_BYTES[entry.spec.dtype]
    with naming(path, "read"), fs.open_read(path, follow=True) as file:
        raw = file.read_at(entry.begin + first * width, (last - first) * width)
    if len(raw) != (last - first) * width:
        raise CorruptError(f"{path} ended early.")
    return decode_block(entry.spec.dtype, raw)


def _open_array(path: Path) -> SampleTensor:
    with naming(path, "read"):
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise MalformedTensorFileError(f"{path} is no array of numbers: {error}.") from None
    if array.dtype.kind != "f" or array.dtype.itemsize > 8 or not array.flags.c_contiguous:
        raise MalformedTensorFileError(
            f"{path} holds {array.dtype} in an order other than C, or no floating point numbers.",
            hint="Save np.ascontiguousarray(array, np.float32).",
        )
    flat = array.reshape(-1)
    return SampleTensor(path, array.shape, lambda first, last: flat[first:last].astype(np.float64))
