"""Artefact files: written whole or not at all, read and judged without loading large tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from crdt_merge_protocol.blobs import DTYPE_BYTES, Schema, TensorSpec
from crdt_merge_protocol.errors import ArtefactInvalidError, NonFiniteError
from crdt_merge_protocol.strategies.artefact_checks import check_artefact, check_values
from crdt_merge_protocol.strategies.artefacts import (
    HEADER_BYTES_MAX,
    HEADER_TENSOR,
    encode_header,
    read_header,
)
from crdt_merge_protocol.strategies.dtypes import decode_block, encode_block
from crdt_merge_protocol.tensorfile import TensorEntry, TensorFile

from crdt_merge_node.ports import File, Fs, Rng
from crdt_merge_node.resolve.files import naming
from crdt_merge_node.resolve.files import read_header as read_tensors
from crdt_merge_node.tensor_writer import TensorWriter

Float64Array = npt.NDArray[np.float64]
Blocks = Callable[[], Iterator[Float64Array]]
"""Yields the flat elements of a tensor in pieces of any size."""
BLOCK_ELEMENTS: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class ArtefactFile:
    """An artefact file whose header has been read."""

    path: Path
    type: str
    header: Mapping[str, Any]
    tensors: tuple[TensorEntry, ...]
    """But the header."""


def write_artefact(
    path: Path,
    header: Mapping[str, Any],
    tensors: Sequence[tuple[TensorSpec, Blocks]],
    *,
    schema: Schema | None,
    fs: Fs,
    rng: Rng,
) -> int:
    """Write an artefact file, checked, replacing what was there; return its size in bytes.

    Args:
        path: Of the file.
        header: Complete.
        tensors: Their specs and elements.
        schema: Of the model; None: what depends on it is not checked.
        fs: Where it goes.
        rng: For the name of the temporary file.

    Raises:
        ArtefactInvalidError: The header or the shapes are not those of the type.
        NonFiniteError: A value is not one that the type allows.
        FullError, StorageError: It cannot be written.
    """
    raw = encode_header(header)
    type_ = str(header.get("artefact", "")).removesuffix("/1")
    read_header(type_, raw)
    specs = [spec for spec, _ in tensors]
    if schema is not None:
        refuse(type_, check_artefact(type_, header, specs, schema))
    head = TensorSpec(name=HEADER_TENSOR, dtype="U8", shape=(len(raw),))
    with TensorWriter(path, [head, *specs], fs=fs, rng=rng) as writer:
        writer.put_bytes(HEADER_TENSOR, 0, raw)
        for spec, blocks in tensors:
            _write_tensor(writer, type_, spec, blocks())
    return writer.nbytes


def refuse(type_: str, problems: Sequence[str]) -> None:
    """Raise if there are problems.

    Raises:
        ArtefactInvalidError: All of them, in one message.
    """
    if problems:
        raise ArtefactInvalidError(
            f"This is no {type_}: {'; '.join(problems)}.", hint="protocol/artefacts.md specifies the formats."
        )


def read_artefact(path: Path, fs: Fs) -> ArtefactFile:
    """Return what an artefact file says of itself.

    Raises:
        MalformedTensorFileError: No safetensors file.
        ArtefactInvalidError: Its header is not one.
        StorageError: It cannot be read.
    """
    found = read_tensors(fs, path)
    raw = _read_header_tensor(path, found, fs)
    type_ = _type_of(raw)
    header = read_header(type_, raw)
    tensors = tuple(entry for entry in found.entries if entry.spec.name != HEADER_TENSOR)
    return ArtefactFile(path, type_, header, tensors)


def problems_of(file: ArtefactFile, schema: Schema | None, fs: Fs) -> list[str]:
    """Return what is wrong with an artefact file; without a schema, with its values alone. Reads it all."""
    specs = [entry.spec for entry in file.tensors]
    problems = [] if schema is None else check_artefact(file.type, file.header, specs, schema)
    with naming(file.path, "read"), fs.open_read(file.path, follow=True) as stored:
        for entry in file.tensors:
            problem = _check_tensor(file.type, entry, stored)
            if problem is not None:
                problems.append(problem)
    return problems


def _type_of(raw: bytes) -> str:
    """Return the type that a header names; whether it is a header is judged afterwards."""
    try:
        return str(json.loads(raw)["artefact"]).removesuffix("/1")
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def _read_header_tensor(path: Path, found: TensorFile, fs: Fs) -> bytes:
    entry = next((entry for entry in found.entries if entry.spec.name == HEADER_TENSOR), None)
    if entry is None or entry.spec.dtype != "U8" or len(entry.spec.shape) != 1:
        raise ArtefactInvalidError(
            f"{path} has no tensor `{HEADER_TENSOR}` of bytes: it is no artefact.",
            hint="`artefact pack` makes one of tensors and a header.",
        )
    if entry.spec.nbytes > HEADER_BYTES_MAX:
        raise ArtefactInvalidError(
            f"{path}: its header has {entry.spec.nbytes} bytes, over {HEADER_BYTES_MAX}."
        )
    with naming(path, "read"), fs.open_read(path, follow=True) as file:
        return file.read_at(entry.begin, entry.spec.nbytes)


def _check_tensor(type_: str, entry: TensorEntry, stored: File) -> str | None:
    width = DTYPE_BYTES[entry.spec.dtype]
    if entry.spec.dtype not in ("F32", "F16", "BF16"):
        return f"tensor {entry.spec.name} is {entry.spec.dtype}"
    for start in range(0, entry.spec.numel, BLOCK_ELEMENTS):
        count = min(BLOCK_ELEMENTS, entry.spec.numel - start)
        values = decode_block(entry.spec.dtype, stored.read_at(entry.begin + start * width, count * width))
        problem = check_values(type_, entry.spec.name, values, start)
        if problem is not None:
            return problem
    return None


def _write_tensor(writer: TensorWriter, type_: str, spec: TensorSpec, blocks: Iterator[Float64Array]) -> None:
    """Write the elements of a tensor, rounded; they are judged as they will be read."""
    done, width = 0, DTYPE_BYTES[spec.dtype]
    for block in blocks:
        raw = encode_block(spec.dtype, block, "inf")
        problem = check_values(type_, spec.name, decode_block(spec.dtype, raw), done)
        if problem is not None:
            raise NonFiniteError(f"This is no {type_}: {problem}.", hint="Look at the inputs.")
        writer.put_bytes(spec.name, done * width, raw)
        done += block.size
    assert done == spec.numel, f"{spec.name}: {done} of {spec.numel} elements"
