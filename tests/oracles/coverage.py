"""Which strategies nobody else has, or not in a form that can be asked, and why."""

from __future__ import annotations

from collections import defaultdict
from typing import Final

import numpy as np

from . import adapters, cases, fusion, numerics

WITHOUT: Final = {
    "dam": "the authors' code trains, and nobody ships the application; also held to loops in test_dam.py",
    "led_merge": "nobody ships it; also held to the golden vectors and to loops in test_led.py",
    "negative_merge": "its repository holds an abstract; also held to the golden vectors and to loops",
    "safe_merge": "a script around whole language models; also held to the golden vectors' cosine",
    "split_unlearn_merge": "merges by another strategy, which is compared",
    "evolutionary_merge": "merges by another strategy, which is compared",
    "genetic_merge": "merges by another strategy, which is compared",
    "split_fused": "merges by another strategy, which is compared",
    "representation_surgery": "merges by another strategy, which is compared; adapters are handed on",
    "weight_scope_alignment": "acts while training; the affine step is ours, also held to loops",
    "norm_clipped_mean": "nobody ships it for tensors in memory; also held to loops in test_robust.py",
    "passthrough": "a copy",
}
"""By strategy. All others are compared. These, and the others once more, are held to definitions of their
own, written from the papers without the strategies at hand: tests/property/test_definitions.py."""
K_OF_FEW: Final = {
    "nuslerp": {2}, "nearswap": {1}, "arcee_fusion": {1}, "geometric_median": {3, 4, 5},
    "trimmed_mean": {3, 4, 5}, "krum": {5}, "multi_krum": {5},
}  # fmt: skip
"""What takes no other number of models between two and five, or needs more, or has no unique answer."""
IN_FEW_TYPES: Final = {
    "arcee_fusion": {"f64", "f32"},
    "svd_knot_tying": {"f64", "f32"},
}
"""A threshold at a quantile of softmaxes that bf16 cannot hold; no library decomposes bf16."""
Asked = dict[str, dict[str, set[int]]]
"""Numbers of models, by strategy and element type."""


def asked(seed: int = 1) -> Asked:
    """Return what all comparisons of tensors ask, by strategy, element type and number of models."""
    found: Asked = defaultdict(lambda: defaultdict(set))
    rng = np.random.default_rng(seed)
    every = (
        *cases.all_cases(seed),
        *adapters.merges(seed),
        *fusion.all_cases(rng),
        *numerics.all_cases(rng),
    )
    for case in every:
        found[case.strategy][case.dtype].add(len(case.inputs))
    return found
