"""``shrink``: from a run that fails to the little of it that matters."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click
from crdt_merge_node.cli.output import note, say, say_json

from .options import WRITABLE, Choice, command
from .watching import Watch

if TYPE_CHECKING:
    from crdt_merge_simulations.plan import Plan
    from crdt_merge_simulations.shrinking import Shrunk


@click.command()
@command
@click.argument("source", metavar="SCENARIO|FILE.json")
@click.option("--seed", type=int, default=1, show_default=True, help="Of a scenario; a file has its own.")
@click.option("--runs", type=click.IntRange(1), default=400, show_default=True, help="Budget.")
@click.option("-o", "--output", type=WRITABLE, help="Where the small plan goes; else shrunk-NAME-SEED.json.")
def shrink(*, source: str, seed: int, runs: int, output: str | None, is_json: bool) -> None:
    """Leave out faults, then nodes, then acts, as long as the same invariant is violated.

    Takes a scenario with --seed, or a file that `run --save` or `sweep --save` wrote.
    """
    from crdt_merge_simulations import worlds
    from crdt_merge_simulations.documents import result_document
    from crdt_merge_simulations.shrinking import shrink as shrink_plan

    plan = _plan(source, seed)
    name = f"{plan.scenario.name}, seed {plan.seed}"
    with Watch(f"shrinking {name}") as watch:
        shrunk = shrink_plan(plan, worlds.run, runs_max=runs, progress=watch.say)
    if shrunk is None:
        note(f"{name} does not fail: there is nothing to shrink.")
        raise click.exceptions.Exit(1)
    path = output or f"shrunk-{plan.scenario.name}-{plan.seed}.json"
    replay = shlex.join(["crdt-merge-sim", "replay", path])
    Path(path).write_text(json.dumps(result_document(shrunk.result, shrunk.plan, replay)) + "\n", "utf-8")
    if is_json:
        say_json(
            "sim-shrink/1",
            invariant=shrunk.invariant,
            runs=shrunk.runs,
            is_minimal=shrunk.is_minimal,
            before=_size(plan),
            after=_size(shrunk.plan),
            path=path,
            replay=replay,
        )
    else:
        _show(plan, shrunk, replay)


def _plan(source: str, seed: int) -> Plan:
    from crdt_merge_simulations.documents import load, plan_in

    return plan_in(load(Path(source))) if source.endswith(".json") else Choice(name=source).plan(seed)


def _size(plan: Plan) -> dict[str, int]:
    return {"faults": len(plan.faults), "nodes": plan.scenario.nodes, "acts": len(plan.acts)}


def _show(before: Plan, shrunk: Shrunk, replay: str) -> None:
    after = shrunk.plan
    for what, count in _size(before).items():
        say(f"{what:7} {count:>6,} -> {_size(after)[what]:,}")
    for fault in after.faults:
        say(f"  {fault.time:9.3f}  {fault}")
    for act in after.acts[:20]:
        arguments = " ".join(f"{key}={value}" for key, value in act.args.items())
        say(f"  {act.time:9.3f}  n{act.node} {act.kind} {arguments}".rstrip())
    if len(after.acts) > 20:
        say(f"  … {len(after.acts) - 20:,} acts more")
    ending = "nothing more can be left out" if shrunk.is_minimal else "the budget ended first"
    say(f"{shrunk.invariant} is still violated after {shrunk.runs} runs; {ending}")
    check = shrunk.result.checks.get(shrunk.invariant)
    say(f"  {check.violations[0] if check and check.violations else 'the nodes never agreed'}")
    say(f"replay: {replay}")
