"""``compare``: what a change of code made better or worse."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from crdt_merge_node.cli.output import clean, say, say_json, table

from .options import JSON_FILE, command
from .watching import Watch

if TYPE_CHECKING:
    from crdt_merge_simulations.comparing import Comparison


@click.command()
@command
@click.argument("baseline", type=JSON_FILE)
@click.argument("other", type=JSON_FILE, required=False)
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    help="Per cent that may be worse.",
)
def compare(*, baseline: str, other: str | None, tolerance: float, is_json: bool) -> None:
    """Compare a result of `run --save` with OTHER, or with its plan carried out by the present code.

    Convergence, bytes, duplicates, hops, delivery. Exit 1 if something is worse by more than the tolerance.
    """
    from crdt_merge_simulations import worlds
    from crdt_merge_simulations.comparing import compare as compare_results
    from crdt_merge_simulations.documents import load, plan_in, read_result

    document = load(Path(baseline))
    before = read_result(document)
    if other is not None:
        after = read_result(load(Path(other)))
    else:
        with Watch(f"running {before.name}, seed {before.seed}"):
            after = worlds.run(plan_in(document))
    comparison = compare_results(before, after)
    share = tolerance / 100
    if is_json:
        _say_json(comparison, share)
    else:
        _show(comparison, share)
    if comparison.is_regression(share):
        raise click.exceptions.Exit(1)


def _say_json(comparison: Comparison, tolerance: float) -> None:
    say_json(
        "sim-compare/1",
        comparison,
        changes={figure.name: figure.change for figure in comparison.figures},
        worse=[figure.name for figure in comparison.worse(tolerance)],
        is_regression=comparison.is_regression(tolerance),
    )


def _show(comparison: Comparison, tolerance: float) -> None:
    rows = []
    for figure in comparison.figures:
        change = "" if figure.change is None else f"{figure.change:+.1%}"
        rows.append(
            (
                figure.name,
                _number(figure.before, figure.unit),
                _number(figure.after, figure.unit),
                change,
                figure.verdict(tolerance),
            )
        )
    say(table(("figure", "baseline", "now", "change", ""), rows))
    for line in comparison.newly_violated:
        say(f"  ✗ newly violated: {clean(line)}")
    for line in comparison.no_longer_violated:
        say(f"  ✓ no longer violated: {clean(line)}")
    if comparison.is_same_trace:
        say("  the traces are equal: nothing changed at all")
    elif not comparison.is_regression(tolerance):
        say(f"  nothing is worse by more than {tolerance:.0%}")


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "never" if unit == "s" else "-"
    text = f"{value:,.0f}" if value == int(value) else f"{value:,.3f}"
    return f"{text} {unit}".rstrip()
