"""A merge over an output of which one of forty tensors has to change, beside one that computes all anew.

First the ``merge`` command, start-up included: either way it reads and hashes all inputs, which names them,
so that reuse saves the arithmetic, its passes, and reading the inputs once more. Then the job that a daemon
does, which knows its inputs by name: there the output is copied and hashed, and one tensor computed. Forty
tensors of one size; what changes is the parameter ``weight`` of one of them.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from crdt_merge_node.ports import SystemFs
from crdt_merge_node.resolve.describe import DescribedFile, describe_file
from crdt_merge_node.resolve.earlier import read_earlier
from crdt_merge_node.resolve.plan import build_job
from crdt_merge_node.resolve.run import run_job
from crdt_merge_protocol.blobs import TensorSpec
from crdt_merge_protocol.policy import Policy, sorted_params
from crdt_merge_protocol.strategies.registry import get
from crdt_merge_protocol.tensorfile import layout

from .measure import MIB, Options, Row, ms, run_command, times
from .merge import CLI

TENSORS = 40
MODELS = 3
STRATEGIES = {
    "weight_average": {},
    "slerp": {},
    "ties": {"scope": "tensor"},
    "della": {"seed_scope": "contribution"},
}
CHANGES = ("w00=2;1", "w00=3;1")
"""Of the parameter ``weight``, in turn."""
Spent = tuple[float, float]
"""Seconds of wall and of CPU, all processes together."""
Run = Callable[[dict[str, str], bool], Spent]
"""Merges with parameters, anew or not."""


def measure(options: Options) -> Iterator[Row]:
    """Yield two rows per strategy."""
    with tempfile.TemporaryDirectory(prefix="cmn-bench-") as name:
        directory = Path(name)
        side = int((options.checkpoint_mib * MIB / TENSORS / 4) ** 0.5)
        specs = [TensorSpec(name=f"w{n:02}", dtype="F32", shape=(side, side)) for n in range(TENSORS)]
        files = [_write(directory / f"{n}.safetensors", specs, seed=n) for n in range(MODELS + 1)]
        known = [describe_file(path) for path in files]
        for strategy, params in STRATEGIES.items():
            ways: dict[str, Run] = {
                "merge": _command(strategy, files, directory / "out"),
                "a node's resolve": _job(strategy, known, directory / "out"),
            }
            for way, run in ways.items():
                spent = [_least(run, params, is_fresh, options.repeats) for is_fresh in (False, True)]
                (wall_s, cpu_s), (fresh_s, fresh_cpu_s) = spent
                yield Row(
                    what=f"{way}: {strategy} k={MODELS}, {options.checkpoint_mib} MiB f32, "
                    f"1 of {TENSORS} tensors changed",
                    measured=f"{ms(wall_s)}, CPU {ms(cpu_s)}",
                    against=f"all anew {ms(fresh_s)}, CPU {ms(fresh_cpu_s)}",
                    ratio=f"{times(fresh_s / wall_s)} wall, {times(fresh_cpu_s / cpu_s)} CPU",
                )


def _least(run: Run, params: dict[str, str], is_fresh: bool, repeats: int) -> Spent:
    """Return the least of wall and of CPU; each run differs from the one before in one tensor."""
    run({**params, "weight": CHANGES[0]}, is_fresh)
    spent = [run({**params, "weight": CHANGES[n % 2]}, is_fresh) for n in range(1, repeats + 1)]
    return min(wall_s for wall_s, _ in spent), min(cpu_s for _, cpu_s in spent)


def _command(strategy: str, files: Sequence[Path], output: Path) -> Run:
    *models, base = files
    command = [str(CLI), "merge", *map(str, models), "-o", str(output), "--strategy", strategy]
    command += ["--base", str(base)] if get(strategy).base == "required" else []

    def run(params: dict[str, str], is_fresh: bool) -> Spent:
        given = [f"--param={name}={value}" for name, value in params.items()]
        cost = run_command([*command, *given, *(["--fresh"] if is_fresh else [])])
        return cost.wall_s, cost.cpu_s

    return run


def _job(strategy: str, known: Sequence[DescribedFile], output: Path) -> Run:
    *models, base = known
    used_base = base.used if get(strategy).base == "required" else None

    def run(params: dict[str, str], is_fresh: bool) -> Spent:
        policy = Policy(
            strategy=strategy,
            strategy_version=get(strategy).version,
            params=sorted_params(params),
            schema=base.manifest.schema.id,
            base=base.manifest.content if used_base else None,
        )
        used = [model.used for model in models]
        began, before = time.perf_counter(), os.times()
        job = build_job(policy, base.manifest.schema, used, used_base, group_mode=True, workers=2)
        run_job(replace(job, earlier={} if is_fresh else read_earlier(SystemFs(), output)), output)
        after = os.times()
        cpu_s = sum(after[:4]) - sum(before[:4])  # Its own and that of workers, which have ended.
        return time.perf_counter() - began, cpu_s

    return run


def _write(path: Path, specs: Sequence[TensorSpec], *, seed: int) -> Path:
    """Write a model: common values, and a little of its own."""
    header, _ = layout(specs)
    common, own = np.random.default_rng(0), np.random.default_rng(seed + 1)
    with path.open("wb") as file:
        file.write(header)
        for spec in specs:
            values = common.standard_normal(spec.numel, np.float32)
            values += np.float32(0.01) * own.standard_normal(spec.numel, np.float32)
            file.write(values.data)
    return path
