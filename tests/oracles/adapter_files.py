"""Adapters that PEFT has saved, merged by us and loaded by PEFT again: files, names, scales and layouts."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from crdt_merge_node.lora import expand_adapter, merge_adapters

from .asking import ask

ADAPTERS = 3
TOLERANCE = 1e-5
"""Absolute; factors are written in f32."""


def compare(seed: int) -> tuple[list[str], str]:
    """Return what does not agree, and a line that says how well the rest does."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        made = _ask(place, seed, load="")
        paths = [place / f"a{number}" for number in range(ADAPTERS)]
        merge_adapters(paths, place / "merged", strategy="task_arithmetic")
        merge_adapters(paths, place / "whole", strategy="task_arithmetic", base=place / "base.safetensors")
        expand_adapter(place / "adora", place / "dora", base=place / "base.safetensors")
        loaded = _ask(place, seed, load="merged")
        whole, dora = (safetensors.numpy.load_file(place / name) for name in ("whole", "dora"))
    problems, worst = [], 0.0
    for tensor in sorted(loaded):
        base = made[f"base/{tensor}"]
        changes = [made[f"{number}/{tensor}"] - base for number in range(ADAPTERS)]
        # What is saved whole is averaged among those that have it; here that is the first alone.
        is_whole = tensor.startswith("score") or tensor.endswith("bias")
        expected = base + (changes[0] if is_whole else sum(changes))
        gap = max(float(np.abs(each[tensor] - expected).max()) for each in (loaded, whole))
        gap = max(gap, float(np.abs(dora[tensor] - made[f"dora/{tensor}"]).max()))
        worst = max(worst, gap)
        if not gap <= TOLERANCE:
            problems.append(f"peft files {tensor}: {gap:.3g} apart, {TOLERANCE:.1g} allowed")
    return problems, f"peft files: {len(loaded)} tensors of {ADAPTERS} adapters, {worst:.2g} apart at most"


def _ask(place: Path, seed: int, *, load: str) -> dict[str, Any]:
    case = {"id": "files", "place": str(place), "seed": seed, "load": load}
    return dict(ask("mergekit", "peft_files_side.py", [case], {}))
