"""``python -m tests.nightly.traces SCENARIO FIRST COUNT``: equal seeds have equal traces under any hash seed.

Each seed runs in two processes with different ``PYTHONHASHSEED``, at the same time. What depends on the order
of a set, on the address of an object or on what the process did before shows as another trace.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Final

from crdt_merge_simulations import planning, scenario_file, worlds
from rich.console import Console

HASH_SEEDS: Final = ("1", "777")

console = Console(highlight=False, soft_wrap=True, markup=False)


def main(scenario: str, first: int, count: int) -> int:
    """Compare the traces of some seeds; return 1 if any differ."""
    told = [child.communicate()[0] for child in [_child(scenario, first, count, one) for one in HASH_SEEDS]]
    lines = [text.splitlines() for text in told]
    unequal = [pair for pair in zip(*lines, strict=False) if pair[0] != pair[1]]
    for pair in unequal:
        console.print("differ:", *pair, sep="\n  ")
    compared = min(map(len, lines))
    console.print(f"{scenario}: {compared} of {count} seeds from {first}, {compared - len(unequal)} alike")
    return 1 if unequal or compared < count else 0


def show(scenario: str, first: int, count: int) -> None:
    """Print seed, trace, events and outcome of each seed."""
    found = scenario_file.find(scenario)
    for seed in range(first, first + count):
        result = worlds.run(planning.make_plan(found, seed))
        console.print(seed, result.trace, result.events, result.is_success)


def _child(scenario: str, first: int, count: int, hash_seed: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.nightly.traces", scenario, str(first), str(count), "show"]
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


if __name__ == "__main__":
    arguments = (sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    if sys.argv[4:] == ["show"]:
        show(*arguments)
    else:
        sys.exit(main(*arguments))
