"""Run the nightly stages: ``python -m tests.nightly [STAGE...] [--seed N] [--minutes M]``.

A stage that has finished at this version of the tree is skipped, one that was cut off goes on after its last
finished step. Exit status: 0 all finished, 1 a step failed, 3 time ran out (run it again to go on).
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from .record import FOLDER, Record, tree_version
from .stages import ROOT, STAGES, Stage, Step

MINUTES = 30.0
TAIL_LINES = 60

console = Console(highlight=False, soft_wrap=True)


def main() -> int:
    """Run what was asked for, else everything."""
    arguments = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # So that a step under way is ended, too.
    os.chdir(ROOT)
    version = tree_version(ROOT)
    console.print(f"version {version}")
    chosen = [stage for stage in STAGES if not arguments.stages or stage.name in arguments.stages]
    results = [_run_stage(stage, version, arguments.seed, arguments.minutes * 60) for stage in chosen]
    return next((status for status in (1, 3) if status in results), 0)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make nightly", description=__doc__)
    parser.add_argument(
        "stages", nargs="*", metavar="STAGE", help="; ".join(f"{one.name}: {one.doc}" for one in STAGES)
    )
    parser.add_argument("--seed", type=int, help="of the run; begins the stage anew")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="per stage (default %(default)g)")
    arguments = parser.parse_args()
    unknown = set(arguments.stages) - {stage.name for stage in STAGES}
    if unknown:
        parser.error(f"no stage {', '.join(sorted(unknown))}; there are {', '.join(s.name for s in STAGES)}")
    return arguments


def _run_stage(stage: Stage, version: str, seed: int | None, seconds: float) -> int:
    record = Record.load(stage.name, version)
    if seed is not None and seed != record.seed:
        record = Record(stage.name, version, seed)
    if record.is_finished:
        console.print(f"{stage.name}: finished at this version, skipped")
        return 0
    steps = stage.steps(record.seed)
    console.print(
        f"{stage.name}: {stage.doc}; {len(steps)} steps, {len(record.passed)} done, seed {record.seed}"
    )
    deadline = time.monotonic() + seconds
    for step in steps:
        if step.name in record.passed:
            continue
        began = time.monotonic()
        status = _run_step(stage, step, deadline - began)
        took = time.monotonic() - began
        if status is None:
            console.print(f"{stage.name}: {len(record.passed)} of {len(steps)} steps in the time; run again")
            return 3
        if status:
            _show_failure(stage, step, status, record)
            return 1
        record.passed[step.name] = round(took, 1)
        record.save()
        console.print(f"  {step.name}: passed in {took:.1f} s")
    record.is_finished = True
    record.save()
    console.print(f"{stage.name}: finished, {sum(record.passed.values()):.0f} s in all")
    return 0


def _run_step(stage: Stage, step: Step, seconds: float) -> int | None:
    """Return the exit status, or None if the time ran out. Nothing of the step runs on afterwards."""
    if seconds <= 0:
        return None
    FOLDER.mkdir(exist_ok=True)
    with _log_of(stage, step).open("wb") as log:
        process = subprocess.Popen(
            step.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **step.environment},
            start_new_session=True,
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _show_failure(stage: Stage, step: Step, status: int, record: Record) -> None:
    lines = _log_of(stage, step).read_text(errors="replace").splitlines()
    console.print("\n".join(lines[-TAIL_LINES:]), markup=False)
    variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in step.environment.items())
    console.print(f"{stage.name}: {step.name} failed with status {status}, seed {record.seed}. Replay:")
    console.print(f"  {variables} {shlex.join(step.command)}".replace("   ", "  "), markup=False)


def _log_of(stage: Stage, step: Step) -> Path:
    return FOLDER / f"{stage.name}.{step.name}.log"


if __name__ == "__main__":
    sys.exit(main())
