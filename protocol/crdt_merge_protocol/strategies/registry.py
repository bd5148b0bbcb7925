"""The strategies of this release, by name."""

from __future__ import annotations

import difflib
from typing import Final

from crdt_merge_protocol.errors import ParameterError

from .ada_merging import ADA_MERGING_STRATEGIES
from .adarank import ADARANK_STRATEGIES, SVD_TRUNCATED_STRATEGIES
from .averages import Linear, WeightAverage
from .breadcrumbs import BreadcrumbsTies, ModelBreadcrumbs
from .contract import Strategy
from .dam import DAM_STRATEGIES
from .dare import Dare, DareTies
from .delegation import FALLBACK
from .dual_projection import DUAL_PROJECTION_STRATEGIES
from .emr import EmrMerging
from .extras import EXTRA_STRATEGIES
from .fisher import FISHER_STRATEGIES
from .genome import GENOME_STRATEGIES
from .knots import KNOTS_STRATEGIES
from .led import LED_STRATEGIES
from .magnitude_sampling import Della, DellaLinear
from .regmean import REGMEAN_STRATEGIES
from .safe_merge import SAFE_MERGE_STRATEGIES
from .spherical import Slerp
from .split_fused import SPLIT_FUSED_STRATEGIES
from .star import STAR_STRATEGIES
from .surgery import SURGERY_STRATEGIES
from .task_vectors import TaskArithmetic
from .ties import Ties
from .unlearning import NegativeMerge, SplitUnlearnMerge
from .weight_scope import WeightScopeAlignment

_STRATEGIES: Final[dict[str, Strategy]] = {
    strategy.id: strategy
    for strategy in (
        WeightAverage(),
        Linear(),
        Slerp(),
        TaskArithmetic(),
        Ties(),
        Dare(),
        DareTies(),
        Della(),
        *FISHER_STRATEGIES,
        *DAM_STRATEGIES,
        *LED_STRATEGIES,
        *GENOME_STRATEGIES,
        *SURGERY_STRATEGIES,
        *ADA_MERGING_STRATEGIES,
        *ADARANK_STRATEGIES,
        *DUAL_PROJECTION_STRATEGIES,
        EmrMerging(),
        ModelBreadcrumbs(),
        NegativeMerge(),
        *REGMEAN_STRATEGIES,
        *SAFE_MERGE_STRATEGIES,
        SplitUnlearnMerge(),
        WeightScopeAlignment(),
        *STAR_STRATEGIES,
        *KNOTS_STRATEGIES,
        DellaLinear(),
        BreadcrumbsTies(),
        *EXTRA_STRATEGIES,
        *SVD_TRUNCATED_STRATEGIES,
        *SPLIT_FUSED_STRATEGIES,
    )
}
ALIASES: Final = {
    "average": "weight_average",
    "mean": "weight_average",
    "model_soup": "weight_average",
    "lerp": "linear",
    "task_vectors": "task_arithmetic",
    "dare_linear": "dare",
    "breadcrumbs": "model_breadcrumbs",
    "emr": "emr_merging",
    "wsa": "weight_scope_alignment",
    "negmerge": "negative_merge",
    "spunge": "split_unlearn_merge",
    "regression_mean": "regmean",
    "dop": "dual_projection",
    "knots": "svd_knot_tying",
    "safemerge": "safe_merge",
    "nlerp": "multislerp",
    "ramplus": "ramplus_tl",
    "median": "coordinate_median",
    "rfa": "geometric_median",
    "centered_clipping": "norm_clipped_mean",
}
"""Other names in use. A recipe always holds the id."""


def names() -> tuple[str, ...]:
    """Return the ids of all strategies, in the order they are best read."""
    return tuple(_STRATEGIES)


def plain_names() -> tuple[str, ...]:
    """Return the ids of the strategies that need any number of models, perhaps a base, and nothing else."""
    return tuple(name for name, strategy in _STRATEGIES.items() if _is_plain(strategy))


def get(name: str) -> Strategy:
    """Return the strategy with this id or alias.

    Raises:
        ParameterError: There is none; the message suggests the closest name.
    """
    strategy = _STRATEGIES.get(ALIASES.get(name, name))
    if strategy is not None:
        return strategy
    close = difflib.get_close_matches(name, [*_STRATEGIES, *ALIASES], n=1)
    suggestion = f" Did you mean {close[0]}?" if close else ""
    raise ParameterError(
        f"There is no strategy {name!r}.{suggestion}", hint=f"Known: {', '.join(_STRATEGIES)}."
    )


def _is_plain(strategy: Strategy) -> bool:
    """Tell whether there are no inputs for which a stand-in could be needed."""
    can_stand_back = any(parameter.name == FALLBACK for parameter in strategy.parameters)
    return not can_stand_back and all(need.is_optional for need in strategy.artefacts)
