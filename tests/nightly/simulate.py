"""``python -m tests.nightly.simulate FIRST COUNT``: seeds of the simulated world, one line each.

A seed that fails shows the story of what happened and the command that plays it again.
"""

from __future__ import annotations

import sys

from crdt_merge_simulations import engine_world, planning, scenario_file
from rich.console import Console

console = Console(highlight=False, soft_wrap=True, markup=False)


def main(first: int, count: int) -> int:
    """Run the seeds; return 1 if any of them did not converge or violated an invariant."""
    scenario = scenario_file.find("swarm-10")
    failures = 0
    for seed in range(first, first + count):
        result = engine_world.run(planning.make_plan(scenario, seed))
        agreed = result.converged_after_s
        outcome = "NOT converged" if agreed is None else f"converged {agreed:.3f} s after the last fault"
        console.print(f"seed {seed}: {result.operations} operations, {result.events:,} events, {outcome}")
        if not result.is_success:
            failures += 1
            violated = [
                f"{check.id}: {text}" for check in result.checks.values() for text in check.violations
            ]
            console.print("\n".join([*result.log, *(f"  violated {one}" for one in violated)]))
            console.print(f"  replay: crdt-merge-sim run swarm-10 --seed {seed}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:3])))
