"""A random life of a group: contributions, removes, partitions, kills and restarts; then peace.

After the last fault all nodes are brought back and all links mended, and the world runs until the nodes have
converged or a deadline passes. What must hold is checked at the end (SCENARIOS I1, I3, I4, I6, I13).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from crdt_merge_protocol.genesis import Genesis
from crdt_merge_protocol.operations import Add, Kind, Remove
from crdt_merge_protocol.policy import Policy
from crdt_merge_protocol.view import view_of

from .world import SimulatedNode, World

DEADLINE_S = 60.0
"""Virtual time after the last fault within which all must agree."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One run."""

    nodes: int = 10
    seed: int = 1
    operations: int = 60
    duration_s: float = 20.0
    kills: int = 4
    partitions: int = 2


@dataclass(slots=True)
class Verdict:
    """What a run showed."""

    converged_after_s: float | None = None
    """Virtual seconds from the last fault to equal roots; None: not within the deadline."""
    operations: int = 0
    visible: int = 0
    bytes_sent: int = 0
    events: int = 0
    trace: str = ""
    violations: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    @property
    def is_success(self) -> bool:
        """Converged and nothing violated."""
        return self.converged_after_s is not None and not self.violations


def run(settings: Settings) -> Verdict:
    """Run one scenario."""
    world = World(settings.nodes, seed=settings.seed)
    for node in world.nodes:
        node.start()
    world.run(1.0)
    group = _create_group(world)
    world.run(3.0, stop=lambda: world.is_converged(group))
    _schedule(world, group, settings)
    world.run(world.now + settings.duration_s)
    world.heal()
    for node in world.nodes:
        if not node.is_up:
            node.start()
    world.note("peace: all links mended, all nodes up")
    began = world.now
    agreed = world.run(began + DEADLINE_S, stop=lambda: world.is_converged(group))
    verdict = Verdict(converged_after_s=round(world.now - began, 3) if agreed else None)
    _judge(world, group, verdict)
    return verdict


def _create_group(world: World) -> bytes:
    founder = world.nodes[0]
    policy = Policy(strategy="weight_average", schema=bytes(32))
    genesis = Genesis(
        nonce=world.stream("genesis").randbytes(16),
        name="simulated",
        admins=(founder.key.node_id,),
        quorum=1,
        is_open=True,
        policy=policy,
    )
    founder.carry_out(founder.engine.create_group(genesis))
    return genesis.group


def _schedule(world: World, group: bytes, settings: Settings) -> None:
    work = world.stream("workload")
    start = world.now
    for number in range(settings.operations):
        node = world.nodes[work.randrange(settings.nodes)]
        time = start + work.uniform(0, settings.duration_s)
        world.at(time, None, lambda node=node, number=number: _act(world, node, group, number))  # type: ignore[misc]
    kills = world.stream("faults", "kill")
    for _ in range(settings.kills):
        node = world.nodes[kills.randrange(settings.nodes)]
        time = start + kills.uniform(0, settings.duration_s * 0.9)
        world.at(time, None, lambda node=node: _kill(world, node))  # type: ignore[misc]
        world.at(time + kills.uniform(0.2, 3.0), None, lambda node=node: _start(world, node))  # type: ignore[misc]
    cuts = world.stream("faults", "partition")
    for _ in range(settings.partitions):
        time = start + cuts.uniform(0, settings.duration_s * 0.7)
        order = cuts.sample(world.nodes, settings.nodes)
        middle = cuts.randrange(1, max(2, settings.nodes))
        sides = [order[:middle], order[middle:]]
        world.at(time, None, lambda sides=sides: _split(world, sides))  # type: ignore[misc]
        world.at(time + cuts.uniform(1.0, 6.0), None, lambda: _heal(world))


def _act(world: World, node: SimulatedNode, group: bytes, number: int) -> None:
    state = node.engine.state(group)
    if not node.is_up or state is None:
        return
    rng = world.stream("act", number)
    own = [
        tag
        for tag in sorted(state.adds - state.removes)
        if (signed := state.get(tag)) and signed.operation.author == node.key.node_id
    ]
    if own and rng.random() < 0.25:
        tag = rng.choice(own)
        node.author(group, Kind.REMOVE, Remove(targets=(tag,)).encode(), (tag,))
        world.note(f"{node.name} removes {tag.hex()[:8]}")
    elif rng.random() < 0.1:
        node.author(group, 200, b"\x07of a kind that nobody knows yet")
        world.note(f"{node.name} says something of a newer release")
    else:
        content = hashlib.sha256(f"{number}".encode()).digest()
        add = Add(slot=f"s{rng.randrange(2)}", type="model", content=content, weight=1 << 32, payload=None)
        tag = node.author(group, Kind.ADD, add.encode()).id
        world.note(f"{node.name} adds {tag.hex()[:8]} to {add.slot}")


def _kill(world: World, node: SimulatedNode) -> None:
    if node.is_up:
        world.note(f"{node.name} is killed")
        node.kill()


def _start(world: World, node: SimulatedNode) -> None:
    if not node.is_up:
        world.note(f"{node.name} starts")
        node.start()


def _split(world: World, sides: list[list[SimulatedNode]]) -> None:
    world.note("split " + " | ".join(" ".join(sorted(node.name for node in side)) for side in sides))
    world.split(sides)


def _heal(world: World) -> None:
    world.note("heal")
    world.heal()


def _judge(world: World, group: bytes, verdict: Verdict) -> None:
    honest = {node.key.node_id for node in world.nodes}
    views = set()
    for node in world.nodes:
        state = node.engine.state(group)
        if state is None:
            verdict.violations.append(f"{node.name} never learnt of the group")
            continue
        lost = [id_ for id_ in sorted(node.disk.acknowledged) if id_ not in state]
        if lost:
            verdict.violations.append(f"I1: {node.name} lost {len(lost)} acknowledged operations")
        if state.view != view_of(state.genesis, state.causal()):
            verdict.violations.append(f"I3: the view of {node.name} is not that of its set")
        if state.view.forked & honest:
            verdict.violations.append(f"I6: {node.name} convicts an honest author")
        views.add(state.view.fingerprint)
        verdict.operations, verdict.visible = len(state), len(state.view.visible)
    if verdict.converged_after_s is not None and len(views) != 1:
        verdict.violations.append("I4: equal sets, different views")
    acknowledged = set().union(*(node.disk.acknowledged for node in world.nodes))
    if verdict.converged_after_s is not None and verdict.operations < len(acknowledged):
        verdict.violations.append("I13: an acknowledged operation did not reach everybody")
    verdict.bytes_sent, verdict.events = world.bytes_sent, world.events
    verdict.trace, verdict.log = world.trace.hexdigest(), world.log
