"""Structured logs on standard error: JSON for machines, coloured lines on a terminal.

An event's name is a constant ``noun.verb_past`` declared in :data:`EVENTS` with its level and fields; a test
looks for strays. error: an operator must act; warning: may have to; info: state changed (a quiet, idle node
writes nothing at info); debug: per message. Ids may be passed as bytes, errors as exceptions; both are
written the short way that people compare (12 hex digits; message and ``error_code``).
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO, cast

import structlog
from crdt_merge_protocol.errors import CrdtMergeError
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from crdt_merge_node.ports import Clock, SystemClock, silence

from .events import note

Level = Literal["debug", "info", "warning", "error"]
ID_DIGITS: Final = 12


@dataclass(frozen=True, slots=True)
class Event:
    """A kind of log line."""

    level: Level
    fields: tuple[str, ...]
    doc: str


EVENTS: Final[Mapping[str, Event]] = {
    # node
    "node.ready": Event("info", ("node", "address", "groups", "duration_s"), "Peers and commands are heard."),
    "node.stopped": Event("info", ("node", "duration_s"), "Everything is closed and durable."),
    "node.failed": Event("error", ("error", "error_code"), "The daemon stops because it cannot go on."),
    "certificate.renewed": Event("info", ("node", "days"), "A new certificate is in use, for so many days."),
    "certificate.delayed": Event(
        "warning", ("error", "error_code"), "Nobody signs a new certificate; it is tried again."
    ),
    "node.left": Event("info", ("node", "count"), "This node has left its cluster, and told so many peers."),
    "leave.waited": Event("debug", ("bytes",), "Others do not hold everything yet that is here."),
    "restore.completed": Event(
        "info", ("peer", "duration_s"), "A restored node holds what a peer held; it is like any other now."
    ),
    "backup.completed": Event("info", ("path", "bytes", "duration_s"), "A backup is on disk, whole."),
    "library.warned": Event("warning", ("logger", "message"), "A library that we use wrote to its own log."),
    # peers
    "peer.joined": Event("info", ("peer", "address"), "A connection to a peer is up and both said hello."),
    "peer.left": Event("info", ("peer", "reason"), "A connection to a peer ended."),
    "peer.suspected": Event("warning", ("peer", "duration_s"), "A connected peer is silent for too long."),
    "peer.flapped": Event(
        "warning",
        ("peer", "joined", "left", "suspected", "state", "reason"),
        "A peer came and went too often to say it each time: what it did in the last minute besides.",
    ),
    "peer.slowed": Event(
        "info",
        ("peer", "duration_s", "count"),
        "A peer sends more operations than its credit allows; it is not read from for a moment.",
    ),
    "peer.refused": Event(
        "warning",
        ("peer", "remote", "reason", "count"),
        "A peer was refused, or refused this node; a count stands for the last minute.",
    ),
    "peer.unreachable": Event("debug", ("address", "reason"), "Nobody answered at an address."),
    "peer.blocked": Event("info", ("peer",), "A person told this node to refuse the peer."),
    "peer.departed": Event("info", ("peer",), "A peer has left for good; it is not dialled any more."),
    "peer.given_up": Event("info", ("peer",), "A person said that a peer will not come back."),
    "peer.forgotten": Event("debug", ("peer", "error"), "No room to remember where a peer is."),
    "message.failed": Event(
        "error", ("peer", "message", "error"), "A message met a bug here; its connection was closed."
    ),
    "node.admitted": Event("info", ("peer", "remote"), "A new node joined through this one."),
    "peer.unblocked": Event("info", ("peer",), "A person told this node to hear the peer again."),
    "node.cloned": Event(
        "error", ("peer", "remote"), "Two processes run with one node id: a data directory was copied."
    ),
    # replication
    "exchange.completed": Event(
        "debug",
        ("peer", "group", "outcome", "reason", "sent", "received", "bytes", "duration_s"),
        "Anti-entropy ended.",
    ),
    "delta.applied": Event("debug", ("peer", "group", "count"), "Operations became durable and visible."),
    "delta.refused": Event(
        "warning", ("peer", "group", "error", "error_code"), "An operation was not valid."
    ),
    "group.created": Event("info", ("group", "name"), "This node made a group."),
    "group.learned": Event("info", ("group", "name", "peer"), "A peer told of a group."),
    "act.signed": Event("info", ("group", "kind"), "This node, an administrator, signed an act."),
    "act.submitted": Event(
        "info",
        ("group", "kind", "operation", "reason"),
        "An act was brought into its group here.",
    ),
    "erasure.completed": Event(
        "info", ("group", "count"), "What an act erases is gone from this node: so many objects and blobs."
    ),
    "erasure.failed": Event(
        "error", ("group", "error", "error_code"), "Erased bytes could not be destroyed yet; tried again."
    ),
    "receipt.failed": Event(
        "warning",
        ("group", "error", "error_code"),
        "Peers could not be told that bytes are gone; tried again.",
    ),
    # blobs
    "blob.corrupt": Event(
        "error", ("blob", "reason"), "Stored bytes are damaged; they will be fetched again."
    ),
    "blob.fetched": Event("debug", ("blob", "bytes", "duration_s"), "All chunks of a blob are durable here."),
    "blob.failed": Event("warning", ("blob", "error", "error_code"), "A fetch failed; it is tried again."),
    "contents.failed": Event(
        "warning", ("error", "error_code"), "What is here of a group could not be read; it is tried again."
    ),
    "scan.failed": Event(
        "warning", ("blob", "error", "error_code"), "A content could not be looked through; tried again."
    ),
    "scan.forgotten": Event(
        "debug", ("blob", "error"), "No room to remember what a scan found; it is scanned at the next start."
    ),
    "hold.failed": Event(
        "warning", ("group", "error", "error_code"), "Peers could not be told what is held here; tried again."
    ),
    "blob.refused": Event("warning", ("peer", "blob", "reason"), "A peer sent wrong bytes and is banned."),
    "blob.withheld": Event("debug", ("blob", "error"), "A blob that a peer asked for could not be read."),
    "bulk.lost": Event("debug", ("peer", "reason"), "A connection for fetching blobs ended."),
    "bulk.failed": Event("error", ("peer", "error"), "A connection could not be served; it was closed."),
    "blob.healed": Event("info", ("blob",), "Bytes that had been damaged are here again."),
    "scrub.completed": Event(
        "info", ("bytes", "count", "duration_s"), "Everything stored was read; so much of it was damaged."
    ),
    "scrub.skipped": Event("debug", ("error",), "A part could not be checked now; the next pass does."),
    # storage
    "store.damaged": Event("error", ("table", "reason", "count"), "SQLite finds its own file damaged."),
    "operation.healed": Event(
        "info", ("operation", "group"), "A damaged row was written again from what is in memory."
    ),
    "store.opened": Event(
        "info", ("operations", "blobs", "bytes", "duration_s"), "The data directory was read and checked."
    ),
    "store.repaired": Event(
        "warning", ("swept", "adopted", "lost", "quarantined"), "Recovery changed what a crash had left."
    ),
    "store.shrunk": Event(
        "info", ("count", "bytes"), "So many blobs of contributions that count no more were removed."
    ),
    "freeing.failed": Event(
        "warning", ("error", "error_code"), "Such blobs could not be removed now; tried again."
    ),
    "freeing.forgotten": Event(
        "debug", ("error",), "No room to note how long they have waited; after a restart they wait anew."
    ),
    "store.full": Event("error", ("error", "error_code"), "No room; nothing is accepted until there is."),
    "store.failed": Event("error", ("error", "error_code"), "A write or fsync failed; the node stops."),
    "operation.quarantined": Event(
        "error", ("operation", "group", "reason"), "A stored operation is unreadable."
    ),
    "group.damaged": Event("error", ("group", "reason"), "A stored genesis is unreadable; peers have it."),
    "root.mismatched": Event(
        "error", ("group", "reason"), "The rebuilt trie is not the one saved at shutdown."
    ),
    "root.forgotten": Event("debug", ("error",), "A root could not be saved for the next start to check."),
    # http
    "http.opened": Event("info", ("address",), "Probes, metrics and the dashboard are served there."),
    "http.unavailable": Event("warning", ("address", "error"), "HTTP is not served; the node runs on."),
    "http.failed": Event("error", ("path", "error"), "A request met a bug; the line has the traceback."),
    # control
    "log.adjusted": Event("info", ("old", "new"), "A person set the level of the log until the next start."),
    "control.failed": Event("error", ("method", "error"), "A command met a bug; the line has the traceback."),
    # resolve
    "resolve.completed": Event("info", ("group", "output", "bytes", "duration_s"), "A model was written."),
    "resolve.failed": Event("warning", ("group", "error", "error_code"), "A model could not be written."),
    "attestation.forgotten": Event(
        "warning", ("group", "error", "error_code"), "A model was written and no room left to remember it."
    ),
    "report.forgotten": Event("debug", ("error",), "The dashboard shows an older resolve, or none."),
    "resolve.disagreed": Event(
        "error", ("group", "peer", "resolve_key"), "Two nodes got different outputs for one resolve key."
    ),
}


class Logger:
    """Writes a line, if the level of the log says so, and has the node remember it in any case."""

    __slots__ = ("_lines",)

    def __init__(self, lines: FilteringBoundLogger) -> None:
        self._lines = lines

    def debug(self, event: str, /, **fields: Any) -> None:
        """Tell what is of interest to who looks for a fault."""
        note("debug", event, fields)
        self._lines.debug(event, **fields)

    def info(self, event: str, /, **fields: Any) -> None:
        """Tell of a change of state."""
        note("info", event, fields)
        self._lines.info(event, **fields)

    def warning(self, event: str, /, **fields: Any) -> None:
        """Tell what somebody may have to look at."""
        note("warning", event, fields)
        self._lines.warning(event, **fields)

    def error(self, event: str, /, **fields: Any) -> None:
        """Tell what somebody has to look at."""
        note("error", event, fields)
        self._lines.error(event, **fields)

    def exception(self, event: str, /, **fields: Any) -> None:
        """Tell of a bug, with the traceback of the exception that is being handled."""
        note("error", event, fields)
        self._lines.exception(event, **fields)


def get_logger(module: str = "", **bound: Any) -> Logger:
    """Return a logger whose lines carry ``bound`` and name the module (``__name__``) that wrote them.

    May be called before :func:`configure_logging`.
    """
    if module:
        bound["module"] = module.removeprefix("crdt_merge_node.")
    return Logger(structlog.get_logger(**bound))


def configure_logging(
    *,
    level: Level = "info",
    form: Literal["auto", "json", "console"] = "auto",
    stream: TextIO | None = None,
    clock: Clock | None = None,
) -> None:
    """Send all log lines of this process to ``stream`` (standard error), from ``level`` up."""
    stream = stream or sys.stderr
    is_console = form == "console" or (form == "auto" and stream.isatty())
    renderer: list[Processor] = (
        [structlog.dev.ConsoleRenderer(colors=stream.isatty())]
        if is_console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            _Timestamps(clock or SystemClock()),
            _shorten,
            *renderer,
        ],
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, _Forgiving(stream))),
        cache_logger_on_first_use=False,
    )
    set_log_level(level)
    root = logging.getLogger()
    root.handlers = [_Bridge()]
    root.setLevel(logging.WARNING)


def set_log_level(level: Level) -> None:
    """Write lines from ``level`` up from now on; all nodes of the process share one standard error."""
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(number))
    _level[0] = level


def log_level() -> Level:
    """Return the level from which up lines are written."""
    return _level[0]


_level: list[Level] = ["info"]


class _Forgiving:
    """Writes lines as long as somebody takes them: a log that nobody reads must not end a node (B70).

    Once the reader has gone, the rest goes nowhere: what the stream still held would fail again when Python
    flushes it at the end, and then the process ends with status 120 instead of its own.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or let it be."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush, or let it be."""
        self._try(self._stream.flush)

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except BrokenPipeError:
            with contextlib.suppress(OSError, ValueError):
                silence(self._stream.fileno())
        except (OSError, ValueError):  # A full disk, which may have room again; a closed file.
            return


class _Timestamps:
    """Adds the wall time of the injected clock, in UTC with microseconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["timestamp"] = datetime.fromtimestamp(self._clock.now(), UTC).isoformat()
        return event


def _shorten(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Write ids and errors the way people read them."""
    for key, value in list(event.items()):
        if isinstance(value, bytes):
            event[key] = value.hex()[:ID_DIGITS]
        elif isinstance(value, CrdtMergeError):
            event[key] = str(value)
            event.setdefault("error_code", value.code)
        elif isinstance(value, BaseException) and key != "exc_info":
            event[key] = f"{type(value).__name__}: {value}"
    return event


class _Bridge(logging.Handler):
    """Carries what libraries write to the standard library's log (asyncio's warnings, for one) into ours."""

    def emit(self, record: logging.LogRecord) -> None:
        get_logger().warning(
            "library.warned",
            logger=record.name,
            message=record.getMessage(),
            exc_info=record.exc_info or None,
        )
