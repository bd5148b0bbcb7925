"""Artefacts from what another program made: a JSON header and a safetensors file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from crdt_merge_protocol.blobs import TensorSpec
from crdt_merge_protocol.errors import ArtefactInvalidError

from crdt_merge_node.ports import Fs

from .files import BLOCK_ELEMENTS, Blocks
from .samples import Float64Array, SampleTensor, open_samples


def parse_fields(text: bytes) -> dict[str, Any]:
    """Return the fields of a header from JSON in any layout; real numbers become the decimal text they are.

    Raises:
        ArtefactInvalidError: No JSON object.
    """
    try:
        fields = json.loads(text, parse_float=str)
    except (ValueError, RecursionError) as error:
        raise ArtefactInvalidError(f"The header is no JSON: {error}.") from None
    if not isinstance(fields, dict):
        raise ArtefactInvalidError("The header is no JSON object.")
    return fields


def pack_tensors(path: Path, fs: Fs) -> list[tuple[TensorSpec, Blocks]]:
    """Return the floating point tensors of a file; what is F64 there becomes F32.

    Raises:
        MalformedTensorFileError: No safetensors file.
        StorageError: It cannot be read.
    """
    from crdt_merge_node.resolve.files import read_header

    dtypes = {entry.spec.name: entry.spec.dtype for entry in read_header(fs, path).entries}
    return [
        (
            TensorSpec(name=name, dtype="F32" if dtypes[name] == "F64" else dtypes[name], shape=tensor.shape),
            partial(_blocks, tensor),
        )
        for name, tensor in open_samples(str(path), fs).items()
    ]


def _blocks(tensor: SampleTensor) -> Iterator[Float64Array]:
    for start in range(0, tensor.numel, BLOCK_ELEMENTS):
        yield tensor.read(start, min(start + BLOCK_ELEMENTS, tensor.numel))
