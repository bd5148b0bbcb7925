"""What became better or worse between two results of one plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .failures import failures
from .result import Result

TOLERANCE: Final = 0.10
"""Share by which a figure may be worse before it counts: a change of code shifts every draw of timing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number of a result; smaller is better."""

    name: str
    unit: str
    before: float | None
    """None: there was none, as of a run that never converged."""
    after: float | None

    @property
    def change(self) -> float | None:
        """Relative change, +0.25 for a quarter more; None if it has no meaning."""
        if self.before is None or self.after is None or (self.before == 0 and self.after != 0):
            return None
        return self.after / self.before - 1 if self.before else 0.0

    def verdict(self, tolerance: float) -> str:
        """``worse``, ``better`` or ``same``."""
        if self.before == self.after:
            return "same"
        if self.before is None or (self.after is not None and self.after < self.before * (1 - tolerance)):
            return "better"
        return "worse" if self.after is None or self.after > self.before * (1 + tolerance) else "same"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two results side by side."""

    figures: Sequence[Figure]
    newly_violated: Sequence[str]
    no_longer_violated: Sequence[str]
    is_same_trace: bool

    def worse(self, tolerance: float = TOLERANCE) -> list[Figure]:
        """Return the figures that got worse by more than the tolerance."""
        return [figure for figure in self.figures if figure.verdict(tolerance) == "worse"]

    def is_regression(self, tolerance: float = TOLERANCE) -> bool:
        """Whether anything got worse."""
        return bool(self.newly_violated or self.worse(tolerance))


def compare(before: Result, after: Result) -> Comparison:
    """Compare convergence, traffic, duplicates, hops and delivery of two results."""
    failed_before, failed_after = failures(before), failures(after)
    rows = [
        ("convergence", "s", before.converged_after_s, after.converged_after_s),
        ("bytes sent", "B", float(sum(before.bytes_sent)), float(sum(after.bytes_sent))),
        ("bytes sent / needed", "x", _overhead(before), _overhead(after)),
        ("bytes of the busiest node", "B", _most(before.bytes_sent), _most(after.bytes_sent)),
        ("duplicates per delivery", "", duplicates_per_delivery(before), duplicates_per_delivery(after)),
        ("hops, last", "", _most(list(before.hops)), _most(list(after.hops))),
        ("hops, mean", "", mean_hops(before), mean_hops(after)),
        ("delivery, median", "s", quantile(before.delivery_s, 0.5), quantile(after.delivery_s, 0.5)),
        ("delivery, p99", "s", quantile(before.delivery_s, 0.99), quantile(after.delivery_s, 0.99)),
        ("events", "", float(before.events), float(after.events)),
    ]
    return Comparison(
        figures=[Figure(name=n, unit=u, before=b, after=a) for n, u, b, a in rows if b != a or b is not None],
        newly_violated=[f"{id_}: {line}" for id_, line in failed_after.items() if id_ not in failed_before],
        no_longer_violated=[
            f"{id_}: {line}" for id_, line in failed_before.items() if id_ not in failed_after
        ],
        is_same_trace=before.trace == after.trace and bool(after.trace),
    )


def quantile(values: Sequence[float], share: float) -> float | None:
    """Return the smallest value that at least this share of the values does not exceed; None of none."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def duplicates_per_delivery(result: Result) -> float | None:
    """Return how many payloads came for nothing per payload that came first."""
    return result.duplicates / result.deliveries if result.deliveries else None


def mean_hops(result: Result) -> float | None:
    """Return the mean number of hops of first deliveries."""
    count = sum(result.hops.values())
    return sum(hop * times for hop, times in result.hops.items()) / count if count else None


def _overhead(result: Result) -> float | None:
    return sum(result.bytes_sent) / result.bytes_needed if result.bytes_needed else None


def _most(values: Sequence[int]) -> float | None:
    return float(max(values)) if values else None
