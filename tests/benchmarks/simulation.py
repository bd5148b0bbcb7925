"""How fast the simulated world runs (TARGETS A15, A16)."""

from __future__ import annotations

import time
from collections.abc import Iterator

from crdt_merge_simulations.scenario import Settings, run

from .measure import Options, Row, times

SEEDS = range(1, 6)


def measure(_options: Options) -> Iterator[Row]:
    """Yield one row: five seeds of the default scenario."""
    virtual_s = events = 0.0
    began = time.perf_counter()
    for seed in SEEDS:
        verdict = run(Settings(seed=seed))
        assert verdict.is_success, f"seed {seed}: {verdict.violations}"
        peace_s = float(verdict.log[-1].split()[0])
        virtual_s += peace_s + (verdict.converged_after_s or 0.0)
        events += verdict.events
    real_s = time.perf_counter() - began
    yield Row(
        what=f"simulation, ten engines, {len(SEEDS)} seeds",
        measured=f"{virtual_s:.0f} virtual s in {real_s:.1f} s, {events / real_s:,.0f} events/s",
        against="real time",
        ratio=f"{times(virtual_s / real_s)} real time",
        target=">= 30x for ten (A16, there with daemons)",
    )
