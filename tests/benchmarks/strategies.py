"""Every registered strategy on the same arrays (TARGETS B6): ours, naive numpy, and the reference.

The reference is ``crdt-merge`` from the package index, in a scratch environment of its own, as a process of
its own. Models are fine-tunes of a base in float32 matrices of 1,024 x 1,024; every merge runs in a fresh
process on one thread, with the defaults of whoever runs it and whatever artefacts ours needs. CPU time is
what is compared: it is what a busy host does not spoil. Memory is what comes on top of the inputs. The floor
reads every input once and writes the output once at the bandwidth of a copy in memory.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from crdt_merge_protocol.blobs import TensorSpec
from crdt_merge_protocol.strategies.registry import get, names
from crdt_merge_protocol.tensorfile import layout

from tests.oracles.environments import ROOT, python_of

from . import naive
from .measure import MIB, Options, Row, best_s, copy_bytes_per_s, durable_copy, ms, run_command, times

PACKAGE = "crdt-merge"
SIDES = Path(__file__).with_name("sides")
CLI = Path(sys.executable).with_name("crdt-merge-node")
SIDE = 1024
COUNTS = (2, 4, 8)
WHOLE_COUNT = 4
"""Models in the rows of whole commands."""
PATIENCE = 8
"""Times the CPU limit that a process may take by the clock: the host may be busy."""


@dataclass(frozen=True, slots=True)
class Lap:
    """The best of one side's merges, or why there is none."""

    wall: float = 0.0
    cpu: float = 0.0
    extra: int = 0
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Field:
    """Where a contest takes place."""

    directory: Path
    matrices: int
    counts: tuple[int, ...]
    limit_s: int
    repeats: int
    bandwidth: float
    reference: dict[str, str]
    """The reference's names by ours; empty if it is not there."""

    def floor_s(self, strategy: str, count: int) -> float:
        """Return the floor of a merge of so many models."""
        arrays = count + 1 + (get(strategy).base == "required")
        return arrays * self.matrices * SIDE * SIDE * 4 / self.bandwidth


def measure(options: Options) -> Iterator[Row]:
    """Yield a summary per number of models, then a row per strategy; ``--full`` adds 64M elements."""
    reference, about = _reference()
    for matrices in (4, 64) if options.is_full else (4,):
        with tempfile.TemporaryDirectory(prefix="cmn-bench-") as directory:
            field = Field(
                directory=Path(directory),
                matrices=matrices,
                counts=COUNTS if matrices == 4 and options.is_full else (4,),
                limit_s=60 if options.is_full else 5,
                repeats=options.repeats,
                bandwidth=copy_bytes_per_s(clock=time.process_time),
                reference=reference,
            )
            _write_arrays(field)
            rows, ratios = [], {}
            for strategy in names():
                row, ratios[strategy] = _contest(field, strategy)
                rows.append(row)
                sys.stderr.write(f"{row.what}: {row.measured} | {row.against} | {row.ratio}\n")
            yield from _summaries(field, about, ratios)
            yield from rows
            if options.is_full and matrices == 4:
                yield from _whole_commands(field)


def _reference() -> tuple[dict[str, str], str]:
    """Return the reference's names by ours, and what it is."""
    try:
        done = _side("reference", [])
    except (subprocess.CalledProcessError, OSError) as error:
        return {}, f"{PACKAGE} could not be installed ({type(error).__name__})"
    about = json.loads(done.stdout)
    return {get(name).id: name for name in about["strategies"]}, f"{PACKAGE} {about['version']}"


def _side(side: str, arguments: Sequence[str], timeout_s: float = 600) -> subprocess.CompletedProcess[str]:
    python = str(python_of("crdt_merge")) if side == "reference" else sys.executable
    done = subprocess.run(
        [python, str(SIDES / f"{side}.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
        if side == "ours"
        else {"OPENBLAS_NUM_THREADS": "1", "PATH": ""},
    )
    if not arguments:
        done.check_returncode()
    return done


def _write_arrays(field: Field) -> None:
    rng = np.random.default_rng(1)
    shape = (field.matrices, SIDE, SIDE)
    base = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
    np.save(field.directory / "base.npy", base)
    for number in range(max(field.counts)):
        tuned = base + np.float32(0.002) * rng.standard_normal(shape, dtype=np.float32)
        np.save(field.directory / f"{number}.npy", tuned)


def _contest(field: Field, strategy: str) -> tuple[Row, dict[int, float]]:
    """Return a row, and by how much the reference takes more CPU time, per number of models."""
    ours = [_lap(field, "ours", strategy, count) for count in field.counts]
    formula = [
        _lap(field, "ours", f"naive:{strategy}", count) if hasattr(naive, strategy) else Lap(missing="-")
        for count in field.counts
    ]
    rival = field.reference.get(strategy)
    theirs = [_lap(field, "reference", rival, count) if rival else Lap(missing="-") for count in field.counts]
    floors = [ms(field.floor_s(strategy, count)) for count in field.counts]
    against = f"floor {_joined(floors)}"
    if hasattr(naive, strategy):
        against += f"; naive {_cpu(formula)}, +{_extra(formula)}"
    if rival:
        against += f"; reference {_cpu(theirs)}, +{_extra(theirs)}"
    ratios = {
        count: _ratio(mine, rival_lap, field.limit_s)
        for count, mine, rival_lap in zip(field.counts, ours, theirs, strict=True)
        if rival
    }
    texts = [
        f"{'>= ' if lap.missing else ''}{times(ratios[count])}"
        for count, lap in zip(field.counts, theirs, strict=True)
        if count in ratios
    ]
    share = [
        "-" if lap.missing else f"{field.floor_s(strategy, count) / lap.cpu:.2g}"
        for count, lap in zip(field.counts, ours, strict=True)
    ]
    row = Row(
        what=f"{strategy}, k = {_joined(map(str, field.counts))}, {_size(field)}",
        measured=f"CPU {_cpu(ours)}, +{_extra(ours)}",
        against=against,
        ratio=f"{_joined(share)} of the floor" + (f"; {_joined(texts)} the reference" if texts else ""),
        target="" if not rival else "faster (B6)",
    )
    return row, ratios


def _lap(field: Field, side: str, strategy: str, count: int) -> Lap:
    arguments = [str(field.directory), strategy, str(count), str(field.repeats), str(field.limit_s)]
    try:
        done = _side(side, arguments, timeout_s=PATIENCE * field.limit_s + 60)
    except subprocess.TimeoutExpired:
        return Lap(missing=f"> {field.limit_s} s")
    if done.returncode < 0:
        return Lap(missing=f"> {field.limit_s} s")
    lines = done.stdout.splitlines()
    if done.returncode:
        return Lap(missing="-" if lines else "fails")
    return Lap(**json.loads(lines[-1]))


def _ratio(ours: Lap, theirs: Lap, limit_s: int) -> float:
    """Return how many times as much CPU the reference takes: at least so many where it was ended."""
    return (theirs.cpu if not theirs.missing else float(limit_s)) / (ours.cpu or float(limit_s))


def _summaries(field: Field, about: str, ratios: dict[str, dict[int, float]]) -> Iterator[Row]:
    for count in field.counts:
        found = {name: by_count[count] for name, by_count in ratios.items() if count in by_count}
        if not found:
            yield Row(what=f"all strategies, k = {count}", measured=about)
            continue
        slower = sorted((ratio, name) for name, ratio in found.items() if ratio <= 1)
        yield Row(
            what=f"{len(found)} strategies that the reference has, k = {count}, {_size(field)}",
            measured=f"{len(found) - len(slower)} of {len(found)} take less CPU than the reference"
            + "".join(f"; {name} {ratio:.2g}x" for ratio, name in slower),
            against=about,
            ratio=f"median {times(statistics.median(found.values()))}",
            target="faster on all 26, >= 10x on the median (B6)",
        )


def _whole_commands(field: Field) -> Iterator[Row]:
    """Yield a row per strategy for ``crdt-merge-node merge``, from files to a durable file."""
    files = [_to_file(field.directory / f"{name}.npy") for name in (*range(WHOLE_COUNT), "base")]
    *models, base = files
    output = field.directory / "out.safetensors"
    for strategy in names():
        needs_base = get(strategy).base == "required"
        inputs = files if needs_base else models
        made = _side("ours", [str(field.directory), strategy, *map(str, models)])
        if made.returncode:
            continue
        more = json.loads(made.stdout)
        command = [str(CLI), "merge", *map(str, models), "-o", str(output), "--strategy", strategy]
        command += ["--base", str(base)] if needs_base else []
        for name, value in more["params"].items():
            command += ["--param", f"{name}={value}"]
        for path in more["artefacts"]:
            command += ["--artefact", path]
        floor_s = best_s(partial(durable_copy, inputs, output), field.repeats)
        cost = run_command(command)
        yield Row(
            what=f"{strategy}, k = {WHOLE_COUNT}, {_size(field)}, whole command",
            measured=str(cost),
            against=f"durable copy of the models {ms(floor_s)}",
            ratio=f"{times(cost.wall_s / floor_s)} the copy",
        )
        sys.stderr.write(f"{strategy}: {cost}\n")


def _to_file(array: Path) -> Path:
    models = np.load(array)
    specs = [TensorSpec(name=f"t{n:03}", dtype="F32", shape=tensor.shape) for n, tensor in enumerate(models)]
    header, _ = layout(specs)
    path = array.with_suffix(".safetensors")
    path.write_bytes(header + models.tobytes())
    return path


def _size(field: Field) -> str:
    return f"{field.matrices * SIDE * SIDE / 1e6:.0f}M f32"


def _joined(texts: Iterator[str] | Sequence[str] | map[str]) -> str:
    return " / ".join(texts)


def _cpu(laps: Sequence[Lap]) -> str:
    return _joined(lap.missing or ms(lap.cpu) for lap in laps)


def _extra(laps: Sequence[Lap]) -> str:
    return _joined("-" if lap.missing else f"{lap.extra / MIB:.0f}" for lap in laps) + " MiB"
