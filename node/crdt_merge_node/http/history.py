"""The last hour in a few numbers, for the charts of the dashboard: what a page that is opened now missed."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from crdt_merge_node.documents import document
from crdt_merge_node.services import Services

INTERVAL_S: Final = 10.0
SAMPLES_MAX: Final = 360
"""One hour; some 40 KiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A node at one moment."""

    time: float
    """Unix seconds."""
    operations: int
    """Stored ones, of all groups."""
    missing_bytes: int
    """That followed groups lack here."""
    peers: int
    """Connected ones."""
    bytes_in: int
    bytes_out: int
    """On the wire, all connections since the start."""


def take(services: Services) -> Sample:
    """Return how the node is now. Cheap: nothing is computed that is not there."""
    keeper = services.keeper
    missing = 0
    for group in services.engine.replicas:
        contents = keeper.contents(group)
        if contents is not None and contents.missing and keeper.is_followed(group):
            missing += keeper.remaining(contents.missing)
    return Sample(
        time=services.clock.now(),
        operations=sum(len(replica.state) for replica in services.engine.replicas.values()),
        missing_bytes=missing,
        peers=len(services.driver.connections),
        bytes_in=services.endpoint.bytes_in,
        bytes_out=services.endpoint.bytes_out,
    )


class History:
    """Samples at a steady pace."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._samples: deque[Sample] = deque(maxlen=SAMPLES_MAX)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to take samples."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Take no more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def document(self) -> dict[str, Any]:
        """Return ``history/1``; the last sample is of this moment."""
        samples = (*self._samples, take(self._services))
        return document("history/1", interval_s=INTERVAL_S, samples=samples)

    async def _run(self) -> None:
        while True:
            self._samples.append(take(self._services))
            await asyncio.sleep(INTERVAL_S)
