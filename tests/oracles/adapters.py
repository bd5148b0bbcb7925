"""Weighted sums of low-rank adapters, compared with PEFT's ``cat`` and ``svd``.

Without rank-stabilised scaling: PEFT 0.21.2 gives a sum of such adapters the scale ``sqrt(r)``, not one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from crdt_merge_node.lora.adapter import Factors
from crdt_merge_node.lora.factors import concatenate, reduce

from .asking import ask

Array = npt.NDArray[np.float64]
TOLERANCE = {"cat": 1e-12, "svd": 1e-5}
"""Relative; their decomposition is in f32."""


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


def compare(seed: int) -> tuple[list[str], str]:
    """Return what does not agree, and a line that says how well the rest does."""
    sums = list(_sums(seed))
    theirs = ask("mergekit", "peft_side.py", [_said(each) for each in sums], _arrays(sums))
    problems, worst = [], 0.0
    for each in sums:
        ours = _ours(each)
        gap = float(np.abs(ours - theirs[each.id]).max() / np.abs(ours).max())
        worst = max(worst, gap)
        if not gap <= TOLERANCE[each.kind]:
            problems.append(f"peft {each.id}: {gap:.3g} apart, {TOLERANCE[each.kind]:.1g} allowed")
    return problems, f"  peft     cat and svd        {len(sums):4} cases asked, the worst {worst:.2g} apart"


def _sums(seed: int) -> Iterator[Sum]:
    rng = np.random.default_rng(seed)
    for number, (rows, columns, ranks) in enumerate(
        ((12, 8, (2, 2)), (24, 40, (4, 7)), (64, 48, (8, 8, 3)), (20, 20, (1, 5, 2)))
    ):
        downs = tuple(rng.standard_normal((rank, columns)) for rank in ranks)
        ups = tuple(rng.standard_normal((rows, rank)) for rank in ranks)
        for kind in ("cat", "svd"):
            yield Sum(
                id=f"{kind}-{number}",
                kind=kind,
                downs=downs,
                ups=ups,
                alphas=tuple(4 + 2 * i for i in range(len(ranks))),
                weights=tuple(0.5 + 0.25 * i for i in range(len(ranks))),
                rank=max(ranks),
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
    }


def _arrays(sums: list[Sum]) -> dict[str, Array]:
    arrays = {}
    for each in sums:
        for i, (down, up) in enumerate(zip(each.downs, each.ups, strict=True)):
            arrays[f"{each.id}/down{i}"], arrays[f"{each.id}/up{i}"] = down, up
    return arrays
