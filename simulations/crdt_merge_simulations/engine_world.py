"""A run of the protocol engines in virtual time: carries a plan out and says what it showed.

1. The nodes start and meet; node 0 makes the groups, and everybody learns of them.
2. The work, with the acts and the faults of the plan (``engine_faults.py``).
3. Peace: everything is mended, and within ``peace_s`` all must agree.
4. A moment of quiet, after which nothing may be left in any buffer.
"""

from __future__ import annotations

import hashlib
import time as wall
from functools import partial
from typing import Final

from crdt_merge_protocol.errors import LocalProtocolError
from crdt_merge_protocol.genesis import Genesis
from crdt_merge_protocol.operations import Add, Kind, PolicyAct, Remove
from crdt_merge_protocol.policy import Policy, sorted_params

from .administration import ADMINS, QUORUM, administer, sign
from .economy import judge_broadcast
from .engine_core import World
from .engine_faults import CULPRITS, UNSUPPORTED, inflict, replace_disk
from .engine_node import Disk, SimulatedNode
from .invariants import key_of
from .plan import Act, Plan
from .result import Result, Sample
from .sharing import no_collector, shared_work

MEETING_S: Final = 30.0
"""Within which all nodes must have met and know of the groups, before the work begins."""
START_SPREAD_S: Final = 0.5
QUIET_S: Final = 5.0
SAMPLES: Final = 60
ROOTS_SAMPLED_MAX: Final = 2000
"""Beyond so many nodes a sample only counts the roots."""
UNKNOWN_KIND: Final = 200


def run(plan: Plan) -> Result:
    """Carry out a plan with protocol engines and return what it showed."""
    began = wall.perf_counter()
    world, scenario = World(plan), plan.scenario
    result = Result(name=scenario.name, seed=plan.seed, fidelity="engine", nodes=scenario.nodes)
    result.links = [(link.a, link.b) for link in plan.links]
    result.sites = list(plan.sites)
    world.culprits = {fault.args["node"] for fault in plan.faults if fault.kind in CULPRITS}
    world.settle_honesty()
    with shared_work(), no_collector():
        meet(world)
        _work(world, result)
        _make_peace(world, result)
        _judge(world, result)
    _sum_up(world, result)
    result.wall_s = wall.perf_counter() - began
    return result


def meet(world: World) -> None:
    """Start the nodes, let node 0 make the groups, and wait until everybody knows of them."""
    late = {act.node for act in world.plan.acts if act.kind == "start"}
    for node in world.nodes:
        if node.index not in late:
            world.at(world.stream("start", node.index).uniform(0, START_SPREAD_S), None, node.start)
    world.run(1.0)
    founder = world.nodes[0]
    for number in range(world.plan.scenario.workload.groups):
        genesis = _genesis(world, number)
        world.groups.append(genesis.group)
        founder.carry_out(founder.engine.create_group(genesis))
    for node in world.nodes:
        world.root_changed(node)
    world.run(1.0 + MEETING_S, stop=lambda: world.is_converged)
    world.epoch = world.now


def _genesis(world: World, number: int) -> Genesis:
    scenario = world.plan.scenario
    is_administered = scenario.workload.administration > 0
    policy = Policy(
        strategy=scenario.strategy,
        params=sorted_params(dict(scenario.params)),
        schema=bytes(32),
        holders=scenario.holders,
    )
    return Genesis(
        nonce=world.stream("genesis", number).randbytes(16),
        name=f"group-{number}",
        admins=tuple(node.id for node in world.nodes[: ADMINS if is_administered else 1]),
        quorum=QUORUM if is_administered else 1,
        is_open=True,
        policy=policy,
    )


def _work(world: World, result: Result) -> None:
    """Do what the plan says, and take samples."""
    plan, began = world.plan, world.epoch
    until = began + plan.scenario.duration_s
    world.note(f"work begins: {len(plan.acts)} acts, {len(plan.faults)} faults")
    result.unsupported = sorted({fault.kind for fault in plan.faults} & UNSUPPORTED)
    for act in plan.acts:
        world.at(began + act.time, None, _do, world, act)
    for fault in plan.faults:
        if fault.kind not in UNSUPPORTED:
            world.at(began + fault.time, None, partial(inflict, world, fault, until=until))
    samples = SAMPLES if len(world.nodes) <= ROOTS_SAMPLED_MAX else SAMPLES // 10
    for number in range(samples + 1):
        world.at(began + number * plan.scenario.duration_s / samples, None, _sample, world, result)
    world.run(until)


def _make_peace(world: World, result: Result) -> None:
    """Bring everybody back and wait until all agree, then for a moment of quiet."""
    for node in world.nodes:
        world.start(node)
    world.note("peace: all links mended, all nodes up")
    began = world.now
    step_s = max(0.25, world.plan.scenario.peace_s / SAMPLES)
    for number in range(SAMPLES):
        world.at(began + number * step_s, None, _sample_unless_agreed, world, result)
    if world.run(began + world.plan.scenario.peace_s, stop=lambda: world.is_converged):
        result.converged_after_s = round(world.now - began, 3)
        world.note(f"converged {result.converged_after_s:.3f} s after the last fault")
        _sample(world, result)
        world.run(world.now + QUIET_S)
        if not world.is_converged:
            world.checker.expect("I13", False, "they agreed, and then no longer")
    else:
        world.note(f"NOT converged: {len(world.roots)} different roots")


def _judge(world: World, result: Result) -> None:
    checker = world.checker
    honest = [node for node in world.nodes if node.index not in world.culprits]
    for node in honest:
        checker.kept(node.index, node.states().values())
        for group in world.groups:
            if group in node.engine.replicas:
                checker.look(node.index, node.engine.replicas[group], world.honest, thoroughly=True)
        held = {group: set(state.trie) for group, state in node.states().items()}
        extra = sum(len(ids - held.get(group, set())) for group, ids in node.disk.ids().items())
        checker.expect("I2", not extra, f"{node.name} still stores {extra} operations that it dropped")
    checker.checks["I9"].checked = world.events
    judge_broadcast(world)
    is_converged = result.converged_after_s is not None
    checker.agreed(
        {node.index: node.states() for node in honest}, is_converged=is_converged, twins=world.twins
    )
    if is_converged:
        for node in honest:
            waiting = sum(
                replica.orphan_count + replica.in_flight_count for replica in node.engine.replicas.values()
            )
            checker.expect(
                "I17", not waiting or bool(world.culprits), f"{waiting} operations wait at {node.name}"
            )
    first = honest[0].states()
    result.operations = sum(len(state) for state in first.values())
    result.visible = sum(len(state.view.visible) for state in first.values())


def _sum_up(world: World, result: Result) -> None:
    meter = world.meter
    result.checks, result.sometimes = world.checker.checks, world.checker.sometimes
    result.log = world.log
    result.bytes_sent = [node.bytes_sent for node in world.nodes]
    result.bytes_needed = meter.bytes_needed
    result.hops, result.delivery_s = meter.hops, meter.delivery_s
    result.duplicates, result.deliveries = meter.duplicates, meter.deliveries
    result.events, result.virtual_s = world.events, round(world.now, 6)
    for node in world.nodes:
        world.trace.update(node.root or b"-")
    result.trace = world.trace.hexdigest()


# --- samples ----------------------------------------------------------------------------------------------


def _sample_unless_agreed(world: World, result: Result) -> None:
    if not world.is_converged:
        _sample(world, result)


def _sample(world: World, result: Result) -> None:
    nodes = world.nodes if len(world.nodes) <= ROOTS_SAMPLED_MAX else []
    living = [node for node in world.nodes if node.is_up and node.index not in world.culprits]
    newest = max(living, key=lambda node: sum(len(state) for state in node.states().values()), default=None)
    states = list(newest.states().values()) if newest else []
    keys = {}
    for node in living:
        if node.root not in keys:
            keys[node.root] = tuple(key_of(state.view) for _, state in sorted(node.states().items()))
    result.samples.append(
        Sample(
            time=round(world.now - world.epoch, 3),
            distinct_roots=len(world.roots),
            distinct_keys=len(set(keys.values())),
            roots=[node.root.hex()[:8] if node.root and node.is_up else "" for node in nodes],
            sides=world.network.sides(len(nodes)),
            operations=[
                sum(len(state) for state in node.states().values()) if node.is_up else 0 for node in nodes
            ],
            tombstones=sum(len(state.removes) for state in states),
        )
    )


# --- acts -------------------------------------------------------------------------------------------------


def _do(world: World, act: Act) -> None:
    """Let a node do what the plan says, if it can."""
    node = world.nodes[act.node]
    if act.kind == "start":
        world.start(node)
        return
    if act.kind == "leave":
        _leave(world, node, act)
        return
    group = world.groups[act.args["group"]]
    if not node.is_up or node.frozen_until > world.now or group not in node.engine.replicas:
        world.checker.sometimes["an act found its node unable"] += 1
        return
    try:
        _ACTS[act.kind](world, node, group, act)
    except LocalProtocolError:
        revoked = node.engine.replicas[group].state.view.decided.revoked
        world.checker.expect("I9", node.id in revoked, f"{node.name} may sign nothing")
        world.checker.sometimes["a revoked node was refused"] += 1


def _leave(world: World, node: SimulatedNode, act: Act) -> None:
    if not node.is_up:
        return
    world.note(f"{node.name} leaves")
    for line in list(node.lines.values()):
        world.hang_up(line, "the node is shutting down")
    node.kill()
    replace_disk(world, node, Disk())
    end = min(world.now + float(act.args["down_s"]), world.epoch + world.plan.scenario.duration_s)
    world.at(end, None, world.start, node)


def _add(world: World, node: SimulatedNode, group: bytes, act: Act) -> None:
    content = hashlib.sha256(f"content/{act.args['content']}".encode()).digest()
    add = Add(slot=act.args["slot"], type="model", content=content, weight=1 << 32, payload=None)
    signed = node.author(group, Kind.ADD, add.encode())
    world.note(f"{node.name} adds {signed.id.hex()[:8]} to {add.slot}")


def _remove(world: World, node: SimulatedNode, group: bytes, act: Act) -> None:
    state = node.engine.replicas[group].state
    own = sorted(
        each.tag for each in state.view.visible if each.author == node.id and each.slot == act.args["slot"]
    )
    if own:
        node.author(group, Kind.REMOVE, Remove(targets=tuple(own)).encode(), own)
        world.note(f"{node.name} removes {own[0].hex()[:8]} from {act.args['slot']}")


def _unknown(world: World, node: SimulatedNode, group: bytes, act: Act) -> None:  # noqa: ARG001
    node.author(group, UNKNOWN_KIND, b"\x07of a kind that nobody knows yet")
    world.note(f"{node.name} says something of a newer release")


def _policy(world: World, node: SimulatedNode, group: bytes, act: Act) -> None:
    view = node.engine.replicas[group].state.view
    policy = view.policy.next(weight_cap=act.args["weight_cap"])
    nonce = world.stream("policy", act.index).randbytes(16)
    quorum = node.engine.replicas[group].state.genesis.quorum
    signed = sign(world, group, PolicyAct(policy=policy, nonce=nonce), quorum)
    refs = () if view.policy_id is None else (view.policy_id,)
    node.author(group, Kind.POLICY, signed.encode(), refs)
    world.note(f"{node.name} makes policy {policy.version}")


_ACTS: Final = {
    "add": _add,
    "remove": _remove,
    "unknown": _unknown,
    "policy": _policy,
    "administer": administer,
}
