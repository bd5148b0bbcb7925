"""``python -m tests.oracles [mergekit]``: the same merges by another implementation, compared."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
from crdt_merge_protocol.strategies.randomness import stream_key, uniform
from crdt_merge_protocol.strategies.reference import digest_of, merge_arrays

from .cases import SEED, Array, Case, all_cases
from .environments import python_of

TENSOR = "tensor"
NOT_IN_BF16 = frozenset(
    {"ties", "dare", "dare_ties", "della", "della_linear", "model_breadcrumbs", "breadcrumbs_ties", "sce"}
    | {"arcee_fusion", "nearswap", "model_stock", "karcher", "slerp", "nuslerp"}
)
"""Selections among equal magnitudes and angles between coarse vectors: no two implementations agree."""


def main(arguments: list[str]) -> int:
    """Compare with every oracle that is named, all by default; return 0 if all agree."""
    seed = int(arguments[0]) if arguments else 1
    cases = [case for case in all_cases(seed) if _is_comparable(case)]
    theirs = _ask_mergekit(cases)
    problems: list[str] = []
    agreed: Counter[str] = Counter()
    worst: dict[str, float] = {}
    for case in cases:
        ours = _ours(case)
        scale = max(float(np.abs(ours).max()), 1e-300)
        gap = float(np.abs(ours - theirs[case.id].reshape(ours.shape)).max()) / scale
        worst[case.method] = max(worst.get(case.method, 0.0), gap if not case.is_bf16 else 0.0)
        if not gap <= case.tolerance:
            problems.append(f"{case.id}: {gap:.3g} apart, {case.tolerance:.1g} allowed")
        agreed[case.method] += gap <= case.tolerance
    lines = [
        f"  mergekit {method:18} {count:4} cases agree, the worst in f64 {worst[method]:.2g} apart"
        for method, count in sorted(agreed.items())
    ]
    total = f"{len(cases) - len(problems)} of {len(cases)} cases agree (seed {seed})"
    sys.stdout.write("\n".join([*lines, *problems, total]) + "\n")
    return 1 if problems else 0


def _is_comparable(case: Case) -> bool:
    if case.is_bf16 and case.strategy in NOT_IN_BF16:
        return False
    # They rank along the second axis, whatever the shape; we rank rows, along the last.
    return "della" not in case.strategy or case.inputs[0].ndim <= 2


def _ours(case: Case) -> Array:
    inputs = [{TENSOR: values} for values in case.inputs]
    found = merge_arrays(
        case.strategy,
        inputs,
        None if case.base is None else {TENSOR: case.base},
        case.params,
        weights=case.weights,
        seed=SEED,
        is_strict=True,
    )
    return found.tensors[TENSOR]


def _ask_mergekit(cases: list[Case]) -> dict[str, Array]:
    request: dict[str, Array | str] = {}
    said = []
    for case in cases:
        base = [] if case.base is None else [case.base]
        for number, values in enumerate([*base, *case.inputs]):
            request[f"{case.id}/{number}"] = values
        uniforms = _uniforms(case) if case.is_random else []
        for number, values in enumerate(uniforms):
            request[f"{case.id}/u{number}"] = values
        said.append(
            {
                "id": case.id,
                "method": case.method,
                "parameters": dict(case.parameters),
                "base_index": 0 if base or case.base_is_input else None,
                "tensors": len(base) + len(case.inputs),
                "uniforms": len(uniforms),
                "bf16": case.is_bf16,
            }
        )
    request["cases"] = json.dumps(said)
    with tempfile.TemporaryDirectory() as name:
        question, answer = Path(name) / "question.npz", Path(name) / "answer.npz"
        np.savez(question, **request)  # type: ignore[arg-type]  # a mapping of arrays and one text
        script = Path(__file__).with_name("mergekit_side.py")
        subprocess.run([str(python_of("mergekit")), str(script), str(question), str(answer)], check=True)
        with np.load(answer) as found:
            return {key: found[key] for key in found.files}


def _uniforms(case: Case) -> list[Array]:
    """Return what our masks compare with, one array per input in the order given."""
    weights = [Fraction(w) for w in case.weights or ["1"] * len(case.inputs)]
    drawn = []
    for values, weight in zip(case.inputs, weights, strict=True):
        name = digest_of({TENSOR: values}, weight)
        key = stream_key(SEED, case.strategy, TENSOR, name, "mask")
        drawn.append(uniform(key, 0, values.size).reshape(values.shape))
    return drawn


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
