"""``demo``: the main job on real input, with real daemons, in under a minute."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import Invocation, command
from .output import note, say, say_json, size, table

if TYPE_CHECKING:
    from crdt_merge_node.demo.story import Outcome


@click.command()
@click.option("--seed", type=int, default=1, show_default=True, help="Of the data split and the training.")
@command
def demo(invocation: Invocation, *, seed: int) -> None:
    """Five daemons build one model from five shards, split, crash, heal and agree.

    Needs the `demo` extra (scikit-learn, for its digits). Exit status 0 only if all nodes converged, all
    files of a strategy have one SHA-256, and averaging beats both the base and the best individual.
    """
    # Asked for before anything starts: the story imports it only when five daemons already run.
    if importlib.util.find_spec("sklearn") is None:
        raise click.UsageError(
            "The digits come from scikit-learn, which is not installed: pip install 'crdt-merge-node[demo]'"
        )
    from crdt_merge_node.demo.story import Story

    with tempfile.TemporaryDirectory(prefix="cmn-") as directory:
        story = Story(seed=seed, tell=note if invocation.is_json else say, directory=Path(directory))
        outcome = asyncio.run(story.run())
    if invocation.is_json:
        say_json(
            "demo/1",
            **{f.name: getattr(outcome, f.name) for f in dataclasses.fields(outcome)},
            is_success=outcome.is_success,
        )
    else:
        _show(outcome)
    if not outcome.is_success:
        raise click.exceptions.Exit(1)


def _show(outcome: Outcome) -> None:
    names = {
        "base": "common base, before anybody trained",
        "individual_mean": "one node alone, mean of five",
        "individual_best": "one node alone, the best",
    }
    rows = [
        (names.get(name, f"merged, {name}"), f"{value:.1%}", "#" * round(40 * value))
        for name, value in outcome.accuracy.items()
    ]
    say("\naccuracy on 540 held-out images of all ten digits:")
    say(table(("model", "accuracy", ""), rows))
    say("  A node alone forgets the six digits that it never sees; merged, the nodes know all ten.")
    say(f"\n{size(outcome.bytes_on_wire)} on the wire, {outcome.seconds:.1f} s in all.")
    for problem in outcome.problems:
        say(f"problem: {problem}", colour="red")
    verdict = "converged: every node wrote the same bytes." if outcome.is_success else "NOT as it should be."
    say(verdict, colour="green" if outcome.is_success else "red")
