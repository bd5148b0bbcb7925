"""Judges artefacts of a group by their own bytes, as every node does (PROTOCOL R14, STRATEGIES 1.10)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final

from crdt_merge_protocol.blobs import FLOAT_DTYPES, Manifest, ManifestEntry, Schema, TensorSpec
from crdt_merge_protocol.errors import ArtefactInvalidError
from crdt_merge_protocol.strategies.artefact_checks import check_artefact, check_values
from crdt_merge_protocol.strategies.artefacts import (
    HEADER_BYTES_MAX,
    HEADER_TENSOR,
    SCOPES,
    Artefact,
    read_header,
)
from crdt_merge_protocol.strategies.dtypes import decode_block

PROBLEMS_MAX: Final = 4


def is_artefact(type_: str) -> bool:
    """Tell whether contributions of a type are artefacts that this release knows."""
    return type_ in SCOPES


def header_entry(manifest: Manifest) -> ManifestEntry | None:
    """Return the header tensor of an artefact, if it can be one."""
    for entry in manifest.entries:
        if entry.spec.name == HEADER_TENSOR:
            return entry if header_problem(entry.spec) is None else None
    return None


def header_problem(spec: TensorSpec) -> str | None:
    """Return why a tensor cannot be a header, or None."""
    if spec.dtype != "U8" or len(spec.shape) != 1:
        return f"tensor {HEADER_TENSOR} is {spec.dtype} {list(spec.shape)}, not bytes along one axis"
    if not 0 < spec.nbytes <= HEADER_BYTES_MAX:
        return f"its header has {spec.nbytes} bytes, 1 to {HEADER_BYTES_MAX} are read"
    return None


def type_in(header: bytes) -> str:
    """Return the type that the header of an artefact names; empty if it is no such header.

    Raises:
        ArtefactInvalidError: It names a type that this release does not know.
    """
    try:
        said = json.loads(header)
    except (ValueError, RecursionError):
        return ""
    name = str(said.get("artefact", "")) if isinstance(said, dict) else ""
    type_ = name.partition("/")[0]
    if type_ and not is_artefact(type_):
        raise ArtefactInvalidError(
            f"There is no artefact type {type_[:40]!r}.", hint=f"Known: {', '.join(SCOPES)}."
        )
    return type_


def read_artefact(
    type_: str, digest: bytes, header: bytes, specs: Iterable[TensorSpec], schema: Schema
) -> Artefact:
    """Return an artefact that is whole and right as far as header and shapes tell.

    Args:
        type_: The contribution's type.
        digest: Its contribution digest.
        header: Bytes of its header tensor.
        specs: All its tensors.
        schema: Of the models that it speaks of.

    Raises:
        ArtefactInvalidError: It is not what its type requires; the message says every reason.
    """
    fields = read_header(type_, header)
    others = sorted((s for s in specs if s.name != HEADER_TENSOR), key=lambda s: s.name.encode())
    problems = check_artefact(type_, fields, others, schema)
    if problems:
        more = f"; and {len(problems) - PROBLEMS_MAX} more problems" if len(problems) > PROBLEMS_MAX else ""
        raise ArtefactInvalidError(f"This {type_} is not right: {'; '.join(problems[:PROBLEMS_MAX])}{more}.")
    return Artefact(digest=digest, type=type_, header=fields, specs=tuple(others))


def scan_artefact(
    type_: str, spec: TensorSpec, chunk: bytes | bytearray | memoryview, offset: int
) -> str | None:
    """Return what is wrong with a range of one of an artefact's tensors, or None.

    Args:
        type_: The artefact's type.
        spec: The tensor's.
        chunk: Whole elements, little-endian.
        offset: Where they begin in the tensor, in bytes.
    """
    if spec.name == HEADER_TENSOR or spec.dtype not in FLOAT_DTYPES:
        return None
    width = spec.nbytes // spec.numel if spec.numel else 1
    return check_values(type_, spec.name, decode_block(spec.dtype, chunk), offset // width)
