"""``replay``: what a file of ``--save`` or ``shrink`` tells of, once more."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
from crdt_merge_node.cli.output import note

from .options import JSON_FILE, command
from .telling import Answer, answer_options, end
from .watching import Watch


@click.command()
@command
@click.argument("file", type=JSON_FILE)
@answer_options
def replay(answer: Answer, *, file: str, is_json: bool) -> None:
    """Carry out the plan in FILE again, a result of --save or of shrink.

    The plan is taken from the file, not drawn again. Says whether the trace is the same.
    """
    from crdt_merge_simulations import worlds
    from crdt_merge_simulations.documents import load, plan_in
    from crdt_merge_simulations.report import Story

    document = load(Path(file))
    plan = plan_in(document)
    with Watch(f"replaying {plan.scenario.name}, seed {plan.seed}"):
        result = worlds.run(plan)
    story = Story(result=result, plan=plan, command=shlex.join(["crdt-merge-sim", "replay", file]))
    answer.give(story, is_json=is_json)
    if then := document.get("trace"):
        note("the trace is the same" if then == result.trace else "the trace differs: the code has changed")
    end(result)
