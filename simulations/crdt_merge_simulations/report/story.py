"""What all reports tell of: a result, the plan that led to it, and the command that repeats it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from crdt_merge_simulations.comparing import duplicates_per_delivery, quantile
from crdt_merge_simulations.plan import FAULT_KINDS, Fault, Plan
from crdt_merge_simulations.result import Result


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """One run, told from beginning to end."""

    result: Result
    plan: Plan | None = None
    command: str = ""
    """What to type to see it again."""


PURPOSES: Final[Mapping[str, str]] = {kind: text.partition(";")[0] for kind, text in FAULT_KINDS.items()}
"""What each kind of fault is, in words."""


def span_s(fault: Fault) -> float | None:
    """Return how long a fault lasts, in seconds; None for a moment."""
    for name in ("for_s", "down_s"):
        if isinstance(fault.args.get(name), int | float):
            return float(fault.args[name])
    return None


def figures(result: Result) -> list[tuple[str, str]]:
    """Return (name, value) of what a run is summed up by."""
    sent = sum(result.bytes_sent)
    per_delivery = duplicates_per_delivery(result)
    median, last = quantile(result.delivery_s, 0.5), quantile(result.delivery_s, 0.99)
    agreed = result.converged_after_s
    return [
        ("converged after the last fault", "never" if agreed is None else f"{agreed:,.3f} s"),
        (f"operations, {result.visible:,} of them visible", f"{result.operations:,}"),
        ("bytes sent", f"{sent:,}"),
        ("bytes sent / needed", f"{sent / result.bytes_needed:.2f}" if result.bytes_needed else "-"),
        ("duplicates per delivery", "-" if per_delivery is None else f"{per_delivery:.3f}"),
        ("last hop", str(max(result.hops)) if result.hops else "-"),
        ("reached all nodes, median", "-" if median is None else f"{median:.3f} s"),
        ("reached all nodes, p99", "-" if last is None else f"{last:.3f} s"),
        ("events", f"{result.events:,}"),
        (f"of virtual time in {result.wall_s:,.1f} s", f"{result.virtual_s:,.1f} s"),
    ]
