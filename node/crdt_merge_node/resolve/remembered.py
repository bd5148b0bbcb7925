"""Which outputs this node wrote lately and where: the next resolve may take tensors over from any of them.

    reports/results.json      results/1

An output belongs to whoever asked for it and may be moved, changed or replaced by anyone. So the list holds
the SHA-256 of each account as this node wrote it: an account of somebody else is not believed, and bytes are
hashed when they are taken over. The list is bounded, the most recent first.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any, Final

from crdt_merge_node.documents import document
from crdt_merge_node.ports import Fs, replace_file

from .earlier import ACCOUNT_BYTES_MAX, read_earlier
from .files import naming
from .job import KeptTensor, ResolveJob, ResolveResult

SCHEMA: Final = "results/1"
FOLDER: Final = "reports"
NAME: Final = "results.json"
RESULTS_MAX: Final = 16
"""Each costs the next resolve of the same schema the reading of an account: some 300 B a tensor."""
_LIST_BYTES_MAX: Final = 1 << 20
_MALFORMED: Final = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError, struct.error),
)


def remember(data_dir: Path, job: ResolveJob, result: ResolveResult, *, fs: Fs) -> None:
    """Put an output that was just written at the top of the list.

    Args:
        data_dir: Of the node.
        job: What was asked for.
        result: What was written.
        fs: Where all this is.

    Raises:
        StorageError, FullError: The account cannot be read or the list cannot be written.
    """
    with naming(result.manifest_path, "read"), fs.open_read(result.manifest_path) as file:
        account = file.read_at(0, ACCOUNT_BYTES_MAX)
    mine = {
        "path": str(result.output_path),
        "account_sha256": hashlib.sha256(account).hexdigest(),
        "schema": job.schema.id.hex(),
        "nbytes": result.nbytes,
    }
    others = [
        each
        for each in _read(data_dir, fs)
        if each["path"] != mine["path"] and fs.stat(Path(each["path"])) is not None
    ]
    found = document(SCHEMA, results=[mine, *others][:RESULTS_MAX])
    folder = data_dir / FOLDER
    with naming(folder, "written"):
        fs.mkdir(folder)
        replace_file(fs, folder / NAME, json.dumps(found, indent=1).encode())


def recall(data_dir: Path, job: ResolveJob, *, fs: Fs) -> dict[bytes, KeptTensor]:
    """Return the tensors of remembered outputs of the job's schema, by their keys."""
    kept: dict[bytes, KeptTensor] = {}
    for each in _read(data_dir, fs):
        try:
            if each["schema"] == job.schema.id.hex():
                (sha256,) = struct.unpack("32s", bytes.fromhex(each["account_sha256"]))
                kept = {**read_earlier(fs, Path(each["path"]), sha256=sha256), **kept}
        except _MALFORMED:
            continue
    return kept


def forget(data_dir: Path, *, fs: Fs) -> None:
    """Take nothing over from any output that was written so far.

    Raises:
        StorageError, FullError: The list cannot be removed.
    """
    path = data_dir / FOLDER / NAME
    if fs.stat(path) is not None:
        with naming(path, "removed"):
            fs.unlink(path)
            fs.sync_dir(path.parent)


def _read(data_dir: Path, fs: Fs) -> list[dict[str, Any]]:
    """Return the list; none if it is not there or not ours."""
    try:
        with fs.open_read(data_dir / FOLDER / NAME) as file:
            found = json.loads(file.read_at(0, _LIST_BYTES_MAX))
        results = found["results"] if found["schema"] == SCHEMA else []
        return [each for each in results if isinstance(each, dict) and isinstance(each["path"], str)]
    except _MALFORMED:
        return []
