"""``lora show|merge|expand``: low-rank adapters in PEFT's format, without a daemon."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from crdt_merge_node.control.model import Progress

from .app import SuggestingGroup
from .options import Invocation, command
from .output import clean, count, facts, note, say, say_json, table
from .progress import view_for
from .values import FILE_PARAM_HELP, MODEL, OUTPUT, ByteSize, Weights, parse_pairs, refuse_clashes

if TYPE_CHECKING:
    from crdt_merge_node.lora import AdapterResult

DIRECTORY = click.Path(exists=True, file_okay=False)


@click.group(cls=SuggestingGroup)
def lora() -> None:
    """Merge low-rank adapters. They are merged as the differences they stand for, never factor by factor."""


@lora.command()
@click.argument("adapter", type=DIRECTORY)
@command
def show(invocation: Invocation, adapter: str) -> None:
    """Show what ADAPTER, a directory in PEFT's format, changes."""
    from crdt_merge_node.lora import read_adapter
    from crdt_merge_node.ports import SystemFs

    found = read_adapter(Path(adapter), SystemFs())
    if invocation.is_json:
        modules = [
            {
                "module": module,
                "rank": pair.rank,
                "scale": found.scale(module),
                "down": list(pair.down.shape),
                "up": list(pair.up.shape),
                "dtype": pair.down.dtype,
            }
            for module, pair in found.pairs.items()
        ]
        say_json("lora-show/1", base=found.base_name, modules=modules, whole=list(found.others))
        return
    say(f"{count(len(found.pairs), 'module')} of base {clean(found.base_name) or 'unnamed'}")
    rows = [
        (
            module,
            str(pair.rank),
            f"{found.scale(module):g}",
            "x".join(map(str, (pair.up.shape[0], *pair.down.shape[1:]))),
            pair.down.dtype,
        )
        for module, pair in found.pairs.items()
    ]
    say(table(("module", "rank", "scale", "difference", "type"), rows))
    if found.others:
        say(f"saved whole: {', '.join(map(clean, found.others))}")


@lora.command()
@click.argument("adapters", nargs=-1, required=True, type=DIRECTORY, metavar="ADAPTER...")
@click.option("-o", "--output", required=True, type=click.Path(), help="Directory; with --base a file.")
@click.option("--strategy", default="weight_average", show_default=True, help="How they are merged.")
@click.option("--param", "params", multiple=True, metavar="K=V", help=FILE_PARAM_HELP)
@click.option("--weight", "weights", type=Weights(), help="One per ADAPTER, in order, separated by commas.")
@click.option(
    "--rank", default="auto", show_default=True, help="sum, max, min, mean, energy:SHARE, or a number."
)
@click.option("--base", type=MODEL, help="Write this model, a file or shards, with the differences added.")
@click.option("--dtype", default="", help="Element type of what is written.")
@click.option("--memory", type=ByteSize(), default="512MiB", show_default=True, help="Budget.")
@command
def merge(
    invocation: Invocation,
    *,
    adapters: tuple[str, ...],
    output: str,
    strategy: str,
    params: tuple[str, ...],
    weights: list[int] | None,
    rank: str,
    base: str | None,
    dtype: str,
    memory: int,
) -> None:
    """Merge ADAPTERs of one base model, as a group of adapters would, to the same bytes.

    weight_average, linear and task_arithmetic give an adapter whose rank is the sum of the ranks, or less
    with --rank. Other strategies work on elements: they give the whole differences, or with --rank an adapter
    and what it lost.
    """
    from crdt_merge_node.lora import merge_adapters

    refuse_clashes([output], [*adapters, base])
    with view_for(invocation, "lora-merge/1") as view:
        result = merge_adapters(
            [Path(adapter) for adapter in adapters],
            Path(output),
            strategy=strategy,
            params=parse_pairs(params, option="--param"),
            weights=weights,
            rank=rank,
            base=Path(base) if base else None,
            dtype=dtype.upper(),
            memory_bytes=memory,
            progress=lambda done, total, step: view.show(
                Progress(step=step, done_bytes=done, total_bytes=total)
            ),
        )
    _answer(invocation, "lora-merge/1", result)


@lora.command()
@click.argument("adapter", type=DIRECTORY)
@click.option("-o", "--output", required=True, type=OUTPUT, help="The safetensors file to write.")
@click.option("--base", type=MODEL, help="Write this model, a file or shards, with the difference added.")
@click.option("--dtype", default="", help="Element type of what is written; else F32, or that of the base.")
@command
def expand(invocation: Invocation, adapter: str, output: str, base: str | None, dtype: str) -> None:
    """Write the difference that ADAPTER stands for, or the model that it makes of a base.

    A group of whole models takes the latter as a contribution. Adapters of DoRA need --base: what they change
    depends on it.
    """
    refuse_clashes([output], [adapter, base])
    from crdt_merge_node.lora import expand_adapter

    result = expand_adapter(
        Path(adapter), Path(output), base=Path(base) if base else None, dtype=dtype.upper()
    )
    _answer(invocation, "lora-expand/1", result)


def _answer(invocation: Invocation, schema: str, result: AdapterResult) -> None:
    if invocation.is_json:
        say_json(
            schema,
            event="result",
            paths=[str(path) for path in result.paths],
            modules=result.modules,
            ranks=dict(result.ranks),
            dropped=dict(result.dropped),
            warnings=list(result.warnings),
        )
        return
    say(f"wrote {', '.join(clean(str(path)) for path in result.paths)}")
    ranks = sorted(set(result.ranks.values()))
    worst = max(result.dropped.values(), default=0.0)
    say(
        facts(
            (
                ("modules", str(result.modules)),
                ("ranks", f"{ranks[0]} to {ranks[-1]}" if len(ranks) > 1 else "".join(map(str, ranks))),
                ("lost", f"at most {worst:.2%} of a module's squared norm" if worst else ""),
            )
        )
    )
    for warning in result.warnings:
        note(f"warning: {clean(warning)}")
