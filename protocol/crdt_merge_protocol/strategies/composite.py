"""Strategies that leave work to another: stand-ins for inputs they cannot merge, and inner strategies.

Whoever drives a merge asks :func:`effective` once, after it has chosen artefacts and before anything is
computed; what comes back is the strategy to run and the context to run it in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .contract import MergeContext, Strategy
from .delegation import FALLBACK, NONE, parameters_of, strategy_named


@dataclass(frozen=True, slots=True)
class Effective:
    """What is computed in the end."""

    strategy: Strategy
    context: MergeContext
    reasons: tuple[str, ...]
    """Why each strategy that was asked for before could not; empty: the one asked for is computed."""
    unmet: str | None
    """Why even this one cannot, with no stand-in left; None: it can."""


def effective(strategy: Strategy, context: MergeContext) -> Effective:
    """Return the strategy that merges these inputs: the one asked for, or its stand-in, and so on."""
    reasons: list[str] = []
    while (reason := strategy.unmet(context)) is not None:
        name = context.params.get(FALLBACK, NONE)
        if name == NONE:
            return Effective(strategy, context, tuple(reasons), reason)
        reasons.append(reason)
        strategy = strategy_named(str(name))
        context = replace(context, strategy=strategy.id, params=parameters_of(context.params, FALLBACK))
    return Effective(strategy, context, tuple(reasons), None)
