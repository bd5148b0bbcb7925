"""``fsck``: is everything on this node's disk what was put there?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from crdt_merge_node.control.model import Progress

from .options import Invocation, command
from .output import clean, count, note, say, say_json, size
from .progress import view_for

if TYPE_CHECKING:
    from crdt_merge_node.ports import Fs
    from crdt_merge_node.storage.fsck import Checked

DAMAGED: Final = 7
SHOWN_MAX: Final = 200


@click.command()
@click.option("--repair", is_flag=True, help="Set aside what is damaged; nothing is deleted.")
@command
def fsck(invocation: Invocation, repair: bool) -> None:
    """Check the data of this node, whose daemon must be stopped; exit status 7 if it is damaged.

    Every operation and every blob is read and hashed. With --repair what is damaged goes to quarantine/, and
    the daemon fetches it again from peers. A daemon that runs checks itself, all of it once a week.
    """
    from crdt_merge_node.ports import SystemClock, SystemFs
    from crdt_merge_node.storage.fsck import fsck as check

    with view_for(invocation, "fsck/1") as view:

        def report(done: int, total: int, step: str) -> None:
            view.show(Progress(step=step, done_bytes=done, total_bytes=total))

        checked = check(
            invocation.data_dir,
            fs=SystemFs(),
            clock=SystemClock(),
            check_identity=_check_identity,
            is_repairing=repair,
            report=report,
        )
    if invocation.is_json:
        _say_json(checked)
    else:
        _show(checked, is_repairing=repair)
    if checked.is_damaged:
        raise click.exceptions.Exit(DAMAGED)


def _check_identity(data_dir: Path, fs: Fs) -> object:
    from crdt_merge_node.transport.identity import Identity, load_authority

    return Identity.load(data_dir, fs), load_authority(data_dir, fs)


def _say_json(checked: Checked) -> None:
    say_json(
        "fsck/1",
        event="result",
        is_damaged=checked.is_damaged,
        groups=checked.groups,
        operations=checked.operations,
        blobs=checked.blobs,
        nbytes=checked.nbytes,
        salvaged_rows=checked.salvaged_rows,
        findings=[
            {
                "kind": found.kind,
                "level": found.level.value,
                "subject": found.subject,
                "message": found.message,
                "fix": found.fix,
                "is_repaired": found.is_repaired,
                "can_repair": found.repair is not None,
            }
            for found in checked.findings
        ],
    )


def _show(checked: Checked, *, is_repairing: bool) -> None:
    for found in checked.findings[:SHOWN_MAX]:
        state = "repaired" if found.is_repaired else found.level.value
        say(f"{state} {found.kind} {clean(found.subject)}: {clean(found.message)}")
        if not found.is_repaired:
            say(f"  fix: {clean(found.fix)}")
    if len(checked.findings) > SHOWN_MAX:
        say(f"and {len(checked.findings) - SHOWN_MAX} more: --json shows all")
    say(
        f"{count(checked.groups, 'group')}, {count(checked.operations, 'operation')}, "
        f"{count(checked.blobs, 'blob')} of {size(checked.nbytes)} are as they were stored"
    )
    if checked.is_damaged:
        note("There is damage." if is_repairing else "There is damage: `fsck --repair` sets it aside.")
