"""Runs in the reference's environment: one merge of the arrays in a directory. Knows nothing of this project.

``reference.py DIRECTORY STRATEGY MODELS REPEATS``, or ``reference.py`` to have its strategies listed, each
with what a small merge shows that it looks at.
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
        looks = {name: _looks_at(name) for name in sorted(list_strategies())}
        sys.stdout.write(json.dumps({"version": version("crdt-merge"), "strategies": looks}))
        return
    directory, strategy, count, repeats = sys.argv[1:]
    models = [_load(Path(directory, f"{number}.npy")) for number in range(int(count))]
    base = _load(Path(directory, "base.npy"))
    merge = ModelMerge(ModelMergeSchema(strategies={"default": strategy}))
    run_laps(lambda: merge.merge(models, base_model=base), repeats=int(repeats))


def _looks_at(strategy: str) -> str:
    """Return ``elements``, if each is merged for itself, ``tensors``, if no shape matters, else ``matrices``.

    For then half of the columns alone come out as beside the others, or all elements do in one row.
    """
    base, *models = np.random.default_rng(1).standard_normal((4, 12, 8))
    merge = ModelMerge(ModelMergeSchema(strategies={"default": strategy}))

    def merged(view) -> np.ndarray:
        found = merge.merge([{"t": view(model)} for model in models], base_model={"t": view(base)})
        return np.asarray(found.tensor["t"])

    whole = merged(lambda array: array)
    if np.allclose(merged(lambda array: array[:, :4].copy()), whole[:, :4], rtol=1e-9):
        return "elements"
    return "tensors" if np.allclose(merged(np.ravel), whole.ravel(), rtol=1e-9) else "matrices"


def _load(path: Path) -> dict:
    return {f"t{number:03}": tensor for number, tensor in enumerate(np.load(path))}


if __name__ == "__main__":
    main()
