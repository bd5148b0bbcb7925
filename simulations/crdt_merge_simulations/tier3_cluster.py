"""A cluster for tier 3: engines in virtual time whose nodes contribute in a given order, then agree.

Operations are signed, encoded, sent, decoded, verified and stored by the protocol engines of the daemon. The
group is another one in every cluster, and so are keys, links and times; equal contributions have equal
resolve keys all the same, because nothing of that enters a key (PROTOCOL R17).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Final

from crdt_merge_protocol.genesis import Genesis
from crdt_merge_protocol.operations import Kind
from crdt_merge_protocol.policy import Policy
from crdt_merge_protocol.view import View

from .engine_core import World
from .engine_faults import inflict
from .engine_node import SimulatedNode
from .invariants import key_of
from .plan import Fault, Scenario, TopologySpec, WorkloadSpec
from .planning import make_plan
from .tier3_models import Models

MEETING_S: Final = 60.0
AGREEMENT_S: Final = 120.0
"""Virtual time within which all must agree, or they do not."""


class Cluster:
    """Nodes that have met and share one group."""

    def __init__(self, models: Models, policy: Policy, *, nodes: int, seed: int, sites: int = 1) -> None:
        topology = TopologySpec(kind="clustered", params={"sites": sites}) if sites > 1 else TopologySpec()
        scenario = Scenario(
            name="tier3",
            nodes=nodes,
            strategy=policy.strategy,
            topology=topology,
            workload=WorkloadSpec(operations=0, policy_changes=0),
        )
        plan = make_plan(scenario, seed)
        self.sites = plan.sites
        self.world = World(plan)
        self.world.settle_honesty()
        self._models = models
        self._contributed = 0
        self._meet(policy)

    def _meet(self, policy: Policy) -> None:
        world = self.world
        for node in world.nodes:
            world.at(world.stream("start", node.index).uniform(0, 0.5), None, node.start)
        world.run(1.0)
        founder = world.nodes[0]
        genesis = Genesis(
            nonce=world.stream("genesis").randbytes(16),
            name="tier3",
            admins=(founder.id,),
            quorum=1,
            is_open=True,
            policy=policy,
        )
        self.group = genesis.group
        world.groups.append(genesis.group)
        founder.carry_out(founder.engine.create_group(genesis))
        for node in world.nodes:
            world.root_changed(node)
        world.run(MEETING_S, stop=lambda: world.is_converged)
        self._bytes_before = sum(node.bytes_sent for node in world.nodes)

    # --- what happens -------------------------------------------------------------------------------------

    def contribute(self, numbers: Sequence[int], rng: Random, *, within_s: float) -> None:
        """Let nodes contribute, each its model, in this order; the last one when ``within_s`` have passed."""
        moments = [*sorted(rng.uniform(0, within_s) for _ in numbers[1:]), within_s]
        for number, moment in zip(numbers, moments, strict=True):
            self.world.at(self.world.now + moment, None, self._contribute, number)
        self._contributed += len(numbers)

    def _contribute(self, number: int) -> None:
        node = self.world.nodes[number % len(self.world.nodes)]
        node.author(self.group, Kind.ADD, self._models.add(number).encode())

    def agree(self) -> float | None:
        """Let time pass until all nodes hold all contributions; return how long it took, None: too long."""
        began = self.world.now
        is_agreed = self.world.run(began + AGREEMENT_S, stop=self._is_agreed)
        return self.world.now - began if is_agreed else None

    def _is_agreed(self) -> bool:
        world = self.world
        if not world.is_converged:
            return False
        return len(world.nodes[0].states()[self.group]) == self._contributed

    def cut_into_sites(self, for_s: float) -> None:
        """Let nothing pass between sites for a while, from now on."""
        sides: dict[int, list[int]] = {}
        for node, site in enumerate(self.sites):
            sides.setdefault(site, []).append(node)
        fault = Fault(
            index=0, time=0.0, kind="partition", args={"sides": list(sides.values()), "for_s": for_s}
        )
        inflict(self.world, fault, until=self.world.now + for_s)

    # --- what can be seen ---------------------------------------------------------------------------------

    def views(self) -> Iterator[tuple[SimulatedNode, View]]:
        """Yield what each node sees."""
        for node in self.world.nodes:
            yield node, node.states()[self.group].view

    def keys(self) -> Mapping[bytes, list[int]]:
        """Return the nodes by the resolve key of what they see."""
        keys: dict[bytes, list[int]] = {}
        for node, view in self.views():
            keys.setdefault(key_of(view), []).append(node.index)
        return keys

    def view(self, node: int) -> View:
        """Return what one node sees."""
        return self.world.nodes[node].states()[self.group].view

    @property
    def bytes_sent(self) -> int:
        """Bytes of frames since the nodes have met."""
        return sum(node.bytes_sent for node in self.world.nodes) - self._bytes_before

    @property
    def bytes_needed(self) -> int:
        """Bytes of operations, sent once to each node that did not author them."""
        return self.world.meter.bytes_needed
