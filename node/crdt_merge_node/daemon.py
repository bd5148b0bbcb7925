"""The process of the daemon: its log, its signals, its service manager and its exit status.

A node stops on SIGTERM, SIGINT or SIGHUP, or when a part fails in a way that a restart must look at
(DESIGN 3.5: an fsync error is fail-stop).
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Final

from crdt_merge_protocol.errors import CrdtMergeError

from .allocator import keep_large_buffers, spare_what_stays
from .config import Config
from .runtime import Facts, RunningNode, running_node
from .systemd import ServiceManager
from .telemetry.logging import configure_logging, get_logger
from .world import World

log = get_logger()

STOPPING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def run(config: Config, *, on_ready: Callable[[Facts], None] = lambda _facts: None) -> int:
    """Run a node until it is told to stop; return the exit status of the process."""
    configure_logging(level=config.log.level, form=config.log.format)
    keep_large_buffers()
    import uvloop

    return uvloop.run(_main(config, on_ready))


async def _main(config: Config, on_ready: Callable[[Facts], None]) -> int:
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[None] = loop.create_future()
    manager = ServiceManager(os.environ)
    stop.add_done_callback(lambda _: manager.stopping())
    # One that is ignored stays so, as nohup leaves SIGHUP.
    heard = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
    for number in heard:
        loop.add_signal_handler(number, _resolve, stop)

    def tell(node: RunningNode) -> None:
        spare_what_stays()
        facts = node.facts()
        manager.ready(f"node {facts['node'][:12]} listens on {facts['listen']}")
        on_ready(facts)

    try:
        return await serve(config, World(), stop=stop, on_ready=tell)
    finally:
        if stop.done():  # Said again, it must not kill what has ended in good order and is about to exit.
            for number in heard:
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)


def _resolve(stop: asyncio.Future[None]) -> None:
    if not stop.done():
        stop.set_result(None)


async def serve(
    config: Config,
    world: World,
    *,
    stop: asyncio.Future[None],
    on_ready: Callable[[RunningNode], None] = lambda _node: None,
) -> int:
    """Run a node until ``stop`` is resolved or it cannot go on; return the exit status of the process.

    Raises:
        CrdtMergeError: It cannot be opened.
    """
    try:
        async with running_node(config, world) as node:
            with node.services.events.bound():  # Who follows the events learns it before they end.
                node.failed.add_done_callback(_log_failed)
            on_ready(node)
            stopping = node.services.stopping
            await asyncio.wait((stop, node.failed, stopping), return_when=asyncio.FIRST_COMPLETED)
    except CrdtMergeError as error:
        log.error("node.failed", error=error)  # noqa: TRY400 - a person reads it; no traceback.
        raise
    if not node.failed.done():
        return 0
    failure = node.failed.result()
    return failure.exit_code if isinstance(failure, CrdtMergeError) else 1


def _log_failed(failed: asyncio.Future[BaseException]) -> None:
    if failed.cancelled():
        return
    failure = failed.result()
    is_bug = not isinstance(failure, CrdtMergeError)
    log.error("node.failed", error=failure, exc_info=failure if is_bug else None)
