"""Whole mergekit YAML files, merged there and here: gradients over layers, filters, stacked slices."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import numpy as np
import safetensors.numpy

from .asking import ask

MODELS: Final = ("base", "a", "b")
TOLERANCE: Final = 1e-5
"""Absolute; both write f32."""
_TOP: Final = "base_model: PLACE/base\ndtype: float32\n"
_TWO: Final = "models:\n  - {{model: PLACE/a, parameters: {a}}}\n  - {{model: PLACE/b, parameters: {b}}}\n"
CONFIGURATIONS: Final = {
    "slerp": _TOP
    + """
merge_method: slerp
slices:
  - sources: [{model: PLACE/base, layer_range: [0, 5]}, {model: PLACE/a, layer_range: [0, 5]}]
parameters:
  t:
    - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
    - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
    - {value: 0.5}
""",
    "ties": _TOP
    + _TWO.format(a="{density: [1, 0.7, 0.1], weight: 1.0}", b="{density: 0.5, weight: [0, 0.3, 0.7, 1]}")
    + "merge_method: ties\nparameters: {normalize: true, lambda: [0.5, 1.5]}\n",
    "filters": _TOP
    + _TWO.format(a="{weight: [{filter: mlp, value: 0.5}], density: 0.5}", b="{weight: 0.5, density: 0.4}")
    + "merge_method: ties\nparameters: {weight: [{filter: lm_head, value: 0.1}, {value: [0.2, 0.9]}]}\n",
    "linear": "dtype: float32\n"
    + _TWO.format(
        a="{weight: [0.1, 0.9]}",
        b='{weight: [{filter: q_proj, value: [1, 0.5]}, {filter: "*", value: 0.7}]}',
    )
    + "merge_method: linear\n",
    "breadcrumbs": _TOP
    + _TWO.format(
        a="{weight: 0.4, density: 0.6, gamma: [0.0, 0.2]}", b="{weight: 0.7, density: 0.8, gamma: 0.1}"
    )
    + "merge_method: breadcrumbs_ties\n",
    "stack": """
merge_method: passthrough
dtype: float32
slices:
  - sources:
      - model: PLACE/a
        layer_range: [0, 3]
        parameters: {scale: [{filter: o_proj, value: 0.0}, {filter: down_proj, value: [1, 0.5]}, {value: 1}]}
  - sources: [{model: PLACE/b, layer_range: [1, 5]}]
""",
}  # fmt: skip


def compare(seed: int) -> tuple[list[str], str]:
    """Return what does not agree, and a line that says how well the rest does."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        case = {
            "id": "configurations", "place": name, "seed": 100 * seed, "models": MODELS,
            "configurations": CONFIGURATIONS,
        }  # fmt: skip
        expected = ask("mergekit", "mergekit_files_side.py", [case], {})
        found = {}
        for each, text in CONFIGURATIONS.items():
            (place / f"{each}.yml").write_text(text.replace("PLACE", name))
            output = place / f"{each}.safetensors"
            command = [sys.executable, "-m", "crdt_merge_node", "merge", "--no-input", "--quiet", "--json"]
            command += ["--config", str(place / f"{each}.yml"), "-o", str(output)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            found |= {f"{each}/{t}": v for t, v in safetensors.numpy.load_file(output).items()}
    problems = [
        f"mergekit files: {name} is on one side only" for name in sorted(found.keys() ^ expected.keys())
    ]
    gaps = {
        name: float(np.abs(found[name] - expected[name]).max()) for name in found.keys() & expected.keys()
    }
    problems += [
        f"mergekit files {name}: {gap:.3g} apart, {TOLERANCE:.1g} allowed"
        for name, gap in sorted(gaps.items())
        if not gap <= TOLERANCE
    ]
    worst = max(gaps.values(), default=0.0)
    return (
        problems,
        f"mergekit files: {len(gaps)} tensors of {len(CONFIGURATIONS)}, {worst:.2g} apart at most",
    )
