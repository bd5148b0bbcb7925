"""``act show|sign|submit``, and what every command does that needs administrators."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from crdt_merge_node.control.model import Act, ActInfo, ActRequest
from crdt_merge_node.errors import QuorumError

from .app import SuggestingGroup
from .options import Invocation, command
from .output import can_ask, clean, count, facts, note, say, say_json, short, table
from .values import PLACE, READABLE, absolute, read_text

if TYPE_CHECKING:
    from crdt_merge_node.control.client import Client

ACT = click.option(
    "--act",
    "act_path",
    type=PLACE,
    metavar="FILE",
    help="Write the act there for others to sign, and do nothing.",
)
"""The option of every command that makes an act."""
YES = click.option("--yes", is_flag=True, help="Do not ask.")
REASON = click.option("--reason", required=True, help="Why, for people; it stays in the group for good.")
_DONE: Final = {
    "policy": "changes the policy",
    "remove": "removes contributions of others",
    "ban": "bans contents, whoever contributes them, for good",
    "erase": "bans contents for good and destroys their bytes on every node",
    "admit": "lets an author count",
    "revoke": "lets a key count no more",
}


@click.group(cls=SuggestingGroup)
def act() -> None:
    """Sign what administrators of a group decide together, and bring it into the group.

    Commands that need several administrators write an act with --act FILE. The others sign the file on their
    nodes, one after another; any node submits it once enough have.
    """


@act.command()
@click.argument("file", type=READABLE)
@command
def show(invocation: Invocation, file: str) -> None:
    """Show what the act in FILE does, and who has signed it."""
    text = read_text(file)
    with invocation.client() as client:
        info = client.act_show(text)
    if invocation.is_json:
        say_json("act-show/1", act=info)
    else:
        _show(info)


@act.command()
@click.argument("file", type=READABLE)
@YES
@command
def sign(invocation: Invocation, file: str, yes: bool) -> None:
    """Add the signature of this node, an administrator of the group, to the act in FILE."""
    text = read_text(file)
    with invocation.client() as client:
        if not yes:
            _ask(client.act_show(text), "Sign?")
        signed = client.act_sign(text)
    _write(Path(file), signed.text)
    if invocation.is_json:
        say_json("act-sign/1", path=file, act=signed.info)
        return
    say(f"signed {clean(file)}")
    _next(signed.info, file)


@act.command()
@click.argument("file", type=READABLE)
@command
def submit(invocation: Invocation, file: str) -> None:
    """Bring the act in FILE into its group: it takes effect on every node, for good."""
    text = read_text(file)
    with invocation.client() as client:
        info = client.act_submit(text)
    if invocation.is_json:
        say_json("act-submit/1", act=info)
    else:
        say(f"done: {info.kind} in group {clean(info.group_name)}, act {info.operation}")


def carry_out(
    invocation: Invocation,
    client: Client,
    group: str,
    request: ActRequest,
    *,
    schema: str,
    act_path: str | None,
    yes: bool,
) -> None:
    """Do what administrators may: at once where one signature is enough, else by an act for others."""
    proposed = client.act_propose(group, request)
    if act_path is not None:
        hand_over(invocation, proposed, act_path, schema=schema)
        return
    if not yes and not proposed.info.needed:
        _ask(proposed.info, f"{request.kind.capitalize()}?")
    try:
        info = client.act_submit(proposed.text)
    except QuorumError as error:
        raise QuorumError(
            error.message, hint="The same command with --act FILE writes the act for the others to sign."
        ) from error
    if invocation.is_json:
        say_json(schema, act=info)
        return
    say(f"done: {info.kind} in group {clean(info.group_name)}, act {info.operation}")
    say(_lines(info))


def hand_over(invocation: Invocation, proposed: Act, path: str, *, schema: str) -> None:
    """Write an act to a file, and say how it goes on."""
    place = absolute(path) or path
    _write(Path(place), proposed.text)
    if invocation.is_json:
        say_json(schema, path=place, act=proposed.info)
        return
    say(f"wrote {clean(place)}: nothing has happened yet")
    _next(proposed.info, path)


def _next(info: ActInfo, path: str) -> None:
    if info.operation:
        note(f"It is in force already: operation {info.operation}")
    elif info.needed:
        others = [short(admin) for admin in info.admins if admin not in info.signers]
        note(f"{count(info.needed, 'signature')} more, of {', '.join(others)}:")
        note(f"  crdt-merge-node act sign {clean(path)}")
    else:
        note(f"Enough have signed. On any node: crdt-merge-node act submit {clean(path)}")


def _ask(info: ActInfo, question: str) -> None:
    """Name what an act will touch, and ask; without a terminal nobody can answer."""
    note(f"This {_DONE.get(info.kind, info.kind)}, in group {clean(info.group_name)}:")
    note(_lines(info))
    if not can_ask():
        raise click.UsageError("There is no terminal to ask on: give --yes.")
    click.confirm(question, abort=True, err=True)


def _show(info: ActInfo) -> None:
    say(f"act of group {clean(info.group_name)}: {info.kind}")
    signed = ", ".join(short(signer) for signer in info.signers) or "nobody"
    state = f"in force, operation {info.operation}" if info.operation else "not submitted yet"
    say(
        facts(
            (
                ("reason", info.reason),
                ("signed by", f"{signed}: {len(info.signers)} of {info.quorum}"),
                ("administrators", ", ".join(short(admin) for admin in info.admins)),
                ("state", state),
            )
        )
    )
    say(_lines(info))


def _lines(info: ActInfo) -> str:
    lines = [table(("ID", "WHAT"), [(short(item.id), item.what) for item in info.items])]
    lines += [f"  {clean(detail)}" for detail in info.details]
    return "\n".join(line for line in lines if line)


def _write(path: Path, text: str) -> None:
    """Replace a file as a whole."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
