"""What a node has learnt of its peers since its start, beyond what the engine needs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from crdt_merge_protocol.canonical import is_name
from crdt_merge_protocol.reconciler import Ended

from .cloning import Instances
from .ports import Clock
from .telemetry.logging import get_logger

log = get_logger()


@dataclass(frozen=True, slots=True)
class LastExchange:
    """How anti-entropy with a peer about a group ended last."""

    time: float
    """Wall time of the end."""
    ended: Ended


@dataclass(slots=True)
class PeerRecord:
    """What is known of a peer beyond the engine."""

    name: str = ""
    """What it calls itself."""
    state: str = "failed"
    since: float = 0.0
    """Wall time of the last change of ``state``."""
    last_error: str = ""
    last_sync: float | None = None
    """Wall time at which all its roots were last found equal to ours."""
    bytes_in: int = 0
    bytes_out: int = 0
    """On connections that have ended."""
    exchanges: dict[bytes, LastExchange] = field(default_factory=dict)
    """By group."""
    instances: Instances = field(default_factory=Instances)


class PeerRecords:
    """The records of all peers that were met or dialled by name."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._records: dict[bytes, PeerRecord] = {}
        self._started = clock.now()

    def __contains__(self, peer: bytes) -> bool:
        return peer in self._records

    def __getitem__(self, peer: bytes) -> PeerRecord:
        return self._records[peer]

    def get(self, peer: bytes) -> PeerRecord:
        """Return what is known of a peer; of one that was never met, nothing is kept."""
        return self._records.get(peer) or PeerRecord(since=self._started)

    def set_state(self, peer: bytes, state: str, error: str) -> None:
        """Note how a peer is from now on, and what went wrong with it last."""
        record = self._records.setdefault(peer, PeerRecord(since=self._clock.now()))
        if record.state != state:
            record.state, record.since = state, self._clock.now()
        record.last_error = error

    def note_exchange(self, ended: Ended, time: float) -> None:
        """Note and log how anti-entropy with a peer ended, with the wall time of that."""
        if record := self._records.get(ended.peer):
            record.exchanges[ended.group] = LastExchange(time, ended)
        _log_ended(ended)


def name_in(features: Iterable[str]) -> str:
    """Return what a peer calls itself in its HELLO; empty if it does not, or not by a name."""
    named = [text.removeprefix("name=") for text in features if text.startswith("name=")]
    return named[0] if named and is_name(named[0]) else ""


def _log_ended(ended: Ended) -> None:
    log.debug(
        "exchange.completed",
        peer=ended.peer,
        group=ended.group,
        outcome=ended.outcome,
        reason=ended.reason,
        sent=ended.sent_count,
        received=ended.received_count,
        bytes=ended.nbytes,
        duration_s=round(ended.duration_s, 3),
    )
