"""Adapters as PEFT saves them, for tests, and what they stand for by the definition."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy

PREFIX = "base_model.model."
SHAPES = {"layers.0.q_proj": (24, 16), "layers.0.mlp": (40, 16), "layers.1.q_proj": (24, 16)}


def save_adapter(
    path: Path,
    seed: int,
    rank: int = 4,
    *,
    modules: tuple[str, ...] = tuple(SHAPES),
    alpha: float = 8,
    others: Mapping[str, np.ndarray] | None = None,
    **config: object,
) -> Path:
    """Write an adapter of random factors."""
    path.mkdir()
    rng = np.random.default_rng(seed)
    tensors = {f"{PREFIX}{name}": values for name, values in (others or {}).items()}
    for module in modules:
        rows, columns = SHAPES[module]
        down, up = rng.standard_normal((rank, columns)), rng.standard_normal((rows, rank))
        tensors[f"{PREFIX}{module}.lora_A.weight"] = down.astype(np.float32)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = up.astype(np.float32)
    safetensors.numpy.save_file(tensors, path / "adapter_model.safetensors")
    text = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "base_model_name_or_path": "org/base",
        **config,
    }
    (path / "adapter_config.json").write_text(json.dumps(text))
    return path


def save_base(path: Path, **more: np.ndarray) -> Path:
    """Write the model that the adapters are of."""
    rng = np.random.default_rng(99)
    tensors = {f"{m}.weight": rng.standard_normal(s).astype(np.float32) for m, s in SHAPES.items()}
    safetensors.numpy.save_file({"norm.weight": np.ones(16, np.float32)} | tensors | more, path)
    return path


def dense(path: Path, module: str) -> np.ndarray:
    """Return the difference of a module by the definition, from the files alone."""
    tensors = safetensors.numpy.load_file(path / "adapter_model.safetensors")
    config = json.loads((path / "adapter_config.json").read_text())
    if f"{PREFIX}{module}.lora_A.weight" not in tensors:
        return np.zeros(SHAPES[module])
    down = tensors[f"{PREFIX}{module}.lora_A.weight"].astype(float)
    up = tensors[f"{PREFIX}{module}.lora_B.weight"].astype(float)
    alpha = config.get("alpha_pattern", {}).get(module, config["lora_alpha"])
    rank = down.shape[0]
    return up @ down * (alpha / np.sqrt(rank) if config.get("use_rslora") else alpha / rank)
