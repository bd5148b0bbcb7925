"""What a run showed: verdicts per invariant, what was exercised, and the series that a report draws."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Check:
    """One invariant (SCENARIOS 4.6)."""

    id: str
    """``I1`` …"""
    claim: str
    checked: int = 0
    """How often it was looked at; 0 means that this fidelity cannot see it."""
    violations: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """``held``, ``violated`` or ``not seen``."""
        if self.violations:
            return "violated"
        return "held" if self.checked else "not seen"


@dataclass(slots=True)
class Sample:
    """The cluster at one moment."""

    time: float
    distinct_roots: int
    distinct_keys: int
    """Distinct resolve keys."""
    roots: list[str]
    """Short root of each node; empty for a node that is down."""
    sides: list[int]
    """Partition side of each node at that moment; all 0 without one."""
    operations: list[int]
    """Held by each node."""
    tombstones: int
    distance: float | None = None
    """Mean pairwise L2 distance of the weights that nodes would resolve, where tensors are real."""


@dataclass(slots=True)
class Result:
    """One run."""

    name: str
    seed: int
    fidelity: str
    nodes: int
    converged_after_s: float | None = None
    """From the last fault to equal roots and views on all nodes; None: not within the peace."""
    checks: dict[str, Check] = field(default_factory=dict)
    sometimes: Counter[str] = field(default_factory=Counter)
    """How often a rare thing happened: fork seen, orphan buffered, session refused, torn WAL recovered …"""
    log: list[str] = field(default_factory=list)
    """One line per event of the story, ``time  text``."""
    samples: list[Sample] = field(default_factory=list)
    links: list[tuple[int, int]] = field(default_factory=list)
    sites: list[int] = field(default_factory=list)
    bytes_sent: list[int] = field(default_factory=list)
    """By node."""
    bytes_needed: int = 0
    """Of operations and blobs that had to reach each node once: the optimum."""
    hops: Counter[int] = field(default_factory=Counter)
    """Hops of first deliveries by broadcast."""
    delivery_s: list[float] = field(default_factory=list)
    """Seconds from authoring to the last node, per operation."""
    duplicates: int = 0
    deliveries: int = 0
    operations: int = 0
    visible: int = 0
    events: int = 0
    virtual_s: float = 0.0
    wall_s: float = 0.0
    """Not part of the trace."""
    trace: str = ""
    """Hash over everything that happened; equal for equal seeds."""
    rss_bytes: list[int] = field(default_factory=list)
    """Resident memory of each daemon at the end, where there are processes."""
    ready_s: float = 0.0
    """From the first start of a daemon until the last one was ready, where there are processes."""
    unsupported: list[str] = field(default_factory=list)
    """Faults of the plan that this world cannot do, left out."""

    @property
    def is_success(self) -> bool:
        """Converged, and nothing violated."""
        return self.converged_after_s is not None and not any(c.violations for c in self.checks.values())
