"""How long resolves take and how they end: counted, and logged where they fail."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from crdt_merge_protocol.errors import CrdtMergeError
from crdt_merge_protocol.strategies import registry

from crdt_merge_node.control.model import Progress, ResolvePlan, ResolveReport
from crdt_merge_node.services import Services
from crdt_merge_node.telemetry.logging import get_logger

log = get_logger()

UNKNOWN: Final = "unknown"
"""Instead of a strategy that this release does not have."""


async def measured(
    services: Services, steps: AsyncGenerator[ResolvePlan | Progress | ResolveReport]
) -> AsyncGenerator[ResolvePlan | Progress | ResolveReport]:
    """Pass on the steps of a resolve, and note how long it took from its plan to its end.

    One that ends before its plan computed nothing and is not counted.
    """
    plan: ResolvePlan | None = None
    began, outcome = 0.0, "cancelled"
    try:
        async with aclosing(steps):
            async for step in steps:
                if isinstance(step, ResolvePlan):
                    plan, began = step, services.clock.monotonic()
                elif isinstance(step, ResolveReport):
                    outcome = "done"
                yield step
    except CrdtMergeError as error:
        outcome = "failed"
        if plan is not None:
            log.warning("resolve.failed", group=plan.group, error=error)
        raise
    except Exception:
        outcome = "failed"
        raise
    finally:
        if plan is not None:
            duration_s = services.clock.monotonic() - began
            strategy = _known(plan.effective_strategy or plan.strategy)
            services.driver.counters.resolves.add((strategy, outcome), duration_s)


def _known(strategy: str) -> str:
    return strategy if strategy in registry.names() else UNKNOWN
