"""Backups of a node that runs, and of one that does not: the same work on the same store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from .background import Done, IsCancelled, Report, run_with_progress
from .control.model import BackupReport, Progress
from .ports import SystemClock, SystemFs, SystemRng
from .services import Services
from .storage import DataDir, Store
from .storage.backup import Origin, Written, write_backup
from .telemetry.logging import configure_logging, get_logger
from .transport import Identity
from .version import VERSION

log = get_logger()


def _origin(identity: Identity) -> Origin:
    return Origin(
        release=VERSION,
        node=identity.node.hex(),
        cluster=identity.cluster.hex(),
        cluster_name=identity.cluster_name,
    )


async def back_up(
    services: Services, target: Path, *, with_keys: bool, is_copying: bool
) -> AsyncGenerator[Progress | BackupReport]:
    """Back a running node up to a directory."""
    began = services.clock.monotonic()

    def work(report: Report, is_cancelled: IsCancelled) -> Written:
        return write_backup(
            services.store,
            target,
            origin=_origin(services.identity),
            with_keys=with_keys,
            is_copying=is_copying,
            fs=services.fs,
            clock=services.clock,
            report=report,
            is_cancelled=is_cancelled,
        )

    async with aclosing(run_with_progress(work)) as steps:
        async for step in steps:
            if not isinstance(step, Done):
                yield step
                continue
            duration_s = round(services.clock.monotonic() - began, 3)
            report = _describe(step.value, target, duration_s=duration_s)
            log.info("backup.completed", path=report.path, bytes=report.nbytes, duration_s=duration_s)
            yield report


def back_up_stopped(
    data_dir: Path, target: Path, *, with_keys: bool, is_copying: bool, report: Report
) -> BackupReport:
    """Back a stopped node up to a directory. Blocks.

    Raises:
        AlreadyRunningError: Another process uses the data.
        NotFoundError: There is no node.
        CorruptError: The database is damaged.
    """
    configure_logging(level="warning")
    fs, clock = SystemFs(), SystemClock()
    identity = Identity.load(data_dir, fs)
    began = clock.monotonic()

    async def work() -> Written:
        data = DataDir.open(data_dir, fs=fs)
        try:
            store = await Store.open(data, clock=clock, rng=SystemRng())
            try:
                return await asyncio.to_thread(
                    write_backup,
                    store,
                    target,
                    origin=_origin(identity),
                    with_keys=with_keys,
                    is_copying=is_copying,
                    fs=fs,
                    clock=clock,
                    report=report,
                )
            finally:
                await store.close()
        finally:
            data.close()

    return _describe(asyncio.run(work()), target, duration_s=round(clock.monotonic() - began, 3))


def _describe(written: Written, target: Path, *, duration_s: float) -> BackupReport:
    manifest = written.manifest
    return BackupReport(
        path=str(target),
        node=manifest.node,
        created=manifest.created,
        groups=len(manifest.groups),
        operations=manifest.operations,
        blobs=manifest.blobs,
        nbytes=manifest.nbytes + manifest.database_bytes,
        linked_bytes=written.linked_bytes,
        missing_blobs=written.missing_blobs,
        has_keys=bool(manifest.keys),
        duration_s=duration_s,
    )
