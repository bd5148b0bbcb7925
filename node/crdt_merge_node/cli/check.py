"""``check``: one line for a monitoring system, by the rules for Nagios plugins.

Exit status 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN: the only command whose statuses mean this. The guidelines
say that a service which does not run, or does not answer in time, is CRITICAL, and that UNKNOWN is for wrong
arguments and for what the plugin itself could not do; so it is here.

Source: Nagios Plugins Development Guidelines: "Plugin Return Codes", "Performance data", "Threshold and
ranges".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import click
from crdt_merge_protocol.errors import CrdtMergeError

from crdt_merge_node.control.model import PeerState, Severity, Status, WhyReport
from crdt_merge_node.errors import DaemonNotRunningError, TimedOutError

from .durations import Seconds
from .options import Invocation, command
from .output import clean, count, duration, say, say_json, size

DAY_S: Final = 86_400.0
MIB: Final = 1 << 20
_LINE_CHARS_MAX: Final = 400
"""Of a message: some monitoring systems cut lines, and none shows a longer one."""


class Level(IntEnum):
    """What a plugin may find; the value is the exit status."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


_WORST: Final = (Level.OK, Level.UNKNOWN, Level.WARNING, Level.CRITICAL)
_BY_SEVERITY: Final = {Severity.WARNING.value: Level.WARNING}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    name: str
    level: Level
    message: str
    value: float | None = None
    unit: str = ""
    """As performance data have it: ``s``, ``B`` or nothing."""
    warning: str = ""
    """Nagios range: ``10`` is exceeded by 11, ``10:`` by 9."""
    critical: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """From when on somebody wants to know."""

    peers_min: int | None
    missing_s: tuple[float, float]
    """Warning, critical; likewise below."""
    free_bytes: tuple[int, int]
    certificate_s: tuple[float, float]


class _WrongArgumentsError(click.UsageError):
    """The plugin was called with arguments that it does not have."""

    exit_code = int(Level.UNKNOWN)


class _Plugin(click.Command):
    """A command whose wrong arguments are UNKNOWN, as monitoring systems expect."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Read the arguments."""
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            click.echo(f"CRDT-MERGE UNKNOWN - {clean(error.format_message())[:_LINE_CHARS_MAX]}")
            raise _WrongArgumentsError(error.message, error.ctx) from None

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; some arguments are looked at only then."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            click.echo(f"CRDT-MERGE UNKNOWN - {clean(error.format_message())[:_LINE_CHARS_MAX]}")
            raise _WrongArgumentsError(error.message, error.ctx) from None


@click.command(cls=_Plugin)
@click.option(
    "--peers-min",
    type=click.IntRange(0),
    help="Fewer live peers are critical. Default: 1 if the node knows any, else 0.",
)
@click.option("--missing-warning-s", type=Seconds(0), default=300.0, show_default=True, help="Bytes missing.")
@click.option("--missing-critical-s", type=Seconds(0), default=3600.0, show_default=True)
@click.option("--free-warning-mib", type=click.IntRange(0), default=1024, show_default=True, help="Disk.")
@click.option("--free-critical-mib", type=click.IntRange(0), default=256, show_default=True)
@click.option("--certificate-warning-days", type=Seconds(0), default=30.0, show_default=True)
@click.option("--certificate-critical-days", type=Seconds(0), default=7.0, show_default=True)
@click.option(
    "--timeout-s",
    type=Seconds(0.1, 600),
    default=10.0,
    show_default=True,
    help="A daemon that takes longer to answer is critical.",
)
@command
def check(
    invocation: Invocation,
    *,
    peers_min: int | None,
    missing_warning_s: float,
    missing_critical_s: float,
    free_warning_mib: int,
    free_critical_mib: int,
    certificate_warning_days: float,
    certificate_critical_days: float,
    timeout_s: float,
) -> None:
    """Say in one line whether this node is well, in the format of Nagios plugins.

    Exit status 0 OK, 1 WARNING, 2 CRITICAL (also if no daemon answers), 3 UNKNOWN (also for wrong arguments).
    The line ends with performance data. Looked at: alarms, live peers, how long bytes have been missing, room
    on the disk, the end of the certificate.
    """
    thresholds = Thresholds(
        peers_min=peers_min,
        missing_s=(missing_warning_s, missing_critical_s),
        free_bytes=(free_warning_mib * MIB, free_critical_mib * MIB),
        certificate_s=(certificate_warning_days * DAY_S, certificate_critical_days * DAY_S),
    )
    try:
        with invocation.client(timeout_s=timeout_s) as client:
            findings = judge(client.status(), client.why(), thresholds)
    except (DaemonNotRunningError, TimedOutError) as error:
        findings = [Finding(name="daemon", level=Level.CRITICAL, message=error.message)]
    except CrdtMergeError as error:
        findings = [Finding(name="daemon", level=Level.UNKNOWN, message=error.message)]
    level = worst(findings)
    if invocation.is_json:
        say_json("check/1", status=level.name, exit=int(level), findings=[_document(f) for f in findings])
    else:
        say(line(findings))
    raise click.exceptions.Exit(int(level))


def judge(status: Status, why: WhyReport, thresholds: Thresholds) -> list[Finding]:
    """Return what there is to say about a running node; the order is that of the line."""
    return [
        *_alarms(status),
        _peers(status, thresholds.peers_min),
        _missing(status, why, thresholds.missing_s),
        _low("free", status.free_bytes, thresholds.free_bytes, "B", f"{size(status.free_bytes)} free"),
        *_certificate(status, thresholds.certificate_s),
    ]


def worst(findings: list[Finding]) -> Level:
    """Return the level of the whole; UNKNOWN hides no problem that is known."""
    return max((finding.level for finding in findings), key=_WORST.index, default=Level.UNKNOWN)


def line(findings: list[Finding]) -> str:
    """Return the line that the guidelines ask for: the worst first, then performance data."""
    level = worst(findings)
    # A line is one line, and what follows a bar is data: neither may come from a name or a message.
    texts = [
        clean(finding.message).replace("\n", " ").replace("|", "/")
        for finding in sorted(findings, key=lambda finding: -_WORST.index(finding.level))
        if finding.message
    ]
    message = "; ".join(texts)[:_LINE_CHARS_MAX]
    data = " ".join(_performance(finding) for finding in findings if finding.value is not None)
    return f"CRDT-MERGE {level.name} - {message}" + (f" | {data}" if data else "")


def _alarms(status: Status) -> list[Finding]:
    return [
        Finding(
            name="alarm",
            level=_BY_SEVERITY.get(alarm.severity, Level.CRITICAL),
            message=f"{alarm.code}: {alarm.message}",
        )
        for alarm in status.alarms
    ]


def _peers(status: Status, peers_min: int | None) -> Finding:
    states = [peer.state for peer in status.peers]
    live = sum(state in (PeerState.ALIVE, PeerState.SUSPECT) for state in states)
    known = sum(state not in (PeerState.LEFT, PeerState.BLOCKED) for state in states)
    # A node that knows nobody is alone because somebody made it so: no reason to wake anyone.
    wanted = min(known, 1) if peers_min is None else peers_min
    return Finding(
        name="peers",
        level=Level.CRITICAL if live < wanted else Level.OK,
        message=f"{count(live, 'live peer')}" + (f", at least {wanted} wanted" if live < wanted else ""),
        value=live,
        critical=f"{wanted}:",
    )


def _missing(status: Status, why: WhyReport, limits: tuple[float, float]) -> Finding:
    """Judge for how long bytes have been missing here; what others lack their own check says."""
    own = [
        (reason.since, group.name)
        for group in why.groups
        for reason in group.reasons
        if reason.subject == status.node and reason.since and reason.missing
    ]
    since, name = min(own, default=(why.now, ""))
    age_s = max(why.now - since, 0.0)
    level = Level.CRITICAL if age_s > limits[1] else Level.WARNING if age_s > limits[0] else Level.OK
    groups = count(len(why.groups), "group")
    return Finding(
        name="missing_age",
        level=level,
        message=f"group {name} lacks bytes for {duration(age_s)}" if own else f"{groups}, nothing missing",
        value=round(age_s),
        unit="s",
        warning=f"{limits[0]:g}",
        critical=f"{limits[1]:g}",
    )


def _certificate(status: Status, limits: tuple[float, float]) -> list[Finding]:
    if not status.certificate_expires:
        return []  # A daemon of an older release does not tell.
    left_s = round(status.certificate_expires - status.now)
    words = f"valid for {duration(left_s)}" if left_s > 0 else "EXPIRED"
    return [_low("certificate", left_s, limits, "s", f"certificate {words}")]


def _low(name: str, value: float, limits: tuple[float, float], unit: str, message: str) -> Finding:
    """Judge something of which there should be enough."""
    level = Level.CRITICAL if value < limits[1] else Level.WARNING if value < limits[0] else Level.OK
    return Finding(
        name=name,
        level=level,
        message=message,
        value=value,
        unit=unit,
        warning=f"{limits[0]:.0f}:",
        critical=f"{limits[1]:.0f}:",
    )


def _performance(finding: Finding) -> str:
    return f"{finding.name}={finding.value:.0f}{finding.unit};{finding.warning};{finding.critical};0"


def _document(finding: Finding) -> dict[str, Any]:
    return {
        "name": finding.name,
        "status": finding.level.name,
        "message": finding.message,
        "value": finding.value,
        "unit": finding.unit,
        "warning": finding.warning,
        "critical": finding.critical,
    }
