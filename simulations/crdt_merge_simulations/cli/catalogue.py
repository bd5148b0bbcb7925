"""``list``: the scenarios that are shipped."""

from __future__ import annotations

import click
from crdt_merge_node.cli.output import say, say_json, table

from .options import command


@click.command(name="list")
@command
def catalogue(*, is_json: bool) -> None:
    """List the scenarios that `run` knows by name, and the faults that a scenario can have."""
    from crdt_merge_simulations.plan import FAULT_KINDS
    from crdt_merge_simulations.scenario_file import find, names

    scenarios = [find(name) for name in names()]
    if is_json:
        say_json("sim-list/1", scenarios=scenarios, faults=FAULT_KINDS)
        return
    rows = [
        (
            scenario.name,
            f"{scenario.nodes:,}",
            scenario.fidelity,
            scenario.topology.kind,
            scenario.description,
        )
        for scenario in scenarios
    ]
    say("scenarios")
    say(table(("name", "nodes", "fidelity", "topology", ""), rows))
    say("\nfaults, for [faults.counts] of a scenario of your own")
    say(table(("kind", "what it does"), FAULT_KINDS.items()))
