"""The users of the daemons: they give the commands of a plan, through ``LocalNode`` as the CLI would."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final, TypeVar

from crdt_merge_node.control.model import ContributionAdded, GroupInfo, PolicyChanges, PolicyInfo
from crdt_merge_protocol.errors import CrdtMergeError
from crdt_merge_protocol.limits import WEIGHT_ONE
from crdt_merge_protocol.policy import DEFAULT_WEIGHT_CAP

from .daemon_models import BASE
from .machine import USER, Machine
from .plan import Act
from .planning import stream
from .simulated_process import OUTSIDE

if TYPE_CHECKING:
    from .daemon_world import DaemonWorld

T = TypeVar("T")
UNKNOWN_KIND: Final = 200


class Users:
    """Carries out the acts of a plan."""

    def __init__(self, world: DaemonWorld) -> None:
        self._world = world

    async def create_groups(self, machine: Machine, count: int) -> None:
        """Let the administrator begin all groups."""
        scenario, models = self._world.plan.scenario, self._world.models
        assert machine.node is not None, "it is ready"
        base = str(USER / "base") if models.needs_base else None
        for name, content in (("like", 0), ("base", BASE)):
            machine.put_file(USER / name, models.file(content))
        for number in range(count):
            await last(
                machine.node.api.group_create(
                    name=f"g{number}",
                    strategy=scenario.strategy,
                    params=scenario.params,
                    base_path=base,
                    like_path=None if base else str(USER / "like"),
                    dtype="",
                    weight_cap=DEFAULT_WEIGHT_CAP,
                    holders=scenario.holders,
                ),
                GroupInfo,
            )

    def begin(self, machine: Machine, act: Act) -> None:
        """Begin an act now, if the machine can."""
        world = self._world
        if act.kind == "start":
            machine.start()
        elif act.kind == "leave":
            self._leave(machine, act.args["down_s"])
        elif machine.process is None or machine.node is None:
            world.sometimes["act on a node that is down"] += 1
        else:
            world.loop.create_task(self._act(machine, act), context=machine.process.context)

    def _leave(self, machine: Machine, down_s: float) -> None:
        if not machine.is_wanted or machine.node is None:
            return
        machine.say_goodbye()

        def come_back() -> None:
            machine.kill(restart_s=None)
            machine.lose_disk()
            machine.start()

        self._world.note(f"{machine.name} leaves")
        self._world.loop.call_later(down_s, come_back, context=OUTSIDE)

    async def _act(self, machine: Machine, act: Act) -> None:
        """Carry out an act within the process of the node."""
        world = self._world
        try:
            operation = await self._deed(machine, act)
        except (CrdtMergeError, OSError) as error:
            world.sometimes[f"act refused: {type(error).__name__}"] += 1
            world.note(f"{machine.name} {act.kind} refused: {type(error).__name__}")
            return
        group = bytes.fromhex(self._group(machine, act))
        world.note(f"{machine.name} {act.kind} {operation.hex()[:8]}")
        world.checker.acknowledged(machine.number, machine.states()[group], operation)
        if (then := world.after_ack.pop(machine.number, None)) is not None:
            then()

    def _group(self, machine: Machine, act: Act) -> str:
        for group, state in machine.states().items():
            if state.genesis.name == f"g{act.args['group']}":
                return group.hex()
        raise CrdtMergeError("the group is not known here yet.")

    async def _deed(self, machine: Machine, act: Act) -> bytes:
        node = machine.node
        assert node is not None, "looked at a moment ago, in the same callback"
        group, args = self._group(machine, act), act.args
        match act.kind:
            case "add":
                return await self._add(machine, group, act)
            case "remove":
                removed = await node.api.contribution_remove(group, args["slot"])
                return bytes.fromhex(removed.operation)
            case "policy":
                changes = PolicyChanges(weight_cap=args["weight_cap"])
                policy = await last(node.api.policy_set(group, changes), PolicyInfo)
                return bytes.fromhex(policy.id)
            case "unknown":
                body = b"\x01" + stream(self._world.plan.seed, "unknown", act.index).randbytes(16)
                signed = await node.services.driver.author(bytes.fromhex(group), UNKNOWN_KIND, body)
                return signed.id
        raise CrdtMergeError(f"daemons are not asked for it: {act.kind}.")

    async def _add(self, machine: Machine, group: str, act: Act) -> bytes:
        assert machine.node is not None, "looked at a moment ago, in the same callback"
        path = USER / f"{act.index}.safetensors"
        machine.put_file(path, self._world.models.file(act.args["content"]))
        added = await last(
            machine.node.api.contribution_add(
                group,
                path=str(path),
                slot=act.args["slot"],
                base_path=None,
                weight=WEIGHT_ONE,
                meta={},
                wait_holds=0,
            ),
            ContributionAdded,
        )
        machine.disk.unlink(path)
        return bytes.fromhex(added.contribution.tag)


async def last(steps: AsyncIterator[Any], kind: type[T]) -> T:
    """Return the result at the end of a stream of progress."""
    found: T | None = None
    async for step in steps:
        if isinstance(step, kind):
            found = step
    assert found is not None, f"the stream ends with a {kind.__name__} or raises"
    return found
