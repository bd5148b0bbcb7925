"""Waiting for the bytes that a resolve needs, and saying which they are."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator
from typing import Final

from crdt_merge_protocol.errors import MissingBlobError, ResolveError

from crdt_merge_node.contents import GroupContents
from crdt_merge_node.services import Services

NAMED_MAX: Final = 4
"""Contributions, and blobs of each, that an error names."""


def refuse_if_late(
    services: Services,
    group: bytes,
    contents: GroupContents,
    left_out: frozenset[bytes],
    deadline: float,
    *,
    wait_s: float,
) -> None:
    """Refuse what cannot be resolved, naming what is missing of what (SCENARIOS T48).

    Args:
        services: Of the node.
        group: Id of the group.
        contents: What of it is here.
        left_out: Tags that the resolve leaves out.
        deadline: On the monotonic clock, until when it may wait, in seconds.
        wait_s: How long that was when it began, for the message.

    Raises:
        ResolveError: Nothing can ever be resolved under this policy.
        MissingBlobError: Something is missing and the time is over.
    """
    name = services.engine.replicas[group].state.genesis.name
    if contents.problem:
        raise ResolveError(
            f'group "{name}" cannot be resolved: {contents.problem}.',
            hint="An administrator of the group has to set another policy.",
        )
    if services.clock.monotonic() < deadline:
        return
    lacking = [f"{what}: {_ids(blobs)}" for what, blobs in _lacking(services, contents, left_out)]
    more = f"; and {len(lacking) - NAMED_MAX} more" if len(lacking) > NAMED_MAX else ""
    waited = f" after {wait_s:g} s" if wait_s else ""
    hint = f"See: crdt-merge-node why {name}; --wait waits, --without TAG leaves a contribution out."
    if not services.keeper.is_followed(group):
        hint = f"This node does not fetch the group's bytes: crdt-merge-node group follow {name}"
    raise MissingBlobError(
        f'group "{name}" is not whole here{waited}; missing of {"; ".join(lacking[:NAMED_MAX])}{more}.',
        hint=hint,
    )


def _lacking(
    services: Services, contents: GroupContents, left_out: frozenset[bytes]
) -> Iterator[tuple[str, Iterable[bytes]]]:
    """Yield what is not whole, in words, and the ids of what is missing of it."""
    if contents.shared_missing:
        yield "the schema or base", contents.shared_missing
    for item in contents.awaited(left_out):
        author = services.driver.name(item.visible.author) or item.visible.author.hex()[:12]
        yield f"contribution {item.visible.tag.hex()[:12]} of {author}", item.missing


def _ids(blobs: Iterable[bytes]) -> str:
    shown = [blob.hex()[:12] for blob in sorted(blobs)]
    more = f" and {len(shown) - NAMED_MAX} more" if len(shown) > NAMED_MAX else ""
    return ", ".join(shown[:NAMED_MAX]) + more or "nothing, a scan is under way"


async def beyond(services: Services, group: bytes, generation: int, deadline: float) -> None:
    """Wait until what is here has changed since a generation, up to the deadline."""
    remaining = max(0.0, deadline - services.clock.monotonic())
    # Up to a second at a time, so that the person who waits sees the numbers move.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(min(remaining, 1.0)):
            await services.keeper.beyond(group, generation)
