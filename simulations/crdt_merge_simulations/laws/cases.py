"""What a strategy is given: parameters that have no default for every set, roles, a base, and its context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np
from crdt_merge_protocol.resolve_key import used_root
from crdt_merge_protocol.strategies.artefacts import in_order
from crdt_merge_protocol.strategies.contract import MergeContext, Strategy

from .artefacts import ASSIGNMENTS, Synthetic, synthetic
from .models import Model, specs_of

CONTRIBUTIONS_MIN: Final = 3
CONTRIBUTIONS_MAX: Final = 8
ORIGIN_DIGITS: Final = 16


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a strategy merges a number of models; ``unmet`` says why it does not."""

    roles: tuple[str, ...]
    unmet: str | None


def terms(strategy: Strategy, count: int) -> Terms:
    """Return the roles with which a strategy merges so many models, found by trying."""
    models: list[Model] = [{"weight": np.full((4, 4), i + 1, np.float32)} for i in range(count)]
    names = places(count)
    reason = None
    for roles in ASSIGNMENTS if any(need.type == "role" for need in strategy.artefacts) else ((),):
        made = synthetic(strategy, models, names, roles)
        unmet = strategy.unmet(context(strategy, models, names, made))
        if unmet is None:
            return Terms(roles, None)
        reason = reason or unmet
    return Terms((), reason)


def contributions_for(strategy: Strategy) -> int:
    """Return the smallest number of models from three on that a strategy merges."""
    for count in range(CONTRIBUTIONS_MIN, CONTRIBUTIONS_MAX):
        if terms(strategy, count).unmet is None:
            return count
    return CONTRIBUTIONS_MAX


def places(count: int) -> list[bytes]:
    """Return digests that are in order of place: with them, the order of a call is the canonical one."""
    return [bytes([i + 1]) * 32 for i in range(count)]


def params_for(strategy: Strategy, first: bytes) -> dict[str, str]:
    """Return what has no default that fits every set; ``first``: digest of the first model."""
    if strategy.id == "negative_merge":
        return {"lambda": "1"}
    if strategy.id == "passthrough":
        return {"origin": first.hex()[:ORIGIN_DIGITS]}
    return {}


def takes_base(strategy: Strategy) -> bool:
    """Tell whether a base is given: where one is needed, or may be by the strategy that work is left to."""
    return strategy.base == "required" or (strategy.base == "optional" and strategy.determinism == "inherit")


def context(
    strategy: Strategy, models: Sequence[Model], names: Sequence[bytes], made: Sequence[Synthetic]
) -> MergeContext:
    """Return the context of a merge of models in the order of their names, with equal weights."""
    return MergeContext(
        strategy=strategy.id,
        params=strategy.validate(params_for(strategy, names[0])),
        weights=(Fraction(1),) * len(models),
        digests=tuple(names),
        has_base=takes_base(strategy),
        seed=bytes(32),
        specs=specs_of(models[0]),
        artefacts=in_order(item.anonymous().artefact for item in made),
        set_root=used_root(names),
    )


def seconds(strategy: Strategy, models: Sequence[Model], roles: Sequence[str]) -> float:
    """Return the estimate of the arithmetic of one merge on one core, as ``resolve --plan`` has it."""
    names = places(len(models))
    within = context(strategy, models, names, synthetic(strategy, models, names, roles))
    return sum(strategy.nanoseconds(within, i) for i in range(len(within.specs))) / 1e9
