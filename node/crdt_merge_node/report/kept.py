"""What the node keeps of the last resolve of each group, for the dashboard: the result and its layers.

    reports/<group id>.json      kept-resolve/1

Measuring the layers reads every input again. It is done unasked where that takes no time to speak of; else
the account says how to ask for it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from crdt_merge_node.documents import document
from crdt_merge_node.errors import NotFoundError
from crdt_merge_node.ports import Fs, replace_file
from crdt_merge_node.resolve.files import naming
from crdt_merge_node.resolve.job import ResolveJob

SCHEMA: Final = "kept-resolve/1"
FOLDER: Final = "reports"
CHEAP_BYTES_MAX: Final = 32 << 20
"""Of inputs and base together; a tenth of a second for three models."""
KEPT_BYTES_MAX: Final = 16 << 20


def is_cheap(job: ResolveJob) -> bool:
    """Whether the layers are measured without being asked for."""
    models = (*job.inputs, job.base)
    read = sum(source.nbytes for model in models if model for source in model.tensors.values())
    return read <= CHEAP_BYTES_MAX


def keep(
    data_dir: Path, group: str, *, resolve: Any, when: float, layers: dict[str, Any] | None, fs: Fs
) -> None:
    """Replace what is kept of a group.

    Args:
        data_dir: Of the node.
        group: Id, hex.
        resolve: The ``ResolveReport``.
        when: Unix seconds of its end.
        layers: ``layers/1``, if they were measured.
        fs: Where the data directory is.

    Raises:
        StorageError, FullError: It cannot be written.
    """
    found = document(SCHEMA, when=when, resolve=resolve, layers=layers)
    data = json.dumps(found, allow_nan=False).encode()
    if len(data) > KEPT_BYTES_MAX:
        data = json.dumps(found | {"layers": None}, allow_nan=False).encode()
    folder = data_dir / FOLDER
    with naming(folder, "written"):
        fs.mkdir(folder)
        replace_file(fs, folder / f"{group}.json", data)


def forget(data_dir: Path, group: str, *, fs: Fs) -> None:
    """Keep nothing of a group any more.

    Raises:
        StorageError, FullError: It cannot be removed.
    """
    path = data_dir / FOLDER / f"{group}.json"
    if fs.stat(path) is not None:
        with naming(path, "removed"):
            fs.unlink(path)
            fs.sync_dir(path.parent)


def read_kept(data_dir: Path, group: str, name: str, *, fs: Fs) -> dict[str, Any]:
    """Return what is kept of a group: ``kept-resolve/1``.

    Args:
        data_dir: Of the node.
        group: Id, hex.
        name: What people call it, for the hint.
        fs: Where the data directory is.

    Raises:
        NotFoundError: This node has not resolved it.
        StorageError: It cannot be read.
    """
    path = data_dir / FOLDER / f"{group}.json"
    if fs.stat(path) is None:
        raise NotFoundError(
            f"this node has not resolved group {name}.",
            hint=f"crdt-merge-node resolve {name} -o merged.safetensors --report layers.html",
        )
    with naming(path, "read"), fs.open_read(path) as file:
        found: dict[str, Any] = json.loads(file.read_at(0, min(file.size(), KEPT_BYTES_MAX)))
    return found
