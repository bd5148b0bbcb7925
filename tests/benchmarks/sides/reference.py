"""Runs in the reference's environment: one merge of the arrays in a directory. Knows nothing of this project.

``reference.py DIRECTORY STRATEGY MODELS REPEATS``, or ``reference.py`` to have its strategies listed.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from crdt_merge.model import ModelMerge, ModelMergeSchema, list_strategies
from lap import run_laps


def main() -> None:
    """Do what the command line asks for."""
    if len(sys.argv) == 1:
        about = {"version": version("crdt-merge"), "strategies": sorted(list_strategies())}
        sys.stdout.write(json.dumps(about))
        return
    directory, strategy, count, repeats = sys.argv[1:]
    models = [_load(Path(directory, f"{number}.npy")) for number in range(int(count))]
    base = _load(Path(directory, "base.npy"))
    merge = ModelMerge(ModelMergeSchema(strategies={"default": strategy}))
    run_laps(lambda: merge.merge(models, base_model=base), repeats=int(repeats))


def _load(path: Path) -> dict:
    return {f"t{number:03}": tensor for number, tensor in enumerate(np.load(path))}


if __name__ == "__main__":
    main()
