"""What must not cost more than it needs (I18): the patience of users, payloads sent twice, dials.

Broadcast is judged where nothing but lost payloads disturbs it and everybody may talk to everybody; what
faults of other kinds cost is what repair is for.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .engine_core import World
    from .engine_node import SimulatedNode

DELIVERY_S_MAX: Final = 1.0
"""Until an operation is on every disk, over links of at most 50 ms that lose payloads; TARGETS A5."""
LATENCIES_MAX: Final = 20.0
"""The same in delays of the slowest link, where links are slower than that."""
REDUNDANT_MAX: Final = 1.0
"""Redundant payloads per necessary one, the first seconds included in which the tree takes shape."""
UNDISTURBING: Final = frozenset({"loss"})
DIALS: Final = 8
DIALS_S: Final = 1.0
"""Within this a node does not dial an address so often."""


class DialLog:
    """When whom was dialled lately."""

    def __init__(self) -> None:
        self._times: dict[tuple[str, int, str], deque[float]] = {}

    def is_hasty(self, node: SimulatedNode, address: str, *, now: float) -> bool:
        """Note a dial; tell whether one process of the node has dialled that address too often lately."""
        times = self._times.setdefault((node.name, node.epoch, address), deque(maxlen=DIALS))
        times.append(now)
        return len(times) == DIALS and now - times[0] < DIALS_S


def judge_broadcast(world: World) -> None:
    """Look how soon operations were everywhere, and how often they were sent in vain."""
    scenario, meter, expect = world.plan.scenario, world.meter, world.checker.expect
    workload, topology = scenario.workload, scenario.topology
    is_disturbed = not UNDISTURBING.issuperset(fault.kind for fault in world.plan.faults)
    if is_disturbed or workload.late_joiners or workload.churn or topology.bandwidth_bytes_per_s:
        return
    if topology.kind != "complete":
        return
    allowed_s = max(DELIVERY_S_MAX, LATENCIES_MAX * topology.latency_ms[1] / 1000)
    slowest_s = max(meter.delivery_s, default=0.0)
    expect("I18", slowest_s <= allowed_s, f"an operation took {slowest_s:.1f} s to be everywhere")
    needed = meter.deliveries - meter.duplicates
    expect(
        "I18",
        meter.duplicates <= REDUNDANT_MAX * needed,
        f"{meter.duplicates} payloads were sent to who had them, {needed} were needed",
    )
