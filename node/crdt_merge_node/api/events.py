"""What happened lately, and how much of it goes to standard error."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import cast

from crdt_merge_node.control.model import EventsMissed, LogEvent, LogLevel
from crdt_merge_node.errors import InvalidRequestError
from crdt_merge_node.services import Services
from crdt_merge_node.telemetry.events import LEVELS
from crdt_merge_node.telemetry.logging import Level, get_logger, log_level, set_log_level

log = get_logger()


async def events(
    services: Services, *, after: int | None, age_s: float | None, last: int, level: str, follow: bool
) -> AsyncGenerator[LogEvent | EventsMissed]:
    """Yield what is kept of what happened, then what happens, if that is wanted, until the node stops.

    Raises:
        InvalidRequestError: There is no such level.
    """
    found = services.events
    level = _known(level or "info")
    if follow:
        async with aclosing(found.follow(after=after, age_s=age_s, last=last, level=level)) as following:
            async for event in following:
                yield event
    else:
        for kept in found.read(after=after, age_s=age_s, last=last, level=level):
            yield kept


def change_log_level(services: Services, level: str | None) -> LogLevel:
    """Return the level of the log, having changed it if one is given.

    Raises:
        InvalidRequestError: There is no such level.
    """
    if level is not None:
        old = log_level()
        set_log_level(_known(level))
        log.info("log.adjusted", old=old, new=level)
    return LogLevel(level=log_level(), configured=services.config.log.level)


def _known(level: str) -> Level:
    if level not in LEVELS:
        raise InvalidRequestError(f'"{level}" is no level.', hint=f"Use one of: {', '.join(LEVELS)}.")
    return cast(Level, level)
