"""``python -m tests.planted [NAME...]``: hunt planted bugs, a line of a table each.

Exit status: 0 all were caught within 200 seeds that the code without them survives, 1 otherwise.
"""

from __future__ import annotations

import os
import sys

from rich.console import Console

from .bug import bug_names
from .hunt import SEEDS_MAX, Catch, hunt

console = Console(highlight=False, soft_wrap=True, markup=False)


def main(names: list[str]) -> int:
    """Hunt the bugs, all of them by default."""
    is_good = True
    for name in names or bug_names():
        caught = hunt(name, jobs=min(2, os.cpu_count() or 1))
        is_good &= caught.is_good
        console.print(row(caught))
        for id_, line in (*caught.found.items(), *caught.false_alarms.items()):
            console.print(f"  {id_}: {line}")
    return 0 if is_good else 1


def row(caught: Catch) -> str:
    """Return a line of a table about a hunt."""
    bug = caught.bug
    verdict = (
        f"not within {SEEDS_MAX} seeds"
        if caught.seed is None
        else f"false alarm at seed {caught.seed}: {', '.join(caught.false_alarms)}"
        if caught.false_alarms
        else f"seed {caught.seed} | {', '.join(sorted(caught.found))}"
    )
    return f"| {bug.name} | {bug.breaks} | {bug.scenario} | {verdict} | {caught.cpu_s:.1f} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
