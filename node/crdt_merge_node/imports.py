"""Bringing a user's checkpoint into the blob store, tensor by tensor, hashed and scanned on the way.

An import that comes to nothing leaves nothing: the blobs that it brought are removed again, unless a
contribution, or another import, has come to use them meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from crdt_merge_protocol.adapters import ADAPTER
from crdt_merge_protocol.blobs import Manifest, ManifestEntry, TensorSpec, blob_digest
from crdt_merge_protocol.errors import ArtefactInvalidError, NonFiniteError
from crdt_merge_protocol.limits import INLINE_BLOB_BYTES_MAX
from crdt_merge_protocol.packing import Packing

from .background import Done, IsCancelled, Report, run_with_progress
from .checkpoints.reading import Checkpoint, CheckpointTensor, read_checkpoint
from .contents import MODEL
from .control.model import Progress
from .errors import ControlError, StorageError
from .judging import is_artefact, scan_artefact
from .keeper import ContentKeeper
from .lora.files import AdapterFile, header_entry, read_adapter_file
from .ports import Fs
from .resolve.finite import scan_finite
from .storage import BlobStore, Kept, RangeReader

if TYPE_CHECKING:
    from .services import Services


class ImportCancelledError(ControlError):
    """Whoever asked for the import went away. Nothing of it is left."""

    code = "E1707"
    exit_code = 130


@dataclass(slots=True)
class ModelImport:
    """One file, or directory of shards, on its way into the blob store."""

    path: Path
    kind: str = MODEL
    """Type of the contribution that it is for: what its numbers may be depends on it."""
    manifest: Manifest | None = None
    """Once every tensor is durable."""
    packing: Packing | None = None
    """Then too: how the files are to be written again; None if as we would write them anyway."""
    may_link: bool = False
    """Whether a hard link to the files will do where they cannot share blocks."""
    copied_bytes: int = 0
    """Of tensors that were not there already and were copied."""
    placed_bytes: int = 0
    """Of those that are kept without a copy."""
    check: Callable[[bytes], None] | None = None
    """Gets the content id before a byte is copied, and raises if it may not be taken in."""
    fresh: set[bytes] = field(default_factory=set)
    """The blobs that were not there already."""
    is_kept: bool = False

    def keep(self) -> None:
        """Note that the blobs are in use: an operation names them and is durable."""
        self.is_kept = True

    async def steps(self, services: Services) -> AsyncGenerator[Progress]:
        """Do the work, yielding its progress; afterwards there is a manifest.

        Raises:
            MalformedTensorFileError: Not the strict safetensors subset that contributions are made of.
            NonFiniteError: A tensor holds NaN or infinity; a group would set it aside.
            ArtefactInvalidError: A tensor holds what its type forbids; likewise.
            BannedError: ``check`` refused the content.
            FullError: No room.
        """
        work = partial(self._run, services.fs, services.store.blobs)
        async with aclosing(run_with_progress(work)) as steps:
            async for step in steps:
                if isinstance(step, Done):
                    self.manifest = step.value
                else:
                    yield step
        assert self.manifest is not None, "an import ends with its result or raises"
        await services.keeper.note_finite(self.manifest.content, self.kind, is_finite=True)

    def _run(self, fs: Fs, blobs: BlobStore, report: Report, is_cancelled: IsCancelled) -> Manifest:
        """Bring every tensor of the files into the blob store, and the manifest beside them. Blocks."""
        adapter = read_adapter_file(self.path, fs) if self.kind == ADAPTER else None
        header = adapter.checkpoint if adapter else read_checkpoint(fs, self.path)
        reading = _Reading(self.path, header.nbytes, report, is_cancelled)
        self._ask(fs, blobs, header, adapter, reading)
        present = set(blobs.digests())
        found: dict[str, bytes] = {}
        by_file: dict[Path, list[CheckpointTensor]] = {path: [] for path in header.files}
        for entry in header.entries:
            by_file[entry.path].append(entry)
        for path, tensors in by_file.items():
            with self._source(fs, blobs, path, tensors, header) as kept:
                for entry in sorted(tensors, key=lambda entry: entry.begin):
                    found[entry.spec.name] = self._take(blobs, entry, kept, reading, present)
        reading.note(0)
        if adapter is not None:
            manifest = self._finish_adapter(blobs, adapter, found, present)
        else:
            manifest = Manifest.of(
                ManifestEntry(spec=entry.spec, blob=found[entry.spec.name]) for entry in header.entries
            )
            self.packing = None if header.is_plain else header.packing
        blobs.put_object(manifest.content, manifest.encode())
        return manifest

    def _ask(
        self, fs: Fs, blobs: BlobStore, header: Checkpoint, adapter: AdapterFile | None, reading: _Reading
    ) -> None:
        """Where something is banned or was erased: find out first what the files hold, writing nothing."""
        if self.check is None and not blobs.has_erased():
            return
        found: dict[str, bytes] = {}
        for entry in header.entries:
            nbytes = entry.spec.nbytes
            with fs.open_read(entry.path, follow=True) as file:
                reader = RangeReader(
                    file, entry.path, offset=entry.begin, nbytes=nbytes, progress=reading.note
                )
                for _chunk in reader:
                    pass
            found[entry.spec.name] = blob_digest(nbytes, reader.digests)
            reading.before += nbytes
        reading.before = 0
        named = (ManifestEntry(spec=entry.spec, blob=found[entry.spec.name]) for entry in header.entries)
        manifest = adapter.manifest(found) if adapter else Manifest.of(named)
        if self.check is not None:
            self.check(manifest.content)
        # Another group's, or something else of the same tensors: nobody banned it here.
        blobs.permit([manifest.content, *(entry.blob for entry in manifest.entries)])

    def _finish_adapter(
        self, blobs: BlobStore, adapter: AdapterFile, found: Mapping[str, bytes], present: set[bytes]
    ) -> Manifest:
        """Store an adapter's header beside its tensors, and keep how its author has it."""
        header = header_entry(adapter.header)
        blobs.put_inline(header.blob, adapter.header.encode())
        if header.blob not in present:
            self.fresh.add(header.blob)
            self.copied_bytes += header.spec.nbytes
        self.packing = adapter.packing
        return adapter.manifest(found)

    @contextmanager
    def _source(
        self, fs: Fs, blobs: BlobStore, path: Path, tensors: Sequence[CheckpointTensor], header: Checkpoint
    ) -> Iterator[Kept | None]:
        """Yield the file as the store keeps it; None if its tensors have to be copied."""
        if all(entry.spec.nbytes <= INLINE_BLOB_BYTES_MAX for entry in tensors):
            yield None  # They become rows.
            return
        with blobs.keeping(path, may_link=self.may_link) as kept:
            if kept is not None and not header.is_still(fs, path, kept.path):
                raise StorageError(f"{path} was changed while it was read.", hint="Is it being written?")
            yield kept

    def _take(
        self,
        blobs: BlobStore,
        entry: CheckpointTensor,
        kept: Kept | None,
        reading: _Reading,
        present: set[bytes],
    ) -> bytes:
        """Make one tensor a blob and return its digest."""
        spec = entry.spec
        scan = _Scan(self.kind, spec)
        options: _Options = {"scan": scan.look, "progress": reading.note}
        if kept is None:
            digest, is_finite = blobs.import_tensor(entry.path, entry.begin, spec.nbytes, **options)
        else:
            digest, is_finite = blobs.keep_tensor(kept, entry.begin, spec.nbytes, **options)
        if digest not in present and digest not in self.fresh:
            self.fresh.add(digest)
            if blobs.is_kept(digest):
                self.placed_bytes += spec.nbytes
            else:
                self.copied_bytes += spec.nbytes
        if scan.problem:
            raise ArtefactInvalidError(
                f"{entry.path}: {scan.problem}.", hint="Every node would set such an artefact aside."
            )
        if not is_finite:
            raise NonFiniteError(
                f"{entry.path}: tensor {spec.name} holds NaN or infinity.",
                hint="Every node would set such a contribution aside. Repair the checkpoint first.",
            )
        reading.before += spec.nbytes
        return digest


class _Options(TypedDict):
    """What whoever reads a tensor into the store is told."""

    scan: Callable[[memoryview], bool]
    progress: Callable[[int], None]


@dataclass(slots=True)
class _Reading:
    """How far an import has come."""

    path: Path
    total: int
    report: Report
    is_cancelled: IsCancelled
    before: int = 0
    """Bytes of the tensors that are done."""

    def note(self, nbytes: int) -> None:
        """Report bytes of the present tensor.

        Raises:
            ImportCancelledError: Nobody wants the import any more.
        """
        if self.is_cancelled():
            raise ImportCancelledError(f"the import of {self.path} was cancelled.")
        self.report(self.before + nbytes, self.total, "reading tensors")


class _Scan:
    """Looks through the chunks of one tensor, in order."""

    def __init__(self, kind: str, spec: TensorSpec) -> None:
        self.problem = ""
        """What its type forbids and it holds."""
        self._kind = kind
        self._spec = spec
        self._offset = 0

    def look(self, chunk: memoryview) -> bool:
        """Tell whether all numbers of the next chunk are such as the type allows."""
        is_finite = scan_finite(self._spec.dtype, chunk)
        if is_finite and is_artefact(self._kind) and not self.problem:
            self.problem = scan_artefact(self._kind, self._spec, chunk, self._offset) or ""
        self._offset += len(chunk)
        return is_finite and not self.problem


class ImportDesk:
    """Knows the imports under way, and removes what failed ones have left once nobody can need it."""

    def __init__(self, blobs: BlobStore, keeper: ContentKeeper) -> None:
        self._blobs = blobs
        self._keeper = keeper
        self._running = 0
        self._leftovers: set[bytes] = set()

    @asynccontextmanager
    async def importing(
        self,
        path: Path,
        kind: str = MODEL,
        *,
        may_link: bool = False,
        check: Callable[[bytes], None] | None = None,
    ) -> AsyncIterator[ModelImport]:
        """Yield an import; unless it was kept, its blobs go when the block ends."""
        model = ModelImport(path, kind, may_link=may_link, check=check)
        self._running += 1
        try:
            async with self._keeper.unused.held():  # What is here already is not copied.
                yield model
        finally:
            self._running -= 1
            if not model.is_kept:
                self._leftovers |= model.fresh
            elif model.manifest is not None:
                self._leftovers -= {entry.blob for entry in model.manifest.entries}
            # While another import runs, it may have met a blob that is about to go.
            if self._leftovers and not self._running:
                unused = self._leftovers - self._keeper.named_blobs()
                self._leftovers.clear()
                await asyncio.to_thread(_delete, self._blobs, sorted(unused))
                self._keeper.look_again()


def _delete(blobs: BlobStore, unused: Iterable[bytes]) -> None:
    for blob in unused:
        with contextlib.suppress(StorageError):  # A failed disk has other worries.
            blobs.delete(blob)
