"""How fast the simulated world runs (TARGETS A15, A16)."""

from __future__ import annotations

import time
from collections.abc import Iterator

from crdt_merge_simulations import engine_world, planning, scenario_file

from .measure import Options, Row, times

SEEDS = range(1, 6)


def measure(_options: Options) -> Iterator[Row]:
    """Yield one row: five seeds of a swarm of faults."""
    scenario = scenario_file.find("swarm-10")
    virtual_s = events = 0.0
    began = time.perf_counter()
    for seed in SEEDS:
        result = engine_world.run(planning.make_plan(scenario, seed))
        assert result.is_success, f"seed {seed} failed"
        virtual_s += result.virtual_s
        events += result.events
    real_s = time.perf_counter() - began
    yield Row(
        what=f"simulation, ten engines, {len(SEEDS)} seeds",
        measured=f"{virtual_s:.0f} virtual s in {real_s:.1f} s, {events / real_s:,.0f} events/s",
        against="real time",
        ratio=f"{times(virtual_s / real_s)} real time",
        target=">= 30x for ten (A16, there with daemons)",
    )
