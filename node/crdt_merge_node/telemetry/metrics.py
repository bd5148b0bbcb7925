"""The node in numbers for Prometheus, taken from where they are kept at the moment of the question.

    body = render(services)          # answer it with the content type CONTENT_TYPE

Names have the prefix ``crdt_merge_``, base units and the usual endings; labels take few values, none of which
a peer could make up. Whatever can stand still is a timestamp, so that silence can be told from health. Every
name is described in ``node/README.md``; a test compares.

Source: prometheus.io/docs/practices/naming. Differs: nothing that is known of.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from crdt_merge_protocol.errors import (
    BadSignatureError,
    ClusterMismatchError,
    LimitExceededError,
    MalformedMessageError,
    VersionMismatchError,
)
from crdt_merge_protocol.limits import WIRE_VERSION_MAX
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from crdt_merge_node.api.reports import check_space, peer_info
from crdt_merge_node.contents import GroupContents
from crdt_merge_node.control.model import ContributionState, PeerState, Severity
from crdt_merge_node.services import Services
from crdt_merge_node.transport.contexts import ALPN_BULK, ALPN_GOSSIP, ALPN_JOIN
from crdt_merge_node.version import VERSION

from .counters import Durations, kind_of

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
PREFIX: Final = "crdt_merge_"
_CHANNELS: Final = {ALPN_GOSSIP: "gossip", ALPN_BULK: "bulk", ALPN_JOIN: "join"}
_REASONS: Final = {
    MalformedMessageError.code: "malformed",
    LimitExceededError.code: "limit_exceeded",
    ClusterMismatchError.code: "cluster_mismatch",
    BadSignatureError.code: "bad_signature",
    VersionMismatchError.code: "version_mismatch",
}


def render(services: Services) -> bytes:
    """Return the exposition of a node, in the text format of Prometheus."""
    registry = CollectorRegistry()
    registry.register(NodeCollector(services))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class NodeCollector(Collector):
    """Reads one running node. Call it on the loop of that node."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def describe(self) -> Iterable[Metric]:
        """Return nothing: names are not claimed before there are numbers."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield all families."""
        services = self._services
        check_space(services)
        yield InfoMetricFamily(
            PREFIX + "build",
            "Versions of the running daemon.",
            {"version": VERSION, "wire_version": str(WIRE_VERSION_MAX), "python": platform.python_version()},
        )
        yield _gauge(
            "start_timestamp_seconds", "When the daemon was started, in Unix time.", services.started
        )
        yield from _peers(services)
        yield from _contents(services)
        yield from _traffic(services)
        yield from _exchanges(services)
        yield from _store(services)
        yield from _health(services)


def _peers(services: Services) -> Iterator[Metric]:
    driver, reconciler = services.driver, services.engine.reconciler
    states = Counter(peer_info(services, peer).state for peer in driver.known)
    yield _by("peers", "Known peers, by liveness.", "state", {state: states[state] for state in PeerState})
    live, groups = sorted(driver.connections), services.engine.replicas
    agreeing = sum(all(reconciler.is_equal(peer, group) for group in groups) for peer in live)
    yield _gauge(
        "converged_peers_ratio",
        "Share of connected peers whose roots of all groups equal those of this node; 1 with none connected.",
        agreeing / len(live) if live else 1.0,
    )
    rtts = [rtt for each in driver.connections.values() if (rtt := each.rtt_s) is not None]
    yield _gauge(
        "peer_round_trip_seconds_max",
        "Longest of the round trips last measured to connected peers; 0 before the first.",
        max(rtts, default=0.0),
    )
    yield _counter(
        "connections_refused",
        "Connections that this node or the other side would not have.",
        driver.counters.refusals,
    )
    yield _counter(
        "peer_pause_seconds",
        "Time in which nothing was read from peers that had sent more operations than their credit allowed.",
        driver.counters.paused_s,
    )
    offences: Counter[str] = Counter()
    for code, count in driver.counters.offences.items():
        offences[_REASONS.get(code, "other")] += count
    reasons = (*_REASONS.values(), "other")
    yield _counted(
        "protocol_errors",
        "Offences of peers against the protocol, each of which ended a connection.",
        ("reason",),
        {(reason,): offences[reason] for reason in reasons},
    )


def _contents(services: Services) -> Iterator[Metric]:
    replicas, keeper = services.engine.replicas, services.keeper
    states: Counter[str] = Counter()
    missing_bytes = 0
    for group in replicas:
        contents = keeper.contents(group)
        if contents is not None:  # None until it was looked at for the first time.
            states += _states(contents)
            missing_bytes += keeper.remaining(contents.missing) if keeper.is_followed(group) else 0
    shown = [state for state in ContributionState if state != ContributionState.HIDDEN]
    yield _gauge("groups", "Groups that this node knows.", len(replicas))
    yield _gauge(
        "operations",
        "Stored operations of all groups.",
        sum(len(replica.state) for replica in replicas.values()),
    )
    yield _by(
        "contributions",
        "Contributions of all groups that nobody removed or replaced, by where they stand.",
        "state",
        {state: states[state] for state in shown},
    )
    yield _gauge(
        "tombstones",
        "Contributions of all groups that were removed.",
        sum(len(replica.state.removes) for replica in replicas.values()),
    )
    decided = [replica.state.view.decided for replica in replicas.values()]
    own = services.engine.node
    yield _gauge(
        "banned_contents",
        "Contents of all groups that administrators banned or erased.",
        sum(len(each.banned) for each in decided),
    )
    yield _gauge(
        "erasures_pending",
        "Erasures of all groups that this node has not signed as done.",
        sum(len(each.erasures - {erasure for erasure, by in each.receipts if by == own}) for each in decided),
    )
    yield _gauge(
        "missing_contributions",
        "Contributions of which bytes are not here yet.",
        states[ContributionState.MISSING],
    )
    yield _gauge(
        "missing_blob_bytes", "Bytes still to be fetched, of all groups that are followed.", missing_bytes
    )


def _states(contents: GroupContents) -> Counter[str]:
    """Count contributions by :class:`ContributionState`."""
    items = contents.items.values()
    lacking = contents.select().choice.lacking
    return Counter(
        {
            ContributionState.USED: len(contents.used),
            ContributionState.MISSING: sum(bool(item.missing) for item in items),
            ContributionState.PENDING: len(contents.view.pending),
            ContributionState.QUARANTINED: sum(bool(item.problem) for item in items) + len(lacking),
        }
    )


def _traffic(services: Services) -> Iterator[Metric]:
    traffic = services.endpoint.traffic
    messages: dict[tuple[str, ...], float] = {}
    for direction, counts in (("in", traffic.received), ("out", traffic.sent)):
        for message_class, count in counts.items():
            messages[direction, kind_of(message_class)] = count
    yield _counted(
        "messages",
        "Messages from and to peers, without the first of a connection.",
        ("direction", "kind"),
        messages,
    )
    yield _counter(
        "messages_shed", "Messages not sent because too much was waiting already.", traffic.shed.total()
    )
    nbytes: Counter[tuple[str, ...]] = Counter(
        {(direction, kind): 0 for direction in ("in", "out") for kind in (*_CHANNELS.values(), "other")}
    )
    for protocol, (received, sent) in services.endpoint.bytes_by_protocol().items():
        kind = _CHANNELS.get(protocol, "other")
        nbytes["in", kind] += received
        nbytes["out", kind] += sent
    yield _counted(
        "bytes", "Bytes on the wire, TLS included, by kind of connection.", ("direction", "kind"), nbytes
    )


def _exchanges(services: Services) -> Iterator[Metric]:
    counters = services.driver.counters
    yield _histogram(
        "exchange_duration_seconds",
        "Anti-entropy with one peer about one group, from opening to end.",
        ("outcome",),
        {(outcome,): durations for outcome, durations in counters.exchanges.all.items()},
    )
    yield _gauge(
        "last_exchange_timestamp_seconds",
        "When this node last found out what a peer has, in Unix time; 0: not since the start.",
        counters.last_agreed,
    )
    yield _histogram(
        "resolve_duration_seconds",
        "Resolves of groups, from the first byte read to the output on disk.",
        ("strategy", "outcome"),
        {(strategy, outcome): found for (strategy, outcome), found in counters.resolves.all.items()},
    )


def _store(services: Services) -> Iterator[Metric]:
    path, database = services.config.node.data_dir, services.store.data.database
    files = (database, database.with_name(database.name + "-wal"))
    found = [services.fs.stat(file) for file in files]
    yield _by(
        "store_bytes",
        "Bytes on disk: of tensors, and of the database with everything else.",
        "kind",
        {
            "blobs": services.store.blobs.total_bytes(),
            "database": sum(stat.nbytes for stat in found if stat is not None),
        },
    )
    yield _counter(
        "store_freed_bytes",
        "Bytes of contributions that count no more, removed since the start.",
        services.keeper.unused.freed_bytes,
    )
    yield _gauge(
        "store_free_bytes",
        "Free bytes on the file system of the data directory.",
        services.fs.disk_space(path).free_bytes,
    )
    yield _gauge(
        "store_reserve_bytes",
        "Free bytes below which the node accepts nothing new.",
        float(services.config.storage.reserve_bytes),
    )
    yield _gauge("effects_queue_length", "Changes that wait for the disk.", services.driver.queued_effects)


def _health(services: Services) -> Iterator[Metric]:
    severities = Counter(alarm.severity for alarm in services.alarms.standing())
    yield _by("alarms", "Standing alarms.", "severity", {each: severities[each] for each in Severity})
    yield _counted(
        "events",
        "Lines of the log, also of those that its level leaves out.",
        ("level",),
        {(level,): count for level, count in services.events.counts.items()},
    )
    yield _gauge(
        "certificate_expiry_timestamp_seconds",
        "Until when the certificate of this node is valid, in Unix time.",
        services.certificate.expires_at,
    )
    yield _histogram(
        "event_loop_lag_seconds",
        "How much later than asked for the loop called, once a second.",
        (),
        {(): services.driver.counters.loop_lag},
    )


# --- families -----------------------------------------------------------------------------------------


def _gauge(name: str, doc: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, doc, value)


def _counter(name: str, doc: str, value: float) -> Metric:
    return CounterMetricFamily(PREFIX + name, doc, value)


def _by(name: str, doc: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, doc, labels=[label])
    for key, value in values.items():
        family.add_metric([str(key)], value)
    return family


def _counted(name: str, doc: str, labels: tuple[str, ...], values: Mapping[tuple[str, ...], float]) -> Metric:
    family = CounterMetricFamily(PREFIX + name, doc, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric(key, value)
    return family


def _histogram(
    name: str, doc: str, labels: tuple[str, ...], values: Mapping[tuple[str, ...], Durations]
) -> Metric:
    family = HistogramMetricFamily(PREFIX + name, doc, labels=labels)
    for key, durations in sorted(values.items()):
        total = 0
        buckets = []
        for bound, count in zip((*durations.bounds_s, float("inf")), durations.counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else str(bound), float(total)))
        family.add_metric(key, buckets, durations.sum_s)
    return family
