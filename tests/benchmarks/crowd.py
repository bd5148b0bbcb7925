"""A hundred real daemons on this machine, from their start to ready, and what they hold (TARGETS D2).

They are started a few at a time, from a process that has imported everything already: what is measured is the
daemons, not a hundred interpreters that look for their modules.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from crdt_merge_simulations import process_world
from crdt_merge_simulations.planning import make_plan
from crdt_merge_simulations.scenario_file import find

from .measure import MIB, Options, Row

NODES: Final = 100
SECONDS: Final = 20.0
SEED: Final = 1


def measure(_options: Options) -> Iterator[Row]:
    """Yield the rows of one run."""
    scenario = process_world.scaled(find("processes-100"), nodes=NODES, duration_s=SECONDS)
    calm = replace(scenario, faults=replace(scenario.faults, counts={"kill": 1}))
    result = process_world.run(make_plan(calm, SEED))
    broken = [check.id for check in result.checks.values() if check.violations]
    yield Row(
        what=f"{NODES} daemons on this machine, until all are ready",
        measured=f"{result.ready_s:.1f} s",
        against=f"{sum(result.rss_bytes) / MIB:,.0f} MiB resident in all",
        ratio="all invariants held" if result.is_success else f"broken: {', '.join(broken)}",
        target="<= 60 s (D2)",
    )
    yield Row(
        what=f"one of {NODES} daemons after {SECONDS:.0f} s of work, RSS",
        measured=f"{statistics.median(result.rss_bytes) / MIB:.0f} MiB median",
        against=f"{max(result.rss_bytes) / MIB:.0f} MiB the largest",
    )
