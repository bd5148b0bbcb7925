"""``crdt-merge-sim``: run seeds of the simulated world and see whether the nodes agree afterwards."""

from __future__ import annotations

import dataclasses
import json

import click

from .scenario import Settings, Verdict
from .scenario import run as run_scenario


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Break many nodes in virtual time and see that they agree afterwards."""


@main.command()
@click.option("--nodes", type=click.IntRange(2, 12), default=10, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True, help="The first one.")
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="How many.")
@click.option("--operations", type=click.IntRange(1), default=60, show_default=True)
@click.option("--kills", type=click.IntRange(0), default=4, show_default=True)
@click.option("--partitions", type=click.IntRange(0), default=2, show_default=True)
@click.option("--json", "is_json", is_flag=True, help="Print one JSON object per seed.")
def run(
    *, nodes: int, seed: int, seeds: int, operations: int, kills: int, partitions: int, is_json: bool
) -> None:
    """Run scenarios; exit 0 only if all nodes converged and nothing was violated."""
    failures = 0
    for number in range(seed, seed + seeds):
        settings = Settings(
            nodes=nodes, seed=number, operations=operations, kills=kills, partitions=partitions
        )
        verdict = run_scenario(settings)
        failures += not verdict.is_success
        if is_json:
            click.echo(
                json.dumps(
                    {
                        "schema": "sim/1",
                        **dataclasses.asdict(settings),
                        **dataclasses.asdict(verdict),
                        "is_success": verdict.is_success,
                    }
                )
            )
        else:
            _show(settings, verdict, with_log=seeds == 1)
    if failures:
        raise click.exceptions.Exit(1)


def _show(settings: Settings, verdict: Verdict, *, with_log: bool) -> None:
    if with_log:
        click.echo("\n".join(verdict.log))
    agreed = verdict.converged_after_s
    click.echo(
        f"seed {settings.seed}: {settings.nodes} nodes, {verdict.operations} operations,"
        f" {verdict.visible} visible, {verdict.bytes_sent:,} bytes, {verdict.events:,} events,"
        f" trace {verdict.trace[:12]}, "
        + (f"converged {agreed:.3f} s after the last fault" if agreed is not None else "NOT converged")
    )
    for violation in verdict.violations:
        click.echo(f"  violated {violation}")
    if not verdict.is_success:
        click.echo(
            f"  replay: crdt-merge-sim run --seed {settings.seed} --nodes {settings.nodes}"
            f" --operations {settings.operations} --kills {settings.kills} --partitions {settings.partitions}"
        )
