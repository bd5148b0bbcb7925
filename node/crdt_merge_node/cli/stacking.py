"""``merge --config`` of a mergekit YAML file whose slices are stacked, not merged."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from crdt_merge_node.control.model import Progress

from .options import Invocation
from .output import clean, count, duration, facts, note, say, say_json, size
from .progress import view_for
from .values import read_text, refuse_clashes, shard_bytes_of

if TYPE_CHECKING:
    from crdt_merge_node.recipes.stacking import Stack

ONLY_STACKED: Final = "Slices are stacked, not merged: only --output, --shard-size and --dtype apply."


def stack_in(config: str) -> Stack | None:
    """Return the stack that a YAML file describes; None: it describes a merge."""
    from crdt_merge_node.recipes.stacking import parse_stack

    return parse_stack(read_text(config))


def write_stack_of(
    invocation: Invocation,
    stack: Stack,
    *,
    config: str,
    output: str | None,
    shard_size: int | None,
    dtype: str,
) -> None:
    """Write the model that a stack is, and say what was written."""
    from crdt_merge_node.lora.sinks import Target
    from crdt_merge_node.ports import SystemFs, SystemRng
    from crdt_merge_node.recipes.stacking import write_stack

    if output is None:
        raise click.UsageError("Missing option '-o' / '--output'.")
    models = list(dict.fromkeys(each.model for each in stack.slices))
    for name in models:
        if not Path(name).exists():
            raise click.UsageError(f"{config} names the model {clean(name)}, which is no file here.")
    refuse_clashes([output], [*models, config])
    begun = time.monotonic()
    target = Target(Path(output), dtype.upper(), SystemFs(), SystemRng(), shard_bytes_of(output, shard_size))
    with view_for(invocation, "stack/1") as view:
        written, misfits = write_stack(
            stack, target, path_of=Path,
            progress=lambda done, total, step: view.show(
                Progress(step=step, done_bytes=done, total_bytes=total)
            ),
        )  # fmt: skip
    elapsed = time.monotonic() - begun
    warnings = [
        *stack.notes,
        *(
            f"{name}: {number} elements did not fit the output type; the largest that fits was written."
            for name, number in sorted(misfits.items())
        ),
    ]
    if invocation.is_json:
        say_json(
            "stack/1",
            event="result",
            path=output,
            inputs=len(models),
            slices=len(stack.slices),
            layers=stack.layers,
            output_digest=written.output_digest.hex(),
            file_sha256=written.sha256.hex(),
            nbytes=written.nbytes,
            duration_s=elapsed,
            warnings=warnings,
        )
        return
    say(f"wrote {clean(output)}: {size(written.nbytes)} in {duration(elapsed)}")
    stacked = f"{count(len(stack.slices), 'slice')} of {count(len(models), 'model')}, {stack.layers} layers"
    say(
        facts(
            (("stacked", stacked), ("digest", written.output_digest.hex()), ("sha-256", written.sha256.hex()))
        )
    )
    note(
        f"note: its config.json is that of the first model with {stack.layers} layers: num_hidden_layers, "
        "and whatever lists have one entry per layer."
    )
    for warning in warnings:
        note(f"warning: {clean(warning)}")
