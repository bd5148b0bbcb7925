"""``python -m tests.benchmarks [PART...]``: measure, print a table, and write it to ``RESULTS.md``.

Every part has a section there and replaces only its own. Run it on a machine that does nothing else; the load
before each part is written down with its results. A part that fails, or whose rival cannot be had, is named
at the end and the rest goes on; one that failed leaves the table that was there. ``--missing`` goes on after
a run that was cut off. ``--full`` takes sizes and rivals as the targets name them: half an hour and more.

Exit status: 0 all was measured, 1 something was not.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import re
import shlex
import subprocess
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
PARTS = (
    *("resolve", "merge", "reuse", "checkpoint", "strategies", "overhead"),
    *("ingest", "sync", "bulk", "requests", "simulation", "daemon", "crowd"),
)
INTRODUCTION = """\
# Measured

Every figure stands beside a floor or a rival measured in the same run, so that the ratio survives
another host. Nothing is asserted here. A target is what the design set out to reach; its letter
and number are those of the project's list of figures. The best of several runs counts, unless a
median is named. Rivals are installed into scratch environments when they are first asked for.
"""
TABLE_COLUMNS_MIN = 180

console = Console(highlight=False)


def main() -> int:
    """Measure what the command line asks for."""
    arguments = _parse()
    options = Options(
        elements=int(arguments.size * 1e6),
        checkpoint_mib=arguments.checkpoint,
        blob_mib=arguments.blob,
        operations=arguments.operations,
        repeats=arguments.repeats,
        is_full=arguments.full,
    )
    configure_logging(level="error", form="console")
    lacking = []
    for name in arguments.parts or PARTS:
        if arguments.missing and is_measured(_results(), name, version := _version()):
            console.print(f"[dim]{name}: measured at {version} already[/dim]")
            continue
        lacking += _run_part(name, options, is_dry=arguments.dry)
    if not arguments.dry:
        console.print(f"written to {RESULTS}")
    for text in lacking:
        console.print(f"not measured: {text}", markup=False)
    return 1 if lacking else 0


def _run_part(name: str, options: Options, *, is_dry: bool) -> list[str]:
    """Measure a part and write its table; return what could not be measured."""
    console.print(f"[dim]{name} …[/dim]")
    facts, rows, lacking = _facts(), [], []
    began = time.monotonic()
    try:
        rows += importlib.import_module(f".{name}", __package__).measure(options)
    except Exception as error:  # noqa: BLE001 - the other figures are still worth having.
        console.print(traceback.format_exc(), markup=False)
        lacking.append(f"{name} ({type(error).__name__}); its last table stays")
    facts["took"] = f"{time.monotonic() - began:.0f} s"
    Console(width=max(console.width, TABLE_COLUMNS_MIN)).print(_table(name, rows))
    if not lacking and not is_dry:
        RESULTS.write_text(with_section(_results(), name, section(rows, facts)))
    return lacking + [f"{name}: {row.what} {row.measured}" for row in rows if row.is_missing]


def _results() -> str:
    return RESULTS.read_text() if RESULTS.exists() else ""


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default all)")
    parser.add_argument("--size", type=float, default=16.0, help="million float32 elements (default 16)")
    parser.add_argument(
        "--checkpoint", type=int, default=256, help="MiB of the bf16 checkpoint (default 256)"
    )
    parser.add_argument("--blob", type=int, default=256, help="MiB of the blob (default 256)")
    parser.add_argument("--operations", type=int, default=4000, help="to ingest (default 4000)")
    parser.add_argument("--repeats", type=int, default=3, help="the best of so many counts (default 3)")
    parser.add_argument("--full", action="store_true", help="the targets' sizes, and no hurry")
    parser.add_argument("--missing", action="store_true", help="only parts not yet measured at this version")
    parser.add_argument("--dry", action="store_true", help="do not write RESULTS.md")
    arguments = parser.parse_args()
    unknown = sorted({*arguments.parts} - {*PARTS})
    if unknown:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return arguments


def _facts() -> dict[str, str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "host": f"{cpu}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, {platform.system()} "
        f"{platform.release()} {platform.machine()}",
        "software": f"Python {platform.python_version()}, numpy {np.__version__}",
        "version": _version(),
        "load before": f"{os.getloadavg()[0]:.2f}",
        "command": shlex.join(["python", "-m", "tests.benchmarks", *sys.argv[1:]]),
    }


def _version() -> str:
    """Return the commit, with a plus if more than the results differ from it; empty outside of git."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(RESULTS.parent), *arguments], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    changes = git("diff", "--name-only", "HEAD", "--", ":/", f":(exclude,top)tests/benchmarks/{RESULTS.name}")
    return git("rev-parse", "--short=12", "HEAD") + ("+" if changes else "")


def _table(name: str, rows: list[Row]) -> Table:
    table = Table(title=f"{name}, against floors and rivals of the same run")
    for heading in ("what", "measured", "against", "ratio", "target"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(row.what, row.measured, row.against, row.ratio, row.target)
    return table


def section(rows: list[Row], facts: dict[str, str]) -> str:
    """Return the facts of a run and its table, as Markdown."""
    lines = [f"- {name}: {value}" for name, value in facts.items()]
    lines += ["", "| what | measured | against | ratio | target |", "|---|---|---|---|---|"]
    lines += [
        f"| {row.what} | {row.measured} | {row.against} | {row.ratio} | {row.target} |".replace("  ", " ")
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def is_measured(document: str, name: str, version: str) -> bool:
    """Tell whether the results have a part's table of a version that is a commit."""
    found = re.search(rf"^## {name}\n\n(.*?)(?=^## |\Z)", document, re.MULTILINE | re.DOTALL)
    is_commit = bool(version) and not version.endswith("+")
    return is_commit and found is not None and f"- version: {version}\n" in found[1]


def with_section(document: str, name: str, text: str) -> str:
    """Return the results with the section of one part replaced; sections stand in the order of ``PARTS``."""
    found = dict(re.findall(r"^## (\S+)\n\n(.*?)(?=^## |\Z)", document, re.MULTILINE | re.DOTALL))
    found[name] = text
    known = [part for part in PARTS if part in found]
    return "\n".join([INTRODUCTION, *(f"## {part}\n\n{found[part].strip()}\n" for part in known)])


if __name__ == "__main__":
    sys.exit(main())
