"""What is going to happen in a run, as data: a scenario, and the plan that a seed makes of it.

A :class:`Scenario` is what a person writes (a TOML file). :func:`crdt_merge_simulations.planning.make_plan`
draws from it, with independent random streams, a :class:`Plan`: who may talk to whom, every act of the
workload and every fault, each with its time. A world (engines, daemons or real processes) carries a plan out
and draws nothing that matters from anywhere else; so a subset of the faults or acts replays, and shrinking
works (SCENARIOS 4.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

FIDELITIES: Final = ("engine", "daemon", "process")
"""Protocol engines alone; whole daemons in virtual time; real processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopologySpec:
    """Who may talk to whom, and how fast."""

    kind: str = "complete"
    """complete, ring, line, star, grid, tree, random_regular, small_world, scale_free, clustered, or file."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """Of the kind: ``degree``, ``sites``, ``path`` …"""
    latency_ms: tuple[float, float] = (10.0, 50.0)
    """One-way delay of a link, drawn uniformly once per link."""
    wan_latency_ms: tuple[float, float] = (40.0, 120.0)
    """Between sites of ``clustered``."""
    bandwidth_bytes_per_s: float = 0.0
    """Per link and direction; 0: unlimited."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadSpec:
    """What the nodes do."""

    operations: int = 60
    """Acts spread over the duration."""
    remove_ratio: float = 0.15
    supersede_ratio: float = 0.3
    """Share of contributions that go into a slot already used by their author."""
    unknown_ratio: float = 0.05
    """Operations of a kind that this release does not know."""
    policy_changes: int = 1
    administration: int = 0
    """Bans, erasures, revocations and the like, where the fidelity has them (engines)."""
    groups: int = 1
    late_joiners: int = 0
    """Nodes that start only in the second half."""
    churn: int = 0
    """Nodes that leave and come back with an empty disk."""
    tensor_bytes: int = 4096
    """Size of the one tensor of a contribution, where the fidelity has tensors."""
    within_s: float = 0.0
    """Operations come within so many seconds of the start of the work; 0: all the time."""
    is_one_sender: bool = False
    """All operations by one node, for figures of dissemination."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultSpec:
    """How often what goes wrong. Of each kind ``count`` faults are drawn over the fault window."""

    counts: Mapping[str, int] = field(default_factory=dict)
    """Fault kind -> how many. Kinds are those of :data:`FAULT_KINDS`."""
    is_swarm: bool = False
    """Each seed enables a random subset of the kinds with random counts up to those given (SCENARIOS 4.5)."""
    sites_apart_s: float = 0.0
    """How long, from the start of the work, all sites of the topology are cut from each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A life of a cluster, as a person writes it."""

    name: str
    description: str = ""
    nodes: int = 10
    fidelity: str = "engine"
    duration_s: float = 20.0
    """Of work and faults; then peace."""
    peace_s: float = 60.0
    """Within which all must have agreed after the last fault."""
    strategy: str = "weight_average"
    params: Mapping[str, str] = field(default_factory=dict)
    holders: int = 0
    topology: TopologySpec = TopologySpec()
    workload: WorkloadSpec = WorkloadSpec()
    faults: FaultSpec = FaultSpec()


FAULT_KINDS: Final[Mapping[str, str]] = {
    # node
    "kill": "SIGKILL; args: node, down_s",
    "crash_loop": "killed again and again while it starts; args: node, times",
    "freeze": "SIGSTOP, then SIGCONT; args: node, for_s",
    "slow": "everything on the node takes longer; args: node, factor, for_s",
    "wipe": "the disk is lost; the node comes back empty with the same key; args: node, down_s",
    "restore": "an old copy of the disk comes back; args: node, age_s",
    "clone": "a second node runs on a copy of the disk, keys included; args: node, for_s",
    # links
    "partition": "cut between sides; args: sides (lists of node numbers), for_s",
    "one_way": "one direction of the cut only; args: sides, for_s",
    "isolate": "one node alone; args: node, for_s",
    "flap": "a link that goes and comes; args: a, b, period_s, for_s",
    "reset": "a connection is reset in the middle of a frame; args: a, b",
    "delay": "a link is slow; args: a, b, extra_ms, for_s",
    "loss": "payload messages of a link are dropped; args: a, b, ratio, for_s",
    "corrupt": "one byte of a link is changed; args: a, b",
    # disk
    "torn": "power cut: unsynced sectors survive or not, each on its own; args: node, down_s",
    "full": "no room; args: node, for_s",
    "io_error": "the next write or sync fails; args: node",
    "rot": "one stored byte changes; args: node",
    # clock
    "clock_jump": "wall clock steps; args: node, by_s",
    # peers that lie (engine and daemon level)
    "forker": "an author equivocates; args: node",
    "liar": "a peer announces roots that it does not have; args: node, for_s",
    "withholder": "a peer never sends what is wanted of it; args: node, for_s",
    "garbage": "a peer sends malformed frames; args: node",
    "flooder": "a peer sends orphans without end; args: node, count",
    "collider": "a peer shows one other a set of operations whose ids XOR to zero; args: node",
}
"""Every fault that a plan may contain, with its arguments. A world names the kinds that it cannot do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong."""

    index: int
    """Within the plan, for ``--only``."""
    time: float
    """Seconds after the start of the work."""
    kind: str
    args: Mapping[str, Any]

    def __str__(self) -> str:
        text = " ".join(f"{key}={value}" for key, value in self.args.items())
        return f"#{self.index} {self.kind} {text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """One thing that a node is asked to do: add, remove, policy, unknown, administer, start (late joiner)."""

    index: int
    time: float
    node: int
    kind: str
    args: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A pair of nodes that may talk."""

    a: int
    b: int
    latency_s: float
    is_wan: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that will happen in one run."""

    scenario: Scenario
    seed: int
    links: tuple[Link, ...]
    sites: tuple[int, ...]
    """Site of each node, for drawing and for WAN links."""
    acts: tuple[Act, ...]
    faults: tuple[Fault, ...]

    def reduced(self, *, faults: frozenset[int] | None = None, acts: frozenset[int] | None = None) -> Plan:
        """Return the plan with only these faults and acts, everything else as it was."""
        return Plan(
            scenario=self.scenario,
            seed=self.seed,
            links=self.links,
            sites=self.sites,
            acts=self.acts if acts is None else tuple(act for act in self.acts if act.index in acts),
            faults=self.faults if faults is None else tuple(f for f in self.faults if f.index in faults),
        )
