"""``python -m tests.nightly.simulate FIRST COUNT``: seeds of the simulated world, one line each.

``crdt-merge-sim run --seed S`` replays one of them, with the story of what happened.
"""

from __future__ import annotations

import sys

from crdt_merge_simulations.cli import main

if __name__ == "__main__":
    first, count = sys.argv[1:]
    main(["run", "--seed", first, "--seeds", count])
