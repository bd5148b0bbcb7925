"""Every registered strategy on the same arrays (TARGETS B6): ours, naive numpy, and the reference.

The reference is ``crdt-merge`` from the package index, in a scratch environment of its own, as a process of
its own. Models are fine-tunes of a base in float32 matrices of 1,024 x 1,024; every merge runs in a fresh
process on one thread, with the defaults of whoever runs it and whatever artefacts ours needs. CPU time is
what is compared: it is what a busy host does not spoil. Memory is what comes on top of the inputs. The floor
reads every input once and writes the output once at the bandwidth of a copy in memory. Ours is measured by
numpy and by compiled loops, which merges of 50 million elements and more use, 30 where a strategy draws;
compiling them, once per user, and loading them, about 0.05 s a process, are not in the figures.

Who takes two minutes, or thirty times as long as ours, is ended, and its ratio is a bound. Where the
published method is made of products of matrices, systems and decompositions, naive is that by ``np.linalg``
in float64 (``naive_algebra.py``), and the row says if the reference looks at no matrix: found out by merging
a part of a small one, and its elements in one row.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from crdt_merge_node.resolve.accelerate import compile_loops
from crdt_merge_protocol.blobs import TensorSpec
from crdt_merge_protocol.strategies.registry import get, names
from crdt_merge_protocol.tensorfile import layout

from tests.oracles.environments import ROOT, python_of

from . import naive, naive_algebra
from .arithmetic import needs_base
from .measure import MIB, Options, Row, best_s, copy_bytes_per_s, durable_copy, ms, run_command, times

PACKAGE = "crdt-merge"
SIDES = Path(__file__).with_name("sides")
CLI = Path(sys.executable).with_name("crdt-merge-node")
SIDE = 1024
COUNTS = (2, 4, 8)
WHOLE_COUNT = 4
"""Models in the rows of whole commands."""
LIMIT_S = 120
"""Seconds of CPU after which a merge is ended."""
HOPELESS, HOPELESS_S = 30, 10
"""A rival is ended as soon as it has taken so many times as long as ours, and so many seconds."""
BLIND = {
    "elements": "each element for itself, no matrix",
    "tensors": "the same for any shape, no matrix",
}
"""What the reference does instead, by what it looks at."""
LOOK_S = 0.1
START_S = 3
"""What reading the arrays and making artefacts may take besides, in seconds of CPU."""


@dataclass(frozen=True, slots=True)
class Lap:
    """The best of one side's merges, or why there is none."""

    wall: float = 0.0
    cpu: float = 0.0
    extra: int = 0
    missing: str = ""
    """``cpu`` is a bound if it was ended, else infinite."""


@dataclass(frozen=True, slots=True)
class Field:
    """Where a contest takes place."""

    directory: Path
    matrices: int
    counts: tuple[int, ...]
    limit_s: int
    repeats: int
    bandwidth: float
    has_compiled: bool
    """Measure with compiled loops, too."""
    reference: dict[str, str]
    """The reference's names by ours; empty if it is not there."""
    looks: dict[str, str]
    """What the reference looks at, by our names."""

    def floor_s(self, strategy: str, count: int) -> float:
        """Return the floor of a merge of so many models."""
        arrays = count + 1 + needs_base(strategy)
        return arrays * self.matrices * SIDE * SIDE * 4 / self.bandwidth


def measure(options: Options) -> Iterator[Row]:
    """Yield a summary per number of models, then a row per strategy; ``--full`` adds 64M elements."""
    looks, reference, about = _reference()
    for matrices in (4, 64) if options.is_full else (4,):
        with tempfile.TemporaryDirectory(prefix="cmn-bench-") as directory:
            field = Field(
                directory=Path(directory),
                matrices=matrices,
                counts=COUNTS if matrices == 4 and options.is_full else (4,),
                limit_s=LIMIT_S,
                repeats=options.repeats,
                bandwidth=copy_bytes_per_s(clock=time.process_time),
                has_compiled=not compile_loops(),
                reference=reference,
                looks=looks,
            )
            _write_arrays(field)
            contests = []
            for strategy in names():
                contests.append(_contest(field, strategy))
                row = contests[-1].row(field)
                sys.stderr.write(f"{row.what}: {row.measured} | {row.against} | {row.ratio}\n")
            yield from _summaries(field, about, contests)
            rows = [contest.row(field) for contest in contests]
            yield from rows
            if options.is_full and matrices == 4:
                yield from _whole_commands(field)


def _reference() -> tuple[dict[str, str], dict[str, str], str]:
    """Return what the reference looks at and its names, by ours, and what it is."""
    try:
        done = _side("reference", [])
    except (subprocess.CalledProcessError, OSError) as error:
        return {}, {}, f"{PACKAGE} could not be installed ({type(error).__name__})"
    about = json.loads(done.stdout)
    found = {get(name).id: name for name in about["strategies"]}
    looks = {ours: about["strategies"][theirs] for ours, theirs in found.items()}
    return looks, found, f"{PACKAGE} {about['version']}"


def _side(side: str, arguments: Sequence[str], limit_s: float = 600) -> subprocess.CompletedProcess[str]:
    """Run a side to its end, or until it has taken so many seconds of CPU: then it is killed."""
    if side == "reference":
        python, environment = str(python_of("crdt_merge")), {"PATH": ""}
    else:
        python, environment = sys.executable, {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [python, str(SIDES / f"{side}.py"), *arguments]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment, "OPENBLAS_NUM_THREADS": "1"},
    )
    while True:
        try:
            out, errors = process.communicate(timeout=LOOK_S)
            break
        except subprocess.TimeoutExpired:
            if _cpu_s(process.pid) > limit_s:
                process.kill()
    done = subprocess.CompletedProcess(command, process.returncode, out, errors)
    if not arguments:
        done.check_returncode()
    return done


def _cpu_s(pid: int) -> float:
    """Return the seconds of CPU that a process has taken; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _write_arrays(field: Field) -> None:
    rng = np.random.default_rng(1)
    shape = (field.matrices, SIDE, SIDE)
    base = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
    np.save(field.directory / "base.npy", base)
    for number in range(max(field.counts)):
        tuned = base + np.float32(0.002) * rng.standard_normal(shape, dtype=np.float32)
        np.save(field.directory / f"{number}.npy", tuned)


@dataclass(frozen=True, slots=True)
class Contest:
    """Laps of all sides with one strategy, one per number of models; none from who does not have it."""

    strategy: str
    ours: Sequence[Lap]
    compiled: Sequence[Lap]
    naive: Sequence[Lap]
    reference: Sequence[Lap]

    def instead(self, field: Field) -> str:
        """Return what the reference does instead of the published method on matrices, in brackets."""
        if self.strategy not in naive_algebra.FORMULAS:
            return ""
        instead = BLIND.get(field.looks.get(self.strategy, ""))
        return f" ({instead})" if instead else ""

    def row(self, field: Field) -> Row:
        """Return all of it as a line of the table."""
        floors = [field.floor_s(self.strategy, count) for count in field.counts]
        measured, ratio = f"CPU {_said(self.ours)}", f"{_shares(floors, self.ours)} of the floor"
        against = f"floor {_joined(map(ms, floors))}"
        if self.compiled:
            measured += f"; compiled {_said(self.compiled)}"
            ratio += f", compiled {_shares(floors, self.compiled)}"
        if self.naive:
            against += f"; naive {_said(self.naive)}"
            ratio += f"; {_joined(times(ratio) for ratio in _ratios(self.ours, self.naive))} naive"
        if self.reference:
            against += f"; reference {_said(self.reference)}{self.instead(field)}"
            ratio += f"; {self._against_reference(self.ours)} the reference"
        if self.reference and self.compiled:
            ratio += f", compiled {self._against_reference(self.compiled)}"
        return Row(
            what=f"{self.strategy}, k = {_joined(map(str, field.counts))}, {_size(field)}",
            measured=measured,
            against=against,
            ratio=ratio,
            target="faster (B6)" if self.reference else "",
        )

    def _against_reference(self, ours: Sequence[Lap]) -> str:
        return _joined(
            f"{'>= ' if theirs.missing else ''}{times(ratio)}"
            for ratio, theirs in zip(_ratios(ours, self.reference), self.reference, strict=True)
        )


def _contest(field: Field, strategy: str) -> Contest:
    def laps(side: str, name: str, *, takes_part: bool = True) -> list[Lap]:
        if not takes_part:
            return []
        return [
            _lap(field, side, name, count, limit_s)
            for count, limit_s in zip(field.counts, limits, strict=True)
        ]

    limits = [float(field.limit_s)] * len(field.counts)
    ours = laps("ours", strategy)
    limits = [min(field.limit_s, max(HOPELESS * lap.cpu, HOPELESS_S)) for lap in ours]
    rival = field.reference.get(strategy, "")
    return Contest(
        strategy=strategy,
        ours=ours,
        compiled=laps("ours", f"compiled:{strategy}", takes_part=field.has_compiled),
        naive=laps("ours", f"naive:{strategy}", takes_part=_has_naive(strategy)),
        reference=laps("reference", rival, takes_part=bool(rival)),
    )


def _has_naive(strategy: str) -> bool:
    return strategy in naive_algebra.FORMULAS or hasattr(naive, strategy)


def _lap(field: Field, side: str, strategy: str, count: int, limit_s: float) -> Lap:
    arguments = [str(field.directory), strategy, str(count), str(field.repeats)]
    done = _side(side, arguments, limit_s + START_S)
    if done.returncode < 0:
        return Lap(cpu=limit_s, missing=f">= {limit_s:.0f} s, ended")
    lines = done.stdout.splitlines()
    if done.returncode:
        return Lap(cpu=math.inf, missing="-" if lines else "fails")
    return Lap(**json.loads(lines[-1]))


def _summaries(field: Field, about: str, contests: Sequence[Contest]) -> Iterator[Row]:
    races = [contest for contest in contests if contest.reference]
    if not races:
        yield Row(what="the reference", measured=about, is_missing=True)
        return
    for loops in ("numpy", "compiled")[: 1 + field.has_compiled]:
        for place, count in enumerate(field.counts):
            found = sorted(
                (
                    _ratios(race.ours if loops == "numpy" else race.compiled, race.reference)[place],
                    f"{race.strategy}{race.instead(field)}",
                )
                for race in races
            )
            slower = [f"; {name} {ratio:.2g}x" for ratio, name in found if ratio <= 1]
            yield Row(
                what=f"the reference's {len(races)} strategies, k = {count}, {_size(field)}, {loops}",
                measured=f"{len(races) - len(slower)} of {len(races)} take less CPU{''.join(slower)}",
                against=about,
                ratio=f"median {times(statistics.median(ratio for ratio, _ in found))}",
                target="faster on all 26, >= 10x on the median (B6)",
            )


def _ratios(ours: Sequence[Lap], theirs: Sequence[Lap]) -> list[float]:
    """Return how many times as much CPU a rival takes: at least so many where it was ended."""
    return [rival.cpu / max(mine.cpu, 1e-6) for mine, rival in zip(ours, theirs, strict=False)]


def _whole_commands(field: Field) -> Iterator[Row]:
    """Yield a row per strategy for ``crdt-merge-node merge``, from files to a durable file."""
    files = [_to_file(field.directory / f"{name}.npy") for name in (*range(WHOLE_COUNT), "base")]
    *models, base = files
    output = field.directory / "out.safetensors"
    for strategy in names():
        inputs = files if needs_base(strategy) else models
        made = _side("ours", [str(field.directory), strategy, *map(str, models)])
        if made.returncode:
            continue
        more = json.loads(made.stdout)
        command = [str(CLI), "merge", "--fresh", *map(str, models), "-o", str(output), "--strategy", strategy]
        command += ["--base", str(base)] if needs_base(strategy) else []
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


def _joined(texts: Iterable[str]) -> str:
    return " / ".join(texts)


def _shares(floors: Sequence[float], laps: Sequence[Lap]) -> str:
    return _joined(
        "-" if lap.missing else f"{floor / max(lap.cpu, 1e-6):.2g}"
        for floor, lap in zip(floors, laps, strict=True)
    )


def _said(laps: Sequence[Lap]) -> str:
    extra = _joined("-" if lap.missing else f"+{max(lap.extra, 0) / MIB:.0f} MiB" for lap in laps)
    return f"{_joined(lap.missing or ms(lap.cpu) for lap in laps)}, {extra}"
