"""``python -m tests.oracles [SEED]``: the same merges by other implementations, compared."""

from __future__ import annotations

import sys
from collections import Counter
from fractions import Fraction

import numpy as np
from crdt_merge_protocol.strategies.randomness import stream_key, uniform
from crdt_merge_protocol.strategies.reference import digest_of, merge_arrays

from . import adapters, fusion
from .asking import ask
from .cases import SEED, Array, Case, all_cases

TENSOR = "tensor"
NOT_IN_BF16 = frozenset(
    {"ties", "dare", "dare_ties", "della", "della_linear", "model_breadcrumbs", "breadcrumbs_ties", "sce"}
    | {"arcee_fusion", "nearswap", "model_stock", "karcher", "slerp", "nuslerp"}
)
"""Selections among equal magnitudes and angles between coarse vectors: no two implementations agree."""


def main(arguments: list[str]) -> int:
    """Compare with every other implementation; the argument is a seed. Return 0 if all agree."""
    seed = int(arguments[0]) if arguments else 1
    problems: list[str] = []
    for compare in (_compare_mergekit, adapters.compare, fusion.compare):
        found, report = compare(seed)
        problems += found
        sys.stdout.write(f"{report}\n")
    sys.stdout.write("\n".join([*problems, f"{len(problems)} disagreements (seed {seed})"]) + "\n")
    return 1 if problems else 0


def _compare_mergekit(seed: int) -> tuple[list[str], str]:
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
            problems.append(f"mergekit {case.id}: {gap:.3g} apart, {case.tolerance:.1g} allowed")
        agreed[case.method] += gap <= case.tolerance
    return problems, "\n".join(
        f"  mergekit {method:18} {count:4} cases agree, the worst in f64 {worst[method]:.2g} apart"
        for method, count in sorted(agreed.items())
    )


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
    request: dict[str, Array] = {}
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
    return ask("mergekit", "mergekit_side.py", said, request)


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
