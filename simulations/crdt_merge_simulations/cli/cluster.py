"""``cluster``: the same scenarios on real daemons, in real time."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Final

import click

from .options import WRITABLE, command
from .telling import Answer, answer_options, end

NETWORKS: Final = ("auto", "namespaces", "loopback")


@click.command()
@command
@click.argument("name", metavar="SCENARIO")
@click.option("--seed", type=int, default=1, show_default=True, help="Decides acts and faults, not timing.")
@click.option("--nodes", type=click.IntRange(1), help="Instead of as many as the scenario has.")
@click.option("--duration", "duration_s", type=click.FloatRange(min=1.0), help="Seconds of work and faults.")
@click.option("--network", type=click.Choice(NETWORKS), default="auto", show_default=True, help="How to cut.")
@click.option("--history", type=WRITABLE, help="Write what was asked and answered, as JSON lines.")
@answer_options
def cluster(
    answer: Answer,
    *,
    name: str,
    seed: int,
    nodes: int | None,
    duration_s: float | None,
    network: str,
    history: str | None,
    is_json: bool,
) -> None:
    """Run SCENARIO on real daemons: own processes, disks and sockets of this machine, killed for real.

    Faults are drawn as for `run`; a longer --duration has as many more. A verdict counts for this run only:
    real time does not replay. Nothing is left behind.
    """
    from crdt_merge_simulations import process_world
    from crdt_merge_simulations.planning import make_plan
    from crdt_merge_simulations.report import Story
    from crdt_merge_simulations.scenario_file import find

    plan = make_plan(process_world.scaled(find(name), nodes=nodes, duration_s=duration_s), seed)
    result = process_world.run(
        plan,
        network=network,
        history=Path(history) if history is not None else None,
        is_quiet=not sys.stderr.isatty(),
    )
    words = ["crdt-merge-sim", "cluster", name, "--seed", str(seed)]
    words += ["--nodes", str(nodes)] if nodes is not None else []
    words += ["--duration", f"{duration_s:g}"] if duration_s is not None else []
    answer.give(Story(result=result, plan=plan, command=shlex.join(words)), is_json=is_json)
    end(result)
