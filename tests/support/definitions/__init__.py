"""Every strategy once more: from its paper's formula, on whole arrays in float64, by numpy alone.

Nothing here imports, or was written from, the code that it checks: these were made from the texts of the
specification and the papers, by somebody who had not read the strategies. They are slow and short. Where the
texts leave something open they follow the decision that the project records, and say so.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from . import averages, delegated, differences, learnt, robust, spectral
from .course import Course

_PLAIN = {
    averages: "weight_average linear passthrough slerp karcher multislerp nuslerp model_stock",
    differences: (
        "task_arithmetic ties dare dare_ties della della_linear model_breadcrumbs breadcrumbs_ties "
        "emr_merging negative_merge sce ram ramplus_tl nearswap arcee_fusion"
    ),
    learnt: "fisher_merge regmean ada_merging adarank dam led_merge weight_scope_alignment",
    spectral: "star svd_knot_tying dual_projection svd_truncated_ta safe_merge",
    robust: "coordinate_median trimmed_mean krum multi_krum geometric_median norm_clipped_mean",
}
_DELEGATED = "split_unlearn_merge representation_surgery evolutionary_merge genetic_merge split_fused"

DEFINITIONS: dict[str, Callable[[Course], Any]] = {
    name: getattr(module, name) for module, names in _PLAIN.items() for name in names.split()
}
DEFINITIONS |= {name: partial(getattr(delegated, name), known=DEFINITIONS) for name in _DELEGATED.split()}

__all__ = ["DEFINITIONS", "Course"]
