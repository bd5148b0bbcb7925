"""``cluster``: a scenario on real daemons."""

from __future__ import annotations

from pathlib import Path

import click

from .options import WRITABLE, command
from .telling import Answer, answer_options, end


@click.command()
@command
@click.argument("name", metavar="SCENARIO")
@click.option("--seed", type=int, default=1, show_default=True, help="Decides everything that is drawn.")
@click.option("--nodes", type=click.IntRange(2, 250), help="Instead of as many as the scenario has.")
@click.option("--duration", "duration_s", type=click.FloatRange(1), help="Seconds of work and faults.")
@click.option(
    "--network",
    type=click.Choice(["auto", "namespaces", "loopback"]),
    default="auto",
    show_default=True,
    help="namespaces (root): silent cuts, full disks; loopback: cuts by `peer block`.",
)
@click.option("--history", type=WRITABLE, help="Write what was asked and answered, a JSON object per line.")
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
    """Run SCENARIO, a name from `list` or a TOML file, on real daemons of this machine.

    With --duration, acts and faults become more or fewer in proportion. The story goes to standard error as
    it happens. Nothing is left behind, however the command ends.
    """
    from crdt_merge_simulations import process_world
    from crdt_merge_simulations.planning import make_plan
    from crdt_merge_simulations.report import Story
    from crdt_merge_simulations.scenario_file import find

    scenario = process_world.scaled(find(name), nodes=nodes, duration_s=duration_s)
    plan = make_plan(scenario, seed)
    result = process_world.run(
        plan, network=network, history=None if history is None else Path(history), is_quiet=False
    )
    words = ["crdt-merge-sim cluster", name, f"--seed {seed}"]
    words += [f"--nodes {nodes}"] if nodes else []
    words += [f"--duration {duration_s:g}"] if duration_s else []
    answer.give(Story(result=result, plan=plan, command=" ".join(words)), is_json=is_json)
    end(result)
