"""A node that was restored from a backup, until it knows what happened since (SCENARIOS T34, T35).

It connects and exchanges operations like any other: those are signed, and what others have dropped they do
not take back. But it acknowledges nothing, admits nobody and serves no bytes until one peer's roots of all
groups have been reached; then it holds what that peer held, its own newer operations included.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from .alarms import Alarms
from .background import Duties
from .control.model import Severity
from .gossip import GossipDriver
from .keeper import ContentKeeper
from .ports import Clock, Fs
from .storage.restore import is_marked, unmark
from .telemetry.logging import get_logger

log = get_logger()

LOOK_S: Final = 0.5
NAME: Final = "restored"
ALARM: Final = "node.restored"


class Restoration:
    """Ends the quarantine of a restored node; does nothing for any other."""

    def __init__(
        self,
        data_dir: Path,
        *,
        driver: GossipDriver,
        keeper: ContentKeeper,
        alarms: Alarms,
        clock: Clock,
        fs: Fs,
    ) -> None:
        self._data_dir = data_dir
        self._driver = driver
        self._keeper = keeper
        self._alarms = alarms
        self._clock = clock
        self._fs = fs
        self._duties = Duties(driver.fail)

    def start(self) -> None:
        """Hold back if the node was restored, and look for a peer that knows more."""
        if not is_marked(self._data_dir, self._fs):
            return
        if not self._driver.engine.replicas:
            unmark(self._data_dir, self._fs)  # Who knew of no group has said nothing to contradict.
            return
        message = "this node was restored from a backup and has not heard yet what happened since"
        hint = "It goes on once one peer has told it. If there is no other node: crdt-merge-node run --alone"
        self._driver.standing.close(NAME, message, hint=hint, is_serving=False)
        self._alarms.set(ALARM, severity=Severity.WARNING, code=ALARM, message=f"{message}.", hint=hint)
        self._duties.begin(self._run(self._clock.monotonic()), name="restoration")

    async def close(self) -> None:
        """Stop looking; the next start goes on."""
        await self._duties.close()

    async def _run(self, began: float) -> None:
        peer = self._reached()
        while peer is None:
            await asyncio.sleep(LOOK_S)
            peer = self._reached()
        for group in list(self._driver.engine.replicas):
            await self._keeper.current(group)
        await asyncio.to_thread(unmark, self._data_dir, self._fs)
        self._driver.standing.open(NAME)
        self._alarms.clear(ALARM)
        log.info("restore.completed", peer=peer, duration_s=round(self._clock.monotonic() - began, 3))
        for group in list(self._driver.engine.replicas):
            self._keeper.changed(group)  # What is held here may be told now.

    def _reached(self) -> bytes | None:
        """Return a connected peer all of whose operations are here."""
        engine = self._driver.engine
        for peer in sorted(self._driver.connections):
            has_said = all(engine.reconciler.is_equal(peer, group) for group in engine.replicas)
            if has_said and engine.replicas and not engine.knows_more(peer):
                return peer
        return None
