"""``group create|list|show|follow|admit|revoke|erasures``."""

from __future__ import annotations

from pathlib import Path

import click
from crdt_merge_protocol.packing import CONFIG_NAME

from crdt_merge_node.control.model import ActInfo, ActRequest, ErasureNode, GroupDetail, GroupInfo

from .act import ACT, REASON, YES, carry_out
from .adapter_options import adapter_options, adapter_params
from .app import SuggestingGroup
from .completing import GROUP, PEER
from .contribution import show_contributions
from .options import Invocation, command
from .output import clean, count, facts, note, say, say_json, short, table
from .policy import DTYPE, DTYPE_HELP, policy_facts
from .progress import follow as watch
from .status import contributions_text, missing_text, show_groups
from .values import MODEL, PARAM_HELP, Weight, absolute, parse_pairs


@click.group(cls=SuggestingGroup)
def group() -> None:
    """Make and see groups: models that are built together."""


@group.command()
@click.argument("name")
@click.option("--strategy", default="weight_average", show_default=True, help="How contributions are merged.")
@click.option("--param", "params", multiple=True, metavar="K=V", help=PARAM_HELP)
@click.option("--base", type=MODEL, help="Base model, a file or shards; also gives the schema.")
@click.option("--like", type=MODEL, help="A model, or an adapter, that gives the schema only.")
@click.option("--adapters", is_flag=True, help="Contributions are LoRA adapters; implied by --like ADAPTER.")
@adapter_options
@click.option("--dtype", type=DTYPE, help=DTYPE_HELP)
@click.option("--weight-cap", type=Weight(), default=0, help="Largest weight of a contribution.")
@click.option(
    "--holders", type=click.IntRange(0, 1000), default=0, help="Nodes that must hold a contribution."
)
@click.option(
    "--admin",
    "admins",
    multiple=True,
    metavar="NODE",
    help="Another administrator, for life: an id or a peer.",
)
@click.option(
    "--quorum",
    type=click.IntRange(1, 32),
    default=1,
    show_default=True,
    help="Administrators that must agree.",
)
@click.option("--admitted", is_flag=True, help="Only authors that administrators admitted count.")
@command
def create(
    invocation: Invocation,
    *,
    name: str,
    strategy: str,
    params: tuple[str, ...],
    base: str | None,
    like: str | None,
    adapters: bool,
    rank: str | None,
    resolve_to: str | None,
    max_rank: int | None,
    base_name: str | None,
    dtype: str | None,
    weight_cap: int,
    holders: int,
    admins: tuple[str, ...],
    quorum: int,
    admitted: bool,
) -> None:
    """Make a group called NAME, of which this node is an administrator.

    The schema (names, shapes and element types of the tensors) comes from --base or --like. In a group of
    adapters it says which weights adapters may change: all of a model, or those that another adapter changes.
    Who administers it, how many of them must agree, and whether authors are admitted, stays for life.
    """
    if base is None and like is None:
        raise click.UsageError("Give --base FILE or --like FILE: one of them gives the group its schema.")
    rules = adapter_params(rank=rank, resolve_to=resolve_to, max_rank=max_rank, base_name=base_name)
    implied = {"lora.output": ""} if adapters else {}
    with invocation.client() as client:
        events = client.group_create(
            name=name,
            strategy=strategy,
            params=implied | parse_pairs(params, option="--param") | rules,
            base_path=absolute(base),
            like_path=absolute(like),
            dtype=dtype or "",
            weight_cap=weight_cap,
            holders=holders,
            admins=admins,
            quorum=quorum,
            admitted=admitted,
        )
        made: GroupInfo = watch(invocation, "group-create/1", events)
    if invocation.is_json:
        say_json("group-create/1", event="result", group=made)
        return
    say(f"group {clean(made.name)} is made: {made.id}")
    note(_who(len(admins), quorum, is_admitted=admitted))
    if admitted:
        note(f"Next: crdt-merge-node group admit {clean(made.name)} NODE")
    what = "ADAPTER" if adapters or (like and (Path(like) / CONFIG_NAME).exists()) else "FILE"
    note(f"Next: crdt-merge-node contribution add {clean(made.name)} {what}")


@group.command("list")
@command
def list_(invocation: Invocation) -> None:
    """List the groups of the cluster."""
    with invocation.client() as client:
        groups = client.group_list()
    if invocation.is_json:
        say_json("group-list/1", groups=groups)
    else:
        show_groups(groups)


@group.command()
@click.argument("group", type=GROUP)
@command
def show(invocation: Invocation, group: str) -> None:
    """Show GROUP: its roots, its policy and its contributions."""
    with invocation.client() as client:
        detail = client.group_show(group)
    if invocation.is_json:
        say_json("group-show/1", detail)
    else:
        _show_detail(detail)


@group.command()
@click.argument("group", type=GROUP)
@click.option("--off", is_flag=True, help="Stop fetching; operations are still relayed.")
@command
def follow(invocation: Invocation, group: str, off: bool) -> None:
    """Fetch the tensors of GROUP from now on (the default for every group), or stop it with --off."""
    with invocation.client() as client:
        found = client.group_follow(group, follow=not off)
    if invocation.is_json:
        say_json("group-follow/1", group=found)
    else:
        say(f"group {clean(found.name)} is {'followed' if found.is_followed else 'not followed'}")


@group.command()
@click.argument("group", type=GROUP)
@click.argument("node", type=PEER)
@ACT
@YES
@command
def admit(invocation: Invocation, group: str, node: str, act_path: str | None, yes: bool) -> None:
    """Let NODE, a peer or the id of any node, count as an author of GROUP from now on.

    Only in a group that admits its authors (`group create --admitted`), and only by its administrators.
    """
    request = ActRequest(kind="admit", targets=(node,))
    with invocation.client() as client:
        carry_out(invocation, client, group, request, schema="group-admit/1", act_path=act_path, yes=yes)


@group.command()
@click.argument("group", type=GROUP)
@click.argument("node", type=PEER)
@REASON
@click.option(
    "--head", "heads", multiple=True, metavar="OPERATION", help="The last operations that still count."
)
@click.option("--nothing", is_flag=True, help="Nothing of the key counts, not even what came before.")
@ACT
@YES
@command
def revoke(
    invocation: Invocation,
    *,
    group: str,
    node: str,
    reason: str,
    heads: tuple[str, ...],
    nothing: bool,
    act_path: str | None,
    yes: bool,
) -> None:
    """Let the key of NODE count no more in GROUP, for good: it was stolen, or gets a successor.

    What this node has seen goes on counting, or what the operations of --head were made after, or --nothing.
    Whatever else the key signed is dropped everywhere. Only administrators of the group may.
    """
    if heads and nothing:
        raise click.UsageError("--head and --nothing contradict each other.")
    request = ActRequest(kind="revoke", targets=(node,), reason=reason, heads=heads, counts_nothing=nothing)
    with invocation.client() as client:
        carry_out(invocation, client, group, request, schema="group-revoke/1", act_path=act_path, yes=yes)


@group.command()
@click.argument("group", type=GROUP)
@command
def erasures(invocation: Invocation, group: str) -> None:
    """Show which nodes have destroyed what was erased from GROUP, and which have not said so."""
    with invocation.client() as client:
        found = client.erasure_list(group)
    if invocation.is_json:
        say_json("group-erasures/1", erasures=found)
        return
    if not found:
        say("nothing was erased: `contribution erase` does")
    for erasure in found:
        say(f"act {short(erasure.act.operation)}: {clean(erasure.act.reason)}")
        waiting = _nodes_text(erasure.outstanding) or "nobody: every known node has said so"
        say(facts((("gone from", _nodes_text(erasure.done)), ("outstanding", waiting))))


def _nodes_text(nodes: tuple[ErasureNode, ...]) -> str:
    return ", ".join(node.name or short(node.id) for node in nodes)


def _who(others: int, quorum: int, *, is_admitted: bool) -> str:
    """Say who can do what in a new group."""
    who = (
        "Authors count once they are admitted"
        if is_admitted
        else "Anyone in the cluster can contribute to it"
    )
    if not others:
        return f"{who}; one admin, this node, decides alone."
    return f"{who}; {quorum} of {others + 1} administrators decide."


def _show_acts(acts: tuple[ActInfo, ...]) -> None:
    if acts:
        say("acts of administrators")
        rows = [(info.kind, short(info.operation), _named(info), info.reason) for info in acts]
        say(table(("KIND", "ACT", "NAMES", "REASON"), rows))


def _named(info: ActInfo) -> str:
    """Return what an act is about: the first of it, in words, and how many more."""
    if not info.items:
        return "-"
    rest = len(info.items) - 1
    return info.items[0].what + (f" and {rest} more" if rest else "")


def _show_detail(detail: GroupDetail) -> None:
    info = detail.info
    say(f"group {clean(info.name)}")
    converged = f"{info.converged_peers} of {count(info.live_peers, 'peer')}"
    say(
        facts(
            (
                ("id", info.id),
                ("followed", "yes" if info.is_followed else "no"),
                ("operations", str(info.operations)),
                ("contributions", contributions_text(info)),
                ("missing", missing_text(info)),
                ("sync root", f"{info.sync_root}, at {converged}"),
                ("used root", info.used_root),
                ("resolve key", info.resolve_key),
                ("shows nothing", info.unjudged),
            )
        )
    )
    say("policy")
    say(facts(policy_facts(detail.policy)))
    show_contributions(detail.contributions)
    _show_acts(detail.acts)
    if detail.outputs:
        say("outputs that nodes announced")
        rows = [
            (
                short(output.node),
                short(output.resolve_key),
                output.output_digest,
                "" if output.is_agreeing else "DIFFERS",
            )
            for output in detail.outputs
        ]
        say(table(("NODE", "RESOLVE KEY", "OUTPUT DIGEST", ""), rows))
