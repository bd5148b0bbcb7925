"""``contribution add|get|list|show|remove|ban|erase``."""

from __future__ import annotations

from typing import Final

import click

from crdt_merge_node.control.model import (
    ActRequest,
    ContributionAdded,
    ContributionInfo,
    ContributionPlan,
    ContributionState,
    ContributionWritten,
)
from crdt_merge_node.errors import NotFoundError

from .act import ACT, REASON, YES, carry_out
from .app import SuggestingGroup
from .completing import GROUP
from .options import Invocation, command
from .output import (
    can_ask,
    clean,
    count,
    duration,
    facts,
    note,
    params,
    say,
    say_json,
    short,
    size,
    table,
    weight,
)
from .progress import follow as watch
from .values import MODEL, PLACE, Weight, absolute, parse_pairs

TAG_DIGITS_MIN: Final = 4
"""With fewer digits nothing is named by its tag."""


@click.group(cls=SuggestingGroup)
def contribution() -> None:
    """Offer a model to a group, see what others offered, remove your own."""


@contribution.command()
@click.argument("group", type=GROUP)
@click.argument("file", type=MODEL, metavar="PATH")
@click.option("--type", "kind", default="model", show_default=True, help="Or what kind of artefact PATH is.")
@click.option("--slot", default="main", show_default=True, help="Replaces what this node has in the slot.")
@click.option("--base", type=MODEL, help="What PATH was trained from; refused if it is not the group's base.")
@click.option("--weight", type=Weight(), default="1", show_default=True, help="Share in weighted strategies.")
@click.option("--meta", multiple=True, metavar="K=V", help="A note for people; never part of an output.")
@click.option(
    "--wait", "wait_holds", type=click.IntRange(0), default=0, help="Wait until K other nodes hold it."
)
@click.option(
    "--link",
    is_flag=True,
    help="Where no blocks can be shared: hard links to PATH. Do not change it afterwards.",
)
@command
def add(
    invocation: Invocation,
    *,
    group: str,
    file: str,
    kind: str,
    slot: str,
    base: str | None,
    weight: int,
    meta: tuple[str, ...],
    wait_holds: int,
    link: bool,
) -> None:
    """Contribute PATH to GROUP: a safetensors file, or a directory of shards with their index.

    To a group of adapters: a directory as PEFT saves LoRA adapters.

    It is checked against the schema of the group before a byte is copied. When the command ends, the
    contribution is durable on this node and announced to the others. How the tensors are spread over files
    changes no merge, and `contribution get` writes the same files again. With --type PATH is an artefact,
    which its header binds to a contribution of this node or to the set of all.
    """
    with invocation.client() as client:
        events = client.contribution_add(
            group,
            path=str(absolute(file)),
            slot=slot,
            base_path=absolute(base),
            weight=weight,
            meta=parse_pairs(meta, option="--meta"),
            wait_holds=wait_holds,
            type=kind,
            link=link,
        )
        added: ContributionAdded = watch(
            invocation,
            "contribution-add/1",
            events,
            show_plan=_show_plan,
            leaves="The node gives it up and keeps nothing of it, unless `contribution list` shows it.",
        )
    if invocation.is_json:
        say_json("contribution-add/1", added, event="result")
        return
    held = f", held by {count(added.holds, 'other node')}" if added.holds else ""
    say(f"contributed {added.contribution.tag}")
    say(
        f"  {_brought(added)} in {duration(added.duration_s)}, durable here{held}; "
        f"digest {short(added.contribution.digest)}"
    )
    if added.contribution.state in (ContributionState.HIDDEN, ContributionState.QUARANTINED):
        note(f"It does not count: {clean(added.contribution.reason)}.")
        note(f"  crdt-merge-node why {clean(group)}")


@contribution.command()
@click.argument("group", type=GROUP)
@click.argument("contribution")
@click.option("-o", "--output", type=PLACE, required=True, help="The file, or the directory, to write.")
@click.option(
    "--plain", is_flag=True, help="One file in the layout of this program, however its author had it."
)
@command
def get(invocation: Invocation, *, group: str, contribution: str, output: str, plain: bool) -> None:
    """Write a CONTRIBUTION of GROUP, named by its tag, its digest or a slot of this node.

    The files are byte for byte those that its author added: one file, or a directory of shards with their
    index. They appear whole or not at all.
    """
    with invocation.client() as client:
        events = client.contribution_get(
            group, contribution, output_path=str(absolute(output) or ""), plain=plain
        )
        written: ContributionWritten = watch(
            invocation, "contribution-get/1", events, leaves=f"{clean(output)} is as it was, or whole."
        )
    if invocation.is_json:
        say_json("contribution-get/1", written, event="result")
        return
    say(
        f"wrote {clean(written.path)}: {count(len(written.files), 'file')}, {size(written.nbytes)} in "
        f"{duration(written.duration_s)}"
    )
    same = "byte for byte as its author had it" if written.is_exact else "the same tensors in a plain file"
    rows = [(file.name, size(file.nbytes), file.sha256) for file in written.files]
    say(facts((("contribution", written.contribution.tag), ("files", same))))
    say(table(("FILE", "SIZE", "SHA-256"), rows))


@contribution.command("list")
@click.argument("group", type=GROUP)
@command
def list_(invocation: Invocation, group: str) -> None:
    """List the contributions of GROUP."""
    with invocation.client() as client:
        found = client.contribution_list(group)
    if invocation.is_json:
        say_json("contribution-list/1", contributions=found)
    else:
        show_contributions(found)


@contribution.command()
@click.argument("group", type=GROUP)
@click.argument("contribution")
@command
def show(invocation: Invocation, group: str, contribution: str) -> None:
    """Show one CONTRIBUTION of GROUP, named by its tag, its digest or a slot of this node."""
    with invocation.client() as client:
        found = client.contribution_show(group, contribution)
    if invocation.is_json:
        say_json("contribution-show/1", contribution=found)
        return
    missing = (
        f"{count(found.missing_blobs, 'blob')}, {size(found.missing_bytes)}" if found.missing_blobs else ""
    )
    say(f"contribution {found.tag}")
    say(
        facts(
            (
                ("state", f"{found.state}: {found.reason}" if found.reason else found.state),
                ("author", f"{found.author} {found.author_name}".strip()),
                ("slot", found.slot),
                ("type", found.type),
                ("weight", weight(found.weight)),
                ("content", found.content),
                ("digest", found.digest),
                ("size", f"{count(found.tensors, 'tensor')}, {size(found.nbytes)}"),
                ("missing", missing),
                ("held by", count(found.holders, "other node")),
                ("notes", params(found.meta) if found.meta else ""),
            )
        )
    )


@contribution.command()
@click.argument("group", type=GROUP)
@click.argument("target")
@ACT
@YES
@command
def remove(invocation: Invocation, group: str, target: str, act_path: str | None, yes: bool) -> None:
    """Remove a contribution of this node from GROUP: TARGET is a tag or a slot.

    A slot names every contribution in it that this node has seen. This cannot be undone, but the file can
    be contributed again. Administrators of the group remove others' too, named by their tags, with all that
    this node has seen in their slots.
    """
    with invocation.client() as client:
        found = client.contribution_list(group)
        if _is_of_another(found, target):
            request = ActRequest(kind="remove", targets=(target,))
            schema = "contribution-remove/1"
            carry_out(invocation, client, group, request, schema=schema, act_path=act_path, yes=yes)
            return
        if act_path is not None:
            raise click.UsageError("One's own contributions need no act: leave --act out.")
        if not yes:
            _confirm(found, group, target)
        removed = client.contribution_remove(group, target)
    if invocation.is_json:
        say_json("contribution-remove/1", removed)
        return
    say(f"removed {count(len(removed.tags), 'contribution')}")
    for tag in removed.tags:
        say(f"  {tag}")


@contribution.command()
@click.argument("group", type=GROUP)
@click.argument("contributions", nargs=-1, required=True)
@REASON
@ACT
@YES
@command
def ban(
    invocation: Invocation,
    *,
    group: str,
    contributions: tuple[str, ...],
    reason: str,
    act_path: str | None,
    yes: bool,
) -> None:
    """Ban the contents of CONTRIBUTIONS from GROUP, for good: tags, digests or content ids.

    Whoever contributed them, and whoever will: they are not used. Their bytes make room
    after a while, but are not destroyed: that is `erase`. Only administrators may, and if the group needs
    several, they sign an act.
    """
    request = ActRequest(kind="ban", targets=contributions, reason=reason)
    with invocation.client() as client:
        carry_out(invocation, client, group, request, schema="contribution-ban/1", act_path=act_path, yes=yes)


@contribution.command()
@click.argument("group", type=GROUP)
@click.argument("contributions", nargs=-1, required=True)
@REASON
@ACT
@YES
@command
def erase(
    invocation: Invocation,
    *,
    group: str,
    contributions: tuple[str, ...],
    reason: str,
    act_path: str | None,
    yes: bool,
) -> None:
    """Ban CONTRIBUTIONS from GROUP and destroy their bytes on every node, for good: tags or digests.

    With each, all that this node has seen in its slot. Tensors that other contributions or a base share
    stay. `group erasures` shows which nodes have done it. Backups and files that were written from them are
    not reached: make new ones. Only administrators may, and if the group needs several, they sign an act.
    """
    request = ActRequest(kind="erase", targets=contributions, reason=reason)
    with invocation.client() as client:
        carry_out(
            invocation, client, group, request, schema="contribution-erase/1", act_path=act_path, yes=yes
        )


def _is_of_another(found: tuple[ContributionInfo, ...], target: str) -> bool:
    """Tell whether a target is the tag of another node's contribution, and nothing of one's own."""
    if any(item.is_own and (item.slot == target or item.tag.startswith(target)) for item in found):
        return False
    return len(target) >= TAG_DIGITS_MIN and any(item.tag.startswith(target.lower()) for item in found)


def _confirm(found: tuple[ContributionInfo, ...], group: str, target: str) -> None:
    """Name what a remove will touch, and ask; without a terminal nobody can answer."""
    own = [item for item in found if item.is_own]
    touched = [item for item in own if item.slot == target] or [
        item for item in own if item.tag.startswith(target)
    ]
    if not touched:
        raise NotFoundError(
            f"this node has no contribution {target!r} in group {group}.",
            hint="`contribution list` shows tags and slots; only one's own can be removed.",
        )
    note(f"This removes from group {clean(group)}, on every node and for good:")
    note(_table_of(tuple(touched)))
    if not can_ask():
        raise click.UsageError("There is no terminal to ask on: give --yes.")
    click.confirm("Remove?", abort=True, err=True)


def _brought(added: ContributionAdded) -> str:
    """Say how the bytes got in."""
    if not added.placed_bytes:
        return f"{size(added.copied_bytes)} copied"
    return f"{size(added.placed_bytes)} kept without a copy, {size(added.copied_bytes)} copied"


_PLACEMENTS = {
    "shared": "the file system shares the blocks of the files: no second copy",
    "linked": "another name of the files, no second copy: what is written to them damages what is here",
}


def _show_plan(plan: ContributionPlan) -> None:
    say(f"{clean(plan.path)} fits group {clean(plan.group_name)}")
    fetch = f"{count(plan.fetching_peers, 'live peer')} will fetch what they lack"
    say(
        facts(
            (
                (plan.type, f"{count(plan.tensors, 'tensor')}, {size(plan.nbytes)}"),
                ("kept as", _PLACEMENTS.get(plan.placement, "")),
                ("to copy", f"at most {size(plan.new_bytes)}, {size(plan.free_bytes)} free"),
                ("slot", f"{plan.slot}, weight {weight(plan.weight)}"),
                ("replaces", plan.replaces),
                ("then", fetch if plan.fetching_peers else "no peer is connected; they fetch it later"),
            )
        )
    )


def show_contributions(found: tuple[ContributionInfo, ...]) -> None:
    """Print contributions as a table."""
    if not found:
        say("no contributions: `contribution add` makes one")
        return
    used = sum(item.state == "used" for item in found)
    say(f"{count(len(found), 'contribution')}, {used} ready to be resolved")
    say(_table_of(found))


def _table_of(found: tuple[ContributionInfo, ...]) -> str:
    rows = [
        (
            item.state,
            short(item.tag),
            (item.author_name or short(item.author)) + (" (this node)" if item.is_own else ""),
            item.slot,
            item.type,
            weight(item.weight),
            size(item.nbytes) if item.nbytes else "-",
            f"{count(item.missing_blobs, 'blob')}, {size(item.missing_bytes)}" if item.missing_blobs else "-",
            item.reason,
        )
        for item in found
    ]
    return table(("STATE", "TAG", "AUTHOR", "SLOT", "TYPE", "WEIGHT", "SIZE", "MISSING", "REASON"), rows)
