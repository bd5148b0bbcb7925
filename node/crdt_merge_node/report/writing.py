"""Writing what goes with an output: the report of its layers and its model card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from crdt_merge_node.ports import Fs, replace_file
from crdt_merge_node.resolve.files import naming
from crdt_merge_node.resolve.job import ReportProgress, ResolveJob, ResolveResult

from . import card, layers, page

_JSON_SUFFIX: Final = ".json"
_PROVENANCE_BYTES_MAX: Final = 1 << 30


def measure_layers(
    job: ResolveJob, output: Path, *, fs: Fs, progress: ReportProgress | None = None
) -> dict[str, Any]:
    """Measure a finished resolve.

    Args:
        job: What was resolved.
        output: The file that was written.
        fs: Where everything is.
        progress: Told bytes read, bytes to read in all, and the step.

    Returns:
        ``layers/1``.

    Raises:
        StorageError, CorruptError: A file cannot be read.
    """
    total = sum(
        source.nbytes for model in (*job.inputs, job.base) if model for source in model.tensors.values()
    )
    done = 0

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(min(done, total), total, "measuring layers")

    return layers.measure(job, output, fs=fs, advance=advance)


def write_reports(
    job: ResolveJob, output: Path, paths: Sequence[Path], *, fs: Fs, progress: ReportProgress | None = None
) -> dict[str, Any] | None:
    """Measure a finished resolve and write the report of its layers, if anywhere.

    Args:
        job: What was resolved.
        output: The file that was written.
        paths: Where to: JSON if the name ends so, else an HTML page.
        fs: Where everything is.
        progress: Told bytes read, bytes to read in all, and the step.

    Returns:
        ``layers/1``, if it was written anywhere.

    Raises:
        StorageError, FullError, CorruptError: A file cannot be read or written.
    """
    if not paths:
        return None
    found = measure_layers(job, output, fs=fs, progress=progress)
    for path in paths:
        if path.suffix == _JSON_SUFFIX:
            _write(fs, path, json.dumps(found, indent=1, allow_nan=False) + "\n")
        else:
            _write(fs, path, page.render(found, title=output.name))
    return found


def write_card(result: ResolveResult, path: Path, *, fs: Fs) -> None:
    """Write the model card of a finished resolve, from its provenance alone.

    Raises:
        StorageError, FullError: A file cannot be read or written.
    """
    with naming(result.manifest_path, "read"), fs.open_read(result.manifest_path, follow=True) as file:
        provenance = json.loads(file.read_at(0, min(file.size(), _PROVENANCE_BYTES_MAX)))
    _write(fs, path, card.render(provenance, title=result.output_path.stem))


def _write(fs: Fs, path: Path, text: str) -> None:
    with naming(path, "written"):
        replace_file(fs, path, text.encode(), mode=0o666)
