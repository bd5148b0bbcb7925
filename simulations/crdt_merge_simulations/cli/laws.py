"""``laws``: the compliance matrix, the first two tiers of the paper's evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from crdt_merge_node.cli.output import note, say

from .options import WRITABLE, command
from .watching import Watch

if TYPE_CHECKING:
    from crdt_merge_simulations.laws import Matrix

SECONDS_MAX: Final = 120.0
PROGRAM: Final = "crdt-merge-sim laws"


@click.command()
@command
@click.option("--strategies", metavar="A,B", help="Only these; else every one that is registered.")
@click.option(
    "--sizes",
    default="4x4,128x128,checkpoint",
    show_default=True,
    help="Matrices by rows and columns; checkpoint: the tensors of BERT-tiny.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the models.")
@click.option("--jobs", type=click.IntRange(1), help="Processes; else one per core.")
@click.option(
    "--seconds-max",
    type=click.FloatRange(0),
    default=SECONDS_MAX,
    show_default=True,
    help="CPU time of one strategy at one size; what would take longer is skipped.",
)
@click.option("--html", type=WRITABLE, help="Write table and chart to look at: one file, no network.")
@click.option("--save", type=WRITABLE, help="Write the result as JSON.")
def laws(
    *,
    strategies: str | None,
    sizes: str,
    seed: int,
    jobs: int | None,
    seconds_max: float,
    html: str | None,
    save: str | None,
    is_json: bool,
) -> None:
    """Try every strategy on the laws of a CRDT: as an operator on two models, and through the state.

    Commutativity, associativity, idempotency, and three replicas that merge in three orders: how far apart
    are they afterwards? Exit 0 if every strategy keeps every law through the state, to the bit; else 7.
    """
    from crdt_merge_simulations.laws.page import render_html
    from crdt_merge_simulations.laws.telling import document, render_text

    names = [name.strip() for name in strategies.split(",")] if strategies else []
    matrix = _measure(names, [size.strip() for size in sizes.split(",")], seed, jobs, seconds_max)
    words = [*([f"--strategies {strategies}"] if strategies else []), f"--sizes {sizes} --seed {seed}"]
    words += [f"--seconds-max {seconds_max:g}"] if seconds_max != SECONDS_MAX else []
    replay = " ".join([PROGRAM, *words])
    text = json.dumps(document(matrix, replay))
    say(text if is_json else render_text(matrix))
    for path, content in ((save, text + "\n"), (html, render_html(matrix, replay))):
        if path is not None:
            Path(path).write_text(content, encoding="utf-8")
            note(f"wrote {path}")
    if not matrix.is_success:
        from .telling import VIOLATED

        raise click.exceptions.Exit(VIOLATED)


def _measure(names: list[str], sizes: list[str], seed: int, jobs: int | None, seconds_max: float) -> Matrix:
    from crdt_merge_protocol.strategies import registry

    from crdt_merge_simulations.laws import Entry, run

    done, total = 0, len(set(names) or registry.names()) * len(set(sizes))
    with Watch("laws") as watch:
        for found in run(names, sizes, seed=seed, jobs=jobs, seconds_max=seconds_max):
            if isinstance(found, Entry):
                done += 1
                watch.say(f"laws: {done} of {total}, {found.strategy} at {found.size} {found.status}")
            else:
                return found
    raise AssertionError("the matrix comes last")
