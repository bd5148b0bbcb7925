"""Weighted sums of low-rank adapters, compared with PEFT's ``cat`` and ``svd``; its TIES and DARE of tensors.

Without rank-stabilised scaling: PEFT 0.21.2 gives a sum of such adapters the scale ``sqrt(r)``, not one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from crdt_merge_node.lora.adapter import Factors
from crdt_merge_node.lora.factors import concatenate, reduce

from .asking import ask
from .cases import SHAPES_IN_BF16, Case, K, tolerance_in, uniforms_of
from .drawing import DTYPES, Array, apart, rounded
from .methods import merged_by_us, name_of, told

METHODS = (
    ("ties", "ties", {"profile": "mergekit"}),  # The published code keeps one element more.
    ("dare_linear", "dare", {"normalize": "false"}),
    ("dare_ties", "dare_ties", {}),
)
"""Theirs, ours, and parameters with which ours is the same."""
TOLERANCE = {
    "f64": {"cat": 1e-12, "svd": 1e-5},
    "f32": {"cat": 1e-6, "svd": 1e-5},
    "bf16": {"cat": 2.0**-6, "svd": 2.0**-6},
}
"""Relative; they decompose in f32, and scale and round factors before they multiply them."""


@dataclass(frozen=True, slots=True)
class Sum:
    """One weighted sum of adapters of one layer."""

    id: str
    kind: str
    downs: tuple[Array, ...]
    ups: tuple[Array, ...]
    alphas: tuple[int, ...]
    weights: tuple[float, ...]
    rank: int
    dtype: str


def compare(seed: int) -> tuple[list[str], str]:
    """Return what does not agree, and lines that say how well the rest does."""
    sums, tensors = list(_sums(seed)), list(merges(seed))
    said = [*map(_said, sums), *map(_said_of_merge, tensors)]
    arrays = _arrays(sums)
    for each in tensors:
        arrays |= {f"{each.id}/{i}": values for i, values in enumerate(each.inputs)}
        arrays |= {f"{each.id}/u{i}": values for i, values in enumerate(uniforms_of(each))}
    theirs = ask("mergekit", "peft_side.py", said, arrays)
    problems = []
    gaps: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for each in (*sums, *tensors):
        ours = _ours(each) if isinstance(each, Sum) else merged_by_us(each)
        gap = float(np.abs(ours - theirs[each.id]).max() / np.abs(ours).max())
        name = each.kind if isinstance(each, Sum) else name_of(each.method, each.strategy)
        allowed = TOLERANCE[each.dtype][each.kind] if isinstance(each, Sum) else each.tolerance
        gaps[name][each.dtype].append(gap)
        if not gap <= allowed:
            problems.append(f"peft {each.id}: {gap:.3g} apart, {allowed:.1g} allowed")
    return problems, told("peft", gaps)


def merges(seed: int) -> Iterator[Case]:
    """Yield the published TIES and DARE of one tensor; PEFT's weights come after the election."""
    rng = np.random.default_rng(seed)
    for dtype in DTYPES:
        for shape in SHAPES_IN_BF16:
            for k in K:
                # Votes that cancel out elect plus there, and the majority of the model here.
                base, models = apart(rng, shape, k)
                for number, (theirs, ours, params) in enumerate(METHODS):
                    yield Case(
                        id=f"{number}-{theirs}-{'x'.join(map(str, shape))}-{k}-{dtype}",
                        method=theirs,
                        parameters={"density": 0.5},
                        strategy=ours,
                        params={"density": "0.5", **params},
                        inputs=[model - base for model in models],
                        base=np.zeros(shape),
                        is_random=theirs != "ties",
                        dtype=dtype,
                        tolerance=tolerance_in(dtype, 1e-12),
                    )


def _said_of_merge(case: Case) -> dict[str, Any]:
    return {
        "id": case.id,
        "kind": case.method,
        "tensors": len(case.inputs),
        "uniforms": len(uniforms_of(case)),
        "weights": [1.0] * len(case.inputs),
        "dtype": case.dtype,
        **case.parameters,
    }


def _sums(seed: int) -> Iterator[Sum]:
    rng = np.random.default_rng(seed)
    for dtype in DTYPES:
        for number, (rows, columns, ranks) in enumerate(
            (
                (12, 8, (2, 2)),
                (24, 40, (4, 7)),
                (64, 48, (8, 8, 3)),
                (20, 20, (1, 5, 2)),
                (16, 12, (2, 1, 3, 2)),
            )
        ):
            downs = tuple(rounded(rng.standard_normal((rank, columns)), dtype) for rank in ranks)
            ups = tuple(rounded(rng.standard_normal((rows, rank)), dtype) for rank in ranks)
            for kind in ("cat", "svd"):
                yield Sum(
                    id=f"{kind}-{number}-{dtype}",
                    kind=kind,
                    downs=downs,
                    ups=ups,
                    alphas=tuple(4 + 2 * i for i in range(len(ranks))),
                    weights=tuple(0.5 + 0.25 * i for i in range(len(ranks))),
                    rank=max(ranks),
                    dtype=dtype,
                )


def _ours(each: Sum) -> Array:
    parts = []
    for down, up, alpha, weight in zip(each.downs, each.ups, each.alphas, each.weights, strict=True):
        shape = (up.shape[0], down.shape[1])
        scaled = up * (alpha / down.shape[0])
        parts.append((weight, Factors(down=down, up=scaled, shape=shape, is_transposed=False)))
    up, down = concatenate(parts)
    found = reduce(up, down, each.rank if each.kind == "svd" else up.shape[1])
    product: Array = found.up @ found.down
    return product


def _said(each: Sum) -> dict[str, Any]:
    return {
        "id": each.id,
        "kind": each.kind,
        "adapters": len(each.downs),
        "alphas": each.alphas,
        "weights": each.weights,
        "rank": each.rank,
        "dtype": each.dtype,
    }


def _arrays(sums: list[Sum]) -> dict[str, Array]:
    arrays = {}
    for each in sums:
        for i, (down, up) in enumerate(zip(each.downs, each.ups, strict=True)):
            arrays[f"{each.id}/down{i}"], arrays[f"{each.id}/up{i}"] = down, up
    return arrays
