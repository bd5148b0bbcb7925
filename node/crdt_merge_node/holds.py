"""Tells a group which contributions are whole here, if its policy asks for it (PROTOCOL R16)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from crdt_merge_protocol.engine import Engine
from crdt_merge_protocol.operations import Hold, Kind, read_body

from .contents import GroupContents
from .errors import StorageError, StoreFailedError
from .gossip import GossipDriver
from .telemetry.logging import get_logger

log = get_logger()

HOLD_TAGS_MAX: Final = 512
"""Tags in one HOLD; they stand in the body and in the references."""
RETRY_S: Final = 5.0


class Holds:
    """The HOLDs of this node."""

    def __init__(self, engine: Engine, driver: GossipDriver, *, again: Callable[[bytes], None]) -> None:
        """Take who signs, and who has a group looked at again after a failure."""
        self._engine = engine
        self._driver = driver
        self._again = again
        self._held: dict[bytes, set[bytes]] = {}

    async def tell(self, group: bytes, contents: GroupContents) -> None:
        """Sign what is whole here and was not signed before."""
        if contents.view.policy.holders == 0 or not self._driver.standing.is_open:
            return
        if group not in self._held:
            self._held[group] = self._held_before(group)
        held = self._held[group]
        tags = sorted(
            tag
            for tag, item in contents.items.items()
            if item.is_judged
            and not item.problem
            and tag not in held
            and item.visible.author != self._engine.node
        )
        for start in range(0, len(tags), HOLD_TAGS_MAX):
            page = tuple(tags[start : start + HOLD_TAGS_MAX])
            try:
                await self._driver.author(group, Kind.HOLD, Hold(tags=page).encode(), page)
            except StoreFailedError:
                raise
            except StorageError as error:
                log.warning("hold.failed", group=group, error=error)
                asyncio.get_running_loop().call_later(RETRY_S, self._again, group)
                return
            held.update(page)

    def _held_before(self, group: bytes) -> set[bytes]:
        state = self._engine.state(group)
        assert state is not None, "groups are never dropped"
        held: set[bytes] = set()
        for signed in state.causal():
            body = read_body(signed.operation) if signed.operation.author == self._engine.node else None
            if isinstance(body, Hold):
                held.update(body.tags)
        return held
