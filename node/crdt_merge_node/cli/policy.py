"""``policy show|set|import``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import click
from crdt_merge_protocol.adapter_rules import split_params
from crdt_merge_protocol.blobs import ANY_FLOAT, POLICY_DTYPES

from crdt_merge_node.control.model import Act, PolicyChanges, PolicyInfo

from .act import ACT, hand_over
from .adapter_options import adapter_options, adapter_params, rules_in
from .app import SuggestingGroup
from .completing import GROUP
from .options import Invocation, command
from .output import clean, count, facts, note, params, say, say_json, short, size, weight
from .progress import follow as watch
from .values import MODEL, READABLE, Weight, absolute, parse_pairs, read_text

DTYPE: Final = click.Choice([dtype for dtype in POLICY_DTYPES if dtype], case_sensitive=False)
DTYPE_HELP: Final = "Of the output; any, or any:F32, also takes contributions of other float types."


@click.group(cls=SuggestingGroup)
def policy() -> None:
    """See and change how a group merges. A change reaches every node and changes the resolve key."""


@policy.command()
@click.argument("group", type=GROUP)
@command
def show(invocation: Invocation, group: str) -> None:
    """Show the current policy of GROUP."""
    with invocation.client() as client:
        found = client.policy_show(group)
    if invocation.is_json:
        say_json("policy-show/1", policy=found)
        return
    say(f"policy of group {clean(found.group_name)}")
    say(facts(policy_facts(found)))


@policy.command("set")
@click.argument("group", type=GROUP)
@click.option("--strategy", help="How contributions are merged.")
@click.option("--param", "params", multiple=True, metavar="K=V", help="Parameter; an empty value removes it.")
@click.option("--base", type=MODEL, help="Base model, a file or shards.")
@adapter_options
@click.option("--dtype", type=DTYPE, help=DTYPE_HELP)
@click.option("--weight-cap", type=Weight(), help="Largest weight of a contribution.")
@click.option("--holders", type=click.IntRange(0, 1000), help="Nodes that must hold a contribution.")
@ACT
@command
def set_(
    invocation: Invocation,
    *,
    group: str,
    strategy: str | None,
    params: tuple[str, ...],
    base: str | None,
    rank: str | None,
    resolve_to: str | None,
    max_rank: int | None,
    base_name: str | None,
    dtype: str | None,
    weight_cap: int | None,
    holders: int | None,
    act_path: str | None,
) -> None:
    """Change the policy of GROUP; what is not given stays as it is."""
    rules = adapter_params(rank=rank, resolve_to=resolve_to, max_rank=max_rank, base_name=base_name)
    changes = PolicyChanges(
        strategy=strategy,
        params=parse_pairs(params, option="--param") | rules,
        base_path=absolute(base),
        dtype=dtype,
        weight_cap=weight_cap,
        holders=holders,
    )
    if changes == PolicyChanges():
        raise click.UsageError(
            "Nothing to change: give --strategy, --param, --base, --dtype or another option."
        )
    with invocation.client() as client:
        if act_path is not None:
            events = client.policy_set(group, changes, propose=True)
            proposed: Act = watch(invocation, "policy-set/1", events)
            hand_over(invocation, proposed, act_path, schema="policy-set/1")
            return
        before = client.policy_show(group)
        after: PolicyInfo = watch(invocation, "policy-set/1", client.policy_set(group, changes))
    if invocation.is_json:
        say_json("policy-set/1", event="result", policy=after, is_changed=_is_changed(before, after))
    else:
        _say_changes(before, after)


@policy.command("import")
@click.argument("group", type=GROUP)
@click.argument("file", type=READABLE)
@click.option(
    "--model", "models", multiple=True, metavar="NAME=CONTRIBUTION", help="Which contribution NAME is."
)
@click.option("--like", type=MODEL, help="A model with the tensors, for values by layer.")
@click.option("--base", type=MODEL, help="The file or directory of base_model.")
@click.option("--dry-run", is_flag=True, help="Show what would be set.")
@ACT
@command
def import_(
    invocation: Invocation,
    *,
    group: str,
    file: str,
    models: tuple[str, ...],
    like: str | None,
    base: str | None,
    dry_run: bool,
    act_path: str | None,
) -> None:
    """Take the policy of GROUP from a mergekit YAML FILE.

    A model of FILE is the contribution that --model says, else the one whose tag, digest or own slot is its
    name. What a policy cannot say exactly is refused by name.
    """
    from crdt_merge_node.recipes.mergekit import ENDS, read_mergekit

    config = read_mergekit(read_text(file))
    if config.base is not None and base is None and config.method not in ENDS:
        raise click.UsageError(f"{file} merges differences from {clean(config.base)}: name its file, --base.")
    which = parse_pairs(models, option="--model")
    with invocation.client() as client:
        recipe = config.recipe(
            _tensor_names(like or base),
            lambda model: bytes.fromhex(client.contribution_show(group, which.get(model, model)).digest),
        )
        for remark in recipe.notes:
            note(f"note: {remark}")
        changes = PolicyChanges(
            strategy=recipe.strategy,
            params=dict(recipe.params),
            base_path=absolute(base) if recipe.base is not None else None,
            dtype=recipe.dtype or None,
        )
        if dry_run:
            _show_changes(invocation, changes)
            return
        before = client.policy_show(group)
        # Parameters of the policy so far that the file does not give are removed.
        mine = split_params(before.params)[0]  # How adapters are merged is no matter of the file.
        gone = {name: "" for name in mine if name not in recipe.params}
        changes = replace(changes, params={**gone, **recipe.params})
        if act_path is not None:
            events = client.policy_set(group, changes, propose=True)
            proposed: Act = watch(invocation, "policy-import/1", events)
            hand_over(invocation, proposed, act_path, schema="policy-import/1")
            return
        after: PolicyInfo = watch(invocation, "policy-import/1", client.policy_set(group, changes))
    if invocation.is_json:
        notes, is_changed = list(recipe.notes), _is_changed(before, after)
        say_json("policy-import/1", event="result", policy=after, notes=notes, is_changed=is_changed)
    else:
        _say_changes(before, after)


def _tensor_names(path: str | None) -> list[str]:
    """Return the names of the tensors of a file; without one, values by layer have no layers."""
    if path is None:
        return []
    from crdt_merge_node.checkpoints.reading import read_checkpoint
    from crdt_merge_node.ports import SystemFs

    return [entry.spec.name for entry in read_checkpoint(SystemFs(), Path(path)).entries]


def _show_changes(invocation: Invocation, changes: PolicyChanges) -> None:
    if invocation.is_json:
        say_json("policy-import/1", event="plan", changes=changes)
        return
    say(
        facts(
            [
                ("strategy", changes.strategy or ""),
                ("parameters", params(changes.params)),
                ("base", changes.base_path or "none"),
                ("output type", _type_text(changes.dtype) if changes.dtype else "unchanged"),
            ]
        )
    )


def policy_facts(found: PolicyInfo) -> list[tuple[str, str]]:
    """Return a policy as labelled values."""
    model = f"{count(found.tensors, 'tensor')}, {size(found.nbytes)}" if found.tensors else "not here yet"
    return [
        ("version", str(found.version)),
        *_adapter_facts(found),
        ("strategy", f"{found.strategy} {found.strategy_version}".strip()),
        ("parameters", params(split_params(found.params)[0])),
        ("base", found.base or "none"),
        ("schema", f"{short(found.schema)}: {model}"),
        ("output type", _type_text(found.dtype)),
        ("weight cap", weight(found.weight_cap)),
        ("holders", str(found.holders)),
        ("seed rule", found.seed_rule),
        ("admins", f"{found.quorum} of {', '.join(short(admin) for admin in found.admins)}"),
    ]


def _adapter_facts(found: PolicyInfo) -> list[tuple[str, str]]:
    """Return what contributions are, and of adapters what they become."""
    rules = rules_in(found.params)
    if rules is None:
        return [("contributions", "whole models"), ("resolve to", "")]
    into = {"adapter": f"an adapter of rank {rules.rank}", "delta": "whole differences", "model": "a model"}
    base = f" trained from {clean(rules.base_name)}" if rules.base_name else ""
    what = f"LoRA adapters{base}, of rank {rules.rank_max} at most"
    return [("contributions", what), ("resolve to", into[rules.output])]


def _is_changed(before: PolicyInfo, after: PolicyInfo) -> bool:
    return after.version != before.version


def _say_changes(before: PolicyInfo, after: PolicyInfo) -> None:
    name = clean(after.group_name)
    if not _is_changed(before, after):
        say(f"nothing changes: version {after.version} of the policy of group {name} says so already")
        return
    say(f"policy of group {name} is now version {after.version}")
    pairs = zip(policy_facts(before), policy_facts(after), strict=True)
    say(facts([(label, f"{old} -> {new}") for (label, old), (_, new) in pairs if old != new]))


def _type_text(dtype: str) -> str:
    taken, _, written = dtype.rpartition(":") if dtype != ANY_FLOAT else (dtype, "", "")
    text = written or "that of the base, else the widest input"
    return f"{text}; models may have any float types" if taken else text
