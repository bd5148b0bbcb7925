"""The third tier of the paper's evaluation, with messages that are really sent (TARGETS A13, A14).

Many nodes contribute a 512 x 512 tensor each, in many orders and at many moments; all must end with one
resolve key. Whether equal keys mean equal bytes is tried: each distinct key is resolved on two random nodes,
from what each sees itself. Then ten partitions converge apart and together, every strategy runs on ten
nodes, and the cluster grows from two nodes to a thousand.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

from crdt_merge_protocol.strategies import registry

from .planning import stream
from .sharing import shared_work
from .tier3_blobs import Spread, spread
from .tier3_cluster import Cluster
from .tier3_models import Models

STRATEGY: Final = "slerp"
SITES: Final = 10
CUT_S: Final = 60.0
"""Cut from 90 of its 100 peers, a node needs half a minute to find those of its own site again."""
CONTRIBUTE_WITHIN_S: Final = 5.0
STRATEGY_NODES: Final = 10
SCALES: Final = (2, 5, 10, 30, 100, 300, 1000)
SCALE_CONTRIBUTIONS_MAX: Final = 100
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One cluster from its first contribution to agreement."""

    name: str
    nodes: int
    contributions: int
    keys: int
    """Distinct resolve keys over all nodes at the end; 1 is agreement."""
    key: str
    """The most common one, hex."""
    agreed_after_s: float | None
    """Virtual time from the last contribution, or from the heal; None: they did not agree."""
    bytes_sent: int
    bytes_needed: int
    events: int
    wall_s: float

    @property
    def is_agreed(self) -> bool:
        """Whether all nodes ended with one resolve key."""
        return self.agreed_after_s is not None and self.keys == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """One resolve key, resolved for real on two nodes."""

    key: str
    strategy: str
    inputs: int
    nodes: tuple[int, int]
    digests: tuple[str, str]
    """SHA-256 of the output on each of them."""
    wall_s: float
    """Of one resolve, the mean of the two."""

    @property
    def is_equal(self) -> bool:
        """Whether both wrote the same bytes."""
        return self.digests[0] == self.digests[1]


@dataclass(slots=True)
class Tier3:
    """Everything that was measured."""

    nodes: int
    seed: int
    side: int
    orderings: list[Trial] = field(default_factory=list)
    spread: Spread | None = None
    """Of manifests and blobs, after the first ordering."""
    apart: Trial | None = None
    """At the end of the partition: as many keys as partitions."""
    together: Trial | None = None
    strategies: list[Trial] = field(default_factory=list)
    scaling: list[Trial] = field(default_factory=list)
    resolved: list[Resolved] = field(default_factory=list)

    @property
    def distinct_keys(self) -> int:
        """Distinct resolve keys over all orderings."""
        return len({trial.key for trial in self.orderings})

    @property
    def is_success(self) -> bool:
        """Whether all agreed, on one key over all orderings, and equal keys were equal bytes."""
        trials = [
            *self.orderings,
            *self.strategies,
            *self.scaling,
            *([self.together] if self.together else []),
        ]
        is_apart = self.apart is None or self.apart.keys == SITES
        return (
            all(trial.is_agreed for trial in trials)
            and self.distinct_keys <= 1
            and is_apart
            and (self.spread is None or self.spread.is_complete)
            and all(resolved.is_equal for resolved in self.resolved)
        )


class _Runner:
    """Runs the parts and keeps what was resolved, so that a key is resolved once."""

    def __init__(self, report: Tier3, models: Models, say: Say) -> None:
        self.report = report
        self.models = models
        self.say = say
        self._done: set[str] = set()

    def orderings(self, count: int) -> None:
        """Let the same models be contributed in other orders, at other moments, over other links."""
        for number in range(count):
            self.say(f"ordering {number + 1} of {count}")
            rng = stream(self.report.seed, "tier3", "ordering", number)
            cluster, trial = self._trial(f"order {number + 1}", STRATEGY, self.report.nodes, rng)
            self.report.orderings.append(trial)
            if not number:
                self.say("spreading the models")
                self.report.spread = spread(cluster, self.models)
            self._resolve(cluster, STRATEGY, rng)

    def partitions(self) -> None:
        """Let ten sites converge apart, then together."""
        rng = stream(self.report.seed, "tier3", "partitions")
        nodes = self.report.nodes
        self.say(f"{SITES} partitions of {nodes // SITES}")
        began = time.perf_counter()
        cluster = Cluster(
            self.models, self.models.policy(STRATEGY), nodes=nodes, seed=rng.randrange(1 << 32), sites=SITES
        )
        cluster.cut_into_sites(CUT_S)
        order = rng.sample(range(nodes), nodes)
        cluster.contribute(order, rng, within_s=CONTRIBUTE_WITHIN_S)
        # Not quite to the end: the last instant of the cut is still apart.
        cluster.world.run(cluster.world.now + CUT_S - 0.001)
        self.report.apart = _measured("apart", cluster, nodes, 0.0, time.perf_counter() - began)
        self._resolve(cluster, STRATEGY, rng)
        cluster.world.run(cluster.world.now + 0.001)
        agreed = cluster.agree()
        self.report.together = _measured("together", cluster, nodes, agreed, time.perf_counter() - began)
        self._resolve(cluster, STRATEGY, rng)

    def strategies(self, names: Sequence[str]) -> None:
        """Let ten nodes agree under every strategy."""
        for name in names:
            self.say(f"strategy {name}")
            rng = stream(self.report.seed, "tier3", "strategy", name)
            cluster, trial = self._trial(name, name, min(STRATEGY_NODES, self.report.nodes), rng)
            self.report.strategies.append(trial)
            self._resolve(cluster, name, rng)

    def scaling(self, counts: Sequence[int]) -> None:
        """Let the cluster grow; at most a hundred of the nodes contribute."""
        for count in counts:
            self.say(f"{count} nodes")
            rng = stream(self.report.seed, "tier3", "scale", count)
            _, trial = self._trial(f"{count} nodes", STRATEGY, count, rng)
            self.report.scaling.append(trial)

    def _trial(self, name: str, strategy: str, nodes: int, rng: Random) -> tuple[Cluster, Trial]:
        began = time.perf_counter()
        models = self.models
        cluster = Cluster(models, models.policy(strategy), nodes=nodes, seed=rng.randrange(1 << 32))
        contributions = min(nodes, len(models.contents))
        order = rng.sample(range(contributions), contributions)
        cluster.contribute(order, rng, within_s=CONTRIBUTE_WITHIN_S)
        cluster.world.run(cluster.world.now + CONTRIBUTE_WITHIN_S)
        agreed = cluster.agree()
        return cluster, _measured(name, cluster, contributions, agreed, time.perf_counter() - began)

    def _resolve(self, cluster: Cluster, strategy: str, rng: Random) -> None:
        """Resolve each key that is new on two random nodes that have it."""
        for key, nodes in cluster.keys().items():
            if key.hex() in self._done or len(nodes) < 2:
                continue
            self._done.add(key.hex())
            one, other = rng.sample(nodes, 2)
            self.say(f"resolving {key.hex()[:8]} by {strategy} on n{one} and n{other}")
            began = time.perf_counter()
            digests = (self.models.resolve(cluster.view(one)), self.models.resolve(cluster.view(other)))
            self.report.resolved.append(
                Resolved(
                    key=key.hex(),
                    strategy=strategy,
                    inputs=len(cluster.view(one).visible),
                    nodes=(one, other),
                    digests=digests,
                    wall_s=(time.perf_counter() - began) / 2,
                )
            )


def run(
    *,
    nodes: int = 100,
    orderings: int = 20,
    seed: int = 1,
    side: int = 512,
    scales: Sequence[int] = SCALES,
    say: Say = lambda _line: None,
) -> Tier3:
    """Run all of tier 3.

    Args:
        nodes: Of the orderings and the partitions; a multiple of ten for equal partitions.
        side: Of the square tensors.
        scales: Numbers of nodes to grow through.
    """
    report = Tier3(nodes=nodes, seed=seed, side=side)
    say("drawing the models")
    models = Models(seed, max(nodes, min(max(scales, default=0), SCALE_CONTRIBUTIONS_MAX)), side)
    runner = _Runner(report, models, say)
    with shared_work():
        runner.orderings(orderings)
        if nodes >= 2 * SITES:
            runner.partitions()
        runner.strategies(registry.plain_names())
        runner.scaling(scales)
    return report


def _measured(
    name: str, cluster: Cluster, contributions: int, agreed_after_s: float | None, wall_s: float
) -> Trial:
    keys: Mapping[bytes, list[int]] = cluster.keys()
    return Trial(
        name=name,
        nodes=len(cluster.world.nodes),
        contributions=contributions,
        keys=len(keys),
        key=max(keys, key=lambda key: (len(keys[key]), key)).hex(),
        agreed_after_s=agreed_after_s,
        bytes_sent=cluster.bytes_sent,
        bytes_needed=cluster.bytes_needed,
        events=cluster.world.events,
        wall_s=wall_s,
    )
