"""Bringing a user's safetensors file into the blob store, tensor by tensor, hashed and scanned on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from crdt_merge_protocol.blobs import Manifest, ManifestEntry
from crdt_merge_protocol.errors import NonFiniteError

from .background import IsCancelled, Report
from .errors import ControlError
from .resolve import read_header, scan_finite
from .services import Services


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A file whose tensors are durable in the blob store."""

    manifest: Manifest
    copied_bytes: int
    """Of tensors that were not there already."""


class ImportCancelledError(ControlError):
    """Whoever asked for the import went away. Tensors copied so far are swept at the next start."""

    code = "E1707"
    exit_code = 130


def import_model(services: Services, path: Path, *, report: Report, is_cancelled: IsCancelled) -> Imported:
    """Copy every tensor of a file into the blob store and its manifest beside them. Blocks.

    Raises:
        MalformedTensorFileError: Not the strict safetensors subset that contributions are made of.
        NonFiniteError: A tensor holds NaN or infinity; a group would set it aside.
        FullError: No room.
    """
    blobs = services.store.blobs
    header = read_header(services.fs, path)
    total = sum(entry.spec.nbytes for entry in header.entries)
    before = copied = 0
    entries = []

    def note(nbytes: int) -> None:
        if is_cancelled():
            raise ImportCancelledError(f"the import of {path} was cancelled.")
        report(before + nbytes, total, "copying tensors")

    for entry in header.entries:
        spec = entry.spec
        scan: Callable[[memoryview], bool] = partial(scan_finite, spec.dtype)
        size_before = blobs.total_bytes()
        digest, is_finite = blobs.import_tensor(path, entry.begin, spec.nbytes, scan=scan, progress=note)
        if not is_finite:
            raise NonFiniteError(
                f"{path}: tensor {spec.name} holds NaN or infinity.",
                hint="Every node would set such a contribution aside. Repair the checkpoint first.",
            )
        copied += blobs.total_bytes() - size_before
        before += spec.nbytes
        entries.append(ManifestEntry(spec=spec, blob=digest))
    manifest = Manifest.of(entries)
    blobs.put_object(manifest.content, manifest.encode())
    return Imported(manifest=manifest, copied_bytes=copied)
