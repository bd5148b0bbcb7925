"""What a start does before anything is served: sweep what a crash left, check what is there (SCENARIOS 7).

Nothing in here raises because of *content*: a row or file that cannot be read is set aside, reported, and
fetched again from peers; a node that would die of one bad operation would die of it at every start (T52).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from crdt_merge_protocol.canonical import decode, encode
from crdt_merge_protocol.errors import LocalProtocolError, RemoteProtocolError
from crdt_merge_protocol.genesis import Genesis
from crdt_merge_protocol.operations import SignedOperation

from .blobs import BlobStore
from .layout import DataDir
from .operations import OperationLog, OpRow

if TYPE_CHECKING:
    from .store import Store

CHECKED_OPERATIONS: Final = 1000
"""Of the newest operations, those whose ids are recomputed at start: what a dying disk damages first."""
ROOT_FACT: Final = "root/"


@dataclass(slots=True, kw_only=True)
class RecoveryReport:
    """What a start found and did."""

    operations: int = 0
    operations_quarantined: list[bytes] = field(default_factory=list)
    blobs: int = 0
    blob_bytes: int = 0
    blobs_lost: list[bytes] = field(default_factory=list)
    """Rows whose file was gone or had another size; they will be fetched again."""
    blobs_adopted: list[bytes] = field(default_factory=list)
    """Whole files without a row, left between rename and COMMIT."""
    rows_dropped: int = 0
    """Rows about blobs and objects that were not readable."""
    files_quarantined: int = 0
    files_swept: int = 0

    @property
    def is_clean(self) -> bool:
        """Whether nothing had to be repaired."""
        return not (
            self.operations_quarantined
            or self.blobs_lost
            or self.blobs_adopted
            or self.rows_dropped
            or self.files_quarantined
            or self.files_swept
        )


@dataclass(slots=True, kw_only=True)
class ReplayReport:
    """What became of a group's stored operations."""

    applied: int = 0
    quarantined: list[tuple[bytes, str]] = field(default_factory=list)
    """(id, reason): moved out of the log."""
    waiting: list[bytes] = field(default_factory=list)
    """Ids that stay in the log but whose ancestors are missing; anti-entropy brings those."""


def recover(data: DataDir, log: OperationLog, blobs: BlobStore, *, wall_time: float) -> RecoveryReport:
    """Sweep, compare files with rows, and check the newest operations. Blocks.

    Raises:
        StorageError: The disk cannot be read or written.
    """
    report = RecoveryReport()
    _sweep_temporary(data, blobs, report)
    report.rows_dropped = blobs.load_index()
    blobs.finish_deletions()
    report.files_swept += blobs.sweep_erased()  # Before files without rows are taken in again.
    _compare_files(data, blobs, report)
    _drop_finished_partials(data, blobs)
    _check_newest(log, report, wall_time)
    report.operations = log.count()
    report.blobs = len(blobs.digests())
    report.blob_bytes = blobs.total_bytes()
    return report


def explain_damage(row: OpRow) -> str | None:
    """Return why a stored operation is not what was stored, or None if it is."""
    try:
        signed = SignedOperation.load(row.wire)
    except RemoteProtocolError as error:
        return f"unreadable: {error}"
    if signed.id != row.id:
        return "its bytes have another id"
    if signed.operation.group != row.group:
        return "it belongs to another group"
    return None


def explain_damaged_genesis(group: bytes, genesis: bytes) -> str | None:
    """Return why a stored genesis is not that of its group, or None if it is."""
    try:
        found = Genesis.decode(genesis).group
    except RemoteProtocolError as error:
        return f"unreadable: {error}"
    return None if found == group else "it is that of another group"


def replay(store: Store, group: bytes, apply: Callable[[SignedOperation], object]) -> ReplayReport:
    """Hand a group's stored operations to ``apply`` in append order. Blocks; for the start of a node.

    Args:
        store: The open store.
        group: The group.
        apply: Raises :class:`LocalProtocolError` if an ancestor is missing; the operation is then tried again
            after the others. Whatever else it raises quarantines the operation.

    Returns:
        What was applied and what was not. Never raises because of what an operation says.
    """
    report = ReplayReport()
    deferred: list[SignedOperation] = []
    for row in store.load_operations(group):
        reason = explain_damage(row)
        if reason is not None:
            _quarantine(store, row.id, reason, report)
        else:
            _try(store, SignedOperation.load(row.wire), apply, deferred, report)
    while deferred:
        # An operation that was quarantined and fetched again comes after those that name it.
        waiting, deferred = deferred, []
        for signed in waiting:
            _try(store, signed, apply, deferred, report)
        if len(deferred) == len(waiting):
            report.waiting = [signed.id for signed in deferred]
            break
    return report


async def save_root(store: Store, group: bytes, *, root: bytes, count: int) -> None:
    """Remember a group's sync root at an orderly stop."""
    await store.put_meta(ROOT_FACT + group.hex(), encode([root, count]))


async def compare_root(store: Store, group: bytes, *, root: bytes, count: int) -> str | None:
    """Return why a rebuilt root contradicts the saved one, or None.

    Operations appended since then are no contradiction; fewer operations, or another root for as many, are.
    """
    saved = await store.get_meta(ROOT_FACT + group.hex())
    if saved is None:
        return None
    try:
        saved_root, saved_count = decode(saved)
        if count < int(saved_count):
            return f"{saved_count} operations were saved and {count} are here"
    except (RemoteProtocolError, ValueError, TypeError) as error:
        return f"the saved root is not readable: {error}"
    if count == saved_count and root != saved_root:
        return f"{count} operations gave root {bytes(saved_root).hex()[:12]} and now give {root.hex()[:12]}"
    return None


def _try(
    store: Store,
    signed: SignedOperation,
    apply: Callable[[SignedOperation], object],
    deferred: list[SignedOperation],
    report: ReplayReport,
) -> None:
    try:
        apply(signed)
    except LocalProtocolError:
        deferred.append(signed)
    except Exception as error:  # noqa: BLE001  (T52: whatever one operation breaks, the node must start)
        _quarantine(store, signed.id, f"{type(error).__name__}: {error}", report)
    else:
        report.applied += 1


def _quarantine(store: Store, id_: bytes, reason: str, report: ReplayReport) -> None:
    store.quarantine_operation(id_, reason)
    report.quarantined.append((id_, reason))


def _sweep_temporary(data: DataDir, blobs: BlobStore, report: RecoveryReport) -> None:
    for name in data.fs.listdir(data.tmp):
        path = data.tmp / name
        found = data.fs.stat(path)
        if found is not None and found.is_directory:
            blobs.files.set_aside(path, "tmp")
        else:
            data.fs.unlink(path)
        report.files_swept += 1


def _compare_files(data: DataDir, blobs: BlobStore, report: RecoveryReport) -> None:
    seen: set[bytes] = set()
    prefixes: list[str] = []
    for prefix in data.fs.listdir(data.blobs):
        directory = data.blobs / prefix
        found = data.fs.stat(directory)
        if found is None or not found.is_directory or _digest_of(prefix, "00" * 31) is None:
            blobs.files.set_aside(directory, "blobs")
            report.files_quarantined += 1
            continue
        prefixes.append(prefix)
    blobs.files.trust_prefixes(prefixes)
    for prefix in prefixes:
        for name in data.fs.listdir(data.blobs / prefix):
            digest = _digest_of(prefix, name)
            if digest is None or blobs.is_stored_inline(digest):
                blobs.files.set_aside(data.blobs / prefix / name, "blobs")
                report.files_quarantined += 1
            else:
                seen.add(digest)
                _compare_file(data, blobs, digest, report)
    for digest in blobs.digests():
        if digest not in seen and not blobs.is_in_place(digest):
            blobs.quarantine(digest, "its file is gone or too short")
            report.blobs_lost.append(digest)
    report.files_swept += blobs.sweep_kept()


def _compare_file(data: DataDir, blobs: BlobStore, digest: bytes, report: RecoveryReport) -> None:
    found = data.fs.stat(blobs.files.path_of(digest))
    size = blobs.size(digest)
    if found is not None and found.is_file and found.nbytes == size:
        return
    if size is not None:
        blobs.quarantine(digest, "its file has another size or is not a file")
        report.blobs_lost.append(digest)
        report.files_quarantined += 1
    elif blobs.adopt(digest):
        report.blobs_adopted.append(digest)
    else:
        blobs.files.set_aside(blobs.files.path_of(digest), digest.hex())
        report.files_quarantined += 1


def _check_newest(log: OperationLog, report: RecoveryReport, wall_time: float) -> None:
    pending = []
    for row in log.newest(CHECKED_OPERATIONS):
        if (reason := explain_damage(row)) is not None:
            pending.append(log.quarantine(id_=row.id, reason=reason, wall_time=wall_time))
            report.operations_quarantined.append(row.id)
    for future in pending:  # Queued together, so that they share commits.
        future.result()


def _drop_finished_partials(data: DataDir, blobs: BlobStore) -> None:
    for name in data.fs.listdir(data.partial):
        digest = _digest_of(name, "")
        if digest is None:
            blobs.files.set_aside(data.partial / name, "partial")
        elif blobs.has(digest):
            data.fs.unlink(data.partial / name)


def _digest_of(prefix: str, rest: str) -> bytes | None:
    """Return the digest that a file name stands for, or None if we never write such a name."""
    name = prefix + rest
    if len(name) != 64 or not set(name) <= set("0123456789abcdef") or (rest and len(prefix) != 2):
        return None
    return bytes.fromhex(name)
