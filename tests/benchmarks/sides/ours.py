"""One merge of the arrays in a directory by this project: the arithmetic alone, in memory, on one thread.

``ours.py DIRECTORY STRATEGY MODELS REPEATS``: as the reference's side. ``ours.py DIRECTORY STRATEGY
FILE...``: write the artefacts that a merge of these files by this strategy needs and print their paths.
``naive:NAME`` is a formula over whole arrays or matrices, ``compiled:NAME`` a strategy with compiled loops.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from crdt_merge_node.artefacts.files import write_artefact
from crdt_merge_node.ports import SystemFs, SystemRng
from crdt_merge_node.resolve import worker
from crdt_merge_node.resolve.accelerate import install_compiled
from crdt_merge_node.resolve.describe import describe_file
from support.synthetic import NAMES, Case, case_of

from tests.benchmarks import naive, naive_algebra
from tests.benchmarks.arithmetic import Arithmetic, needs_base
from tests.benchmarks.sides.lap import run_laps

NAIVE, COMPILED = "naive:", "compiled:"
UNFIT = 3
"""Exit status: the strategy cannot merge so few models."""
PARAMETERS: dict[str, dict[str, str]] = {
    # Of these, the defaults do not fit a few models of a few tensors each.
    "krum": {"f": "0"},
    "multi_krum": {"f": "0"},
}


def main() -> int:
    """Do what the command line asks for."""
    directory, strategy, *rest = sys.argv[1:]
    if not rest[0].isdigit():
        return write_artefacts(Path(directory), strategy, [Path(path) for path in rest])
    count, repeats = map(int, rest)
    models = [np.load(Path(directory, f"{number}.npy")) for number in range(count)]
    base = np.load(Path(directory, "base.npy"))
    if strategy.startswith(NAIVE):
        run_laps(naive_work(strategy.removeprefix(NAIVE), models, base), repeats=repeats)
        return 0
    is_compiled = strategy.startswith(COMPILED)
    strategy = strategy.removeprefix(COMPILED)
    case = make_case(strategy, [tensors_of(model) for model in models], tensors_of(base))
    if case.unmet is not None:
        sys.stdout.write(json.dumps({"unmet": case.unmet}) + "\n")
        return UNFIT
    worker._keep_memory()  # As in the processes that merge: see there.
    arithmetic = arithmetic_of(case)
    if is_compiled:
        reason = install_compiled()
        if reason:
            raise RuntimeError(reason)
    run_laps(arithmetic.run, repeats=repeats)
    return 0


def naive_work(
    strategy: str, models: list[npt.NDArray[np.float32]], base: npt.NDArray[np.float32]
) -> Callable[[], object]:
    """Return a naive merge as something to run; one with artefacts has them made before."""
    if strategy in naive_algebra.FORMULAS:
        case = make_case(strategy, [tensors_of(model) for model in models], tensors_of(base))
        return partial(naive_algebra.FORMULAS[strategy], case)
    flat = [model.reshape(-1) for model in models]
    return partial(getattr(naive, strategy), flat, base.reshape(-1))


def tensors_of(array: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
    """Return the tensors of a model that is stored as one array, the first axis counting them."""
    return {f"t{number:03}": tensor for number, tensor in enumerate(array)}


def make_case(
    strategy: str,
    models: list[dict[str, npt.NDArray[np.float32]]],
    base: Mapping[str, npt.NDArray[np.float32]],
    names: tuple[bytes, ...] = NAMES,
) -> Case:
    """Return a merge with all it needs."""
    return case_of(strategy, models, base, PARAMETERS.get(strategy, {}), names=names)


def arithmetic_of(case: Case) -> Arithmetic:
    """Return the merge as something to run."""
    has_base = needs_base(case.strategy)
    context = replace(case.context, has_base=has_base)
    return Arithmetic(context, case.models, case.base if has_base else None, case.artefacts)


def write_artefacts(directory: Path, strategy: str, files: list[Path]) -> int:
    """Write artefact files for a merge of ``files`` and print JSON: their paths, and all parameters."""
    described = {path: describe_file(path) for path in files}
    ordered = sorted(files, key=lambda path: described[path].digest)
    arrays = {path: np.load(path.with_suffix(".npy")) for path in files}
    case = make_case(
        strategy,
        [tensors_of(arrays[path]) for path in ordered],
        tensors_of(arrays[files[0]]),
        tuple(described[path].digest for path in ordered),
    )
    if case.unmet is not None:
        return UNFIT
    paths = []
    for number, item in enumerate(case.artefacts):
        path = directory / f"artefact-{number}.safetensors"
        parts = [
            (spec, lambda name=spec.name, item=item: iter([item.tensors[name].reshape(-1).astype(float)]))
            for spec in item.artefact.specs
        ]
        write_artefact(path, item.artefact.header, parts, schema=None, fs=SystemFs(), rng=SystemRng())
        paths.append(str(path))
    params = dict(case.params)
    if "origin" in params:
        params["origin"] = described[files[0]].digest.hex()
    sys.stdout.write(json.dumps({"artefacts": paths, "params": params}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
