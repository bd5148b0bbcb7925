"""Writing the pieces into one compressed archive, with a list of what is in it."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from crdt_merge_node.errors import InvalidRequestError
from crdt_merge_node.ports import Fs, replace_file
from crdt_merge_node.resolve.files import naming

from .collecting import Piece

ROOT: Final = "crdt-merge-bundle"
MANIFEST: Final = "MANIFEST.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundled:
    """What was written."""

    path: Path
    nbytes: int
    pieces: tuple[Piece, ...]


def write_bundle(
    path: Path, pieces: Iterable[Piece], *, created: float, hides_names: bool, fs: Fs
) -> Bundled:
    """Write the archive, readable by its owner alone, whole or not at all.

    Raises:
        InvalidRequestError: There is a file of that name.
        FullError, StorageError: It cannot be written.
    """
    if fs.stat(path) is not None:
        raise InvalidRequestError(f"{path} is there already.", hint="Give another -o FILE.")
    kept = tuple(pieces)
    manifest = {
        "schema": "bundle-manifest/1",
        "created": created,
        "names": "replaced" if hides_names else "kept",
        "files": [
            {"name": piece.name, "about": piece.about, "nbytes": len(piece.data)}
            for piece in kept
            if not piece.missing
        ],
        "missing": [
            {"name": piece.name, "about": piece.about, "reason": piece.missing}
            for piece in kept
            if piece.missing
        ],
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        _add(archive, MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode(), created)
        for piece in kept:
            if not piece.missing:
                _add(archive, piece.name, piece.data, created)
    with naming(path, "written"):
        replace_file(fs, path, buffer.getvalue())
    return Bundled(path=path, nbytes=len(buffer.getvalue()), pieces=kept)


def _add(archive: tarfile.TarFile, name: str, data: bytes, created: float) -> None:
    entry = tarfile.TarInfo(f"{ROOT}/{name}")
    # No owner: the account of whoever reports is nobody's business.
    entry.size, entry.mtime, entry.mode = len(data), int(created), 0o600
    archive.addfile(entry, io.BytesIO(data))
