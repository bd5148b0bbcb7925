"""``run``: one seed of a scenario."""

from __future__ import annotations

import click

from .options import Choice, command, scenario_options
from .telling import Answer, answer_options, end
from .watching import Watch


@click.command()
@command
@click.option("--seed", type=int, default=1, show_default=True, help="Decides everything that is drawn.")
@scenario_options
@answer_options
def run(answer: Answer, choice: Choice, *, seed: int, is_json: bool) -> None:
    """Run one seed of SCENARIO, a name from `list` or a TOML file.

    Prints a line per event, figures, a verdict per invariant and the command that does it again.
    """
    from crdt_merge_simulations import worlds
    from crdt_merge_simulations.report import Story

    plan = choice.plan(seed)
    with Watch(f"running {plan.scenario.name}, seed {seed}, {plan.scenario.nodes} nodes"):
        result = worlds.run(plan)
    answer.give(Story(result=result, plan=plan, command=choice.command(seed)), is_json=is_json)
    end(result)
