"""The reference implementation, ``crdt-merge`` from the package index, on the same arrays (TARGETS B6).

It is installed into a scratch environment that is deleted afterwards, and runs in a process of its own; this
project never imports it. Both get arrays in memory, four models and a base, default parameters, one thread.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from .measure import Options, Row, best_s, ms, times
from .resolve import Arithmetic, make_models

PACKAGE = "crdt-merge"
STRATEGIES = ("weight_average", "ties")
ELEMENTS_MAX = 4_000_000
"""Larger ones take the rival a quarter of an hour."""

_RACE = """
import json, sys, time
from importlib.metadata import version
import numpy as np
from crdt_merge.model import ModelMerge, ModelMergeSchema

elements, repeats = map(int, sys.argv[1:3])
rng = np.random.default_rng(1)
base = rng.standard_normal(elements, dtype=np.float32)
models = [{"w": base + np.float32(0.01) * rng.standard_normal(elements, dtype=np.float32)} for _ in range(4)]
seconds = {}
for strategy in sys.argv[3:]:
    merge = ModelMerge(ModelMergeSchema(strategies={"default": strategy}))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        merge.merge(models, base_model={"w": base})
        times.append(time.perf_counter() - began)
    seconds[strategy] = min(times)
print(json.dumps({"version": version("crdt-merge"), "seconds": seconds}))
"""


def measure(options: Options) -> Iterator[Row]:
    """Yield a row per strategy."""
    elements = min(options.elements, ELEMENTS_MAX)
    with tempfile.TemporaryDirectory(prefix="cmn-rival-") as directory:
        rival = _race(Path(directory), elements, options.repeats)
    *models, base = make_models(elements)
    for strategy in STRATEGIES:
        seconds = best_s(Arithmetic(strategy, {}, models, base).run, options.repeats)
        rival_s = rival["seconds"][strategy]
        yield Row(
            what=f"{strategy} k=4 {elements / 1e6:g}M f32, arithmetic, against the reference",
            measured=ms(seconds),
            against=f"{PACKAGE} {rival['version']} {ms(rival_s)}",
            ratio=f"{times(rival_s / seconds)} the reference's speed",
            target=">= 50x (B3)" if strategy == "ties" else "faster (B6)",
        )


def _race(directory: Path, elements: int, repeats: int) -> dict:
    environment = directory / "environment"
    python = str(environment / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in (
        [sys.executable, "-m", "venv", str(environment)],
        [*install, PACKAGE, f"numpy=={version('numpy')}"],
    ):
        subprocess.run(command, check=True)
    done = subprocess.run(
        [python, "-c", _RACE, str(elements), str(repeats), *STRATEGIES],
        check=True,
        capture_output=True,
        text=True,
        env={"OPENBLAS_NUM_THREADS": "1", "PATH": ""},
        cwd=directory,
    )
    found: dict = json.loads(done.stdout)
    return found
