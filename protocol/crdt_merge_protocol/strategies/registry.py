"""The strategies of this release, by name."""

from __future__ import annotations

import difflib
from typing import Final

from crdt_merge_protocol.errors import ParameterError

from .ada_merging import ADA_MERGING_STRATEGIES
from .averages import Linear, WeightAverage
from .contract import Strategy
from .dam import DAM_STRATEGIES
from .dare import Dare, DareTies
from .fisher import FISHER_STRATEGIES
from .genome import GENOME_STRATEGIES
from .led import LED_STRATEGIES
from .spherical import Slerp
from .surgery import SURGERY_STRATEGIES
from .task_vectors import TaskArithmetic
from .ties import Ties

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
        *FISHER_STRATEGIES,
        *DAM_STRATEGIES,
        *LED_STRATEGIES,
        *GENOME_STRATEGIES,
        *SURGERY_STRATEGIES,
        *ADA_MERGING_STRATEGIES,
    )
}
ALIASES: Final = {
    "average": "weight_average",
    "mean": "weight_average",
    "model_soup": "weight_average",
    "lerp": "linear",
    "karcher": "slerp",
    "task_vectors": "task_arithmetic",
    "dare_linear": "dare",
}
"""Other names in use. A recipe always holds the id."""


def names() -> tuple[str, ...]:
    """Return the ids of all strategies, in the order they are best read."""
    return tuple(_STRATEGIES)


def plain_names() -> tuple[str, ...]:
    """Return the ids of the strategies that need models, perhaps a base, and nothing else."""
    return tuple(
        name for name, strategy in _STRATEGIES.items() if all(need.is_optional for need in strategy.artefacts)
    )


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
