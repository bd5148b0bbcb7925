"""Artefacts in users' files: what ``contribution add`` and offline ``merge`` are given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from crdt_merge_protocol.blobs import Schema
from crdt_merge_protocol.errors import ArtefactInvalidError
from crdt_merge_protocol.strategies.artefacts import HEADER_TENSOR, Artefact

from crdt_merge_node.checkpoints.reading import Checkpoint
from crdt_merge_node.judging import header_problem, read_artefact, type_in
from crdt_merge_node.ports import Fs

from .files import read_tensor


def read_artefact_file(fs: Fs, file: Checkpoint, schema: Schema, *, kind: str = "") -> Artefact:
    """Return the artefact in a file, judged by its header and shapes; its digest is not known yet.

    Args:
        fs: Where the file is.
        file: What its safetensors header says.
        schema: Of the models.
        kind: The type that it must have; empty: whatever it says.

    Raises:
        ArtefactInvalidError: It is no artefact, or not a valid one.
        StorageError: It cannot be read.
    """
    path = file.path
    entry = next((entry for entry in file.entries if entry.spec.name == HEADER_TENSOR), None)
    if entry is None or (problem := header_problem(entry.spec)):
        why = problem if entry is not None else f"it has no tensor {HEADER_TENSOR}"
        raise ArtefactInvalidError(f"{path} is no artefact: {why}.", hint="`artefact --help` makes them.")
    data = read_tensor(fs, entry.path, entry)
    try:
        found = read_artefact(kind or type_in(data), b"", data, (each.spec for each in file.entries), schema)
    except ArtefactInvalidError as error:
        raise ArtefactInvalidError(f"{path}: {error.message}", hint=error.hint or remedy(path)) from None
    return found


def remedy(path: Path) -> str:
    """Return what to do about an artefact that is not right."""
    return (
        f"`artefact show {path} --like MODEL` tells all that is wrong; protocol/artefacts.md has the formats."
    )


def named(artefact: Artefact, digest: bytes) -> Artefact:
    """Return an artefact under the contribution digest that its bytes were found to have."""
    return replace(artefact, digest=digest)
