"""Writing a contribution out again, as its author had it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from crdt_merge_protocol.adapters import ADAPTER
from crdt_merge_protocol.blobs import Manifest
from crdt_merge_protocol.errors import (
    MalformedTensorFileError,
    MissingBlobError,
    RemoteProtocolError,
)
from crdt_merge_protocol.operations import Add, read_body
from crdt_merge_protocol.packing import Packing

from crdt_merge_node.background import Done, IsCancelled, Report, run_with_progress
from crdt_merge_node.checkpoints.writing import Export, GetCancelledError, Written
from crdt_merge_node.contents import read_payload
from crdt_merge_node.control.model import ContributionWritten, Progress, WrittenFile
from crdt_merge_node.lora.files import as_files
from crdt_merge_node.services import Services

from .contributions import contribution_show
from .naming import find_group


async def get_contribution(
    services: Services, group_name: str, contribution: str, *, output_path: str, is_plain: bool
) -> AsyncGenerator[Progress | ContributionWritten]:
    """Write the files of a contribution, durable and under their names or not at all.

    Raises:
        NotFoundError: There is no such group or contribution.
        MissingBlobError: Bytes of it are not here.
        MalformedTensorFileError: What its author says of the files is wrong; ``is_plain`` ignores it.
        InvalidRequestError, FullError, StorageError: The files cannot be written there.
    """
    group = find_group(services, group_name)
    info = await contribution_show(services, group, contribution)
    signed = services.engine.replicas[group].state.get(bytes.fromhex(info.tag))
    assert signed is not None, "a tag of the state has its operation"
    add = read_body(signed.operation)
    assert isinstance(add, Add), "a tag is an ADD"
    began = services.clock.monotonic()
    written: Written | None = None

    def work(report: Report, is_cancelled: IsCancelled) -> Written:
        return _write(services, add, Path(output_path), report, is_cancelled, is_plain=is_plain)

    async with aclosing(run_with_progress(work)) as steps:
        async for step in steps:
            if isinstance(step, Done):
                written = step.value
            else:
                yield step
    assert written is not None, "the work ends with its result or raises"
    yield ContributionWritten(
        contribution=info,
        path=output_path,
        files=tuple(
            WrittenFile(name=file.name, nbytes=file.nbytes, sha256=file.sha256.hex())
            for file in written.files
        ),
        nbytes=sum(file.nbytes for file in written.files),
        is_exact=written.is_exact,
        duration_s=services.clock.monotonic() - began,
    )


def _write(
    services: Services, add: Add, target: Path, report: Report, is_cancelled: IsCancelled, *, is_plain: bool
) -> Written:
    """Find what a contribution consists of and write it. Blocks."""
    manifest = _manifest(services, add)
    done, total = 0, manifest.nbytes

    def advance(nbytes: int) -> None:
        nonlocal done
        if is_cancelled():
            raise GetCancelledError("The writing was cancelled. No file has changed.")
        done += nbytes
        report(done, total, "writing tensors")

    export = Export(fs=services.fs, rng=services.rng, read=services.store.blobs.read_chunk, advance=advance)
    try:
        packing = None if is_plain else _packing(services, add)
        if add.type == ADAPTER:
            manifest, packing = as_files(manifest, packing, services.store.blobs.read_chunk)
        files = export.write(manifest, packing, target)
    except (RemoteProtocolError, MalformedTensorFileError) as error:
        raise MalformedTensorFileError(
            f"what its author says of the files does not fit the tensors: {error.message}",
            hint="--plain writes the tensors in the layout of this program.",
        ) from error
    return Written(files=files, is_exact=not is_plain)


def _manifest(services: Services, add: Add) -> Manifest:
    """Return the tensors, all of which are here."""
    blobs = services.store.blobs
    data = blobs.get_object(add.content)
    if data is None:
        raise MissingBlobError(
            f"the manifest of content {add.content.hex()[:12]} is not here.",
            hint="A node fetches what is visible in the groups that it follows; see `why`.",
        )
    try:
        manifest = Manifest.decode(data)
    except RemoteProtocolError as error:
        raise MalformedTensorFileError(f"its manifest is unreadable: {error.message}") from error
    missing = {entry.blob: entry.spec.nbytes for entry in manifest.entries if not blobs.has(entry.blob)}
    if missing:
        named = ", ".join(sorted(blob.hex()[:12] for blob in missing)[:4])
        raise MissingBlobError(
            f"{len(missing)} blobs of it, {sum(missing.values())} bytes, are not here: {named}"
            f"{' and others' if len(missing) > 4 else ''}.",
            hint="A node fetches what is visible in the groups that it follows; see `why`.",
        )
    for entry in manifest.entries:
        if blobs.size(entry.blob) != entry.spec.nbytes:
            raise MalformedTensorFileError(f"tensor {entry.spec.name} has not the size of its blob.")
    return manifest


def _packing(services: Services, add: Add) -> Packing | None:
    """Return how the author had the files; None: one file as we would write it."""
    blobs = services.store.blobs
    if add.payload is None:
        return None
    payload = blobs.get_object(add.payload)
    packing = read_payload(payload).packing if payload is not None else add.payload
    if not packing:
        return None
    data = blobs.get_object(packing) if payload is not None else None
    if data is None:
        raise MissingBlobError(
            "how its author had the files is not here yet.",
            hint="It is fetched with the contribution; --plain writes the tensors without waiting for it.",
        )
    return Packing.decode(data)
