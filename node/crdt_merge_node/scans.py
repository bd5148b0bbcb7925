"""Looks once through the bytes of every content for NaN and infinity, in the background (SCENARIOS T23).

In those of an artefact, for whatever else its type forbids too. What is found is a property of the content
and the type, so it is remembered over restarts and never looked for twice. One content at a time: a scan is
bound by the disk, and commands should not wait behind several.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from crdt_merge_protocol.blobs import FLOAT_DTYPES, Manifest, chunk_count
from crdt_merge_protocol.limits import CHUNK_BYTES

from .contents import MODEL
from .errors import CorruptError, StorageError, StoreFailedError
from .judging import is_artefact, scan_artefact
from .resolve.finite import scan_finite
from .storage import Store
from .stored_ids import read_id
from .telemetry.logging import get_logger

log = get_logger()

PREFIX: Final = "finite/"
RETRY_S: Final = 5.0
SOUND_MAX: Final = 65_536
"""Blobs that are known to be finite: what fine-tuned models share is looked through once."""
REMEMBER_S: Final = 1.0
"""Verdicts of so long are written together: a lost one costs another scan and nothing else."""
_Subject = tuple[bytes, str]
"""(content, type of the contribution): the same bytes may be a sound model and no sound artefact."""


class _StoppedError(Exception):
    """The node stops; the scan begins anew at the next start."""


class Scans:
    """Verdicts on contents, and the scans that lead to them."""

    def __init__(self, store: Store, *, found: Callable[[bytes], None]) -> None:
        """Take where bytes are, and who wants to know of a content that its scan has ended."""
        self._store = store
        self._found = found
        self._finite: dict[_Subject, bool] = {}
        self._running: dict[_Subject, asyncio.Task[None]] = {}
        self._unwritten: dict[str, bool] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None
        self._turn = asyncio.Semaphore(1)
        self._sound: set[tuple[bytes, str]] = set()
        """(blob, element type) of what is finite, found since the start; the digest fixes the bytes."""
        self._is_closed = False

    async def load(self) -> None:
        """Read the verdicts of earlier starts."""
        for key, value in await self._store.scan_meta(PREFIX):
            content, _, kind = key.removeprefix(PREFIX).partition("/")
            if found := read_id(content):
                self._finite[found, kind or MODEL] = value == b"1"

    async def close(self) -> None:
        """Stop; nothing reads the store any more once this returns."""
        self._is_closed = True
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()
        if self._writing is not None:
            await asyncio.gather(self._writing, return_exceptions=True)
        with contextlib.suppress(StoreFailedError):
            await self._write()

    def verdict(self, content: bytes, kind: str = MODEL) -> bool | None:
        """Return whether all numbers of a content are such as its type allows; None: not yet looked."""
        return self._finite.get((content, kind))

    async def note(self, content: bytes, kind: str = MODEL, *, is_finite: bool) -> None:
        """Remember a verdict, over restarts too once this returns."""
        self._note_soon(content, kind, is_finite=is_finite)
        await self._write()

    def _note_soon(self, content: bytes, kind: str, *, is_finite: bool) -> None:
        """Remember a verdict: at once, and over restarts a moment later."""
        if self._finite.get((content, kind)) is is_finite:
            return
        self._finite[content, kind] = is_finite
        self._unwritten[PREFIX + content.hex() + ("" if kind == MODEL else f"/{kind}")] = is_finite
        if self._timer is None and not self._is_closed:
            self._timer = asyncio.get_running_loop().call_later(REMEMBER_S, self._begin_writing)

    def _begin_writing(self) -> None:
        self._timer = None
        if self._writing is not None:
            self._timer = asyncio.get_running_loop().call_later(REMEMBER_S, self._begin_writing)
        else:
            self._writing = asyncio.create_task(self._write(), name="scan-notes")
            self._writing.add_done_callback(self._written)

    def _written(self, writing: asyncio.Task[None]) -> None:
        self._writing = None
        if not writing.cancelled():
            writing.exception()  # Looked at, or asyncio warns: the store has told the node, which stops.

    async def _write(self) -> None:
        if not self._unwritten:
            return
        verdicts, self._unwritten = self._unwritten, {}
        try:
            await self._store.update_meta({key: b"1" if each else b"0" for key, each in verdicts.items()})
        except StoreFailedError:
            raise
        except StorageError as error:
            # Looked for again at the next start, which costs time and nothing else.
            log.debug("scan.forgotten", count=len(verdicts), error=error)

    def begin(self, content: bytes, manifest: Manifest, kind: str = MODEL) -> None:
        """Look through a content whose bytes are all here, unless that is being done."""
        if (content, kind) not in self._running and not self._is_closed:
            task = asyncio.create_task(self._scan(content, manifest, kind), name=f"scan-{content.hex()[:8]}")
            self._running[content, kind] = task

    async def _scan(self, content: bytes, manifest: Manifest, kind: str) -> None:
        try:
            async with self._turn:
                is_finite = await asyncio.to_thread(self._look, manifest, kind)
            self._note_soon(content, kind, is_finite=is_finite)
        except (_StoppedError, StoreFailedError):
            return  # In the latter case the store has told the node, which stops.
        except StorageError as error:
            log.warning("scan.failed", blob=content, error=error)
            if not isinstance(error, CorruptError):  # Damage was set aside and is fetched again at once.
                asyncio.get_running_loop().call_later(RETRY_S, self._tell, content)
                return
        finally:
            del self._running[content, kind]
        self._tell(content)

    def _tell(self, content: bytes) -> None:
        if not self._is_closed:
            self._found(content)

    def _look(self, manifest: Manifest, kind: str) -> bool:
        for entry in manifest.entries:
            spec = entry.spec
            if spec.dtype not in FLOAT_DTYPES and spec.dtype != "BOOL":
                continue
            if not is_artefact(kind) and (entry.blob, spec.dtype) in self._sound:
                continue
            for index in range(chunk_count(spec.nbytes)):
                if self._is_closed:
                    raise _StoppedError
                chunk = self._store.blobs.read_chunk(entry.blob, index)
                if chunk is None:
                    raise StorageError(f"blob {entry.blob.hex()[:12]} went away while it was scanned.")
                if not scan_finite(spec.dtype, chunk):
                    return False
                if is_artefact(kind) and scan_artefact(kind, spec, chunk, index * CHUNK_BYTES):
                    return False
            if len(self._sound) >= SOUND_MAX:
                self._sound.clear()
            self._sound.add((entry.blob, spec.dtype))
        return True
