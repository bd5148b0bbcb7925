"""``group create|list|show|follow``."""

from __future__ import annotations

from pathlib import Path

import click
from crdt_merge_protocol.packing import CONFIG_NAME

from crdt_merge_node.control.model import GroupDetail, GroupInfo

from .adapter_options import adapter_options, adapter_params
from .app import SuggestingGroup
from .completing import GROUP
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
) -> None:
    """Make a group called NAME, of which this node is the admin.

    The schema (names, shapes and element types of the tensors) comes from --base or --like. In a group of
    adapters it says which weights adapters may change: all of a model, or those that another adapter changes.
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
        )
        made: GroupInfo = watch(invocation, "group-create/1", events)
    if invocation.is_json:
        say_json("group-create/1", event="result", group=made)
        return
    say(f"group {clean(made.name)} is made: {made.id}")
    note("Anyone in the cluster can contribute to it; one admin, this node, decides its policy alone.")
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
