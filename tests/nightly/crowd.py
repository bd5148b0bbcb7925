"""``python -m tests.nightly.crowd SCENARIO SEED FILE [again]``: one large run of the simulated world.

Its trace is written to the file; ``again`` compares it with the one that is there.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

from crdt_merge_simulations import engine_world, planning, scenario_file
from rich.console import Console

console = Console(highlight=False, soft_wrap=True, markup=False)


def main(name: str, seed: int, path: Path, *, is_again: bool) -> int:
    """Run the scenario; return 1 if it failed, or differs from the run before."""
    began = time.process_time()
    result = engine_world.run(planning.make_plan(scenario_file.find(name), seed))
    cpu_s = time.process_time() - began
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    console.print(
        f"{name}, seed {seed}: {result.events:,} events in {cpu_s:.1f} s of processor time "
        f"({result.events / cpu_s:,.0f} events/s), {peak_mib:,.0f} MiB, trace {result.trace[:16]}"
    )
    for check in result.checks.values():
        for text in check.violations:
            console.print(f"  violated {check.id}: {text}")
    if not is_again:
        path.write_text(result.trace)
    elif path.read_text() != result.trace:
        console.print(f"the trace was {path.read_text()[:16]}")
        return 1
    return 0 if result.is_success else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), is_again="again" in sys.argv))
