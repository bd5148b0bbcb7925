"""``python -m tests.benchmarks``: measure, print one table, and write it to ``RESULTS.md``.

Run it on a machine that does nothing else; the load before the run is written down with the results.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import shlex
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from crdt_merge_node.telemetry.logging import configure_logging
from rich.console import Console
from rich.table import Table

from .measure import Options, Row

RESULTS = Path(__file__).with_name("RESULTS.md")
PARTS = ("resolve", "merge", "ingest", "sync", "bulk", "simulation", "daemon")
RIVALS = "rivals"
"""Not measured unless asked for: it installs a package."""
TABLE_COLUMNS_MIN = 180

console = Console(highlight=False)


def main() -> int:
    """Measure what the command line asks for."""
    arguments = _parse()
    parts = [*(arguments.only or PARTS), *([RIVALS] if arguments.rivals else [])]
    options = Options(
        elements=int(arguments.size * 1e6),
        checkpoint_mib=arguments.checkpoint,
        blob_mib=arguments.blob,
        operations=arguments.operations,
        repeats=arguments.repeats,
    )
    configure_logging(level="error", form="console")
    facts = _facts()
    began = time.monotonic()
    rows: list[Row] = []
    failed = 0
    for name in parts:
        console.print(f"[dim]{name} …[/dim]")
        try:
            rows += importlib.import_module(f".{name}", __package__).measure(options)
        except Exception:  # noqa: BLE001 - the other figures are still worth having.
            console.print(traceback.format_exc(), markup=False)
            rows.append(Row(what=name, measured="could not be measured"))
            failed += 1
    Console(width=max(console.width, TABLE_COLUMNS_MIN)).print(_table(rows))
    facts["took"] = f"{time.monotonic() - began:.0f} s"
    if not arguments.dry:
        RESULTS.write_text(_document(rows, facts))
        console.print(f"written to {RESULTS}")
    return 1 if failed else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--size", type=float, default=16.0, help="million float32 elements (default 16)")
    parser.add_argument(
        "--checkpoint", type=int, default=256, help="MiB of the bf16 checkpoint (default 256)"
    )
    parser.add_argument("--blob", type=int, default=256, help="MiB of the blob (default 256)")
    parser.add_argument("--operations", type=int, default=4000, help="to ingest (default 4000)")
    parser.add_argument("--repeats", type=int, default=3, help="the best of so many counts (default 3)")
    parser.add_argument("--only", action="append", choices=PARTS, help="one part; may be given again")
    parser.add_argument(
        "--rivals", action="store_true", help="install the reference into a scratch environment and race it"
    )
    parser.add_argument("--dry", action="store_true", help="do not write RESULTS.md")
    return parser.parse_args()


def _facts() -> dict[str, str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "host": f"{cpu}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, {platform.system()} "
        f"{platform.release()} {platform.machine()}",
        "software": f"Python {platform.python_version()}, numpy {np.__version__}",
        "load before": f"{os.getloadavg()[0]:.2f}",
        "command": shlex.join(["python", "-m", "tests.benchmarks", *sys.argv[1:]]),
    }


def _table(rows: list[Row]) -> Table:
    table = Table(title="Measured against floors and rivals of the same run")
    for heading in ("what", "measured", "against", "ratio", "target"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(row.what, row.measured, row.against, row.ratio, row.target)
    return table


def _document(rows: list[Row], facts: dict[str, str]) -> str:
    lines = ["# Measured", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += [
        "",
        "Every figure stands beside a floor or a rival measured in the same run, so that the ratio survives",
        "another host. Nothing is asserted here. A target is what the design set out to reach; its letter",
        "and number are those of the project's list of figures. The best of several runs counts, unless a",
        "median is named.",
        "",
        "| what | measured | against | ratio | target |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.what} | {row.measured} | {row.against} | {row.ratio} | {row.target} |".replace("  ", " ")
        for row in rows
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
