"""``backup`` and ``backup verify``, ``restore``: a node's data as of one moment, and back."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from crdt_merge_node.control.model import BackupReport, Progress
from crdt_merge_node.errors import DaemonNotRunningError

from .app import PROGRAM, SuggestingGroup
from .options import Invocation, command
from .output import clean, count, duration, facts, note, say, say_json, short, size
from .progress import follow as watch
from .progress import view_for

if TYPE_CHECKING:
    from crdt_merge_node.storage.backup import Manifest

DAMAGED: Final = 7
_DIRECTORY: Final = click.Path(file_okay=False, path_type=Path)


class _BackupGroup(SuggestingGroup):
    """``backup DIR`` is short for ``backup create DIR``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the usual command in front of arguments that name none."""
        if args and args[0] not in self.commands and not {"-h", "--help"} & set(args):
            args = ["create", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_BackupGroup)
def backup() -> None:
    """Write everything this node stores to a directory (`backup DIR`), or verify a backup."""


@backup.command()
@click.argument("directory", type=_DIRECTORY)
@click.option("--with-keys", is_flag=True, help="Put this node's keys in. Whoever has them is this node.")
@click.option("--copy", is_flag=True, help="Copy every byte, even where a link would do.")
@command
def create(invocation: Invocation, directory: Path, with_keys: bool, copy: bool) -> None:
    """Write a backup to the new DIRECTORY, whether the daemon runs or not.

    On the same file system blobs are linked and take no room; that protects from mistakes and not from the
    disk. After an interruption the same command goes on where it stopped.
    """
    target = directory.expanduser().absolute()
    try:
        with invocation.client() as client:
            events = client.backup(path=str(target), with_keys=with_keys, copy=copy)
            report: BackupReport = watch(invocation, "backup/1", events)
    except DaemonNotRunningError:
        report = _back_up_stopped(invocation, target, with_keys=with_keys, is_copying=copy)
    if invocation.is_json:
        say_json("backup/1", report, event="result")
        return
    say(f"backup of node {short(report.node)} in {clean(report.path)}")
    say(
        facts(
            (
                ("groups", f"{report.groups}, {count(report.operations, 'operation')}"),
                ("blobs", f"{report.blobs}, {size(report.nbytes)} with the database"),
                (
                    "shared",
                    f"{size(report.linked_bytes)} with the data directory" if report.linked_bytes else "",
                ),
                (
                    "left out",
                    count(report.missing_blobs, "blob that went away") if report.missing_blobs else "",
                ),
                ("keys", "in it: keep it as safe as the node" if report.has_keys else "not in it"),
                ("took", duration(report.duration_s)),
            )
        )
    )
    note(f"Check it: {PROGRAM} backup verify {clean(report.path)}")


def _back_up_stopped(
    invocation: Invocation, target: Path, *, with_keys: bool, is_copying: bool
) -> BackupReport:
    """Open the store of a stopped node, and back it up as the daemon would."""
    from crdt_merge_node.backing_up import back_up_stopped

    with view_for(invocation, "backup/1") as view:

        def report(done: int, total: int, step: str) -> None:
            view.show(Progress(step=step, done_bytes=done, total_bytes=total))

        return back_up_stopped(
            invocation.data_dir, target, with_keys=with_keys, is_copying=is_copying, report=report
        )


@backup.command()
@click.argument("directory", type=_DIRECTORY)
@command
def verify(invocation: Invocation, directory: Path) -> None:
    """Read and hash all of the backup in DIRECTORY; exit status 7 if it is damaged."""
    from crdt_merge_node.ports import SystemClock, SystemFs
    from crdt_merge_node.storage.backup import read_manifest
    from crdt_merge_node.storage.restore import verify_backup

    source, fs = directory.expanduser().absolute(), SystemFs()
    manifest = read_manifest(source, fs)
    with view_for(invocation, "backup-verify/1") as view:

        def report(done: int, total: int, step: str) -> None:
            view.show(Progress(step=step, done_bytes=done, total_bytes=total))

        findings = verify_backup(source, fs=fs, clock=SystemClock(), report=report)
    if invocation.is_json:
        say_json(
            "backup-verify/1",
            event="result",
            path=str(source),
            is_whole=not findings,
            problems=[f"{found.subject}: {found.message}" for found in findings],
            **_plain(manifest),
        )
    else:
        for found in findings:
            say(f"damage {found.kind} {clean(found.subject)}: {clean(found.message)}")
        made = dt.datetime.fromtimestamp(manifest.created, dt.UTC)
        state = "is damaged" if findings else "is whole"
        say(f"the backup of node {short(manifest.node)}, {made:%Y-%m-%d %H:%M} UTC, {state}")
        say(_contents(manifest))
    if findings:
        raise click.exceptions.Exit(DAMAGED)


@click.command()
@click.argument("directory", type=_DIRECTORY)
@click.option("--alone", is_flag=True, help="There is no newer state anywhere: do not wait for a peer.")
@command
def restore(invocation: Invocation, directory: Path, alone: bool) -> None:
    """Verify the backup in DIRECTORY, then restore it to a new data directory (--data-dir).

    Without keys in the backup, join first: `init --join TOKEN` into the same --data-dir. Started, the node
    acknowledges nothing and serves no bytes until one peer has told it what happened since.
    """
    from crdt_merge_node.ports import SystemClock, SystemFs
    from crdt_merge_node.storage.restore import restore_backup

    with view_for(invocation, "restore/1") as view:

        def report(done: int, total: int, step: str) -> None:
            view.show(Progress(step=step, done_bytes=done, total_bytes=total))

        manifest = restore_backup(
            directory.expanduser().absolute(),
            invocation.data_dir,
            is_alone=alone,
            fs=SystemFs(),
            clock=SystemClock(),
            report=report,
        )
    if invocation.is_json:
        say_json(
            "restore/1",
            event="result",
            data_dir=str(invocation.data_dir),
            waits_for_peer=not alone,
            **_plain(manifest),
        )
        return
    made = dt.datetime.fromtimestamp(manifest.created, dt.UTC)
    say(f"{invocation.data_dir} holds node {short(manifest.node)} as of {made:%Y-%m-%d %H:%M} UTC")
    say(_contents(manifest))
    if not alone:
        note("Started, it waits for one peer to tell it what happened since; `run --alone` does not.")
    note("The node whose backup this is must not run anywhere else.")


def _contents(manifest: Manifest) -> str:
    blobs = f"{count(manifest.blobs, 'blob')} of {size(manifest.nbytes)}"
    return f"  {count(manifest.operations, 'operation')}, {blobs}"


def _plain(manifest: Manifest) -> dict[str, object]:
    return {
        "node": manifest.node,
        "cluster": manifest.cluster,
        "release": manifest.release,
        "created": manifest.created,
        "groups": len(manifest.groups),
        "operations": manifest.operations,
        "blobs": manifest.blobs,
        "nbytes": manifest.nbytes,
        "has_keys": bool(manifest.keys),
    }
