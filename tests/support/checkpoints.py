"""Checkpoints on disk for tests: one file, or shards with their index, as other programs write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

Tensors = Mapping[str, np.ndarray]
INDEX = "model.safetensors.index.json"


def some_tensors(seed: int = 1) -> dict[str, np.ndarray]:
    """Return a small model: a matrix above 64 KiB, small ones, an empty one, integers."""
    rng = np.random.default_rng(seed)
    return {
        "layer.0.w": rng.standard_normal((200, 100)).astype(np.float32),
        "layer.1.w": rng.standard_normal((30, 4)).astype(np.float32),
        "bias": rng.standard_normal(7).astype(np.float32),
        "none": np.zeros((0, 3), np.float32),
        "ids": np.arange(5),
    }


def save_sharded(directory: Path, tensors: Tensors, count: int = 2, **metadata: str) -> Path:
    """Write a sharded directory: every ``count``-th tensor in one file, in an order that is not ours."""
    directory.mkdir()
    names = sorted(tensors, reverse=True)
    weight_map = {}
    for number in range(count):
        file = f"model-{number + 1:05}-of-{count:05}.safetensors"
        shard = {name: tensors[name] for name in names[number::count]}
        weight_map |= dict.fromkeys(shard, file)
        save_file(shard, directory / file, metadata={"format": "pt"} | metadata)
    index = {"metadata": {"total_size": sum(a.nbytes for a in tensors.values())}, "weight_map": weight_map}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return directory


def files_in(directory: Path) -> dict[str, bytes]:
    """Return every file of a directory with its bytes."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}
