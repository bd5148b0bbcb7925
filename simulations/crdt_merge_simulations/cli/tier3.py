"""``tier3``: the paper's third tier, with messages really sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import click
from crdt_merge_node.cli.output import duration, say, say_json, size, table

from .options import command
from .watching import Watch

if TYPE_CHECKING:
    from crdt_merge_simulations.tier3 import Tier3, Trial

PAPER_GOSSIP: Final = "492.8 ms in one process; nothing sent, 2.3 TB if it were"
PAPER_RESOLVE: Final = "16.7-19.7 s for each order"
PAPER_PARTITIONS: Final = "556.6 ms in one process; nothing sent"


@click.command()
@command
@click.option("--nodes", type=click.IntRange(2, 1000), default=100, show_default=True)
@click.option("--orderings", type=click.IntRange(1), default=20, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option(
    "--scale-max", type=click.IntRange(0), default=1000, show_default=True, help="Nodes to grow to."
)
@click.option("--side", type=click.IntRange(1), default=512, show_default=True, help="Of the square tensors.")
def tier3(*, nodes: int, orderings: int, seed: int, scale_max: int, side: int, is_json: bool) -> None:
    """Many nodes, many orders, one result: the scalability tier of the paper's evaluation.

    Every node contributes a tensor; whatever the order, all must end with one resolve key, and two random
    nodes that resolve it with the same bytes. Then partitions, all strategies, and growth.
    """
    from crdt_merge_simulations import tier3 as tier

    scales = [scale for scale in tier.SCALES if scale <= scale_max]
    with Watch("tier 3") as watch:
        report = tier.run(
            nodes=nodes, orderings=orderings, seed=seed, side=side, scales=scales, say=watch.say
        )
    if is_json:
        say_json("sim-tier3/1", report, distinct_keys=report.distinct_keys, is_success=report.is_success)
    else:
        _show(report)
    if not report.is_success:
        raise click.exceptions.Exit(1)


def _show(report: Tier3) -> None:
    say(f"Tier 3: {report.nodes} nodes, {report.side} x {report.side} float32, seed {report.seed}")
    say(table(("", "here", "reference implementation of the paper"), _rows(report)))
    say("\nstrategies and growth")
    say(table(_TRIAL_HEADERS, [_trial(trial) for trial in (*report.strategies, *report.scaling)]))
    for resolved in report.resolved:
        if not resolved.is_equal:
            one, other = resolved.nodes
            say(f"  ✗ key {resolved.key[:12]} gave other bytes on n{one} than on n{other}")
    say(f"\n{'PASSED' if report.is_success else 'FAILED'}")


def _rows(report: Tier3) -> Iterator[tuple[str, str, str]]:
    orderings = report.orderings
    agreed = sum(trial.is_agreed for trial in orderings)
    yield f"{len(orderings)} orders: one key on all nodes", f"{agreed} of {len(orderings)}", "-"
    yield "distinct keys over all orders", str(report.distinct_keys), "-"
    slowest = max((trial.agreed_after_s or 0.0 for trial in orderings), default=0.0)
    yield "agreement after the last contribution, at most", f"{slowest:.3f} s virtual", PAPER_GOSSIP
    sent, needed = sum(t.bytes_sent for t in orderings), sum(t.bytes_needed for t in orderings)
    yield "bytes of operations an order, all frames", size(sent / len(orderings)), "none"
    yield "  against each operation once to each node", f"{sent / needed:.2f} x", "-"
    if (spread := report.spread) is not None:
        total = spread.bytes_sent + orderings[0].bytes_sent
        yield "bytes of models, all frames", size(spread.bytes_sent), "none"
        yield (
            "  against each model once to each node",
            f"{spread.bytes_sent / spread.bytes_needed:.4f} x",
            "-",
        )
        share = total / (spread.bytes_needed + orderings[0].bytes_needed)
        yield "all bytes against the necessary ones", f"{share:.4f} x (target 1.1)", "-"
        yield "models on all nodes after", f"{spread.virtual_s:.2f} s virtual, 1 Gbit/s each", "-"
    for resolved in report.resolved[:1]:
        yield (
            f"one resolve of {resolved.inputs} inputs by {resolved.strategy}",
            duration(resolved.wall_s),
            PAPER_RESOLVE,
        )
    equal = sum(resolved.is_equal for resolved in report.resolved)
    yield "keys resolved on two random nodes, equal bytes", f"{equal} of {len(report.resolved)}", "-"
    if report.apart is not None and report.together is not None:
        yield (
            "partitions: keys apart, then together",
            f"{report.apart.keys}, then {report.together.keys}",
            "-",
        )
        healed = report.together.agreed_after_s
        took = "never" if healed is None else f"{healed:.3f} s virtual (target 5)"
        yield "agreement after the heal", took, PAPER_PARTITIONS


_TRIAL_HEADERS: Final = (
    "",
    "nodes",
    "contributions",
    "keys",
    "agreed after",
    "bytes",
    "x needed",
    "events",
    "took",
)


def _trial(trial: Trial) -> tuple[str, ...]:
    return (
        trial.name,
        f"{trial.nodes:,}",
        str(trial.contributions),
        str(trial.keys),
        "never" if trial.agreed_after_s is None else f"{trial.agreed_after_s:.3f} s",
        size(trial.bytes_sent),
        f"{trial.bytes_sent / trial.bytes_needed:.2f}" if trial.bytes_needed else "-",
        f"{trial.events:,}",
        duration(trial.wall_s),
    )
