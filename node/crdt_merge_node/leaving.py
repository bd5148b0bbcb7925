"""Leaving a cluster for good without taking anything along (PROTOCOL 3).

    which contributions and operations does nobody else have?  ->  wait until enough others have them, or be
    told to go all the same  ->  tell the peers  ->  note it in the data directory  ->  stop

What counts is what peers say they hold now, on bulk connections, and that their roots are ours. From the
moment at which all is held nothing more is acknowledged here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from crdt_merge_protocol.errors import CrdtMergeError

from .contents import GroupContents
from .control.model import LeaveItem, LeavePlan, LeaveReport, Progress
from .dialling import open_bulk
from .errors import ConfigError, InvalidRequestError, TimedOutError
from .holding import held_by
from .ports import Fs, replace_file
from .services import Services
from .telemetry.logging import get_logger

log = get_logger()

MARK: Final = "LEFT"
LOOK_S: Final = 1.0
COPIES_DEFAULT: Final = 2
NAMED_MAX: Final = 4
TELL_S: Final = 5.0
STANDING: Final = "leaving"


@dataclass(slots=True)
class _Holding:
    """A contribution that is whole here, or what a whole group needs, and who else has it."""

    item: LeaveItem
    blobs: frozenset[bytes]
    objects: frozenset[bytes]

    def is_in(self, held: set[bytes]) -> bool:
        return self.blobs <= held and self.objects <= held


async def leave(
    services: Services, *, copies: int, wait_s: float, accept_loss: bool
) -> AsyncGenerator[LeavePlan | Progress | LeaveReport]:
    """Leave the cluster; the node stops soon after the report.

    Args:
        services: Of the node.
        copies: Other nodes that shall hold everything first; 0: two, or as many as there are.
        wait_s: How long to wait for that; 0: not at all.
        accept_loss: Leave even if something is lost.

    Raises:
        InvalidRequestError: Something would be lost, and neither waiting nor the loss was asked for.
        TimedOutError: It still would be after waiting.
    """
    began = services.clock.monotonic()
    plan = await _look(services, copies)
    yield plan
    deadline = began + wait_s
    while _lacks(plan) and wait_s and services.clock.monotonic() < deadline:
        lacking = sum(item.nbytes for item in plan.items)
        detail = f"{len(plan.items)} contributions, {len(plan.groups_behind)} groups behind"
        yield Progress(step=f"waiting until {plan.copies} others hold everything", detail=detail)
        log.debug("leave.waited", bytes=lacking)
        await asyncio.sleep(LOOK_S)
        plan = await _look(services, copies)
    services.driver.standing.close(STANDING, "this node is leaving its cluster", is_serving=True)
    try:
        plan = await _look(services, copies)  # Once more, now that nothing can be added any more.
        if not accept_loss:
            _refuse_loss(plan, wait_s)
        told = await _tell(services)
        await asyncio.to_thread(_mark, services.config.node.data_dir, services)
    except BaseException:
        services.driver.standing.open(STANDING)
        raise
    log.info("node.left", node=services.engine.node, count=told)
    yield LeaveReport(
        node=services.engine.node.hex(),
        told=told,
        lost=tuple(item for item in plan.items if item.holders == 0),
        groups_behind=plan.groups_behind,
        duration_s=services.clock.monotonic() - began,
    )
    services.stop()


def _lacks(plan: LeavePlan) -> bool:
    return bool(plan.items or plan.groups_behind)


def _refuse_loss(plan: LeavePlan, wait_s: float) -> None:
    if not _lacks(plan):
        return
    lost = [item for item in plan.items if item.holders == 0]
    named = [
        f"{item.slot} of {item.group_name} ({item.tag[:12]})" for item in (lost or plan.items)[:NAMED_MAX]
    ]
    named += [f"operations of {name}" for name in plan.groups_behind[:NAMED_MAX]]
    what = f"{len(plan.items)} contributions are held by fewer than {plan.copies} others"
    if lost:
        what += f", {len(lost)} of them by nobody"
    message = f"{what}, and {len(plan.groups_behind)} groups are not all there: {', '.join(named)}."
    hint = "--wait SECONDS waits until others hold them; --yes leaves all the same."
    if wait_s:
        raise TimedOutError(message, hint=hint)
    raise InvalidRequestError(message, hint=hint)


# --- what others hold ---------------------------------------------------------------------------------


async def _look(services: Services, copies: int) -> LeavePlan:
    """Ask the connected peers what they hold of what is here."""
    peers = sorted(services.driver.connections)
    wanted = copies or max(1, min(COPIES_DEFAULT, len(peers)))
    holdings = [each async for each in _holdings(services)]
    holders = dict.fromkeys(range(len(holdings)), 0)
    for peer in peers:
        lacking = [number for number, count in holders.items() if count < wanted]
        if not lacking:
            break
        held = await _ask(services, peer, [holdings[number] for number in lacking])
        for number in lacking:
            holders[number] += holdings[number].is_in(held)
    behind = [name for name, count in _groups(services, peers) if count < wanted]
    items = [
        replace(each.item, holders=holders[number])
        for number, each in enumerate(holdings)
        if holders[number] < wanted
    ]
    return LeavePlan(
        node=services.engine.node.hex(),
        copies=wanted,
        peers=len(peers),
        contributions=len(holdings),
        items=tuple(items),
        groups_behind=tuple(behind),
    )


async def _ask(services: Services, peer: bytes, holdings: Iterable[_Holding]) -> set[bytes]:
    blobs: set[bytes] = set()
    objects: set[bytes] = set()
    for each in holdings:
        blobs |= each.blobs
        objects |= each.objects
    try:
        connection = await open_bulk(services.endpoint, services.driver, peer)
    except CrdtMergeError:
        return set()
    return await held_by(connection, blobs=sorted(blobs), objects=sorted(objects))


def _groups(services: Services, peers: list[bytes]) -> Iterator[tuple[str, int]]:
    """Yield (name, number of peers with our root) of every group that has operations."""
    reconciler = services.engine.reconciler
    for group, replica in sorted(services.engine.replicas.items()):
        yield replica.state.genesis.name, sum(reconciler.is_equal(peer, group) for peer in peers)


async def _holdings(services: Services) -> AsyncGenerator[_Holding]:
    for group in sorted(services.engine.replicas):
        contents = await services.keeper.current(group)
        name = services.engine.replicas[group].state.genesis.name
        if (shared := _shared(group, name, contents)) is not None:
            yield shared
        for tag, item in sorted(contents.items.items()):
            if item.manifest is None or item.missing:
                continue
            visible = item.visible
            objects = {visible.content}
            if visible.payload is not None and services.store.blobs.has_object(visible.payload):
                objects.add(visible.payload)
            yield _Holding(
                LeaveItem(
                    group=group.hex(),
                    group_name=name,
                    tag=tag.hex(),
                    slot=visible.slot,
                    is_own=visible.author == services.engine.node,
                    nbytes=item.nbytes,
                ),
                frozenset(entry.blob for entry in item.manifest.entries),
                frozenset(objects),
            )


def _shared(group: bytes, name: str, contents: GroupContents) -> _Holding | None:
    """Return what all contributions need: schema and base, if they are here."""
    if contents.schema is None or contents.shared_missing:
        return None
    policy = contents.view.policy
    objects = {policy.schema, *([policy.base] if policy.base is not None else ())}
    entries = contents.base.entries if contents.base is not None else ()
    item = LeaveItem(
        group=group.hex(),
        group_name=name,
        tag=policy.schema.hex(),
        slot="schema and base",
        nbytes=contents.base.nbytes if contents.base is not None else 0,
    )
    return _Holding(item, frozenset(entry.blob for entry in entries), frozenset(objects))


# --- going ------------------------------------------------------------------------------------------------


async def _tell(services: Services) -> int:
    """Tell the connected peers; return how many there were, once it is on its way to them."""
    connections = list(services.driver.connections.values())
    services.driver.leave()
    with suppress(TimeoutError):
        async with asyncio.timeout(TELL_S):
            for connection in connections:
                with suppress(CrdtMergeError):
                    await connection.drain()
    return len(connections)


def _mark(data_dir: Path, services: Services) -> None:
    facts = {
        "node": services.engine.node.hex(),
        "cluster": services.identity.cluster.hex(),
        "left": services.clock.now(),
    }
    replace_file(services.fs, data_dir / MARK, json.dumps(facts).encode() + b"\n")


def refuse_if_left(data_dir: Path, fs: Fs) -> None:
    """Refuse to start a node that has left.

    Raises:
        ConfigError: It has.
    """
    if has_left(data_dir, fs):
        raise ConfigError(
            f"the node in {data_dir} has left its cluster.",
            hint="To come back, with the same keys and data: crdt-merge-node init --join TOKEN --force",
        )


def has_left(data_dir: Path, fs: Fs) -> bool:
    """Tell whether a node has left its cluster."""
    return fs.stat(data_dir / MARK) is not None


def come_back(data_dir: Path, fs: Fs) -> None:
    """Let a node that has left start again."""
    if has_left(data_dir, fs):
        fs.unlink(data_dir / MARK)
        fs.sync_dir(data_dir)
