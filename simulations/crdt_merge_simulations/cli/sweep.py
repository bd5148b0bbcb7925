"""``sweep``: many seeds of a scenario."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click
from crdt_merge_node.cli.output import count, duration, say, say_json

from .options import Choice, command
from .watching import Watch

if TYPE_CHECKING:
    from crdt_merge_simulations.sweeping import Tally


@click.command()
@command
@click.argument("name", metavar="SCENARIO")
@click.option("--nodes", type=click.IntRange(1), help="Instead of as many as the scenario has.")
@click.option("--seed", type=int, default=1, show_default=True, help="The first one.")
@click.option("--seeds", type=click.IntRange(1), default=100, show_default=True, help="How many.")
@click.option("--jobs", type=click.IntRange(1), help="Processes; else one per core.")
@click.option("--ray", metavar="ADDRESS", help="Spread the seeds over this Ray cluster (extra: ray).")
@click.option("--save", type=click.Path(file_okay=False), help="Directory for one plan per kind of failure.")
def sweep(
    *,
    name: str,
    nodes: int | None,
    seed: int,
    seeds: int,
    jobs: int | None,
    ray: str | None,
    save: str | None,
    is_json: bool,
) -> None:
    """Run many seeds of SCENARIO on all cores; failures that are alike are reported once.

    With --json: an object per seed, then one with the sum.
    """
    from crdt_merge_simulations import sweeping

    choice = Choice(name=name, nodes=nodes)
    scenario = choice.scenario()
    numbers = range(seed, seed + seeds)
    tally = sweeping.Tally()
    outcomes = (
        sweeping.sweep_on_ray(scenario, numbers, ray)
        if ray is not None
        else sweeping.sweep(scenario, numbers, jobs=jobs)
    )
    with Watch(f"sweeping {scenario.name}: {count(seeds, 'seed')}") as watch:
        for outcome in outcomes:
            tally.add(outcome)
            if is_json:
                say_json("sim-sweep/1", outcome, event="seed")
            watch.say(f"sweeping {scenario.name}: {tally.runs}/{seeds} seeds, {tally.failed} failed")
    replays = {cause: choice.command(found[0]) for cause, found in tally.causes.items()}
    if save is not None:
        _save(choice, tally, Path(save))
    if is_json:
        say_json("sim-sweep/1", tally, event="sum", blind_spots=tally.blind_spots, replays=replays)
    else:
        _show(tally, replays)
    if tally.failed:
        raise click.exceptions.Exit(1)


def _show(tally: Tally, replays: dict[str, str]) -> None:
    from crdt_merge_simulations.comparing import quantile

    say(f"{count(tally.runs, 'seed')}, {tally.failed} failed")
    median, last = quantile(tally.converged_s, 0.5), quantile(tally.converged_s, 1.0)
    if median is not None and last is not None:
        say(f"  converged after the last fault: median {duration(median)}, at most {duration(last)}")
    for cause, seeds in sorted(tally.causes.items(), key=lambda item: (-len(item[1]), item[0])):
        shown = ", ".join(map(str, seeds[:10])) + (" …" if len(seeds) > 10 else "")
        say(f"  ✗ {cause}")
        say(f"      {count(len(seeds), 'seed')}: {shown}")
        say(f"      {replays[cause]}")
    if tally.sometimes:
        happened = ((name, runs) for name, runs in sorted(tally.sometimes.items()) if runs)
        say("  exercised in so many runs: " + ", ".join(f"{name} {runs}" for name, runs in happened))
    if tally.blind_spots:
        say("  never happened, so nothing is known of it: " + ", ".join(tally.blind_spots))


def _save(choice: Choice, tally: Tally, directory: Path) -> None:
    """Write the plan of the first seed of each kind of failure, for replay and shrink."""
    from crdt_merge_simulations.documents import plan_document

    directory.mkdir(parents=True, exist_ok=True)
    for seed in sorted({seeds[0] for seeds in tally.causes.values()}):
        plan = choice.plan(seed)
        path = directory / f"{plan.scenario.name}-{seed}.json"
        path.write_text(json.dumps(plan_document(plan)) + "\n", encoding="utf-8")
