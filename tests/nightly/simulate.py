"""``python -m tests.nightly.simulate FIRST COUNT``: seeds of the simulated world, one line each.

A seed that fails shows the story of what happened and the command that plays it again.
"""

from __future__ import annotations

import sys

from crdt_merge_simulations.scenario import Settings, run
from rich.console import Console

console = Console(highlight=False, soft_wrap=True, markup=False)


def main(first: int, count: int) -> int:
    """Run the seeds; return 1 if any of them did not converge or violated an invariant."""
    failures = 0
    for seed in range(first, first + count):
        verdict = run(Settings(seed=seed))
        agreed = verdict.converged_after_s
        outcome = "NOT converged" if agreed is None else f"converged {agreed:.3f} s after the last fault"
        console.print(f"seed {seed}: {verdict.operations} operations, {verdict.events:,} events, {outcome}")
        if not verdict.is_success:
            failures += 1
            console.print("\n".join([*verdict.log, *(f"  violated {one}" for one in verdict.violations)]))
            console.print(f"  replay: python -m tests.nightly.simulate {seed} 1")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:3])))
