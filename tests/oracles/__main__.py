"""``python -m tests.oracles [SEED]``: the same merges by other implementations, compared."""

from __future__ import annotations

import sys

from . import adapter_files, adapters, configurations, fusion, methods, numerics


def main(arguments: list[str]) -> int:
    """Compare with every other implementation; the argument is a seed. Return 0 if all agree."""
    seed = int(arguments[0]) if arguments else 1
    problems: list[str] = []
    for compare in (
        methods.compare,
        adapters.compare,
        adapter_files.compare,
        configurations.compare,
        fusion.compare,
        numerics.compare,
    ):
        found, report = compare(seed)
        problems += found
        sys.stdout.write(f"{report}\n")
        sys.stdout.flush()
    sys.stdout.write("\n".join([*problems, f"{len(problems)} disagreements (seed {seed})"]) + "\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
