"""Checking a backup, and making a data directory of one (SCENARIOS T34, T35).

A restored node does not know what happened since. It starts with a mark, ``RESTORED``, and while that is
there it acknowledges nothing and serves no bytes until one peer has told it everything (``restoring.py``).
It signs in a new log at every start anyway, so a backup that goes back in time forks nothing. Invitations do
not come back: a token that was used since would work a second time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import apsw
from blake3 import blake3
from crdt_merge_protocol.limits import CHUNK_BYTES

from crdt_merge_node.errors import ConfigError, CorruptError, StorageError
from crdt_merge_node.ports import Clock, Fs, replace_file

from .backup import CONFIG, DATABASE, Manifest, copy_config, hash_file, read_manifest
from .checking_files import Aside, check_blob_files
from .checking_rows import (
    Roots,
    check_database,
    check_groups,
    check_inline_blobs,
    check_objects,
    check_operations,
)
from .findings import Finding, Level, Report, nothing
from .health import NO_ROOM, full_error
from .layout import DataDir

MARK: Final = "RESTORED"
MARK_BYTES_MAX: Final = 4096
NAMED_MAX: Final = 5


def verify_backup(source: Path, *, fs: Fs, clock: Clock, report: Report = nothing) -> list[Finding]:
    """Return what is wrong with a backup, having read and hashed all of it; nothing is changed.

    Raises:
        NotFoundError: There is no finished backup.
        CorruptError: Its manifest is damaged.
    """
    manifest = read_manifest(source, fs)
    findings = [*_check_hashes(source, manifest, fs)]
    if any(found.subject == DATABASE for found in findings):
        return findings
    connection = apsw.Connection(str(source / DATABASE), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        roots, now = Roots(), clock.now()
        findings += check_database(connection)
        findings += check_groups(connection)
        findings += check_operations(connection, roots, report, wall_time=now)
        findings += check_objects(connection, wall_time=now)
        findings += check_inline_blobs(connection, wall_time=now)
        aside = Aside(fs, source)  # Never used: what is found here is not repaired.
        findings += check_blob_files(connection, source, fs, aside, report, wall_time=now)
    except apsw.Error as error:
        findings.append(_wrong("database", DATABASE, f"it cannot be read: {error}"))
    finally:
        connection.close()
    found = {group.hex(): (root.hex(), count) for group, (root, count) in roots.by_group.items()}
    for group, expected in manifest.groups.items():
        if found.get(group) != expected:
            message = "its operations do not give the root that the manifest has"
            findings.append(_wrong("root", group, message))
    for each in findings:
        each.repair, each.fix = None, "use another backup"
    return [each for each in findings if each.level is Level.DAMAGE]


def _check_hashes(source: Path, manifest: Manifest, fs: Fs) -> Iterator[Finding]:
    if fs.stat(source / DATABASE) is None:
        yield _wrong("database", DATABASE, "it is gone")
    elif hash_file(source / DATABASE, fs) != (manifest.database_bytes, manifest.database_hash):
        yield _wrong("database", DATABASE, "it is not the file that the manifest names")
    files = {f"keys/{name}": expected for name, expected in manifest.keys.items()}
    if manifest.config:
        files[CONFIG] = manifest.config
    for name, expected in files.items():
        if fs.stat(source / name) is None or hash_file(source / name, fs)[1] != expected:
            yield _wrong("identity", name, "it is not the file that the manifest names")


def _wrong(kind: str, subject: str, message: str) -> Finding:
    return Finding(kind, Level.DAMAGE, subject, message, "use another backup")


def restore_backup(
    source: Path, data_dir: Path, *, is_alone: bool, fs: Fs, clock: Clock, report: Report = nothing
) -> Manifest:
    """Verify a backup and make a data directory of it; running it again after a crash goes on.

    Args:
        source: The backup.
        data_dir: New, or of a node without data whose keys are to be used instead of those in the backup.
        is_alone: Trust the backup to be the newest there is: do not wait for a peer.
        fs: The file system.
        clock: Wall time.
        report: Hears (done, total, step).

    Raises:
        CorruptError: The backup is damaged; nothing was written.
        ConfigError: The directory has data, or no keys, or those of another cluster.
        FullError: No room.
        StorageError: It cannot be read or written.
    """
    manifest = read_manifest(source, fs)
    _refuse_if_in_use(source, manifest, data_dir, fs)
    if findings := verify_backup(source, fs=fs, clock=clock, report=report):
        named = "; ".join(f"{found.subject[:24]}: {found.message}" for found in findings[:NAMED_MAX])
        more = f"; and {len(findings) - NAMED_MAX} more" if len(findings) > NAMED_MAX else ""
        raise CorruptError(f"the backup in {source} is damaged: {named}{more}.", hint="Use another one.")
    data = DataDir.open(data_dir, fs=fs)
    try:
        if not is_alone:
            mark = {"backup": str(source), "created": manifest.created, "restored": clock.now()}
            replace_file(fs, data_dir / MARK, json.dumps(mark).encode() + b"\n")
        _put_files(source, data, manifest, report)
        data.mark_store()
    except OSError as error:
        if error.errno in NO_ROOM:
            raise full_error(data_dir) from error
        raise StorageError(f"{error.filename or data_dir}: {error.strerror}.") from error
    finally:
        data.close()
    return manifest


def _refuse_if_in_use(source: Path, manifest: Manifest, data_dir: Path, fs: Fs) -> None:
    if fs.stat(data_dir / DATABASE) is not None and (
        fs.stat(data_dir / "FORMAT") is None or DataDir.read_format(data_dir, fs)
    ):
        raise ConfigError(f"{data_dir} has data already.", hint="Restore into a new --data-dir.")
    facts = data_dir / "identity" / "cluster.json"
    if fs.stat(facts) is not None:
        with fs.open_read(facts) as file:
            text = file.read_at(0, MARK_BYTES_MAX)
        if manifest.cluster.encode() not in text:
            raise ConfigError(f"{data_dir} is a member of another cluster than the backup.")
    elif not manifest.keys:
        raise ConfigError(
            f"the backup in {source} has no keys, and {data_dir} holds no node.",
            hint="Join first, with `init --join TOKEN` into that --data-dir; then restore.",
        )


def _put_files(source: Path, data: DataDir, manifest: Manifest, report: Report) -> None:
    """Put blobs, then keys, then the database in their places: until that is there nothing has happened."""
    fs, done = data.fs, 0
    for directory in ("blobs", "kept"):
        for below in _directories(source / directory, fs):
            target = data.path / below.relative_to(source)
            fs.mkdir(target)
            for name in fs.listdir(below):
                found = fs.stat(below / name)
                if found is None or not found.is_file or name.startswith("."):
                    continue
                _put(below / name, target / name, fs)
                done += found.nbytes
                report(done, manifest.nbytes, "placing blobs")
            fs.sync_dir(target)
        fs.sync_dir(data.path / directory)
    if fs.stat(data.path / "identity" / "cluster.json") is None:
        for name in sorted(manifest.keys, key=lambda name: name.endswith("cluster.json")):
            with fs.open_read(source / "keys" / name) as file:
                key = file.read_at(0, file.size())
            assert blake3(key).hexdigest() == manifest.keys[name], "it was verified a moment ago"
            replace_file(fs, data.path / name, key, mode=0o600)
    if fs.stat(data.path / CONFIG) is None:
        copy_config(source, data.path, fs)
    temporary = data.tmp / DATABASE
    _copy(source / DATABASE, temporary, fs)
    connection = apsw.Connection(str(temporary))
    try:
        connection.execute("DELETE FROM facts WHERE name GLOB 'invite/*'")
    finally:
        connection.close()
    with fs.open_write(temporary) as file:
        file.sync()
    fs.rename(temporary, data.database)
    fs.sync_dir(data.path)


def _directories(top: Path, fs: Fs) -> list[Path]:
    """Return a directory of a backup and those right below it; nothing if it has none."""
    if fs.stat(top) is None:
        return []
    below = [top / name for name in fs.listdir(top)]
    return [top, *(path for path in below if (found := fs.stat(path)) is not None and found.is_directory)]


def _put(source: Path, target: Path, fs: Fs) -> None:
    """Give a file of the backup a place in the store, without copying it where that is possible."""
    if fs.stat(target) is not None:
        fs.unlink(target)
    if not (fs.clone(source, target) or fs.link(source, target)):
        _copy(source, target, fs)


def _copy(source: Path, target: Path, fs: Fs) -> None:
    if fs.stat(target) is not None:
        fs.unlink(target)
    with fs.open_read(source) as read, fs.create(target) as written:
        offset = 0
        while data := read.read_at(offset, CHUNK_BYTES):
            written.write_at(offset, data)
            offset += len(data)
        written.sync()


def is_marked(data_dir: Path, fs: Fs) -> bool:
    """Tell whether a node was restored and has not caught up yet."""
    return fs.stat(data_dir / MARK) is not None


def unmark(data_dir: Path, fs: Fs) -> None:
    """Let a restored node be like any other."""
    if is_marked(data_dir, fs):
        fs.unlink(data_dir / MARK)
        fs.sync_dir(data_dir)
